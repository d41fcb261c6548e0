"""The key file slot: a file of random bytes, on a stick or in a secrets manager."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from cryptfs.crypto.kdf import HkdfSha256, Kdf
from cryptfs.errors import UsageError

MIN_BYTES = 32
MAX_BYTES = 1 << 20


class KeyFile:
    """The content of a key file; UsageError unless it has 32 bytes to 1 MiB."""

    type = "keyfile"

    def __init__(self, content: bytes) -> None:
        if not MIN_BYTES <= len(content) <= MAX_BYTES:
            raise UsageError("A key file has 32 bytes to 1 MiB of random data.")
        self._secret = hashlib.sha256(content).digest()

    def new_kdf(self) -> Kdf:
        return HkdfSha256.new()

    def new_extra(self, kdf: Kdf) -> dict[str, Any]:
        return {}

    def slot_key(self, kdf: Kdf, extra: Mapping[str, Any]) -> bytes:
        return kdf.derive(self._secret)

"""The passphrase slot: what a person remembers, made expensive to guess by Argon2id."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

from cryptfs.crypto.kdf import Argon2id, Kdf, calibrate
from cryptfs.errors import UsageError

MAX_BYTES = 1024


class Passphrase:
    """A passphrase; UsageError if it is empty, too long or not text.

    `cost` are the Argon2id parameters for new slots; by default the machine is measured.
    """

    type = "passphrase"

    def __init__(self, text: str, cost: Argon2id | None = None) -> None:
        try:
            # The same letters typed on another keyboard or system must be the same bytes.
            self._secret = unicodedata.normalize("NFC", text).encode("utf-8")
        except UnicodeEncodeError:
            raise UsageError("The passphrase is not valid UTF-8 text.") from None
        if not self._secret:
            raise UsageError("The passphrase is empty.")
        if len(self._secret) > MAX_BYTES:
            raise UsageError(f"The passphrase is longer than {MAX_BYTES} bytes.")
        self._cost = cost

    def new_kdf(self) -> Kdf:
        self._cost = self._cost or calibrate()
        return self._cost.fresh()

    def new_extra(self, kdf: Kdf) -> dict[str, Any]:
        return {}

    def slot_key(self, kdf: Kdf, extra: Mapping[str, Any]) -> bytes:
        return kdf.derive(self._secret)

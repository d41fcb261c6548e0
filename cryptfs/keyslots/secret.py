"""What every kind of key slot has in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from cryptfs.crypto.kdf import Kdf


class Secret(Protocol):
    """Something that opens a key slot: it is made from what a person has or knows.

    One class per slot type of docs/format.md section 3. None of them shows its
    secret in `repr`.
    """

    @property
    def type(self) -> str:
        """The slot type that this secret opens."""

    def new_kdf(self) -> Kdf:
        """Parameters with a new salt, for a new slot. May take a second to measure the machine."""

    def new_extra(self, kdf: Kdf) -> dict[str, Any]:
        """What a new slot must hold in the clear beside this KDF (`extra`)."""

    def slot_key(self, kdf: Kdf, extra: Mapping[str, Any]) -> bytes:
        """The 32-byte slot key of a slot with these public fields."""

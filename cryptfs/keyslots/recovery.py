"""The recovery key: 256 random bits on paper, with check digits that find the typing error.

The text form is docs/format.md section 12.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

from cryptfs.crypto.kdf import HkdfSha256, Kdf
from cryptfs.errors import UsageError

SIZE = 32
GROUPS = 9
GROUP_DIGITS = 7  # six digits and the check digit
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

_CHECKSUM_BITS = 14
_DIGITS = 54
_READ_AS = str.maketrans("ILO", "110")


class RecoveryKey:
    """32 random bytes; `text` is what goes on paper."""

    type = "recovery"

    def __init__(self, secret: bytes) -> None:
        if len(secret) != SIZE:
            raise ValueError("a recovery key has 32 bytes")
        self._secret = secret

    @classmethod
    def new(cls) -> RecoveryKey:
        return cls(os.urandom(SIZE))

    @classmethod
    def parse(cls, text: str) -> RecoveryKey:
        """The key that was typed; UsageError that names the wrong group."""
        return cls(decode(text))

    @property
    def text(self) -> str:
        """Nine groups of seven, joined by `-`."""
        return encode(self._secret)

    def new_kdf(self) -> Kdf:
        return HkdfSha256.new()

    def new_extra(self, kdf: Kdf) -> dict[str, Any]:
        return {}

    def slot_key(self, kdf: Kdf, extra: Mapping[str, Any]) -> bytes:
        return kdf.derive(self._secret)


def encode(secret: bytes) -> str:
    """The text of 32 bytes."""
    number = int.from_bytes(secret, "big") << _CHECKSUM_BITS | _checksum(secret)
    digits = "".join(ALPHABET[number >> 5 * i & 31] for i in reversed(range(_DIGITS)))
    parts = [digits[i : i + 6] for i in range(0, _DIGITS, 6)]
    return "-".join(part + check_digit(index, part) for index, part in enumerate(parts))


def decode(text: str) -> bytes:
    """The 32 bytes of a text; UsageError that says which group was mistyped.

    Groups are counted from 1 for people.
    """
    parts = text.replace("-", " ").upper().translate(_READ_AS).split()
    if len(parts) == GROUPS:
        for index, part in enumerate(parts):
            if len(part) != GROUP_DIGITS:
                raise UsageError(
                    f"Group {index + 1} of the recovery key has {len(part)} characters "
                    f"instead of {GROUP_DIGITS}."
                )
    typed = "".join(parts)
    wrong = sorted({i // GROUP_DIGITS + 1 for i, digit in enumerate(typed) if digit not in ALPHABET})
    if wrong and wrong[0] <= GROUPS:
        raise UsageError(f"Group {wrong[0]} of the recovery key has a character that cannot occur there.")
    groups = [typed[i : i + GROUP_DIGITS] for i in range(0, len(typed), GROUP_DIGITS)]
    for index, group in enumerate(groups[:GROUPS]):
        if len(group) == GROUP_DIGITS and check_digit(index, group[:-1]) != group[-1]:
            raise UsageError(f"Group {index + 1} of the recovery key was mistyped: compare its 7 characters.")
    if len(typed) != GROUPS * GROUP_DIGITS:
        raise UsageError(
            f"A recovery key has {GROUPS} groups of {GROUP_DIGITS} characters; "
            f"{len(typed)} characters were given instead of {GROUPS * GROUP_DIGITS}."
        )
    number = 0
    for group in groups:
        for digit in group[:-1]:
            number = number << 5 | ALPHABET.index(digit)
    secret = (number >> _CHECKSUM_BITS).to_bytes(SIZE, "big")
    if number & (1 << _CHECKSUM_BITS) - 1 != _checksum(secret):
        raise UsageError("The recovery key was mistyped: compare every group with the paper.")
    return secret


def check_digit(index: int, digits: str) -> str:
    """The seventh character of group `index` (from 0)."""
    label = b"cryptfs v1 recovery group" + bytes([index])
    return ALPHABET[hashlib.sha256(label + digits.encode("ascii")).digest()[0] >> 3]


def _checksum(secret: bytes) -> int:
    digest = hashlib.sha256(b"cryptfs v1 recovery" + secret).digest()
    return int.from_bytes(digest[:2], "big") >> 16 - _CHECKSUM_BITS

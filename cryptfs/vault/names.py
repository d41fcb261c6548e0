"""Encrypted names (docs/format.md section 5): AES-SIV under the directory's key."""

from __future__ import annotations

import binascii
import hashlib
import re

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from cryptfs.crypto.derive import expand

DIR_HEADER = b"@dir"
OLD_HEADER = b"@old"
"""The header that a directory had before it got a new key (docs/format.md section 13)."""
LONG_PREFIX = b"@l"
LONG_SUFFIX = b".name"
TEMP_PREFIX = b"@tmp-"
NAME_MAX = 255

_LONG_ENTRY = re.compile(rb"@l[A-Za-z0-9_-]{43}")
_SHORT_ENTRY = re.compile(rb"[A-Za-z0-9_-]{23,255}")


class NameInvalid(Exception):
    """An entry's name does not decrypt under this directory's key."""


def is_entry(lower: bytes) -> bool:
    """Whether a ciphertext directory's entry stands for an object (or should).

    Others (`.nfs…`, `@eaDir`, a tool's lock file) are not part of the vault.
    """
    return _SHORT_ENTRY.fullmatch(lower) is not None or _LONG_ENTRY.fullmatch(lower) is not None


def is_long(lower: bytes) -> bool:
    """Whether the encrypted name is kept in a `.name` file beside the entry."""
    return lower.startswith(LONG_PREFIX)


def long_entry(text: bytes) -> bytes:
    """The entry's name for an encrypted name that is too long; NameInvalid if it is not.

    Else a short name could have a second entry.
    """
    if len(text) <= NAME_MAX:
        raise NameInvalid
    return LONG_PREFIX + pack_text(hashlib.sha256(text).digest())


# binascii directly: the base64 module's wrappers cost as much as the encryption of a name.
_TO_URLSAFE, _FROM_URLSAFE = bytes.maketrans(b"+/", b"-_"), bytes.maketrans(b"-_+/=", b"+/!!!")
_PADDING = (b"", b"", b"==", b"=")
# Last characters whose unused bits are zero, by the length modulo 4; no length is 1 modulo 4.
_LAST: tuple[frozenset[int] | None, ...] = (
    None,
    frozenset(),
    frozenset(b"AQgw"),
    frozenset(b"AEIMQUYcgkosw048"),
)


def pack_text(data: bytes) -> bytes:
    """Bytes as the text of an entry: base64url without padding."""
    return binascii.b2a_base64(data, newline=False).rstrip(b"=").translate(_TO_URLSAFE)


def unpack_text(text: bytes) -> bytes:
    """Undo `pack_text`; ValueError for any text that it would not have made."""
    rest = len(text) % 4
    last = _LAST[rest]
    if last is not None and text[-1] not in last:
        raise ValueError("not canonical")
    return binascii.a2b_base64(text.translate(_FROM_URLSAFE) + _PADDING[rest], strict_mode=True)


class NameCipher:
    """The names in one directory. The last name is kept: what is looked up is often made or removed next."""

    __slots__ = ("_associated", "_last", "_siv")

    def __init__(self, object_key: bytes, object_id: bytes) -> None:
        self._siv = AESSIV(expand(object_key, "cryptfs v1 names", 64))
        self._associated = [object_id]
        self._last = (b"", b"")

    def encrypt(self, name: bytes) -> bytes:
        """The encrypted name as text; longer than 255 bytes for long names."""
        last, text = self._last
        if name != last:
            text = pack_text(self._siv.encrypt(name, self._associated))
            self._last = name, text
        return text

    def decrypt(self, text: bytes) -> bytes:
        """The plaintext of an encrypted name; NameInvalid if it is not one of this directory's."""
        try:
            name = self._siv.decrypt(unpack_text(text), self._associated)
        except (ValueError, InvalidTag):
            raise NameInvalid from None
        if not 1 <= len(name) <= NAME_MAX or b"/" in name or b"\0" in name or name in (b".", b".."):
            raise NameInvalid
        return name


class TwoKeys(NameCipher):
    """The names in a directory that is being re-encrypted: under its key, or the one that it had before."""

    __slots__ = ("former",)

    def __init__(self, object_key: bytes, former_key: bytes, object_id: bytes) -> None:
        super().__init__(object_key, object_id)
        self.former = NameCipher(former_key, object_id)

    def decrypt(self, text: bytes) -> bytes:
        """The plaintext of a name under either key."""
        try:
            return super().decrypt(text)
        except NameInvalid:
            return self.former.decrypt(text)

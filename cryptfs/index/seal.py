"""The seal beside an LMDB file: whose it is, its key, and whether it was closed in order.

`seal` = magic `CFX1` ‖ u32 epoch ‖ nonce (24) ‖ XAES(Expand(epoch key, "cryptfs v1 index", 32), nonce,
fields, "cryptfs v1 index" ‖ vault id ‖ u32 epoch ‖ purpose). The fields are a state (0 open, 1 closed in
order, 2 being made: nothing is in it yet),
the environment's own random key (32 bytes), inode number (u64), size (u64) and change time (i64, ns) of the
LMDB file when it was closed, and 16 bytes that say which ciphertext it describes. It is replaced
durably, first thing after opening and last thing at the end: so a file that was written to since, by
whomever, does not fit its seal.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

from cryptfs.crypto.aead import InvalidTag, open_sealed, seal
from cryptfs.crypto.derive import expand
from cryptfs.vault.diskio import replace_file
from cryptfs.vault.header import KeyringLike

NAME = "seal"
OPEN, CLOSED, NEW = range(3)
SUBJECT_SIZE = 16
_MAGIC = b"CFX1"
_LABEL = "cryptfs v1 index"
_FIELDS = struct.Struct("<B32sQQq16s")


class SealInvalid(Exception):
    """There is no seal, or it does not open: damaged, another vault's, or of an epoch that is gone."""


@dataclass
class Seal:
    """What is in a seal. `lower` is (inode, size, change time) of the LMDB file, zeros while it is open."""

    key: bytes = field(repr=False)
    subject: bytes
    state: int = NEW
    lower: tuple[int, int, int] = (0, 0, 0)
    epoch: int = 0
    """The epoch it was found sealed under."""

    @classmethod
    def new(cls, subject: bytes) -> Seal:
        """One for an environment that is yet to be made."""
        return cls(os.urandom(32), subject)

    @classmethod
    def load(cls, folder: Path, purpose: str, vault_id: bytes, keyring: KeyringLike) -> Seal:
        """The seal in an environment's folder. Raises SealInvalid, or OSError."""
        try:
            data = (folder / NAME).read_bytes()
        except FileNotFoundError:
            raise SealInvalid("it has no seal") from None
        number = data[4:8]
        if data[:4] != _MAGIC:
            raise SealInvalid("its seal is damaged")
        epoch = keyring.get(int.from_bytes(number, "little"))
        if epoch is None:
            raise SealInvalid("its seal is of an epoch that is gone, as after a rotation of the keys")
        associated = _LABEL.encode() + vault_id + number + purpose.encode()
        try:
            plain = open_sealed(expand(epoch.key, _LABEL, 32), data[8:], associated)
            state, key, inode, size, changed, subject = _FIELDS.unpack(plain)
        except (InvalidTag, struct.error):
            raise SealInvalid("its seal is damaged, or another vault's") from None
        return cls(key, subject, state, (inode, size, changed), epoch.number)

    def save(self, folder: Path, purpose: str, vault_id: bytes, keyring: KeyringLike) -> None:
        """Replace the seal durably, under the current epoch."""
        epoch = keyring.current
        number = epoch.number.to_bytes(4, "little")
        plain = _FIELDS.pack(self.state, self.key, *self.lower, self.subject)
        associated = _LABEL.encode() + vault_id + number + purpose.encode()
        sealed = seal(expand(epoch.key, _LABEL, 32), plain, associated)
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            replace_file(directory, NAME, _MAGIC + number + sealed, 0o600)
        finally:
            os.close(directory)
        self.epoch = epoch.number

"""What the metadata index holds of an entry of a directory.

A record is one of

* `OPAQUE ‖ name`: there is such an entry; what it is must be looked up (hard links, devices, damage, files
  that are open);
* `DIRECTORY ‖ u64 inode ‖ name`;
* `FILE ‖ fields ‖ name`: a regular file, symbolic link, FIFO or socket with one name, whose attributes hold
  as long as the ciphertext file has this inode number, change time and length.

Names are plaintext here: the environment seals every value.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

OPAQUE, DIRECTORY, FILE = range(3)

_OPAQUE = bytes([OPAQUE])
_DIRECTORY = struct.Struct("<BQ")
_FILE = struct.Struct("<BBIIIQQIqqqq")
_PLACES = {OPAQUE: 1, DIRECTORY: _DIRECTORY.size, FILE: _FILE.size}
_BLOCKS_MAX = 1 << 32


class FileRecord(NamedTuple):
    """The fields of a `FILE`; `size` is the plaintext's, times in ns, `changed` is the ciphertext's."""

    kind: int
    chunk_log2: int
    mode: int
    uid: int
    gid: int
    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    changed: int


def opaque(name: bytes) -> bytes:
    """The record of an entry that must be looked up."""
    return _OPAQUE + name


def directory(ino: int, name: bytes) -> bytes:
    return _DIRECTORY.pack(DIRECTORY, ino) + name


def file(record: FileRecord, name: bytes) -> bytes:
    """The record of a file; an opaque one where a field is too large."""
    if not 0 <= record.blocks < _BLOCKS_MAX:
        return opaque(name)
    return _FILE.pack(*record) + name


def kind_of(value: bytes) -> int:
    """OPAQUE, DIRECTORY or FILE."""
    return value[0] if value else OPAQUE


def name_of(value: bytes) -> bytes:
    """The plaintext name in a record."""
    return value[_PLACES.get(value[0], 1) :]


def file_of(value: bytes) -> FileRecord:
    """The fields of a record whose kind is FILE."""
    return FileRecord._make(_FILE.unpack_from(value))


fields_of = _FILE.unpack_from
"""The same as a plain tuple, for where it is done a million times."""


def inode_of(value: bytes) -> int:
    """The inode number in a record whose kind is DIRECTORY."""
    number: int = _DIRECTORY.unpack_from(value)[1]
    return number

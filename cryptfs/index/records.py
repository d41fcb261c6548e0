"""What the metadata index holds of an entry of a directory.

A record is one of

* `OPAQUE ‖ name`: there is such an entry; what it is must be looked up (hard links, devices, damage, files
  that are open);
* `DIRECTORY ‖ u64 inode ‖ name`;
* `FILE ‖ fields ‖ name`: a regular file, symbolic link, FIFO or socket with one name, whose attributes hold
  as long as the ciphertext file has this inode number, change time and length.

A file's fields come in three sizes, told apart by the first byte: `FILE` takes any value, `SMALL` (38 bytes
instead of 66) those of a file stored as most are, with times near the change of its ciphertext, `DATED` (46)
those of a copy that kept an older date.

Names are plaintext here: the environment seals every value.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

OPAQUE, DIRECTORY, FILE, DATED, SMALL = range(5)
"""What a record begins with. Of a file, if it is `FILE` or more."""

_OPAQUE = bytes([OPAQUE])
_DIRECTORY = struct.Struct("<BQ")
_FILE = struct.Struct("<BBIIIQQIqqqq")
_DATED = struct.Struct("<BBHHHIIHqqiq")
_SMALL = struct.Struct("<BBHHHIIHiiiq")
_PLACES = (1, _DIRECTORY.size, _FILE.size, _DATED.size, _SMALL.size)
_BLOCKS_MAX = 1 << 32


class FileRecord(NamedTuple):
    """The fields of a file; `size` is the plaintext's, times in ns, `changed` is the ciphertext's."""

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
    """The smallest record of a file that takes it, whatever its `kind`; an opaque one if none does."""
    _, log2, mode, uid, gid, ino, size, blocks, atime, mtime, ctime, changed = record
    short = log2, mode, uid, gid, ino, size, blocks
    try:
        try:
            return (
                _SMALL.pack(SMALL, *short, atime - changed, mtime - changed, ctime - changed, changed) + name
            )
        except struct.error:
            return _DATED.pack(DATED, *short, atime, mtime, ctime - changed, changed) + name
    except struct.error:
        if not 0 <= blocks < _BLOCKS_MAX:
            return opaque(name)
        return _FILE.pack(FILE, *record[1:]) + name


def kind_of(value: bytes) -> int:
    """OPAQUE, DIRECTORY or FILE."""
    return min(value[0], FILE) if value else OPAQUE


def name_of(value: bytes) -> bytes:
    """The plaintext name in a record."""
    return value[_PLACES[value[0]] :]


def fields_of(value: bytes) -> tuple[int, int, int, int, int, int, int, int, int, int, int, int]:
    """The fields of a file's record, as those of a `FileRecord`."""
    kind = value[0]
    if kind == SMALL:
        _, log2, mode, uid, gid, ino, size, blocks, atime, mtime, ctime, at = _SMALL.unpack_from(value)
        return FILE, log2, mode, uid, gid, ino, size, blocks, atime + at, mtime + at, ctime + at, at
    if kind == DATED:
        _, log2, mode, uid, gid, ino, size, blocks, atime, mtime, ctime, at = _DATED.unpack_from(value)
        return FILE, log2, mode, uid, gid, ino, size, blocks, atime, mtime, ctime + at, at
    return _FILE.unpack_from(value)


def file_of(value: bytes) -> FileRecord:
    """The fields of a record whose kind is FILE."""
    return FileRecord._make(fields_of(value))


def inode_of(value: bytes) -> int:
    """The inode number in a record whose kind is DIRECTORY."""
    number: int = _DIRECTORY.unpack_from(value)[1]
    return number

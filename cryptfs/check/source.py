"""An object file as it is read: as it stands, or with what the journal holds laid over it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

from cryptfs.vault.diskio import pread_into
from cryptfs.vault.journal import Record


class Source(Protocol):
    """Ciphertext bytes of one object."""

    length: int

    def read_into(self, room: memoryview, offset: int) -> int:
        """Fill `room` from `offset`; fewer bytes only at the end."""
        ...

    def next_data(self, offset: int) -> int:
        """Where the next bytes are that may differ from zero, at or behind `offset`; at most `length`."""
        ...


class Plain:
    """The object file as it stands; `holes` says whether it may have any."""

    __slots__ = ("_fd", "_holes", "length")

    def __init__(self, fd: int, status: os.stat_result) -> None:
        self._fd = fd
        self.length = status.st_size
        self._holes = status.st_blocks * 512 < status.st_size

    def read_into(self, room: memoryview, offset: int) -> int:
        return pread_into(self._fd, room, offset)

    def next_data(self, offset: int) -> int:
        if not self._holes:
            return offset
        try:
            return min(os.lseek(self._fd, offset, os.SEEK_DATA), self.length)
        except OSError:  # nothing but a hole up to the end
            return self.length


class Overlaid:
    """The object file after recovery: `records` of the journal applied to it in order."""

    def __init__(self, below: Plain, records: Sequence[Record]) -> None:
        self._below = below
        self._solid = below.length  # up to here what is below counts
        self.length = below.length
        self._patches: list[tuple[int, bytes | bytearray]] = []
        for record in records:
            if record.length is not None:
                self._cut(record.length)
            for offset, data in record.extents:
                self._patches.append((offset, data))
                self.length = max(self.length, offset + len(data))

    def _cut(self, length: int) -> None:
        self._solid = min(self._solid, length)
        self.length = length
        self._patches = [(at, data[: length - at]) for at, data in self._patches if at < length]

    def read_into(self, room: memoryview, offset: int) -> int:
        size = max(0, min(len(room), self.length - offset))
        below = max(0, min(size, self._solid - offset))
        got = self._below.read_into(room[:below], offset) if below else 0
        room[got:size] = bytes(size - got)
        for at, data in self._patches:
            begin, end = max(at, offset), min(at + len(data), offset + size)
            if begin < end:
                room[begin - offset : end - offset] = data[begin - at : end - at]
        return size

    def next_data(self, offset: int) -> int:
        found = self._below.next_data(offset) if offset < self._solid else self.length
        if found >= self._solid:
            found = self.length
        for at, data in self._patches:
            if offset < at + len(data):
                found = min(found, max(at, offset))
        return found

"""Incompressible data, made once, so that making it is never part of a measurement."""

from __future__ import annotations

import os
from collections.abc import Iterator

MIB = 1 << 20
_STEP = 4093  # a prime: pieces of different keys begin at different places, seldom on a page


class RandomData:
    """A buffer of random bytes; `pieces` cuts contents out of it that differ from key to key."""

    def __init__(self, size: int = 64 * MIB) -> None:
        self._buffer = memoryview(os.urandom(size))

    def piece(self, key: int, size: int) -> memoryview:
        """`size` bytes for `key`; at most half the buffer."""
        span = len(self._buffer) - size
        if span < len(self._buffer) // 2:
            raise ValueError(f"a piece of {size} bytes is too large")
        start = key * _STEP % span
        return self._buffer[start : start + size]

    def pieces(self, key: int, size: int, request: int) -> Iterator[memoryview]:
        """The content of a file of `size` bytes, in pieces of `request` bytes (the last may be shorter)."""
        for number, offset in enumerate(range(0, size, request)):
            yield self.piece(key + number, min(request, size - offset))

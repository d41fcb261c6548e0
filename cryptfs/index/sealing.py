"""Keys that say nothing and values that are sealed.

A record's key is made of keyed hashes. A value is `u32 run ‖ u48 count ‖ AES-256-GCM(…)`, 26 bytes
longer than what is in it: XAES-256-GCM (docs/format.md section 1) under the environment's own key, with a
nonce whose first 12 bytes are drawn at random for each run of a writer and whose last 12 are the count. So
the costly half of XAES is done once a run, and a value costs one AES-GCM (about 2 µs).
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cryptfs.crypto.aead import PREFIX_SIZE, InvalidTag, Xaes
from cryptfs.crypto.derive import expand

OVERHEAD = 26
_RUN = 4
_COUNT = 6
_HEAD = _RUN + _COUNT
_PAD = bytes(PREFIX_SIZE - _COUNT)


class ValueDamaged(Exception):
    """A value does not authenticate under its key."""


class Sealing:
    """The records of one environment, whose own key is `key`.

    `prefix_of(run)` gives the random 12 bytes of a run, or None; `run` and `prefix` are this writer's.
    """

    def __init__(self, key: bytes, prefix_of: Callable[[int], bytes | None]) -> None:
        self._xaes = Xaes(expand(key, "values", 32))
        self._hash = expand(key, "keys", 32)
        self._prefix_of = prefix_of
        self._ciphers: dict[int, AESGCM] = {}
        self._run = b""
        self._count = itertools.count()

    def begin(self, run: int) -> bytes:
        """This writer's values belong to a run from now on; its prefix, to be stored before the first."""
        prefix = os.urandom(PREFIX_SIZE)
        self._run = run.to_bytes(_RUN, "little")
        self._ciphers[run] = self._cipher = self._xaes.derive(prefix)
        self._count = itertools.count()
        return prefix

    def hashed(self, size: int, *parts: bytes) -> bytes:
        """A keyed hash of `size` bytes; parts are told apart by their lengths."""
        state = hashlib.blake2b(key=self._hash, digest_size=size)
        for part in parts:
            state.update(len(part).to_bytes(4, "little"))
            state.update(part)
        return state.digest()

    def hasher(self, size: int) -> Callable[[bytes], bytes]:
        """A keyed hash of one part, other than `hashed` of it."""
        begun = hashlib.blake2b(key=self._hash, digest_size=size, person=b"one part")

        def hashed(part: bytes) -> bytes:
            state = begun.copy()
            state.update(part)
            return state.digest()

        return hashed

    def seal(self, key: bytes, value: bytes) -> bytes:
        """A value for its place."""
        count = next(self._count).to_bytes(_COUNT, "little")
        return self._run + count + self._cipher.encrypt(_PAD + count, value, key)

    def seal_all(self, items: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """`seal` of many, each with its key."""
        run, encrypt = self._run, self._cipher.encrypt
        sealed: list[tuple[bytes, bytes]] = []
        for (key, value), number in zip(items, self._count, strict=False):
            count = number.to_bytes(_COUNT, "little")
            sealed.append((key, run + count + encrypt(_PAD + count, value, key)))
        return sealed

    def open(self, key: bytes, sealed: bytes) -> bytes:
        """Undo `seal`; ValueDamaged."""
        run = int.from_bytes(sealed[:_RUN], "little")
        cipher = self._ciphers.get(run)
        try:
            if cipher is None:
                cipher = self._older(run)
            return cipher.decrypt(_PAD + sealed[_RUN:_HEAD], sealed[_HEAD:], key)
        except (InvalidTag, ValueError):
            raise ValueDamaged from None

    def open_all(self, sealed: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """`open` of many, each with its key."""
        opened: list[tuple[bytes, bytes]] = []
        last: bytes | None = None
        for key, value in sealed:
            try:
                if value[:_RUN] != last:
                    last = value[:_RUN]
                    run = int.from_bytes(last, "little")
                    cipher = self._ciphers.get(run) or self._older(run)
                opened.append((key, cipher.decrypt(_PAD + value[_RUN:_HEAD], value[_HEAD:], key)))
            except (InvalidTag, ValueError):
                raise ValueDamaged from None
        return opened

    def _older(self, run: int) -> AESGCM:
        prefix = self._prefix_of(run)
        if prefix is None or len(prefix) != PREFIX_SIZE:
            raise InvalidTag
        cipher = self._ciphers[run] = self._xaes.derive(prefix)
        return cipher

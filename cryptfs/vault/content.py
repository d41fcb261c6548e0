"""File content as a sequence of sealed chunks (docs/format.md section 6)."""

from __future__ import annotations

import os
import struct

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cryptfs.crypto.aead import NONCE_SIZE, OVERHEAD, PREFIX_SIZE, TAG_SIZE, InvalidTag, Xaes
from cryptfs.vault.header import AREA_SIZE

__all__ = ["DEFAULT_CHUNK_LOG2", "SMALL_CHUNK_LOG2", "ContentCipher", "Geometry", "InvalidTag", "Sealer"]

DEFAULT_CHUNK_LOG2 = 16
SMALL_CHUNK_LOG2 = 12

_AD = struct.Struct("<16sQB")
_CACHED_PREFIXES = 16


class Geometry:
    """Where the chunks of a file with one chunk size lie. All sizes in bytes."""

    __slots__ = ("chunk", "stride")

    def __init__(self, chunk_log2: int) -> None:
        self.chunk = 1 << chunk_log2
        self.stride = self.chunk + OVERHEAD

    def count(self, size: int) -> int:
        """How many chunks a plaintext of `size` bytes has; an empty one has one."""
        return -(-size // self.chunk) or 1

    def offset(self, index: int) -> int:
        """Where chunk `index` begins in the object file."""
        return AREA_SIZE + index * self.stride

    def lower_size(self, size: int) -> int:
        """Length of the object file of a plaintext of `size` bytes."""
        return AREA_SIZE + size + OVERHEAD * self.count(size)

    def plain_size(self, lower: int) -> int | None:
        """Plaintext length of an object file of `lower` bytes, or None where none fits."""
        body = lower - AREA_SIZE
        if body < OVERHEAD:
            return None
        whole, rest = divmod(body, self.stride)
        if rest == 0:
            return whole * self.chunk
        if rest < OVERHEAD or (rest == OVERHEAD and whole):
            return None
        return whole * self.chunk + rest - OVERHEAD


class Sealer:
    """The nonces of one file while it is open for writing, and their cipher.

    96 random bits choose the derived key, 96 bits count: no nonce comes twice.
    Not safe for several threads at once.
    """

    __slots__ = ("_cipher", "_counter", "_object_id", "_prefix")

    def __init__(self, xaes: Xaes, object_id: bytes) -> None:
        self._prefix = os.urandom(PREFIX_SIZE)
        self._cipher = xaes.derive(self._prefix)
        self._counter = 0
        self._object_id = object_id

    def seal_into(
        self, index: int, final: bool, plaintext: bytes | bytearray | memoryview, out: memoryview
    ) -> int:
        """Seal a chunk into `out` (40 bytes longer than the plaintext); the bytes written."""
        tail = self._counter.to_bytes(NONCE_SIZE - PREFIX_SIZE, "little")
        self._counter += 1
        size = len(plaintext) + OVERHEAD
        out[:PREFIX_SIZE] = self._prefix
        out[PREFIX_SIZE:NONCE_SIZE] = tail
        self._cipher.encrypt_into(
            tail, plaintext, _AD.pack(self._object_id, index, final), out[NONCE_SIZE:size]
        )
        return size

    def seal(self, index: int, final: bool, plaintext: bytes | bytearray | memoryview) -> bytearray:
        """A sealed chunk of its own."""
        out = bytearray(len(plaintext) + OVERHEAD)
        self.seal_into(index, final, plaintext, memoryview(out))
        return out


class ContentCipher:
    """Opens the chunks of one object; derived keys are kept for the prefixes seen last."""

    __slots__ = ("_ciphers", "object_id", "xaes")

    def __init__(self, object_key: bytes, object_id: bytes) -> None:
        self.xaes = Xaes(object_key)
        self.object_id = object_id
        self._ciphers: dict[bytes, AESGCM] = {}

    def sealer(self) -> Sealer:
        """Nonces for one time of being open for writing."""
        return Sealer(self.xaes, self.object_id)

    def _cipher(self, prefix: bytes) -> AESGCM:
        cipher = self._ciphers.get(prefix)
        if cipher is None:
            if len(self._ciphers) >= _CACHED_PREFIXES:
                self._ciphers.clear()
            cipher = self._ciphers[prefix] = self.xaes.derive(prefix)
        return cipher

    def open(self, index: int, final: bool, sealed: bytes | bytearray | memoryview) -> bytes:
        """The plaintext of a chunk; InvalidTag if it is not this chunk of this object."""
        if len(sealed) < OVERHEAD:
            raise InvalidTag
        return self._cipher(bytes(sealed[:PREFIX_SIZE])).decrypt(
            bytes(sealed[PREFIX_SIZE:NONCE_SIZE]), sealed[NONCE_SIZE:], _AD.pack(self.object_id, index, final)
        )

    def open_into(self, index: int, final: bool, sealed: memoryview, out: memoryview) -> None:
        """Like `open`, into `out`, which must be 40 bytes shorter than `sealed`."""
        if len(sealed) < OVERHEAD:
            raise InvalidTag
        self._cipher(bytes(sealed[:PREFIX_SIZE])).decrypt_into(
            bytes(sealed[PREFIX_SIZE:NONCE_SIZE]),
            sealed[NONCE_SIZE:],
            _AD.pack(self.object_id, index, final),
            out,
        )


assert OVERHEAD == NONCE_SIZE + TAG_SIZE

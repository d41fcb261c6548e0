"""Object headers (docs/format.md section 4): who an object is, and its wrapped key.

A header is 192 bytes. Its fields are the associated data of the AES-SIV that wraps
the object key, so a header whose key opens has not been altered in any field. Two
slots in different sectors let an update fail half-way and lose nothing.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass, replace
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from cryptfs.crypto.derive import expand

SLOT_SIZE = 192
SLOT_OFFSETS = (0, 4096)
AREA_SIZE = 8192
READ_SIZE = SLOT_OFFSETS[1] + SLOT_SIZE
"""What to read from offset 0 to have both slots."""

MAGIC = b"CFH1"
FILE, DIRECTORY, SYMLINK, FIFO, SOCKET, CHAR, BLOCK, SEGMENT = range(1, 9)

FLAG_SPARSE = 1
FLAG_XATTR = 2
_FLAGS = FLAG_SPARSE | FLAG_XATTR

_FIELDS = struct.Struct("<4sBBHIIQ16sQIIQqqqqQ40s")
_KEY_AT = 144
_ZERO = bytes(40)
_ZERO_SLOT = bytes(SLOT_SIZE)
_LABEL = b"cryptfs v1 header"
# log2 of the chunk sizes that a kind may have: images large, symbolic links and segments one page.
_CHUNK_LOG2 = {FILE: range(12, 21), SYMLINK: (12,), SEGMENT: (12,)}
_NO_CHUNKS = (0,)

_TYPE_BITS = {
    FILE: stat.S_IFREG,
    DIRECTORY: stat.S_IFDIR,
    SYMLINK: stat.S_IFLNK,
    FIFO: stat.S_IFIFO,
    SOCKET: stat.S_IFSOCK,
    CHAR: stat.S_IFCHR,
    BLOCK: stat.S_IFBLK,
}
KIND_OF_TYPE = {bits: kind for kind, bits in _TYPE_BITS.items()}


def bounded_time(ns: int) -> int:
    """A time in nanoseconds since 1970, or the nearest that a header can hold: from 1677 to 2262."""
    return max(-(1 << 63), min(ns, (1 << 63) - 1))


def generation_of(slot: bytes) -> int:
    """The generation in a packed header that is known to be valid."""
    return int.from_bytes(slot[16:24], "little")


class HeaderMissing(Exception):
    """Both slots are zero: the object never became durable, or was wiped."""


class HeaderInvalid(Exception):
    """No slot is valid: damage or tampering."""


class EpochLike(Protocol):
    """One epoch of a keyring."""

    @property
    def number(self) -> int: ...
    @property
    def key(self) -> bytes: ...


class KeyringLike(Protocol):
    """What the header codec needs of a keyring."""

    @property
    def current(self) -> EpochLike: ...
    def get(self, number: int) -> EpochLike | None: ...


@dataclass(slots=True)
class Header:
    """The fields of one header; times in nanoseconds, `mode` permission bits only."""

    kind: int
    chunk_log2: int
    flags: int
    epoch: int
    mode: int
    generation: int
    object_id: bytes
    session: int
    uid: int
    gid: int
    rdev: int
    atime: int
    mtime: int
    ctime: int
    btime: int
    key: bytes
    phase: int = 0

    @property
    def st_mode(self) -> int:
        """Type and permission bits."""
        return _TYPE_BITS[self.kind] | self.mode

    @property
    def chunk_size(self) -> int:
        return 1 << self.chunk_log2

    def in_range(self) -> bool:
        """Whether every field has a value that section 4 knows; readers refuse all others."""
        return (
            FILE <= self.kind <= SEGMENT
            and self.chunk_log2 in _CHUNK_LOG2.get(self.kind, _NO_CHUNKS)
            and not self.flags & ~_FLAGS
            and (self.kind == FILE or not self.flags & FLAG_SPARSE)
            and self.mode <= 0o7777
            and self.generation >= 1
            and (not self.rdev or self.kind in (CHAR, BLOCK))
        )

    def copy(self) -> Header:
        return replace(self)

    def __repr__(self) -> str:
        # The key must never reach a log or a traceback.
        return f"<Header kind={self.kind} generation={self.generation}>"


def epoch_of(slot: bytes | memoryview) -> int | None:
    """The epoch that a slot names, authentic or not; None where no header is."""
    return int.from_bytes(slot[8:12], "little") if slot[:4] == MAGIC else None


class HeaderCodec:
    """Seals and opens header slots with the epochs of a keyring."""

    def __init__(self, vault_id: bytes, keyring: KeyringLike) -> None:
        self._vault_id = vault_id
        self._keyring = keyring
        self._wraps: dict[int, AESSIV] = {}

    @property
    def keyring(self) -> KeyringLike:
        return self._keyring

    @property
    def current_epoch(self) -> int:
        return self._keyring.current.number

    def use(self, keyring: KeyringLike) -> None:
        """Go on with another keyring: the epochs it lacks open nothing from now on."""
        self._keyring = keyring
        self._wraps = {}

    def _wrap(self, number: int) -> AESSIV | None:
        wrap = self._wraps.get(number)
        if wrap is None:
            epoch = self._keyring.get(number)
            if epoch is None:
                return None
            wrap = self._wraps[number] = AESSIV(expand(epoch.key, "cryptfs v1 header wrap", 64))
        return wrap

    def pack(self, h: Header) -> bytes:
        """The 192 bytes of a slot, wrapped under the header's epoch.

        HeaderInvalid if a field is out of range: what no reader would open must not be written.
        """
        if not h.in_range():
            raise HeaderInvalid("a field is out of range")
        wrap = self._wrap(h.epoch)
        if wrap is None:
            raise HeaderInvalid("the keyring has no such epoch")
        fields = _FIELDS.pack(
            MAGIC,
            h.kind,
            h.chunk_log2,
            h.flags,
            h.epoch,
            h.mode,
            h.generation,
            h.object_id,
            h.session,
            h.uid,
            h.gid,
            h.rdev,
            h.atime,
            h.mtime,
            h.ctime,
            h.btime,
            h.phase,
            _ZERO,
        )
        return fields + wrap.encrypt(h.key, [_LABEL, self._vault_id, fields])

    def unpack(self, slot: bytes) -> Header:
        """The header in a slot; HeaderInvalid if it does not authenticate."""
        if len(slot) != SLOT_SIZE or slot[:4] != MAGIC:
            raise HeaderInvalid("no header")
        fields = slot[:_KEY_AT]
        wrap = self._wrap(int.from_bytes(slot[8:12], "little"))
        if wrap is None:
            raise HeaderInvalid("sealed under an epoch that the keyring does not hold")
        try:
            key = wrap.decrypt(slot[_KEY_AT:], [_LABEL, self._vault_id, fields])
        except InvalidTag:
            raise HeaderInvalid("the header does not authenticate") from None
        (_, kind, log2, flags, epoch, mode, generation, object_id, session, uid, gid, rdev,
         atime, mtime, ctime, btime, phase, reserved) = _FIELDS.unpack(fields)  # fmt: skip
        header = Header(
            kind, log2, flags, epoch, mode, generation, object_id, session, uid, gid, rdev,
            atime, mtime, ctime, btime, key, phase,
        )  # fmt: skip
        if reserved != _ZERO or not header.in_range():
            raise HeaderInvalid("a field is out of range")
        return header

    def read(self, area: bytes) -> tuple[Header, int]:
        """The valid header with the highest generation (of equals slot 0's) and the number of its slot.

        `area` is the beginning of the file, `READ_SIZE` bytes where the file has them.
        Raises HeaderMissing if there is nothing but zeros, HeaderInvalid if no slot is valid.
        """
        second = area[SLOT_OFFSETS[1] : READ_SIZE]
        first = area[:SLOT_SIZE]
        if not second or second == _ZERO_SLOT or not any(second):
            # The common case: never updated in place.
            if len(first) < SLOT_SIZE or first == _ZERO_SLOT:
                raise HeaderMissing
            return self.unpack(first), 0
        best: tuple[Header, int] | None = None
        for number, slot in enumerate((first, second)):
            try:
                header = self.unpack(slot)
            except HeaderInvalid:
                continue
            if best is None or header.generation > best[0].generation:
                best = header, number
        if best is None:
            raise HeaderInvalid("no slot of the header authenticates")
        return best

"""The journal: overwrites that are durable but not yet in place (docs/format.md section 10).

A durable chunk is never overwritten in place before the new chunk stands, synced, in the
journal; so a power cut leaves each chunk entirely old or entirely new. One sequential
append and one fdatasync serve all files of a moment.

On disk at each instant of a segment's life: created and its name synced before the first
record is relied on; records appended, each sealed with its number; the file's own copy
written only after the record was synced; `settled` when the file was synced; removed when
every object in it is settled.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import operator
import os
import re
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cryptfs.crypto.aead import PREFIX_SIZE, TAG_SIZE, InvalidTag, Xaes
from cryptfs.vault.diskio import NotRegular, create, fsync_path, open_regular, pread_all, pwrite_all
from cryptfs.vault.header import (
    AREA_SIZE,
    READ_SIZE,
    SEGMENT,
    SLOT_OFFSETS,
    SLOT_SIZE,
    Header,
    HeaderCodec,
    HeaderInvalid,
    HeaderMissing,
)

SUFFIX = ".seg"
_NAME = re.compile(rf"([0-9a-f]{{16}}){re.escape(SUFFIX)}")
_WRITE, _TRUNCATE, _SETTLED = 1, 2, 3
_LABEL = b"cryptfs v1 journal"
_LONG_PATH = 0xFFFF
_U16, _U32, _U64 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q")
_EXTENT = struct.Struct("<QI")
_RESERVE = 1 << 18
"""Bytes of zeros written ahead of the records, where small appends are synced often. Syncing what
overwrites them changes no length, so the lower file system has no metadata to commit: 175 µs instead of
340 on ext4."""
_MAX_SEALED = 1 << 28
"""The longest sealed record, in bytes: what a reader must be ready to hold in memory."""


@dataclass(slots=True)
class Record:
    """Ciphertext to be put into one object file: first its length, then extents."""

    object_id: bytes
    path: bytes
    extents: list[tuple[int, bytes | bytearray]] = field(default_factory=list)
    length: int | None = None

    def encode(self) -> bytes:
        """The body of the record."""
        parts: list[bytes | bytearray] = [
            bytes([_WRITE if self.length is None else _TRUNCATE]),
            self.object_id,
        ]
        if len(self.path) < _LONG_PATH:
            parts += [_U16.pack(len(self.path)), self.path]
        else:
            parts += [_U16.pack(_LONG_PATH), _U32.pack(len(self.path)), self.path]
        if self.length is not None:
            parts.append(_U64.pack(self.length))
        parts.append(_U32.pack(len(self.extents)))
        for offset, data in self.extents:
            parts += [_EXTENT.pack(offset, len(data)), data]
        return b"".join(parts)

    def apply(self, fd: int) -> None:
        """Put it in place. Doing so again changes nothing."""
        if self.length is not None:
            os.ftruncate(fd, self.length)
        for offset, data in self.extents:
            pwrite_all(fd, data, offset)


def _decode(body: bytes) -> Record | bytes:
    """A record, or the object id of a `settled`. HeaderInvalid if no writer of version 1 made it."""
    try:
        return _parse(body)
    except (struct.error, IndexError):
        raise HeaderInvalid("a record of the journal ends too early") from None


def _parse(body: bytes) -> Record | bytes:
    kind, object_id, at = body[0], body[1:17], 17
    if kind == _SETTLED:
        return object_id
    if kind not in (_WRITE, _TRUNCATE):
        raise HeaderInvalid("the journal has a record of unknown type")
    (length,) = _U16.unpack_from(body, at)
    at += 2
    if length == _LONG_PATH:
        (length,) = _U32.unpack_from(body, at)
        at += 4
    record = Record(object_id, body[at : at + length])
    if not {b"", b".", b".."}.isdisjoint(record.path.split(b"/")):
        raise HeaderInvalid("a path in the journal leads out of the tree")
    at += length
    if kind == _TRUNCATE:
        (record.length,) = _U64.unpack_from(body, at)
        at += 8
    (count,) = _U32.unpack_from(body, at)
    at += 4
    for _ in range(count):
        offset, size = _EXTENT.unpack_from(body, at)
        at += _EXTENT.size
        record.extents.append((offset, body[at : at + size]))
        at += size
    return record


def _associated(header: Header, segment: int) -> bytes:
    """What all records of a segment are bound to: it cannot be another's or be renamed."""
    return _LABEL + header.object_id + _U64.pack(segment)


class _Segment:
    """One file of the journal, open for appending."""

    def __init__(self, path: str, number: int, header: Header, packed: bytes, mode: int) -> None:
        self.name = f"{path}/{number:016x}{SUFFIX}"
        try:
            self.fd = create(self.name, mode, os.O_RDWR)
        except FileExistsError:
            # Left by an attempt that the disk refused, as it did its removal: it has no record.
            if os.stat(self.name).st_size > AREA_SIZE:
                raise
            os.unlink(self.name)
            self.fd = create(self.name, mode, os.O_RDWR)
        try:
            pwrite_all(self.fd, packed.ljust(AREA_SIZE, b"\0"), 0)
            os.fsync(self.fd)
            fsync_path(path)
        except BaseException:
            os.close(self.fd)
            with contextlib.suppress(OSError):
                os.unlink(self.name)
            raise
        self.header = header
        self._cipher = Xaes(header.key).derive(bytes(PREFIX_SIZE))
        self._associated = _associated(header, number)
        self._records = 0
        self.end = AREA_SIZE
        self._reserved = self._synced_end = self.end
        self._ahead = False

    def rewrap(self, codec: HeaderCodec) -> None:
        """Seal the header anew under the current epoch, durably; nothing to do if it is.

        On disk: slot 0; then both, synced; then slot 0 again, synced: one of them is whole at
        every instant, and neither needs the old epoch at the end.
        """
        if self.header.epoch == codec.current_epoch:
            return
        header = self.header.copy()
        header.epoch = codec.current_epoch
        for offset in reversed(SLOT_OFFSETS):
            header.generation += 1
            pwrite_all(self.fd, codec.pack(header), offset)
            os.fdatasync(self.fd)
        self.header = header

    def append(self, body: bytes) -> None:
        number = _U64.pack(self._records)
        sealed = self._cipher.encrypt(bytes(4) + number, body, self._associated + number)
        pwrite_all(self.fd, _U32.pack(len(sealed)) + sealed, self.end)
        self._records += 1
        self.end += 4 + len(sealed)
        if self.end > self._reserved and self._ahead:
            self._reserve()

    def _reserve(self) -> None:
        """Write zeros behind the last record; to a reader they are its end."""
        try:
            pwrite_all(self.fd, bytes(_RESERVE), self.end)
        except OSError:
            self._ahead = False  # no room: the records themselves matter more
            return
        self._reserved = self.end + _RESERVE

    def sync(self) -> None:
        """Make every record durable."""
        end = self.end
        os.fdatasync(self.fd)
        self._ahead = end - self._synced_end < _RESERVE // 4
        self._synced_end = end

    def remove(self) -> None:
        """Remove and close it. Where the disk refuses that, it goes on as it was."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.name)
        os.close(self.fd)


class Journal:
    """What this session appends. Safe to call from several threads."""

    def __init__(self, path: str, session: int, codec: HeaderCodec, file_mode: int) -> None:
        self._path = path
        self._session = session
        self._codec = codec
        self._mode = file_mode
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._segments: list[_Segment] = []
        self._broken = False
        self._removed = False
        """Whether segments were removed and that need not be durable yet."""
        self._failed: OSError | None = None
        self._number = 0
        self._live: set[bytes] = set()
        self.appended = 0
        """A position: every record appended so far is before it."""
        self.synced = 0
        """Every record before this position is durable."""
        self.deletions = False
        """Whether an object was deleted whose records were still needed."""

    @property
    def size(self) -> int:
        """Bytes in the journal's files; 0 when there are none."""
        return sum(segment.end for segment in self._segments)

    def live(self, object_id: bytes) -> bool:
        """Whether recovery would apply records of this object."""
        return object_id in self._live

    def any_live(self) -> bool:
        """Whether recovery would apply anything at all."""
        return bool(self._live)

    def _segment(self) -> _Segment:
        if not self._segments or self._broken:
            header = Header(
                SEGMENT, 12, 0, self._codec.current_epoch, 0, 1, os.urandom(16), self._session,
                0, 0, 0, 0, 0, 0, 0, os.urandom(32),
            )  # fmt: skip
            self._segments.append(
                _Segment(self._path, self._number, header, self._codec.pack(header), self._mode)
            )
            self._number += 1
            self._broken = self._removed = False
        return self._segments[-1]

    def _append(self, body: bytes) -> int:
        if len(body) + TAG_SIZE > _MAX_SEALED:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        segment = self._segment()
        try:
            segment.append(body)
        except BaseException:
            # A torn record hides what would follow it, and its nonce is used up:
            # this segment ends here and the next record begins another.
            self._broken = True
            raise
        self.appended += 1
        return self.appended

    def append(self, record: Record) -> int:
        """Add a record; the position after it. Durable once `synced` has reached that position."""
        body = record.encode()
        with self._lock:
            position = self._append(body)
            self._live.add(record.object_id)
            return position

    def settle(self, object_id: bytes) -> int:
        """Say that the object file is in place and synced; the position after it."""
        with self._lock:
            if object_id not in self._live:
                return 0
            position = self._append(bytes([_SETTLED]) + object_id)
            self._live.discard(object_id)
            return position

    def forget(self, object_id: bytes) -> None:
        """The object was deleted: nothing need be applied to it once that is durable."""
        with self._lock:
            if object_id in self._live:
                self._live.discard(object_id)
                self.deletions = True

    def sync(self) -> None:
        """Make every record appended before the call durable: one fdatasync for all files.

        Once that failed it fails for good, with the same error: the kernel may have dropped what it
        could not write, and would call the next sync a success.
        """
        with self._sync_lock:
            with self._lock:
                target = self.appended
                segments = list(self._segments)
            if self.synced < target:
                self._sync(segments)
                self.synced = target

    def rewrap(self) -> None:
        """Seal the headers of this session's segments under the current epoch, durably."""
        with self._sync_lock, self._lock:
            for segment in self._segments:
                segment.rewrap(self._codec)

    def _sync(self, segments: list[_Segment]) -> None:
        if self._failed is not None:
            raise OSError(self._failed.errno, self._failed.strerror)
        try:
            for segment in segments:
                segment.sync()
        except OSError as error:
            self._failed = error
            raise

    def reset(self) -> None:
        """Remove the segments if nothing in them is needed any more.

        If `deletions` is set the caller has synced the directories first. On disk: the
        `settled` records are synced before any segment goes, and an older segment's removal
        is durable before a newer one's, so whatever comes back after a power cut applies
        nothing that is out of date.
        """
        with self._sync_lock, self._lock:
            if self._live or not self._segments:
                return
            if self.synced < self.appended:
                self._sync(self._segments)
                self.synced = self.appended
            while self._segments:
                if self._removed:
                    fsync_path(self._path)
                self._segments[0].remove()
                del self._segments[0]
                self._removed = True
            self.deletions = False

    def close(self) -> None:
        """Close the files; removes nothing."""
        with self._lock:
            for segment in self._segments:
                os.close(segment.fd)
            self._segments.clear()


def segments(path: str) -> list[str]:
    """The names of the segments in a journal directory, oldest first."""
    try:
        return sorted(f"{path}/{name}" for name in os.listdir(path) if _NAME.fullmatch(name))
    except FileNotFoundError:
        return []


def _number(name: str) -> int:
    return int(os.path.basename(name).removesuffix(SUFFIX), 16)


def read_segment(name: str, codec: HeaderCodec) -> Iterator[Record | bytes]:
    """The records of a segment up to the first that is torn; an object id stands for `settled`.

    Nothing is yielded when the segment's header never became durable, or when the segment has
    been renamed: its records are bound to its number. Raises HeaderInvalid when it is damaged.
    """
    try:
        opened = open_regular(name)
    except NotRegular:
        raise HeaderInvalid("not a journal segment") from None
    with open(opened, "rb", buffering=0) as file:
        fd = file.fileno()
        try:
            header, _ = codec.read(pread_all(fd, READ_SIZE, 0))
        except HeaderMissing:
            return
        if header.kind != SEGMENT:
            raise HeaderInvalid("not a journal segment")
        cipher = Xaes(header.key).derive(bytes(PREFIX_SIZE))
        associated = _associated(header, _number(name))
        offset = AREA_SIZE
        for count in itertools.count():
            prefix = pread_all(fd, 4, offset)
            if len(prefix) < 4:
                return
            (length,) = _U32.unpack(prefix)
            if not 17 + TAG_SIZE <= length <= _MAX_SEALED:
                return
            sealed = pread_all(fd, length, offset + 4)
            number = _U64.pack(count)
            try:
                body = cipher.decrypt(bytes(4) + number, sealed, associated + number)
            except InvalidTag:
                return
            yield _decode(body)
            offset += 4 + length


def pending_records(path: str, codec: HeaderCodec) -> list[Record]:
    """What recovery has to apply, in order: every record that no `settled` follows.

    HeaderInvalid if a segment is damaged or missing between two others: segments are removed
    oldest first, so no power cut leaves a gap, and what follows one must not go over it.
    """
    found: dict[bytes, list[tuple[int, Record]]] = {}
    count = itertools.count()
    names = segments(path)
    if names and _number(names[-1]) - _number(names[0]) != len(names) - 1:
        raise HeaderInvalid("a segment of the journal is missing")
    for name in names:
        for item in read_segment(name, codec):
            if isinstance(item, Record):
                found.setdefault(item.object_id, []).append((next(count), item))
            else:
                found.pop(item, None)
    return [record for _, record in sorted(itertools.chain(*found.values()), key=operator.itemgetter(0))]


def superseded(header: Header, records: Sequence[Record], codec: HeaderCodec) -> bool:
    """Whether an object file with this header in place is newer than all these records of it.

    No crash leaves it so: as long as recovery would apply anything to an object, each of its headers
    stands in the journal before it stands in place. But a backup of a vault in use reads the journal at
    one time and the file later, when more was written to it: the records must not go over that.
    """
    # Generations ascend in the journal: the last header is the newest.
    for record in reversed(records):
        for offset, data in reversed(record.extents):
            if offset in SLOT_OFFSETS and len(data) == SLOT_SIZE:
                with contextlib.suppress(HeaderInvalid):
                    return codec.unpack(bytes(data)).generation < header.generation
    return False

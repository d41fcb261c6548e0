"""The content of one file in use: what is changed in memory, and how it becomes durable.

A chunk is looked for in this order:

1. `dirty`: plaintext, changed and not yet given to the disk;
2. `Chunks.pending`: sealed, in the journal, not yet in place;
3. the object file.

A file that was never durable is written in place at once (nothing can be lost that was
promised). As soon as it is durable, every change goes through the journal first, so that a
power cut leaves each chunk old or new.

All methods take the file's lock themselves; `read` tries without it first.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cryptfs.fs.chunks import Buffer, Chunks
from cryptfs.fs.directory import eio
from cryptfs.fs.types import SetAttr
from cryptfs.vault.content import SMALL_CHUNK_LOG2, Geometry, InvalidTag
from cryptfs.vault.dirlog import CARRIED_AT, carried
from cryptfs.vault.diskio import pwrite_all
from cryptfs.vault.header import AREA_SIZE, FLAG_SPARSE, SLOT_OFFSETS, Header, generation_of
from cryptfs.vault.journal import Record

if TYPE_CHECKING:
    from cryptfs.fs.commit import Committer
    from cryptfs.fs.nodes import Node

log = logging.getLogger(__name__)

HOLE_AT = 1 << 20
"""A gap of at least this many bytes becomes a hole; a smaller one is written as zeros."""
PENDING_MAX = 1 << 21
"""How many bytes of one file may wait in the journal and in memory to be put in place."""

_DATABASE_MAGIC = (b"SQLite format 3\0", b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")


class File:
    """One regular file or symbolic link in use.

    `slot` is the header slot that holds the last durable header in place, or -1 if none does.
    `size` is the plaintext length of what is in place, or -1 if nothing is: a file just created.
    """

    def __init__(
        self, committer: Committer, node: Node, fd: int, header: Header, slot: int, size: int, durable: bool
    ) -> None:
        self.lock = threading.RLock()
        self.committer = committer
        self.node = node
        self.fd = fd
        self.header = header
        self.handles = 0
        self.unlinked = False
        self.left_behind: Node | None = None
        """The directory to sync before a deleted file is written to."""
        self.size = max(size, 0)
        self.durable = durable
        """Whether what is in place may only be changed through the journal."""
        self.slot = slot
        self._opened = header.generation if slot >= 0 else 0
        self.placed = header.generation
        """The generation of the header that is in place."""
        self.noted = 0
        """The generation that the rollback witness was told."""
        self.unsynced = not durable
        """Whether something is in place that neither a sync nor the journal made durable."""
        self.header_changed = False
        self._written_slot = slot
        self._chunks = Chunks(fd, header, size)
        self._geometry = self._chunks.geometry
        self._dirty: dict[int, bytearray] = {}
        self._tail: tuple[int, bytearray] | None = None
        """The last chunk, already written: the next write will most likely go on there."""
        self._cut: int | None = None
        """Where the object file must be cut before the next dirty chunk is written."""
        self.journaled_at = 0
        """The position of this file's newest record in the journal."""
        self._changes = 0
        self._sync_failed: OSError | None = None

    @property
    def is_as_opened(self) -> bool:
        """Whether nothing of it, content or header, changed since it was opened."""
        return not self._changes and self._opened == self.header.generation

    def found_written(self, slot: int) -> None:
        """The newest header in place, not durable yet, is in this slot."""
        self._written_slot = slot

    # -- reading ---------------------------------------------------------------------

    def read(self, offset: int, size: int) -> Buffer:
        """Up to `size` bytes from `offset`, fewer only at the end of the file. EIO where damaged."""
        if offset >= self.size or size <= 0:
            return b""
        if not self._dirty and not self._chunks.pending:
            # No lock: the common case of images. A writer in between shows as a chunk that does
            # not authenticate or a changed counter; the locked way then decides.
            changes = self._changes
            try:
                data = self._read(offset, size)
                if changes == self._changes:
                    return data
            except (InvalidTag, OSError, ValueError):
                pass
        with self.lock:
            try:
                return self._read(offset, size)
            except InvalidTag:
                raise self.damaged() from None

    def damaged(self) -> OSError:
        """Log that a chunk does not authenticate; the error for the caller."""
        log.error("object %s: a chunk does not authenticate", self.header.object_id.hex())
        return eio()

    def _read(self, offset: int, size: int) -> Buffer:
        end = min(offset + size, self.size)
        if end <= offset:
            return b""
        chunk = self._geometry.chunk
        first, last = offset // chunk, (end - 1) // chunk
        if first == last:
            data: Buffer = self._chunk(first)
            begin = first * chunk
            if offset == begin and end - begin == len(data):
                return data
            return memoryview(data)[offset - begin : end - begin]
        if self._dirty or self._chunks.pending:
            parts = [self._chunk(index) for index in range(first, last + 1)]
            out: Buffer = b"".join(parts)
        else:
            out = self._chunks.read_run(first, last)
        begin = first * chunk
        if offset == begin and end - begin == len(out):
            return out
        return memoryview(out)[offset - begin : end - begin]

    def _chunk(self, index: int) -> bytes | bytearray:
        """The plaintext of a chunk, wherever it is. InvalidTag if damaged."""
        data = self._dirty.get(index)
        return self._chunks.open(index) if data is None else data

    def _load(self, index: int) -> bytearray:
        """A chunk's plaintext, to be changed."""
        if self._tail is not None and self._tail[0] == index:
            return self._tail[1]
        try:
            return bytearray(self._chunk(index))
        except InvalidTag:
            raise self.damaged() from None

    def verify_tail(self) -> bool:
        """Whether the last chunk is there and is the last one."""
        with self.lock:
            try:
                self._chunk(self._chunks.count - 1)
            except InvalidTag:
                return False
            return True

    def is_whole(self) -> bool:
        """Whether every chunk is there."""
        with self.lock:
            try:
                for index in range(self._chunks.count):
                    self._chunk(index)
            except InvalidTag:
                return False
            return True

    def adopt(self) -> None:
        """The content, checked, counts as begun in this session."""
        with self.lock:
            self.header.session, self.header.phase = self.committer.session, self.committer.phase
            self.header_changed = True

    def salvage(self) -> None:
        """Cut a file that lost its unsynced tail to the longest run of chunks that authenticate.

        Only for files begun in a session that ended without a sync (format section 9).
        """
        with self.lock:
            count, last = self._chunks.whole_run()
            kept = max(count - 1, 0)
            self._chunks.cut(kept)
            self.size = count * self._geometry.chunk
            self._dirty = {kept: bytearray(last)}
            self._cut = self._geometry.offset(kept)
            self._changes += 1
            self.durable = True

    # -- writing ---------------------------------------------------------------------

    def write(self, offset: int, data: Buffer) -> int:
        """Put `data` at `offset`; all of it, or an OSError.

        After an error the file is as it was, or as it should be: what reached the disk in part is
        kept in memory and given to it again, before anything else is written.
        """
        size = len(data)
        if size == 0:
            return 0
        with self._changing():
            if self._chunks.count == 0 and not self._dirty and offset == 0:
                self._choose_chunk(data)
            if offset > self.size:
                self._grow(offset)
            self._write(offset, memoryview(data), offset + size)
            self._changed_now()
            # At once, and complete: an error is this caller's, and closing has nothing left to do.
            self._write_out()
        return size

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """The lock, around a change; undone by an error as long as nothing was given to the disk."""
        with self.lock:
            self._changes += 1
            if self._dirty or self._cut is not None:
                self._write_out()  # left by an error: more is not kept in memory
            mark, size, cut, now = self._chunks.mark(), self.size, self._cut, self.header
            fields = now.flags, now.chunk_log2, now.session, now.phase
            try:
                yield
            except OSError:
                self._tail = None
                if self._chunks.restore(mark):
                    self._dirty.clear()
                    self._cut, self.size, self._geometry = cut, size, mark.geometry
                    now.flags, now.chunk_log2, now.session, now.phase = fields
                raise

    @property
    def overflows(self) -> bool:
        """Whether so much waits in memory to be put in place that it must be committed."""
        return self._chunks.pending_bytes > PENDING_MAX

    def _changed_now(self) -> None:
        self.header.mtime = self.header.ctime = time.time_ns()
        self.header_changed = True

    def _choose_chunk(self, data: Buffer) -> None:
        """A database that no name rule knew is recognised by its first bytes."""
        if self.header.chunk_log2 != SMALL_CHUNK_LOG2 and not self.durable:
            head = bytes(data[:16])
            if head.startswith(_DATABASE_MAGIC):
                self.header.chunk_log2 = SMALL_CHUNK_LOG2
                self._geometry = self._chunks.geometry = Geometry(SMALL_CHUNK_LOG2)

    def _write(self, offset: int, data: memoryview, end: int) -> None:
        chunk = self._geometry.chunk
        first, last = offset // chunk, (end - 1) // chunk
        new_size = max(self.size, end)
        final = self._geometry.count(new_size) - 1
        if new_size > self.size:
            self._unfinish(first)
        run: list[Buffer] = []  # complete chunks that go in place at once, from chunk run_at on
        run_at = first
        previous = self._dirty.get(first - 1)
        if previous is not None and len(previous) == chunk and not self.durable:
            # The chunk that was the last one goes with its new neighbours.
            run, run_at = [previous], first - 1
        for index in range(first, last + 1):
            begin = index * chunk
            a, b = max(offset, begin) - begin, min(end, begin + chunk) - begin
            piece = data[begin + a - offset : begin + b - offset]
            whole = b - a == chunk
            if not self.durable and (whole or (a == 0 and index == final and begin + b == new_size)):
                self._dirty.pop(index, None)
                if run_at + len(run) != index:
                    run, run_at = [], index  # what stood before is not its neighbour
                run.append(piece)
                continue
            buffer = self._dirty.get(index)
            if buffer is None:
                buffer = bytearray() if whole or begin >= self.size else self._load(index)
                self._dirty[index] = buffer
            buffer[a:b] = piece
        if run and (run_at >= first or len(run) > 1):
            if run_at < first:
                del self._dirty[run_at]
            self._tail = None
            if run_at + len(run) - 1 == final:
                self._tail = final, bytearray(run[-1])
            self.unsynced = True
            try:
                self._chunks.place_run(run_at, run, final)
            except OSError:
                self._dirty.update({run_at + number: bytearray(piece) for number, piece in enumerate(run)})
                self.size = new_size
                raise
        self.size = new_size

    def _unfinish(self, first: int) -> None:
        """Before the file grows: the chunk that was the last must be sealed anew as one of many."""
        if self._chunks.final:
            old = self._chunks.count - 1
            if old < first and old not in self._dirty:
                self._dirty[old] = self._load(old)

    def _grow(self, size: int) -> None:
        """Make the file longer, with zeros or a hole."""
        geometry, chunk = self._geometry, self._geometry.chunk
        old_last, new_last = geometry.count(self.size) - 1, geometry.count(size) - 1
        self._unfinish(new_last)
        buffer = self._dirty.get(old_last)
        if buffer is None:
            buffer = self._load(old_last) if self.size else bytearray()
            self._dirty[old_last] = buffer
        buffer.extend(bytes(min(chunk, size - old_last * chunk) - len(buffer)))
        if (new_last - old_last - 1) * chunk >= HOLE_AT:
            if not self.header.flags & FLAG_SPARSE:
                self.header.flags |= FLAG_SPARSE
                self.header_changed = True
                if not self.durable:
                    self._promise_holes()
            # Nothing but a hole may lie there: what a cut left behind goes first.
            self._cut_to(geometry.offset(old_last + 1))
            self._chunks.placed_up_to(new_last, False, chunk)
        else:
            for index in range(old_last + 1, new_last):
                self._dirty[index] = bytearray(chunk)
        if new_last > old_last:
            self._dirty[new_last] = bytearray(size - new_last * chunk)
        self.size = size
        if self._cut is not None and self._chunks.count == new_last:
            # What the cut removes would read as content of the hole: it goes now.
            self.flush()
            self.committer.journal.sync()
            self.apply()

    def _promise_holes(self) -> None:
        """The header that says so, before there is one."""
        if self.committer.journal.live(self.header.object_id):
            self._journal([])
            self.committer.journal.sync()
            self.apply()
        else:
            self._place_header()

    def truncate(self, size: int) -> None:
        """Make the file `size` bytes long. After an error it is as with `write`."""
        with self._changing():
            if size > self.size:
                self._grow(size)
            elif size < self.size:
                if size == 0 and self.durable:
                    self._begin_anew()
                else:
                    self._shrink(size)
            self._changed_now()
            self._write_out()

    def _shrink(self, size: int) -> None:
        geometry = self._geometry
        last = geometry.count(size) - 1
        keep = size - last * geometry.chunk
        buffer = self._dirty.get(last)
        if buffer is None:
            buffer = self._load(last) if keep else bytearray()
        del buffer[keep:]
        for index in [index for index in self._dirty if index > last]:
            del self._dirty[index]
        self._dirty[last] = buffer
        self._tail = None
        self._chunks.cut(last)
        self._cut_to(geometry.offset(last))
        self.size = size

    def _cut_to(self, length: int) -> None:
        """Cut the object file, now or with the next record of the journal."""
        if self.durable:
            self._cut = length if self._cut is None else min(self._cut, length)
        else:
            os.ftruncate(self.fd, max(length, AREA_SIZE))
            self._chunks.given += 1
            self.unsynced = True

    def _begin_anew(self) -> None:
        """Empty a durable file that is about to be written again.

        On disk: first the journal says, synced, that the file is empty and was begun in this
        session; then it is so in place; from then on it is written like a new file.
        """
        self._dirty.clear()
        self._tail = None
        self._cut = AREA_SIZE
        self._chunks.cut(0)
        self.header.session, self.header.phase = self.committer.session, self.committer.phase
        self.header_changed = True
        self._journal([(0, self._chunks.seal(0, True, b""))])
        self._chunks.placed_up_to(1, True, 0)
        self.size = 0
        self.committer.journal.sync()
        self._apply()
        self.durable = False
        self.unsynced = True
        self.committer.begun(self)

    # -- giving it to the disk ---------------------------------------------------------

    def _write_out(self) -> None:
        """Give the dirty chunks to the object file or the journal, the last one sealed as final."""
        if not self._dirty and self._cut is None:
            return
        chunks, last = self._chunks, self._geometry.count(self.size) - 1
        indices = sorted(self._dirty)
        sealed = [(index, chunks.seal(index, index == last, self._dirty[index])) for index in indices]
        if self.durable:
            self._journal(sealed)
        else:
            chunks.place(sealed)
            self.unsynced = True
        if indices and indices[-1] >= chunks.count - 1:
            top = indices[-1]
            chunks.placed_up_to(top + 1, top == last, len(self._dirty[top]))
            self._tail = top, self._dirty[top]
        self._dirty.clear()

    def _journal(self, sealed: list[tuple[int, bytearray]]) -> None:
        extents: list[tuple[int, bytes | bytearray]] = [
            (self._geometry.offset(index), data) for index, data in sealed
        ]
        header: tuple[int, bytes] | None = None
        if self.header_changed:
            header = self._next_header()
            extents.append((SLOT_OFFSETS[header[0]], header[1]))
        with self.committer.paths:
            record = Record(self.header.object_id, self.node.path(), extents, self._cut)
            self.journaled_at = self.committer.journal.append(record)
        chunks = self._chunks
        chunks.given += 1
        if self._cut is not None:
            for index in [index for index in chunks.pending if self._geometry.offset(index) >= self._cut]:
                del chunks.pending[index]
        chunks.pending.update(sealed)
        if self._cut is not None:
            chunks.pending_cut = (
                self._cut if chunks.pending_cut is None else min(self._cut, chunks.pending_cut)
            )
            self._cut = None
        if header is not None:
            chunks.pending_header = header
            self.header_changed = False
        self.committer.journaled(self)

    def dirty_bytes(self) -> int:
        """Plaintext held in memory only."""
        return sum(map(len, list(self._dirty.values())))

    def change(self, change: SetAttr) -> None:
        """Change mode, owner and times; in the header at the next flush."""
        with self.lock:
            header = self.header
            if change.mode is not None:
                header.mode = change.mode & 0o7777
            if change.uid is not None:
                header.uid = change.uid
            if change.gid is not None:
                header.gid = change.gid
            if change.atime_ns is not None:
                header.atime = change.atime_ns
            if change.mtime_ns is not None:
                header.mtime = change.mtime_ns
            header.ctime = time.time_ns() if change.ctime_ns is None else change.ctime_ns
            self.header_changed = True

    def touch_ctime(self) -> None:
        """The inode changed: now is its change time."""
        with self.lock:
            self.header.ctime = time.time_ns()
            self.header_changed = True
            if self.handles == 0:
                self.flush()

    def _next_header(self) -> tuple[int, bytes]:
        """Slot and bytes of the header with the next generation."""
        self.header.generation += 1
        self.header.epoch = self.committer.codec.current_epoch
        return 0 if self.slot != 0 else 1, self.committer.codec.pack(self.header)

    def flush(self) -> None:
        """Give everything to the object file or the journal, so that it reads whole from there."""
        with self.lock:
            last = self._geometry.count(self.size) - 1
            if last not in self._dirty and not (self._chunks.count - 1 == last and self._chunks.final):
                self._dirty[last] = self._load(last) if self.size else bytearray()
            self._write_out()
            if self.header_changed:
                if self.committer.journal.live(self.header.object_id):
                    # Never in place before it is in the journal: by that recovery knows which is newer.
                    self._journal([])
                else:
                    self._place_header()

    def _place_header(self) -> None:
        """Write the header in place, to the slot that does not hold the durable one."""
        slot, packed = self._next_header()
        self._chunks.pending_header = None
        pwrite_all(self.fd, packed, SLOT_OFFSETS[slot])
        self._written_slot = slot
        self.placed = self.header.generation
        self.header_changed = False
        self.unsynced = True

    def apply(self) -> None:
        """Put in place what the journal holds durably. The committer calls it after a sync."""
        with self.lock:
            if self.has_pending() and self.journaled_at <= self.committer.journal.synced:
                self._apply()

    def _apply(self) -> None:
        self._changes += 1
        header = self._chunks.pending_header
        slot = self._chunks.apply()
        if slot is not None and header is not None:
            self._written_slot = slot
            self.placed = generation_of(header[1])

    def orphaned(self, directory: Node) -> None:
        """The last name is gone: nothing has to go through the journal any more.

        A power cut may bring a durable file back, if it undoes the removal of its name. So
        before it is changed any further, `directory` must be synced: see `left_behind`.
        """
        with self.lock:
            self.unlinked = True
            if self.durable:
                self.left_behind = directory
            self._apply()
            if self._cut is not None:
                os.ftruncate(self.fd, self._cut)
                self._cut = None
            self.durable = False

    def overlay(self, sealed: dict[int, Buffer]) -> None:
        """Read these chunks from the journal: for a vault that must not be changed."""
        self._chunks.pending.update(sealed)

    def has_pending(self) -> bool:
        """Whether the journal holds something that is not in place."""
        return self._chunks.has_pending

    def sync_in_place(self) -> int | None:
        """Make what is in place durable: one fsync. From the call on, changes go through the journal.

        Returns the position of the newest journal record, all of which is durable in place now, or None
        if some of it was not in place. An error is the caller's, and that of every later call: the kernel
        may have dropped what it could not write, and would call the next sync a success.
        """
        with self.lock:
            if self._sync_failed is not None:
                raise OSError(self._sync_failed.errno, self._sync_failed.strerror)
            at = None if self.has_pending() else self.journaled_at
            slot = self._written_slot
            self.durable = True
            self.unsynced = False
        try:
            os.fsync(self.fd)
        except OSError as error:
            with self.lock:
                self.unsynced = True
                self._sync_failed = error
            raise
        with self.lock:
            self.slot = slot
        return at

    def sync_header(self) -> None:
        """Make a header durable, and whatever else of a new file: it still may lose unsynced content."""
        self.flush()
        with self.lock:
            slot = self._written_slot
        os.fsync(self.fd)
        with self.lock:
            self.slot = slot

    def carry(self, headers: list[bytes]) -> None:
        """Write directories' headers into the header area of a new file, to be synced with it.

        The inode is changed on purpose, as the last thing before the sync: it takes every
        earlier change of names with it where the file system keeps their order.
        """
        if headers:
            pwrite_all(self.fd, b"".join(map(carried, headers)), CARRIED_AT)
        os.fchmod(self.fd, self.committer.file_mode)

    def renew_header(self) -> None:
        """Have the next flush write the header, under the current epoch; nothing else of it changes."""
        with self.lock:
            self.header_changed = True

    def clear_older(self, clear: Callable[[int, int], None]) -> None:
        """Have `clear(descriptor, slot)` remove what is outdated beside the durable header.

        Only if that header is the newest one in place: the other slot is then nobody's.
        """
        with self.lock:
            if self.slot >= 0 and self._written_slot == self.slot and not self.unlinked:
                clear(self.fd, self.slot)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)

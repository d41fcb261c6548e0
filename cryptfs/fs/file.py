"""The content of one file in use: what changes it.

`reading` has its state, `storing` how it becomes durable. All methods take the file's lock themselves.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cryptfs.fs.chunks import Buffer
from cryptfs.fs.storing import StoredFile
from cryptfs.fs.types import SetAttr
from cryptfs.vault.content import SMALL_CHUNK_LOG2, Geometry, InvalidTag
from cryptfs.vault.header import AREA_SIZE, FLAG_SPARSE

HOLE_AT = 1 << 20
"""A gap of at least this many bytes becomes a hole; a smaller one is written as zeros."""
PENDING_MAX = 1 << 21
"""How many bytes of one file may wait in the journal and in memory to be put in place."""

MIB_LOG2 = 20
_FULL = (errno.ENOSPC, errno.EDQUOT)

_DATABASE_MAGIC = (b"SQLite format 3\0", b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")


class File(StoredFile):
    """One regular file or symbolic link in use."""

    def write(self, offset: int, data: Buffer) -> int:
        """Put `data` at `offset`; all of it, or an OSError.

        After an error the file is as it was, or as it should be: what reached the disk in part, and what
        a full disk refused (within the bounds of `refused`), is kept in memory and given to it again, and no
        sync succeeds before it took that. For the kernel has such data in its cache, takes it for written,
        and shows it.
        """
        size = len(data)
        if size == 0:
            return 0
        with self._changing(keeps=True):
            if self.touched is not None:
                self._touch(offset, offset + size)
            if self._chunks.count == 0 and not self._dirty and offset == 0:
                self._choose_chunk(data)
            if offset > self.size:
                self._grow(offset)
            self._write(offset, memoryview(data), offset + size)
            self._changed_now()
            self._complete = True
            # At once, and complete: an error is this caller's, and closing has nothing left to do.
            self._write_out()
        return size

    @contextmanager
    def _changing(self, *, keeps: bool = False, discards: bool = False) -> Iterator[None]:
        """The lock, around a change; undone by an error as long as nothing was given to the disk.

        With `keeps` it is not undone when it is `_complete` in memory and only the disk is full; with
        `discards` nothing of what an earlier error left is needed.
        """
        with self.lock:
            self._changes += 1
            self._complete, self._kept = False, self._kept and bool(self._dirty)
            if (self._dirty or self._cut is not None) and not (discards or (keeps and self._kept)):
                self._write_out()  # left by an error
                self._kept = False
            mark, size, cut, now = self._chunks.mark(), self.size, self._cut, self.header
            dirty = {index: bytearray(data) for index, data in self._dirty.items()}
            fields = now.flags, now.chunk_log2, now.session, now.phase
            try:
                yield
            except OSError as problem:
                self._tail = None
                if self._complete and self._may_keep(problem):
                    self._kept = True
                elif self._chunks.restore(mark):
                    self._dirty = dirty
                    self._cut, self.size, self._geometry = cut, size, mark.geometry
                    now.flags, now.chunk_log2, now.session, now.phase = fields
                else:
                    self._kept = self._may_keep(problem)  # in part on the disk, so it stays in any case
                raise

    def _may_keep(self, problem: OSError) -> bool:
        return problem.errno in _FULL and self.committer.refused.keeps(self)

    def _touch(self, begin: int, end: int) -> None:
        """Note for whoever copies the file that these bytes change, and what was its end."""
        assert self.touched is not None
        begin = max(min(begin, self.size) - 1, 0)
        self.touched.update(range(begin >> MIB_LOG2, (end >> MIB_LOG2) + 1))

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
        direct = not (self.durable or self._kept)
        previous = self._dirty.get(first - 1)
        if previous is not None and len(previous) == chunk and direct:
            # The chunk that was the last one goes with its new neighbours.
            run, run_at = [previous], first - 1
        for index in range(first, last + 1):
            begin = index * chunk
            a, b = max(offset, begin) - begin, min(end, begin + chunk) - begin
            piece = data[begin + a - offset : begin + b - offset]
            whole = b - a == chunk
            if direct and (whole or (a == 0 and index == final and begin + b == new_size)):
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
            self.not_synced()
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
        with self.lock:
            if size == 0 and not self.durable:
                self._dirty.clear()  # left by an error, on a disk that is full until this makes room
            elif self._dirty and size < self.size:
                self._forget_refused(size)
        with self._changing(discards=size == 0):
            if self.touched is not None:
                self._touch(size, max(size, self.size))
            if size > self.size:
                self._grow(size)
            elif size < self.size:
                if size == 0 and self.durable:
                    self._begin_anew()
                else:
                    self._shrink(size)
            self._changed_now()
            self._write_out()

    def _forget_refused(self, size: int) -> None:
        """Before the file is cut back to what the disk has: nothing of the rest need be given to that."""
        chunks = self._chunks
        if self._cut is not None or not chunks.final or chunks.size != size:
            return
        try:
            for index, data in self._dirty.items():
                if index < chunks.count and not data.startswith(chunks.open(index)):
                    return
        except InvalidTag:
            return  # written over in part
        self._dirty.clear()
        self._tail, self.size = None, size

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
            self.not_synced()

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
        self.durable, self.emptied = False, True
        self.committer.begun(self)

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

    # -- after an unclean stop ------------------------------------------------------------

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

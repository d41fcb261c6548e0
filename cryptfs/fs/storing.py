"""Giving a file in use to the disk, and making it durable there.

A file that was never durable is written in place at once (nothing can be lost that was
promised). As soon as it is durable, every change goes through the journal first, so that a
power cut leaves each chunk old or new.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from cryptfs.fs.chunks import Chunks
from cryptfs.fs.reading import ReadableFile
from cryptfs.vault.dirlog import CARRIED_AT, carried
from cryptfs.vault.diskio import pwrite_all
from cryptfs.vault.header import SLOT_OFFSETS, Header, generation_of
from cryptfs.vault.journal import Record

if TYPE_CHECKING:
    from cryptfs.fs.file import File
    from cryptfs.fs.nodes import Node


class StoredFile(ReadableFile):
    """A file and what is on the disk of it: in place, in the journal, durable or not."""

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
            self.not_synced()
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
        self.committer.journaled(cast("File", self))  # there are no others

    def _next_header(self) -> tuple[int, bytes]:
        """Slot and bytes of the header with the next generation."""
        self.header.generation += 1
        self.header.epoch = self.committer.codec.current_epoch
        return 0 if self.slot != 0 else 1, self.committer.codec.pack(self.header)

    @property
    def is_given(self) -> bool:
        """Whether `flush` would have nothing to do."""
        chunks = self._chunks
        return not (self.header_changed or self._dirty or self._cut is not None) and (
            chunks.final and chunks.count == self._geometry.count(self.size)
        )

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
        self.not_synced()

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
            slot, placed = self._written_slot, self._placed
            self.durable = True
        try:
            os.fsync(self.fd)
        except OSError as error:
            with self.lock:
                self._sync_failed = error
            raise
        with self.lock:
            self.slot = slot
            # Only now: whoever else syncs it meanwhile must not take it for synced.
            self._placed_durably = max(self._placed_durably, placed)
        return at

    def sync_header(self) -> None:
        """Make a header durable, and whatever else of a new file: it still may lose unsynced content.

        Content that the disk refuses is no error of this: its writer was told.
        """
        with self.lock:
            try:
                self.flush()
            except OSError:
                if not self.durable:  # else somebody syncs it meanwhile, and the journal comes first
                    self._place_header()  # over the one it was made with: that needs no room
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

    def replace(self, fd: int, header: Header) -> int:
        """Go on as another object file, which `fd` has open and this takes over.

        Returns a descriptor of the old one, to be closed without locks: if that has lost its last name, the
        lower file system frees all its blocks then, which takes milliseconds. Its content is the same under
        another key, durable, and its header is `header`, in slot 0. The caller holds the file's lock, and
        all of the file was durable in place. Who reads without the lock finds that something changed, at
        the latest by a chunk that does not authenticate, and reads again.
        """
        self._changes += 1
        former = os.dup(self.fd)
        os.dup2(fd, self.fd, inheritable=False)
        os.close(fd)
        self.header = header
        self._chunks = Chunks(self.fd, header, self.size)
        self._geometry = self._chunks.geometry
        self._tail = None
        self.slot = self._written_slot = 0
        self.placed = self.noted = header.generation
        self.durable, self.header_changed = True, False
        self._placed_durably = self._placed
        self._changes += 1
        return former

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)

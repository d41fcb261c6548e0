"""One file in use: its state, and reading it.

A chunk is looked for in this order:

1. `dirty`: plaintext, changed and not yet given to the disk;
2. `Chunks.pending`: sealed, in the journal, not yet in place;
3. the object file.

All methods take the file's lock themselves; `read` tries without it first.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from cryptfs.fs.chunks import Buffer, Chunks
from cryptfs.fs.directory import eio
from cryptfs.vault.content import InvalidTag
from cryptfs.vault.header import Header

if TYPE_CHECKING:
    from cryptfs.fs.commit import Committer
    from cryptfs.fs.nodes import Node

log = logging.getLogger(__name__)


class ReadableFile:
    """The state of one regular file or symbolic link in use, and what it reads as.

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
        self.named = (b"", b"")
        """The ciphertext name and the plaintext one that it got last while it was in use."""
        self.emptied = False
        """Whether the journal says that it is empty, and not yet that what is in place since is durable."""
        self._placed = 0 if durable else 1
        self._placed_durably = 0
        """How often something was put in place that is not in the journal, and how often before a sync."""
        self.header_changed = False
        self._written_slot = slot
        self._chunks = Chunks(fd, header, size)
        self._geometry = self._chunks.geometry
        self._dirty: dict[int, bytearray] = {}
        self._tail: tuple[int, bytearray] | None = None
        """The last chunk, already written: the next write will most likely go on there."""
        self._cut: int | None = None
        """Where the object file must be cut before the next dirty chunk is written."""
        self._complete = False
        """Whether a change, while it is made, is all in memory, and only to be given to the disk."""
        self._kept = False
        """Whether what is dirty is what a full disk refused, and there is room for more of it."""
        self.journaled_at = 0
        """The position of this file's newest record in the journal."""
        self._changes = 0
        self.touched: set[int] | None = None
        """Which MiB of the plaintext were changed since a copy of it was begun, if one was."""
        self._sync_failed: OSError | None = None

    @property
    def unsynced(self) -> bool:
        """Whether something is in place that neither a sync nor the journal made durable."""
        return self.emptied or self._placed != self._placed_durably

    def not_synced(self) -> None:
        """Something was put in place, and the journal has nothing of it."""
        self._placed += 1

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

    def dirty_bytes(self) -> int:
        """Plaintext held in memory only."""
        return sum(map(len, list(self._dirty.values())))

    def overlay(self, sealed: dict[int, Buffer]) -> None:
        """Read these chunks from the journal: for a vault that must not be changed."""
        self._chunks.pending.update(sealed)

    def has_pending(self) -> bool:
        """Whether the journal holds something that is not in place."""
        return self._chunks.has_pending

"""Making names durable: the entries and headers of all directories on the way to an object.

On any lower file system it is enough to sync the log of directory headers and then each
directory that has a new entry. A file system that writes its metadata in order (one journal,
committed as a whole: ext4, XFS) makes it cheaper: an fsync of whatever was changed last makes all
earlier changes of names durable, too. And a new file takes the headers of new directories with it, in
its own header area (format section 4), so that storing one image costs one fsync in all.
"""

from __future__ import annotations

import itertools
import os
import threading
from typing import NamedTuple

from cryptfs.fs.directory import DirectoryCache
from cryptfs.fs.nodes import Node
from cryptfs.vault.dirlog import CARRIED_MAX
from cryptfs.vault.diskio import file_system_type
from cryptfs.vault.vault import Vault

ORDERED_TYPES = frozenset({"ext3", "ext4", "xfs"})


class Mark(NamedTuple):
    """A directory with entries that are not durable, and those that entries came from."""

    directory: Node
    sources: tuple[Node, ...]
    order: int


class Plan(NamedTuple):
    """What an fsync of one new file makes durable beside it."""

    marks: list[Mark]
    headers: list[bytes]


class Places:
    """The directories of one mounted vault whose entries or headers are not durable."""

    def __init__(self, vault: Vault, directories: DirectoryCache, namespace: threading.RLock) -> None:
        self._dirlog = vault.dirlog
        self._directories = directories
        self._namespace = namespace
        self.ordered = file_system_type(vault.tree_fd) in ORDERED_TYPES
        """Whether the lower file system commits changes of names in the order they were made."""
        self._dirty: dict[int, Mark] = {}
        self._headers: dict[int, tuple[int, bytes]] = {}
        self._count = itertools.count()

    # -- what the namespace tells; the caller holds its lock -----------------------------------------

    def entry_changed(self, directory: Node, moved_from: Node | None = None) -> None:
        """A directory got, lost or renamed an entry."""
        sources: tuple[Node, ...] = ()
        if moved_from is not None and moved_from is not directory:
            sources = (moved_from,)
            self.entry_changed(moved_from)
        known = self._dirty.get(directory.ino)
        if known is not None:
            sources = sources + tuple(node for node in known.sources if node not in sources)
        # A new mark each time: a sync that began before this change must not take it for synced.
        self._dirty[directory.ino] = Mark(directory, sources, next(self._count))

    def header_written(self, ino: int, slot: bytes, parent_id: bytes) -> None:
        """A directory was made, or its header changed."""
        self._headers[ino] = self._dirlog.append(slot, parent_id), slot + parent_id

    def directory_gone(self, ino: int) -> None:
        self._dirty.pop(ino, None)
        self._headers.pop(ino, None)

    # -- making durable ----------------------------------------------------------------------------

    def sync(self, directory: Node | None) -> None:
        """Make the names and headers of a directory and all above it durable."""
        self.sync_headers()
        fds: list[tuple[Mark, int]] = []
        try:
            with self._namespace:
                if not self._dirty:
                    return
                marks = self._marks(directory)
                todo = [max(marks, key=lambda mark: mark.order)] if self.ordered and marks else marks
                for mark in todo:
                    fds.append((mark, os.dup(self._directories.get(mark.directory).fd)))
            for _, fd in fds:
                os.fsync(fd)
            self.synced(marks)
        finally:
            for _, fd in fds:
                os.close(fd)

    def sync_headers(self) -> None:
        """Make all headers of directories durable."""
        self._dirlog.sync()
        synced = self._dirlog.synced
        with self._namespace:
            for ino in [ino for ino, (position, _) in self._headers.items() if position <= synced]:
                del self._headers[ino]

    def _marks(self, directory: Node | None) -> list[Mark]:
        found: dict[int, Mark] = {}
        todo = [directory]
        while todo:
            node = todo.pop()
            while node is not None:
                mark = self._dirty.get(node.ino)
                if mark is not None and node.ino not in found:
                    found[node.ino] = mark
                    todo += mark.sources
                node = node.parent
        return list(found.values())

    def plan(self, directory: Node | None) -> Plan | None:
        """What the fsync of a new file in `directory` can do alone; None if it cannot."""
        if not self.ordered:
            return None
        headers: list[bytes] = []
        with self._namespace:
            node = directory
            while node is not None and self._headers:
                position, record = self._headers.get(node.ino, (0, b""))
                if position > self._dirlog.synced:
                    headers.append(record)
                node = node.parent
            if len(headers) > CARRIED_MAX:
                return None
            return Plan(self._marks(directory), headers)

    def all_marks(self) -> list[Mark]:
        """Everything that is not durable now, to be given to `synced` after a syncfs."""
        with self._namespace:
            return list(self._dirty.values())

    def synced(self, marks: list[Mark]) -> None:
        """These are durable, unless they changed since."""
        with self._namespace:
            for mark in marks:
                if self._dirty.get(mark.directory.ino) is mark:
                    del self._dirty[mark.directory.ino]

    def crowded(self, limit: int) -> bool:
        """Whether more than `limit` directories are remembered."""
        return len(self._headers) > limit or len(self._dirty) > limit

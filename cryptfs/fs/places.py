"""Making names durable: the entries and headers of all directories on the way to an object.

On any lower file system it is enough to sync the log of directory headers and then each
directory that has a new entry. A file system that writes its metadata in order (one journal,
committed as a whole: XFS, ext4 with its journal) makes it cheaper: an fsync of whatever was
changed last makes all earlier changes of names durable, too. And a new file takes the headers of
new directories with it, in its own header area (format section 4), so that storing one image
costs one fsync in all.
"""

from __future__ import annotations

import itertools
import os
import threading
from typing import NamedTuple

from cryptfs.fs.directory import DirectoryCache
from cryptfs.fs.nodes import Node
from cryptfs.vault.dirlog import CARRIED_MAX
from cryptfs.vault.diskio import fsync_path, syncfs
from cryptfs.vault.lower import names_keep_order
from cryptfs.vault.names import DIR_HEADER
from cryptfs.vault.vault import Vault


class Mark(NamedTuple):
    """A directory with entries that are not durable, and those that entries came from."""

    directory: Node
    sources: tuple[Node, ...]
    order: int


MANY = 8
"""From so many directories on, one sync of everything is cheaper than one for each."""


class Made(NamedTuple):
    """A directory whose `@dir` is not durable itself, but a copy of it at the most."""

    directory: Node
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
        self.ordered = names_keep_order(vault.tree_fd)
        """Whether the lower file system commits changes of names in the order they were made."""
        self._dirty: dict[int, Mark] = {}
        self._headers: dict[int, tuple[int, bytes]] = {}
        self._unplaced: dict[int, Made] = {}
        self._relied: set[int] = set()
        """Those of them that a sync has promised to keep."""
        self._rewritten: set[int] = set()
        """Those whose header was changed: a copy does not count while the old one is valid."""
        self._newborn: dict[int, set[int]] = {}
        """What has a name that is not durable, by the directory it is in: new directories, and whatever
        was moved or linked."""
        self._count = itertools.count()

    # -- what the namespace tells; the caller holds its lock -----------------------------------------

    def entry_changed(self, directory: Node, moved_from: Node | None = None) -> None:
        """A directory got, lost or renamed an entry."""
        sources: tuple[Node, ...] = ()
        if moved_from is not None and moved_from is not directory:
            sources = (moved_from,)
            self.entry_changed(moved_from)
        known = self._dirty.get(directory.ino)
        if known is not None and known.sources:
            sources = sources + tuple(node for node in known.sources if node not in sources)
        # A new mark each time: a sync that began before this change must not take it for synced.
        self._dirty[directory.ino] = Mark(directory, sources, next(self._count))

    def header_written(self, ino: int, slot: bytes, parent_id: bytes) -> None:
        """A directory was made, or its header changed."""
        self._headers[ino] = self._dirlog.append(slot, parent_id), slot + parent_id

    def made(self, directory: Node) -> None:
        """A directory was made."""
        self._unplaced[directory.ino] = Made(directory, next(self._count))
        self.moved(directory)

    def rewritten(self, directory: Node) -> None:
        """The header of a directory was changed in place."""
        self._unplaced[directory.ino] = Made(directory, next(self._count))
        self._rewritten.add(directory.ino)

    def moved(self, node: Node) -> None:
        """Something durable has a name that is not."""
        if node.parent is not None:
            self._newborn.setdefault(node.parent.ino, set()).add(node.ino)

    def wandering(self, node: Node | None) -> bool:
        """Whether a power cut could still leave something at another path than the one it has now.

        The journal finds it by its path, so that must be synced before the journal relies on it. (A sync
        of the journal alone need not do that even where changes of names keep their order: it may change
        nothing but content.)
        """
        while self._newborn and node is not None and node.parent is not None:
            if node.ino in self._newborn.get(node.parent.ino, ()):
                return True
            node = node.parent
        return False

    def directory_gone(self, ino: int) -> None:
        self._dirty.pop(ino, None)
        self._headers.pop(ino, None)
        self._unplaced.pop(ino, None)
        self._relied.discard(ino)
        self._rewritten.discard(ino)
        self._newborn.pop(ino, None)

    def sinks(self, directory: Node) -> bool:
        """Whether a directory may be gone after a power cut, with all that is moved into it.

        That is so while a header on the way to it is nowhere durable, or the name of a directory.
        """
        if not self.ordered and self.wandering(directory):
            return True
        node: Node | None = directory
        while node is not None and self._headers:
            if self._headers.get(node.ino, (0, b""))[0] > self._dirlog.synced:
                return True
            node = node.parent
        return False

    def secure(self, directory: Node) -> None:
        """See to it that a directory no longer `sinks`, without the namespace lock."""
        if self.ordered:
            self.sync_headers()
        else:
            self.sync(directory)

    def needs_place(self, directory: Node) -> bool:
        """Whether a directory must be placed (`place`) before an entry of it goes.

        A copy of a header is found by the names that decrypt with it. The last entry takes that
        away, so a directory that was promised to stay needs its own header from then on.
        """
        return directory.ino in self._relied

    # -- making durable ----------------------------------------------------------------------------

    def sync(self, directory: Node | None, *, entries: bool = False) -> None:
        """Make the names and headers of a directory and all above it durable.

        With `entries` also what its entries that are directories need, should they be empty.
        """
        self.sync_headers()
        self.place(*self._to_place(directory, entries))
        fds: list[tuple[Mark, int]] = []
        try:
            with self._namespace:
                self._rely(directory)
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

    def _to_place(self, directory: Node | None, entries: bool) -> list[Node]:
        with self._namespace:
            todo: list[Node] = []
            node = directory
            while node is not None and self._rewritten:
                if node.ino in self._rewritten:
                    todo.append(node)
                node = node.parent
            if entries and directory is not None:
                below = [made.directory for made in self._unplaced.values()]
                todo += [node for node in below if node.parent is directory]
                todo.append(directory)
            return todo

    def _rely(self, directory: Node | None) -> None:
        node = directory
        while node is not None and self._unplaced:
            if node.ino in self._unplaced:
                self._relied.add(node.ino)
            node = node.parent

    def place(self, *directories: Node) -> None:
        """Make the `@dir` of directories durable where it is, without the namespace lock."""
        with self._namespace:
            todo = [self._unplaced[node.ino] for node in directories if node.ino in self._unplaced]
            fds = [os.dup(self._directories.get(made.directory).fd) for made in todo[:MANY]]
        try:
            if len(todo) > MANY:
                syncfs(fds[0])
            else:
                for fd in fds:
                    fsync_path(DIR_HEADER, fd)
                    if not self.ordered:
                        os.fsync(fd)
            self.placed(todo)
        finally:
            for fd in fds:
                os.close(fd)

    def unplaced(self) -> list[Made]:
        """Directories to be given to `placed` after a syncfs."""
        with self._namespace:
            return list(self._unplaced.values())

    def placed(self, directories: list[Made]) -> None:
        """The `@dir` of these is durable, unless it changed since."""
        with self._namespace:
            for made in directories:
                ino = made.directory.ino
                if self._unplaced.get(ino) is made:
                    del self._unplaced[ino]
                    self._relied.discard(ino)
                    self._rewritten.discard(ino)

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
            self._rely(directory)
            node = directory
            while node is not None and (self._headers or self._rewritten):
                if node.ino in self._rewritten:
                    return None
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
                    self._newborn.pop(mark.directory.ino, None)

    def crowded(self, limit: int) -> bool:
        """Whether more than `limit` directories are remembered."""
        return max(len(self._headers), len(self._dirty), len(self._unplaced), len(self._newborn)) > limit

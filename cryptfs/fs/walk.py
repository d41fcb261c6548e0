"""Going over the whole tree of a filesystem that is in use, for a long job.

Every object that was there when the walk began is visited, whatever is renamed meanwhile: what gets another
name is put on a list and visited again at its new place, a directory with all below it. What is made while
the walk goes on may be visited or not. Directories on the way are held by a reference, so that renames above
them do not lead the walk astray.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from cryptfs.fs.nodes import ROOT, Node
from cryptfs.fs.parts import Parts
from cryptfs.fs.throttle import Progress, Throttle
from cryptfs.fs.unreadable import Unreadable, reading
from cryptfs.vault.names import is_entry

GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(slots=True)
class Folder:
    """A directory on the walk: its node, held, a descriptor of its own, and the entries not visited yet."""

    node: Node
    fd: int
    names: list[bytes]


class Walk:
    """One job's walk. `on_directory(node)` is called without locks before anything below the directory, and
    may raise Unreadable, which is counted;
    `on_entry(folder, lname)` with the namespace lock held, and returns the node of a directory to go into;
    `between()` now and then, without locks.
    """

    def __init__(
        self,
        parts: Parts,
        throttle: Throttle,
        progress: Progress,
        on_directory: Callable[[Node], None],
        on_entry: Callable[[Folder, bytes], Node | None],
        between: Callable[[], None],
    ) -> None:
        self._parts = parts
        self._throttle = throttle
        self._progress = progress
        self._on_directory = on_directory
        self._on_entry = on_entry
        self._between = between
        self.order: Callable[[int, list[bytes]], None] = lambda fd, names: None
        """Puts the entries of a directory, open as `fd`, in order, the last one to be visited first."""
        self.counts = True
        """Whether each entry counts for the limit of the throttle."""
        self._moved: list[Node] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take note of what is renamed, until the end of the block."""
        with self._parts.lock:
            self._parts.committer.on_moved = self._note
        try:
            yield
        finally:
            with self._parts.lock:
                self._parts.committer.on_moved = None

    def _note(self, node: Node) -> None:
        self._moved.append(node)

    def again(self, node: Node) -> None:
        """Visit a directory once more, with all below it. The caller holds the namespace lock."""
        self._moved.append(node)

    def run(self) -> None:
        """From the root, and then wherever something was moved to."""
        self.below(self._parts.nodes.root)
        while True:
            with self._parts.lock:
                moved, self._moved = self._moved, []
            if not moved:
                return
            for node in moved:
                if node.dead or node.parent is None:
                    continue
                if node.is_dir:
                    self.below(node)
                else:
                    self._one(node)
                self._throttle.check()

    def _one(self, node: Node) -> None:
        with self._parts.lock:
            if node.dead or node.parent is None:
                return
            try:
                directory = self._parts.directories.get(node.parent)
                fd = os.open(b".", _LIST, dir_fd=directory.fd)
            except OSError:
                return  # moved again, which is noted, or gone
            try:
                self._on_entry(Folder(node.parent, fd, []), node.lname)
            finally:
                os.close(fd)

    def below(self, top: Node) -> None:
        """One directory and everything below it, depth first."""
        stack: list[Folder] = []
        try:
            self._enter(stack, top)
            while stack:
                folder = stack[-1]
                if not folder.names:
                    self._leave(stack.pop())
                    continue
                found = self._slice(folder)
                self._between()
                if found is not None:
                    self._enter(stack, found)
                    with self._parts.lock:
                        self._parts.nodes.forget(found.ino, 1)  # the reference of _slice
                self._throttle.check()
        finally:
            for folder in stack:
                self._leave(folder)

    def _slice(self, folder: Folder) -> Node | None:
        """Visit entries until the slice is over; the node of a directory found, with a reference."""
        names, throttle = folder.names, self._throttle
        with self._parts.lock:
            self._parts.directories.trim()
            while names:
                node = self._on_entry(folder, names.pop())
                self._progress.done += 1
                if self.counts:
                    throttle.count()
                if node is not None:
                    self._parts.nodes.reference(node)
                    return node
                if throttle.slice_is_over:
                    return None
        return None

    def _enter(self, stack: list[Folder], node: Node) -> None:
        try:
            self._on_directory(node)
            with self._parts.lock:
                self._parts.directories.trim()
                with reading():
                    directory = self._parts.directories.get(node)
                # A description of our own: one that is shared has one position for all who list it.
                fd = os.open(b".", _LIST, dir_fd=directory.fd)
                if node.ino != ROOT:
                    self._parts.nodes.reference(node)
        except Unreadable:
            self._progress.damaged += 1  # the second reading tells which
            return
        except OSError as problem:
            if problem.errno not in GONE:
                raise
            return
        try:
            names = [name for name in map(os.fsencode, os.listdir(fd)) if is_entry(name)]
            self.order(fd, names)
        except BaseException:
            os.close(fd)
            raise
        stack.append(Folder(node, fd, names))

    def _leave(self, folder: Folder) -> None:
        os.close(folder.fd)
        if folder.node.ino != ROOT:
            with self._parts.lock:
                self._parts.nodes.forget(folder.node.ino, 1)


def count_objects(tree_fd: int, check: Callable[[], None]) -> int:
    """How many names there are below a ciphertext directory, without opening any of them."""
    return measure(tree_fd, check, sizes=False)[0]


def measure(tree_fd: int, check: Callable[[], None], *, sizes: bool = True) -> tuple[int, int]:
    """The same, and how many bytes the object files have; a file counts once for each of its names."""
    total, size = 1, 0
    stack: list[tuple[int, list[str]]] = []

    def enter(name: str, dir_fd: int) -> int:
        nonlocal size
        try:
            fd = os.open(name, _LIST | os.O_NOFOLLOW, dir_fd=dir_fd)
        except OSError:
            return 0  # gone, or damaged, which the walk will tell
        with os.scandir(fd) as entries:
            found = [entry for entry in entries if is_entry(os.fsencode(entry.name))]
            stack.append((fd, [entry.name for entry in found if entry.is_dir(follow_symlinks=False)]))
            for entry in found if sizes else ():
                with suppress(FileNotFoundError):
                    st = entry.stat(follow_symlinks=False)
                    size += st.st_size if stat.S_ISREG(st.st_mode) else 0
        return len(found)

    total += enter(".", tree_fd)
    try:
        while stack:
            fd, names = stack[-1]
            if names:
                total += enter(names.pop(), fd)
                check()
            else:
                os.close(fd)
                stack.pop()
    finally:
        for fd, _ in stack:
            os.close(fd)
    return total, size

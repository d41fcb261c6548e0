"""Every directory of the tree, parents first, in an order that is the same each time.

Works relative to open directories, so no path is too long; of a deep chain only the lowest few stay
open, and the way back up goes by `..`, if that still is the directory that was left.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from cryptfs.check.context import Context
from cryptfs.check.directory import OPEN_DIR, DirectoryLook, look_at
from cryptfs.check.finding import Finding, Kind
from cryptfs.check.look import until_believed
from cryptfs.check.place import Place

KEEP_OPEN = 64

Position = tuple[list[bytes], bytes]
"""How far a walk has come: the names down to a directory, and the last of its files that is done."""


@dataclass
class Visit:
    """A directory in its turn; `fd` is open until the walk goes on."""

    place: Place
    fd: int
    parent_id: bytes | None
    look: DirectoryLook


@dataclass
class _Frame:
    place: Place
    fd: int
    identity: tuple[int, int]
    own_id: bytes | None
    todo: list[bytes]


class Walk:
    """One walk. What could not be entered is in `findings`, taken away by the caller."""

    def __init__(self, context: Context, after: Position | None = None) -> None:
        self._context = context
        self._after = after
        self._stack: list[_Frame] = []
        self.findings: list[Finding] = []

    def __iter__(self) -> Iterator[Visit]:
        return self.below(Place(None, b""), os.dup(self._context.tree_fd), None)

    def below(self, place: Place, fd: int, parent_id: bytes | None) -> Iterator[Visit]:
        """A directory and all below it; takes `fd` over."""
        try:
            yield self._enter(place, fd, parent_id)
            while self._stack:
                frame = self._stack[-1]
                if not frame.todo:
                    self._leave()
                    continue
                lname = frame.todo.pop()
                inner = self._open(frame, lname)
                if inner >= 0:
                    yield self._enter(Place(frame.place, lname), inner, frame.own_id)
        finally:
            for frame in self._stack:
                if frame.fd >= 0:
                    os.close(frame.fd)
            self._stack.clear()

    def _enter(self, place: Place, fd: int, parent_id: bytes | None) -> Visit:
        context = self._context

        def look() -> DirectoryLook:
            return look_at(context, place, fd, parent_id)

        seen = until_believed(context, look(), look, place.path())
        status = os.fstat(fd)
        own_id = seen.header.object_id if seen.header else None
        todo = self._left_to_do(place, seen.directories)
        self._stack.append(_Frame(place, fd, (status.st_dev, status.st_ino), own_id, todo))
        if len(self._stack) > KEEP_OPEN:
            upper = self._stack[-KEEP_OPEN - 1]
            if upper.fd >= 0:
                os.close(upper.fd)
                upper.fd = -1
        return Visit(place, fd, parent_id, seen)

    def _left_to_do(self, place: Place, directories: list[bytes]) -> list[bytes]:
        """The directories in it, the first one last, without those that an earlier walk was done with."""
        if self._after is not None:
            here, reached = place.components(), self._after[0]
            if len(here) < len(reached) and reached[: len(here)] == here:
                directories = [lname for lname in directories if lname >= reached[len(here)]]
        return directories[::-1]

    def _open(self, frame: _Frame, lname: bytes) -> int:
        try:
            return os.open(lname, OPEN_DIR, dir_fd=frame.fd)
        except (FileNotFoundError, NotADirectoryError):
            return -1  # removed or replaced meanwhile
        except OSError as problem:
            self.findings.append(Finding.of_error(frame.place.path(lname), problem))
            return -1

    def _leave(self) -> None:
        """Back to the directory above."""
        done = self._stack.pop()
        if self._stack and self._stack[-1].fd < 0:
            above = self._stack[-1]
            above.fd = self._reopen(done.fd, above)
            if above.fd < 0:
                if above.todo:
                    self.findings.append(
                        Finding(Kind.BUSY, above.place.path(), detail="it was moved while it was checked")
                    )
                above.todo = []
                above.fd = os.dup(done.fd)  # it has nothing to be opened in any more
        os.close(done.fd)

    def _reopen(self, fd: int, above: _Frame) -> int:
        """The directory above `fd`, or -1 if it is not where it was."""
        found = os.open("..", OPEN_DIR, dir_fd=fd)
        try:
            if self._is(found, above):
                return found
            # Moved away from it: once more from the root.
            os.close(found)
            found = os.dup(self._context.tree_fd)
            for lname in above.place.components():
                inner = os.open(lname, OPEN_DIR, dir_fd=found)
                os.close(found)
                found = inner
            if self._is(found, above):
                return found
        except OSError:
            pass
        os.close(found)
        return -1

    @staticmethod
    def _is(fd: int, frame: _Frame) -> bool:
        status = os.fstat(fd)
        return (status.st_dev, status.st_ino) == frame.identity

"""A filesystem that tells what happens in it: names, and files that were written.

It stands between the mount and the filesystem. Telling costs a few microseconds and never waits: what does
not fit into the queue is dropped, and the queue says so, upon which everything is compared again at leisure.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from cryptfs.fs import FileSystem
from cryptfs.fs.restoring import Survey
from cryptfs.fs.types import Attr, Owner, SetAttr

QUEUE_MAX = 20_000
"""Events that wait at most; some 6 MB."""
_WRITABLE = os.O_WRONLY | os.O_RDWR | os.O_TRUNC
_EXCHANGE = 2


class Named(NamedTuple):
    """An object has a name; ids are object ids."""

    parent: bytes
    name: bytes
    child: bytes
    is_dir: bool


class Removed(NamedTuple):
    parent: bytes
    name: bytes


class Moved(NamedTuple):
    old_parent: bytes
    old: bytes
    new_parent: bytes
    new: bytes
    exchange: bool


class Written(NamedTuple):
    """A file that was open for writing was closed, or its length was changed."""

    object_id: bytes


Event = Named | Removed | Moved | Written


class Queue:
    """Events in order. One thread takes them, any may put them."""

    def __init__(self, limit: int = QUEUE_MAX) -> None:
        self._events: deque[Event] = deque()
        self._limit = limit
        self.overflowed = False
        """Something was dropped since somebody set this to False."""
        self.ids_changed = False
        """Files that look as they did may have other object ids: one that was told of was dropped. Whoever
        has compared everything since sets this to False."""
        self.closed = False
        """Nobody listens."""

    def __len__(self) -> int:
        return len(self._events)

    def put(self, event: Event, *, rekeyed: bool = False) -> None:
        """`rekeyed` says that it tells of a file that has another object id."""
        if self.closed:
            return
        if len(self._events) >= self._limit:
            self.ids_changed = self.ids_changed or rekeyed
            self.overflowed = True
        else:
            self._events.append(event)

    def take(self) -> Event | None:
        return self._events.popleft() if self._events else None


class WatchedFileSystem:
    """A `FileSystem` with a queue; everything but what is below goes straight through."""

    def __init__(self, fs: FileSystem, queue: Queue, close: Callable[[], None]) -> None:
        """`close` is called instead of the filesystem's, which it has to call."""
        self.unwatched = self._fs = fs
        self.close = close
        self._queue = queue
        self._writers: set[int] = set()
        fs.on_rekeyed = self._tell_rekeyed
        # Bound here, so that reading and writing take no detour.
        for name in dir(fs):
            if not name.startswith("_") and name not in type(self).__dict__ and name != "close":
                value = getattr(fs, name)
                if callable(value):
                    setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._fs, name)

    def accept(self, survey: Survey) -> None:
        """What was restored behind the mount is right: no event told of it, so everything is compared."""
        self._fs.accept(survey)
        self._queue.overflowed = True

    def _tell_named(self, parent: int, name: bytes, attr: Attr) -> None:
        if stat.S_ISREG(attr.mode) or stat.S_ISDIR(attr.mode):
            try:
                event = Named(
                    self._fs.identity(parent), name, self._fs.identity(attr.ino), stat.S_ISDIR(attr.mode)
                )
            except OSError:
                self._queue.overflowed = True  # renamed or removed in this very moment
                return
            self._queue.put(event)

    def _tell_rekeyed(self, parent: bytes, name: bytes, child: bytes) -> None:
        """A file was re-encrypted: it is another object now, and is read again."""
        self._queue.put(Named(parent, name, child, False), rekeyed=True)
        self._queue.put(Written(child), rekeyed=True)

    def _tell_written(self, ino: int) -> None:
        try:
            self._queue.put(Written(self._fs.identity(ino)))
        except OSError as error:
            if error.errno != errno.ESTALE:  # deleted: nobody will ask for it
                self._queue.overflowed = True

    def create(self, parent: int, name: bytes, mode: int, owner: Owner, flags: int) -> tuple[int, Attr]:
        handle, attr = self._fs.create(parent, name, mode, owner, flags)
        self._writers.add(handle)
        self._tell_named(parent, name, attr)
        return handle, attr

    def open(self, ino: int, flags: int) -> int:
        handle = self._fs.open(ino, flags)
        if flags & _WRITABLE:
            self._writers.add(handle)
        return handle

    def release(self, handle: int) -> None:
        if handle in self._writers:
            self._writers.discard(handle)
            identity = self._fs.identity_of_open(handle)
            try:
                self._fs.release(handle)
            finally:
                self._queue.put(Written(identity))
        else:
            self._fs.release(handle)

    def setattr(self, ino: int, change: SetAttr, handle: int | None = None) -> Attr:
        attr = self._fs.setattr(ino, change, handle)
        if change.size is not None and handle is None:
            self._tell_written(ino)
        return attr

    def mkdir(self, parent: int, name: bytes, mode: int, owner: Owner) -> Attr:
        attr = self._fs.mkdir(parent, name, mode, owner)
        self._tell_named(parent, name, attr)
        return attr

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, owner: Owner) -> Attr:
        attr = self._fs.mknod(parent, name, mode, rdev, owner)
        self._tell_named(parent, name, attr)
        return attr

    def link(self, ino: int, new_parent: int, new_name: bytes) -> Attr:
        attr = self._fs.link(ino, new_parent, new_name)
        self._tell_named(new_parent, new_name, attr)
        return attr

    def unlink(self, parent: int, name: bytes) -> None:
        self._fs.unlink(parent, name)
        self._tell_removed(parent, name)

    def rmdir(self, parent: int, name: bytes) -> None:
        self._fs.rmdir(parent, name)
        self._tell_removed(parent, name)

    def _tell_removed(self, parent: int, name: bytes) -> None:
        try:
            self._queue.put(Removed(self._fs.identity(parent), name))
        except OSError:
            self._queue.overflowed = True

    def rename(
        self, parent_old: int, name_old: bytes, parent_new: int, name_new: bytes, flags: int = 0
    ) -> None:
        self._fs.rename(parent_old, name_old, parent_new, name_new, flags)
        try:
            event = Moved(
                self._fs.identity(parent_old), name_old, self._fs.identity(parent_new), name_new,
                bool(flags & _EXCHANGE),
            )  # fmt: skip
        except OSError:
            self._queue.overflowed = True
            return
        self._queue.put(event)

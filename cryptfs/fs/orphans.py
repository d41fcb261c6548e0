"""Extended attributes of objects that are gone: removed when a re-encryption ends.

A file that is removed leaves them, and so does a kill between the replacement of a file and the next sync.

They are of use until it is durable that their object stands under no name. So first it is listed what there
is; then the whole tree is looked at, and what belongs to an object in it is taken off the list; then comes a
sync; then what is left on the list goes. An object that was made meanwhile has attributes that are not on the
list, and one that was renamed meanwhile does not escape the walk. If an object cannot be read, nothing goes.
"""

from __future__ import annotations

import errno
import os
import stat
from array import array
from bisect import bisect_left
from collections.abc import Iterator

from cryptfs.fs.filesystem import FileSystem
from cryptfs.fs.nodes import Node
from cryptfs.fs.throttle import Progress, Throttle
from cryptfs.fs.unreadable import reading
from cryptfs.fs.walk import Folder, Walk
from cryptfs.vault.diskio import pread_all, syncfs
from cryptfs.vault.header import READ_SIZE, HeaderInvalid, HeaderMissing

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Orphans:
    """Removes them from one vault, once. Costs 9 bytes of memory for each object that has attributes."""

    def __init__(self, fs: FileSystem, throttle: Throttle, progress: Progress) -> None:
        self._fs = fs
        self._parts = fs.parts
        self._throttle = throttle
        self._progress = progress
        self._listed: array[int] = array("Q")
        """The first half of each object id, in order: random enough to tell all of them apart."""
        self._is_used = bytearray()
        self._unreadable = False
        self._walk = Walk(
            self._parts, throttle, progress, self._on_directory, self._on_entry, lambda: None
        )  # fmt: skip
        self._walk.counts = False

    def run(self) -> int:
        """How many were removed. OSError if the disk refuses, Stopped."""
        self._listed = array("Q", sorted(map(_half, self._all())))
        if not self._listed:
            return 0
        self._is_used = bytearray(len(self._listed))
        damaged = self._progress.damaged
        with self._walk.watching():
            self._walk.run()
        for file in self._fs.hold_files():  # one that has no name any more is still used by who has it open
            self._uses(file.header.object_id)
            self._fs.give_back(file)
        if self._unreadable or self._progress.damaged != damaged:
            return 0
        syncfs(self._parts.vault.tree_fd)
        orphans = [object_id for object_id in self._all() if self._is_orphan(object_id)]
        for object_id in orphans:
            self._parts.vault.xattrs.remove(object_id)
            self._throttle.check()
        return len(orphans)

    def _all(self) -> Iterator[bytes]:
        for object_id in self._parts.vault.xattrs.objects():
            yield object_id
            self._throttle.check()

    def _place(self, object_id: bytes) -> int | None:
        """Where it is on the list."""
        half = _half(object_id)
        at = bisect_left(self._listed, half)
        return at if at < len(self._listed) and self._listed[at] == half else None

    def _uses(self, object_id: bytes) -> None:
        at = self._place(object_id)
        if at is not None:
            self._is_used[at] = True

    def _is_orphan(self, object_id: bytes) -> bool:
        at = self._place(object_id)
        return at is not None and not self._is_used[at]

    def _on_directory(self, node: Node) -> None:
        with self._parts.lock:
            self._parts.directories.trim()
            with reading():
                directory = self._parts.directories.get(node)
            self._uses(directory.header.object_id)

    def _on_entry(self, folder: Folder, lname: bytes) -> Node | None:
        parts = self._parts
        try:
            fd = os.open(lname, _OPEN, dir_fd=folder.fd)
        except OSError as problem:
            self._unreadable |= problem.errno != errno.ENOENT
            return None
        try:
            st = os.fstat(fd)
            if stat.S_ISDIR(st.st_mode):
                return parts.nodes.place(parts.nodes.number(st.st_ino), folder.node, lname, True)
            self._uses(parts.vault.codec.read(pread_all(fd, READ_SIZE, 0))[0].object_id)
        except (OSError, HeaderMissing, HeaderInvalid):
            self._unreadable = True
        finally:
            os.close(fd)
        return None


def _half(object_id: bytes) -> int:
    return int.from_bytes(object_id[:8], "little")

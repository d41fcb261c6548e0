"""Objects that the disk allowed neither to finish nor to remove: not shown, and removed once it does."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING

from cryptfs.fs.remnants import remove_remnant

if TYPE_CHECKING:
    from cryptfs.fs.directory import Directory
    from cryptfs.fs.nodes import Node


class HalfMade:
    """By inode number of the ciphertext. The caller holds the namespace lock.

    A descriptor of each is kept, so that its number is given to no other object meanwhile.
    """

    def __init__(self) -> None:
        self._objects: dict[int, tuple[int, Node, bytes]] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._objects

    def add(self, parent: Node, lname: bytes, fd: int) -> None:
        """The object that `fd` has open, which stays the caller's, lies there."""
        number = os.fstat(fd).st_ino
        if number not in self._objects:
            self._objects[number] = os.dup(fd), parent, lname

    def clear(self, directory_of: Callable[[Node], Directory]) -> None:
        """Remove them; OSError if the disk still refuses."""
        for number, (fd, parent, lname) in list(self._objects.items()):
            directory = directory_of(parent)
            try:
                st = os.stat(lname, dir_fd=directory.fd, follow_symlinks=False)
            except FileNotFoundError:
                st = None
            if st is not None and st.st_ino == number:
                if stat.S_ISDIR(st.st_mode):
                    remove_remnant(lname, directory.fd)
                else:
                    os.unlink(lname, dir_fd=directory.fd)
                directory.drop_long(lname)
            del self._objects[number]
            os.close(fd)

    def close(self) -> None:
        """Close the descriptors; what lies there stays."""
        while self._objects:
            os.close(self._objects.popitem()[1][0])

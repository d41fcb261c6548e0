"""The requests for extended attributes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cryptfs.fs.file import File
from cryptfs.fs.nodes import Node
from cryptfs.fs.whole import OpenVault


class AttributeRequests(OpenVault):
    """What `FileSystem` does with extended attributes."""

    def getxattr(self, ino: int, name: bytes) -> bytes:
        with self._lock, self._using(ino, self._let_go) as node:
            return self._xattrs.get(node, name)

    def listxattr(self, ino: int) -> list[bytes]:
        with self._lock, self._using(ino, self._let_go) as node:
            return self._xattrs.names(node)

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
        self._require_writable()
        with self._lock, self._using(ino, self._put) as node:
            self._xattrs.set(node, name, value, flags)

    def removexattr(self, ino: int, name: bytes) -> None:
        self._require_writable()
        with self._lock, self._using(ino, self._put) as node:
            self._xattrs.remove(node, name)

    @contextmanager
    def _using(self, ino: int, give_back: Callable[[File], None]) -> Iterator[Node]:
        """A node whose file, if it is one, stays open until the end.

        Who only reads is not told what a full disk refuses of an earlier change (`_let_go`).
        """
        self._directories.trim()
        node = self._nodes.get(ino)
        if node.is_dir:
            yield node
            return
        file = self._objects.open(node)
        file.handles += 1
        try:
            yield node
        finally:
            give_back(file)

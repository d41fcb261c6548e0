"""Extended attributes of files and directories in use."""

from __future__ import annotations

import errno
import logging

from cryptfs.errors import IntegrityError
from cryptfs.fs.directory import DirectoryCache, eio
from cryptfs.fs.namespace import error
from cryptfs.fs.nodes import Node
from cryptfs.fs.objects import Objects
from cryptfs.vault.header import FLAG_XATTR, Header
from cryptfs.vault.xattrs import XattrStore

log = logging.getLogger(__name__)

XATTR_CREATE, XATTR_REPLACE = 1, 2
VALUE_MAX = 65536
"""Bytes in one value, as the kernel allows."""
TOTAL_MAX = 1 << 20
"""Bytes in all names and values of one object."""


class ExtendedAttributes:
    """The attributes of one mounted vault; ENOTSUP for everything unless `enabled`.

    The caller holds the namespace lock and keeps the node's file open.
    """

    def __init__(
        self, store: XattrStore, objects: Objects, directories: DirectoryCache, enabled: bool
    ) -> None:
        self._store = store
        self._objects = objects
        self._directories = directories
        self._enabled = enabled

    def get(self, node: Node, name: bytes) -> bytes:
        """One value; ENODATA if there is none."""
        try:
            return self._load(node)[1][name]
        except KeyError:
            raise error(errno.ENODATA) from None

    def names(self, node: Node) -> list[bytes]:
        return list(self._load(node)[1])

    def set(self, node: Node, name: bytes, value: bytes, flags: int) -> None:
        """Set one value, durably. EEXIST and ENODATA as the flags ask; E2BIG, ENOSPC if too large."""
        header, attributes = self._load(node)
        if len(value) > VALUE_MAX:
            raise error(errno.E2BIG)
        if flags & XATTR_CREATE and name in attributes:
            raise error(errno.EEXIST)
        if flags & XATTR_REPLACE and name not in attributes:
            raise error(errno.ENODATA)
        attributes[name] = value
        if sum(len(key) + len(data) for key, data in attributes.items()) > TOTAL_MAX:
            raise error(errno.ENOSPC)
        self._touch(node)
        # The attributes are there before the header says so: a power cut in between shows none.
        self._store.save(header.object_id, header.key, attributes)
        if not header.flags & FLAG_XATTR:
            self._promise(node)

    def remove(self, node: Node, name: bytes) -> None:
        """Remove one value; ENODATA if there is none."""
        header, attributes = self._load(node)
        if attributes.pop(name, None) is None:
            raise error(errno.ENODATA)
        self._touch(node)
        # Kept even when empty: a header that promises attributes must find them after a power cut.
        self._store.save(header.object_id, header.key, attributes)

    def _load(self, node: Node) -> tuple[Header, dict[bytes, bytes]]:
        if not self._enabled:
            raise error(errno.ENOTSUP)
        former_key = None
        if node.is_dir:
            directory = self._directories.get(node)
            header, former_key = directory.header, directory.former_key
        else:
            header = self._objects.open(node).header
        if not header.flags & FLAG_XATTR:
            return header, {}
        try:
            return header, self._store.load(header.object_id, header.key, former_key)
        except IntegrityError:
            log.error("object %s: its extended attributes are damaged", header.object_id.hex())
            raise eio() from None

    def _touch(self, node: Node) -> None:
        """Its change time, which the kernel writes back by itself only for regular files."""
        if node.is_dir:
            self._objects.touch_directory(node)

    def _promise(self, node: Node) -> None:
        """Have the header say that there are attributes."""
        if node.is_dir:
            directory = self._directories.get(node)
            header = directory.header.copy()
            header.flags |= FLAG_XATTR
            self._objects.write_directory(node, directory, header)
        else:
            file = self._objects.open(node)
            file.header.flags |= FLAG_XATTR
            file.touch_ctime()

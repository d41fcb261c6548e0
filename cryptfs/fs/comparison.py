"""Comparing one directory with what the index has of it, while it is listed.

Each entry is looked at once (one lstat, no open). A record holds if inode number, change time and length of
the ciphertext file are those in it, and the file has one name; anything else is looked up and recorded anew.
When the listing has come to its end, records of entries that were not seen are removed, and from then on the
records of the directory are complete: while this mount is the only writer they are believed.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from cryptfs.fs.objects import plain_size_of
from cryptfs.index import records
from cryptfs.vault.names import is_long

if TYPE_CHECKING:
    from cryptfs.fs.directory import Directory
    from cryptfs.fs.metadata import IndexedKnowledge, Shelf
    from cryptfs.fs.nodes import Node
    from cryptfs.fs.types import Attr


class Comparison:
    """One listing of one directory. The caller holds the namespace lock."""

    def __init__(self, knowledge: IndexedKnowledge, shelf: Shelf, node: Node) -> None:
        self._knowledge = knowledge
        self._shelf = shelf
        self._node = node
        self._seen: set[bytes] = set()
        self._done = 0
        self._incomplete = False

    def known(self, directory: Directory, lname: bytes) -> tuple[bytes, Node, Attr] | None:
        """Name, node and attributes of an entry if its record holds; FileNotFoundError if it is gone."""
        key = self._knowledge.catalog.key(self._shelf.prefix, lname)
        self._seen.add(key)
        value = self._knowledge.get(self._shelf, key)
        if value is None or records.kind_of(value) != records.FILE:
            return None
        st = os.stat(lname, dir_fd=directory.fd, follow_symlinks=False)
        record = records.file_of(value)
        if (
            st.st_ctime_ns != record.changed
            or st.st_nlink != 1
            or self._knowledge.number(st.st_ino) != record.ino
            or record.changed > self._knowledge.catalog.believed_until
            or not stat.S_ISREG(st.st_mode)
            or plain_size_of(record.mode, record.chunk_log2, st.st_size) != record.size
        ):
            return None
        name = records.name_of(value)
        if is_long(lname) and directory.plain_name(lname) != name:
            return None
        if st.st_blocks != record.blocks:
            value = records.file(record._replace(blocks=st.st_blocks), name)
            self._knowledge.put(self._shelf, key, value)
        node, attr = self._knowledge.serve(self._node, self._shelf, value, lname)
        if node is None or attr is None:
            return None
        return name, node, attr

    def missing(self, lname: bytes) -> None:
        """An entry is gone: nothing may be recorded of it."""
        key = self._knowledge.catalog.key(self._shelf.prefix, lname)
        if self._knowledge.get(self._shelf, key) is not None:
            self._knowledge.put(self._shelf, key, None)

    def nameless(self, lname: bytes) -> None:
        """An entry is not shown, but a lookup may find it: the records cannot say what is not there."""
        self.missing(lname)
        self._incomplete = True

    def damaged(self, lname: bytes, name: bytes) -> None:
        """An entry is shown by its name and nothing else."""
        key = self._knowledge.catalog.key(self._shelf.prefix, lname)
        self._knowledge.put(self._shelf, key, records.opaque(name))

    def added(self, key: bytes) -> None:
        """An entry was made since the listing began."""
        self._seen.add(key)

    def done(self, position: int) -> None:
        """The entry at this position of the listing was dealt with."""
        if position == self._done:
            self._done = position + 1

    def end(self, count: int) -> None:
        """The listing, of `count` entries, has come to its end."""
        if self._done >= count and not self._incomplete and self._shelf.comparison is self:
            self._knowledge.complete(self._shelf, self._seen)
            self._seen = set()

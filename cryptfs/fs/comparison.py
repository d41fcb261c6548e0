"""Comparing one directory with what the index has of it, while it is listed.

Each entry is looked at once (one lstat, no open). A record holds if inode number, change time and length of
the ciphertext file are those in it, and the file has one name; anything else is looked up and recorded anew.
When the listing has come to its end, records of entries that were not seen are removed, and from then on the
records of the directory are complete: while this mount is the only writer they are believed.
"""

from __future__ import annotations

import logging
import os
import stat
from typing import TYPE_CHECKING

from cryptfs.fs.nodes import Listed
from cryptfs.fs.objects import plain_size_of
from cryptfs.fs.types import Attr
from cryptfs.index import records
from cryptfs.index.catalog import Unavailable, ValueDamaged
from cryptfs.vault.names import is_long

if TYPE_CHECKING:
    from cryptfs.fs.directory import Directory
    from cryptfs.fs.metadata import IndexedKnowledge, Shelf
    from cryptfs.fs.nodes import Node
    from cryptfs.vault.header import Header

log = logging.getLogger(__name__)

AT_ONCE = 20_000
"""Of a directory with more entries, records are read one by one (about 250 bytes each)."""


class Comparison:
    """One listing of one directory. The caller holds the namespace lock."""

    def __init__(self, knowledge: IndexedKnowledge, shelf: Shelf, node: Node) -> None:
        self._knowledge = knowledge
        self._shelf = shelf
        self._node = node
        self._seen: set[bytes] = set()
        self._done = 0
        self._incomplete = False
        self._recorded: dict[bytes, bytes | None] | None = None
        """The records, read at once; None for those that changed since, or if there are too many."""

    def begin(self, entries: int) -> None:
        """The directory has so many entries."""
        if entries > AT_ONCE:
            return
        try:
            self._recorded = {**self._knowledge.catalog.entries(self._shelf.prefix)}
        except ValueDamaged:
            log.error("a record of the metadata index is damaged: its directory is read anew")
            self._recorded = {}
        except Unavailable:
            return  # the next question finds out

    def record(self, key: bytes) -> bytes | None:
        """The record of an entry."""
        recorded = self._recorded
        if recorded is not None:
            value = recorded.get(key)
            if value is not None or key not in recorded:
                return value
        return self._knowledge.get(self._shelf, key)

    def known(self, directory: Directory, lname: bytes) -> tuple[bytes, Node | Listed, Attr] | None:
        """Name, node and attributes of an entry if its record holds; FileNotFoundError if it is gone."""
        knowledge = self._knowledge
        key = knowledge.catalog.key(self._shelf.prefix, lname)
        self._seen.add(key)
        value = self.record(key)
        if value is None or records.kind_of(value) != records.FILE:
            return None
        st = os.stat(lname, dir_fd=directory.fd, follow_symlinks=False)
        _, log2, mode, uid, gid, ino, size, blocks, atime, mtime, ctime, changed = records.fields_of(value)
        if (
            st.st_ctime_ns != changed
            or st.st_nlink != 1
            or knowledge.number(st.st_ino) != ino
            or changed > knowledge.catalog.believed_until
            or not stat.S_ISREG(st.st_mode)
            or plain_size_of(mode, log2, st.st_size) != size
        ):
            return None
        name = records.name_of(value)
        if is_long(lname) and directory.plain_name(lname) != name:
            return None
        if st.st_blocks != blocks:
            blocks = st.st_blocks
            value = records.file(records.file_of(value)._replace(blocks=blocks), name)
            knowledge.put(self._shelf, key, value)
        knowledge.answered += 1
        if not knowledge.nodes.is_known(ino):
            attr = Attr(ino, mode, 1, uid, gid, 0, size, blocks, atime, mtime, ctime)
            return name, Listed(self._node, self._shelf.lower, name, mode), attr
        node, known = knowledge.serve(self._node, self._shelf, value, lname)
        if node is None or known is None:
            return None
        return name, node, known

    def learned(self, lname: bytes, name: bytes, header: Header, st: os.stat_result, size: int) -> None:
        """A file was read, whatever was recorded of it."""
        knowledge = self._knowledge
        key = knowledge.catalog.key(self._shelf.prefix, lname)
        self._seen.add(key)
        ino = knowledge.number(st.st_ino)
        if knowledge.nodes.is_elsewhere(ino):
            knowledge.put(self._shelf, key, records.opaque(name))
        else:
            knowledge.put(self._shelf, key, record_of(ino, header, st, size, name))

    def changed(self, key: bytes) -> None:
        """A record was written: what was read before is not it any more."""
        if self._recorded is not None:
            self._recorded[key] = None

    def missing(self, lname: bytes) -> None:
        """An entry is gone: nothing may be recorded of it."""
        key = self._knowledge.catalog.key(self._shelf.prefix, lname)
        if self.record(key) is not None:
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
            self._knowledge.complete(self._shelf, self._seen, self._recorded)
            self._seen, self._recorded = set(), None


def record_of(ino: int, header: Header, st: os.stat_result, size: int, name: bytes) -> bytes:
    """The record of a file as it is; an opaque one where its attributes are not its own alone."""
    if st.st_nlink != 1 or header.rdev:
        return records.opaque(name)
    return records.file(
        records.FileRecord(
            records.FILE, header.chunk_log2, header.st_mode, header.uid, header.gid, ino, size, st.st_blocks,
            header.atime, header.mtime, header.ctime, st.st_ctime_ns,
        ),
        name,
    )  # fmt: skip

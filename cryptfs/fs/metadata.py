"""Names and attributes served from the metadata index (cryptfs/index/catalog.py).

A directory is *complete* when every entry it has is recorded, and recorded as it is. That is so once it was
compared in this session (`comparison`), or was made in it; then, while this mount is the only writer, lookup,
getattr and readdir are answered from the records alone. In any other directory nothing is believed: entries
are looked up in the ciphertext, and recorded only while it is being compared.

What keeps complete directories right: every change of a name rewrites the record at once. A file that is in
use answers for itself; its record is rewritten when it is closed. The attributes of a directory are kept in
memory from the last time that they were read, until one of them changes.

After a stop that was not clean the index is empty (cryptfs/index/environment.py), so nothing has to hold
between the records on disk and the ciphertext at any instant but the end.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from cryptfs.fs.comparison import Comparison, record_of
from cryptfs.fs.directory import Directory, DirectoryCache, lower_name, name_cipher
from cryptfs.fs.file import File
from cryptfs.fs.knowledge import Knowledge
from cryptfs.fs.nodes import Listed, Node, NodeTable
from cryptfs.fs.types import Attr
from cryptfs.index import records
from cryptfs.index.catalog import Catalog, Unavailable, ValueDamaged
from cryptfs.vault.header import Header

if TYPE_CHECKING:
    from cryptfs.fs.objects import Objects

log = logging.getLogger(__name__)

SHELVES_MAX = 100_000
"""So many directories are the most whose state is kept (about 500 bytes each)."""

_ABSENT = os.strerror(errno.ENOENT)


class Shelf:
    """What this session knows of one directory. `attr` is None when it must be read."""

    __slots__ = ("attr", "changes", "comparison", "complete", "key", "object_id", "prefix")

    def __init__(self, prefix: bytes, header: Header) -> None:
        self.prefix = prefix
        self.object_id = header.object_id
        self.key = header.key
        self.complete = False
        self.changes = 0
        self.attr: Attr | None = None
        self.comparison: Comparison | None = None

    def lower(self, name: bytes) -> bytes:
        """The ciphertext name of a plaintext one in this directory."""
        return lower_name(name_cipher(self.key, self.object_id), name)[0]


class Snapshot(NamedTuple):
    """The records of a complete directory at some moment, and how many changes it had seen."""

    node: Node
    shelf: Shelf
    items: list[tuple[bytes, bytes]]
    changes: int


class IndexedKnowledge(Knowledge):
    """Answers from a catalog. The caller of every method holds the namespace lock."""

    def __init__(self, catalog: Catalog) -> None:
        super().__init__()
        self.catalog = catalog
        self._shelves: OrderedDict[int, Shelf] = OrderedDict()
        self._off = False
        self.answered = 0
        """Entries and attributes answered without a call to the lower file system."""
        if catalog.found:
            log.warning("the metadata index is read anew: %s", catalog.found)

    def bind(
        self, lock: threading.RLock, nodes: NodeTable, directories: DirectoryCache, objects: Objects
    ) -> None:
        self.lock = lock
        self.nodes = nodes
        self.directories = directories
        self.objects = objects
        self.number = nodes.number

    # -- records ---------------------------------------------------------------------------------

    def get(self, shelf: Shelf, key: bytes) -> bytes | None:
        """A record. Where it cannot be read, nothing in the directory is believed any more."""
        try:
            return self.catalog.get(key)
        except ValueDamaged:
            log.error("a record of the metadata index is damaged: its directory is read anew")
            self._distrust(shelf)
        except Unavailable:
            self._distrust(shelf)
        return None

    def put(self, shelf: Shelf, key: bytes, value: bytes | None) -> None:
        shelf.changes += 1
        if shelf.comparison is not None:
            shelf.comparison.changed(key)
        self.catalog.put(key, value)

    def _distrust(self, shelf: Shelf) -> None:
        shelf.complete = False
        shelf.comparison = None
        if self.catalog.failed and not self._off:
            self._off = True
            self.why_not = self.catalog.failed
            log.error("going on without the metadata index: %s", self.why_not)

    def _shelf(self, ino: int) -> Shelf | None:
        shelf = self._shelves.get(ino)
        if shelf is not None:
            self._shelves.move_to_end(ino)
        return shelf

    def _trusted(self, node: Node) -> Shelf | None:
        shelf = self._shelves.get(node.ino)
        if shelf is None or not shelf.complete:
            return None
        if self._off or self.catalog.failed:
            self._distrust(shelf)
            return None
        self._shelves.move_to_end(node.ino)
        return shelf

    def _kept(self, node: Node) -> Shelf | None:
        """The shelf of a directory whose records are believed, or are about to be.

        In any other nothing need be recorded: what changes after an index was closed is not recognised
        by the times in its records, and what has gone is not found by a comparison.
        """
        shelf = self._shelves.get(node.ino)
        if shelf is None or not (shelf.complete or shelf.comparison is not None):
            return None
        return shelf

    def shelf_of(self, node: Node, directory: Directory) -> Shelf:
        shelf = self._shelf(node.ino)
        if shelf is None or shelf.object_id != directory.header.object_id:
            shelf = self._new_shelf(node.ino, directory.header)
        return shelf

    def _new_shelf(self, ino: int, header: Header) -> Shelf:
        shelf = self._shelves[ino] = Shelf(self.catalog.shelf(ino, header.object_id), header)
        if len(self._shelves) > SHELVES_MAX:
            _, oldest = self._shelves.popitem(last=False)
            oldest.complete = False
            oldest.comparison = None
        return shelf

    # -- asked -----------------------------------------------------------------------------------

    def find(self, parent: Node, name: bytes) -> tuple[Node, Attr] | None:
        shelf = self._trusted(parent)
        if shelf is None:
            return None
        lname = shelf.lower(name)
        value = self.get(shelf, self.catalog.key(shelf.prefix, lname))
        if value is None:
            if shelf.complete:
                self.answered += 1
                # A new one each time: raised again, an error keeps all earlier frames, and what they hold.
                raise FileNotFoundError(errno.ENOENT, _ABSENT)
            return None
        node, attr = self.serve(parent, shelf, value, lname)
        if node is None or attr is None:
            return None
        return node, attr

    def serve(
        self, parent: Node, shelf: Shelf, value: bytes, lname: bytes = b""
    ) -> tuple[Node | None, Attr | None]:
        """Node and attributes from a record that holds; None if they must be looked up."""
        kind = value[0]
        if kind >= records.FILE:
            (_, _, mode, uid, gid, ino, size, blocks, atime, mtime, ctime, _) = records.fields_of(value)
            node = self._node(ino, parent, shelf, value, lname, False)
            if node.file is not None:
                return node, self.objects.file_attr(node.file)
            node.mode = mode
            self.answered += 1
            return node, Attr(
                ino, mode, 1, uid, gid, 0, size, blocks, atime, mtime, ctime, node.generation
            )  # fmt: skip
        if kind == records.DIRECTORY:
            ino = records.inode_of(value)
            inner = self._shelf(ino)
            if inner is None or inner.attr is None:
                return None, None
            node = self._node(ino, parent, shelf, value, lname, True)
            attr = inner.attr
            node.mode = attr.mode
            self.answered += 1
            return node, attr if attr.generation == node.generation else attr._replace(
                generation=node.generation
            )
        return None, None

    def _node(self, ino: int, parent: Node, shelf: Shelf, value: bytes, lname: bytes, is_dir: bool) -> Node:
        lazy = None if lname else partial(shelf.lower, records.name_of(value))
        return self.nodes.served(ino, parent, lname, lazy, is_dir)

    def attr(self, node: Node) -> Attr | None:
        if node.is_dir:
            own = self._shelf(node.ino)
            if own is None or own.attr is None:
                return None
            self.answered += 1
            if own.attr.generation != node.generation:
                return own.attr._replace(generation=node.generation)
            return own.attr
        if node.parent is None or node.file is not None:
            return None
        shelf = self._trusted(node.parent)
        if shelf is None:
            return None
        value = self.get(shelf, self.catalog.key(shelf.prefix, node.lname))
        if value is None or records.kind_of(value) != records.FILE or records.fields_of(value)[5] != node.ino:
            return None
        return self.serve(node.parent, shelf, value, node.lname)[1]

    def entries(self, node: Node) -> Snapshot | None:
        shelf = self._trusted(node)
        if shelf is None:
            return None
        try:
            return Snapshot(node, shelf, list(self.catalog.entries(shelf.prefix).items()), shelf.changes)
        except ValueDamaged:
            log.error("a record of the metadata index is damaged: its directory is read anew")
            self._distrust(shelf)
        except Unavailable:
            self._distrust(shelf)
        return None

    def entry(self, snapshot: Snapshot, position: int) -> tuple[bytes, Node | None, Attr | None] | None:
        node, shelf, items, changes = snapshot
        key, value = items[position]
        if shelf.changes != changes or self._trusted(node) is not shelf:
            current = (
                self.get(shelf, key)
                if self._trusted(node) is shelf
                else records.opaque(records.name_of(value))
            )
            if current is None:
                if shelf.complete:
                    return None
                current = records.opaque(records.name_of(value))
            value = current
        return records.name_of(value), *self.serve(node, shelf, value)

    def unchanged_file(self, snapshot: Snapshot, position: int) -> tuple[Listed, Attr] | None:
        node, shelf, items, changes = snapshot
        value = items[position][1]
        if value[0] < records.FILE or shelf.changes != changes or not shelf.complete:
            return None
        _, _, mode, uid, gid, ino, size, blocks, atime, mtime, ctime, _ = records.fields_of(value)
        if self.nodes.is_known(ino):
            return None
        self.answered += 1
        return (
            Listed(node, shelf.lower, records.name_of(value), mode),
            Attr(ino, mode, 1, uid, gid, 0, size, blocks, atime, mtime, ctime),
        )

    def compare(self, node: Node, directory: Directory) -> Comparison | None:
        if self._off or self.catalog.failed or directory.old is not None:
            return None  # with two keys an entry may stand under either: not worth recording
        shelf = self.shelf_of(node, directory)
        shelf.comparison = Comparison(self, shelf, node)
        return shelf.comparison

    def complete(self, shelf: Shelf, seen: set[bytes], recorded: Iterable[bytes] | None = None) -> None:
        """A comparison has seen all entries: what else is `recorded` is of entries that are gone."""
        try:
            for key in list(self.catalog.keys(shelf.prefix) if recorded is None else recorded):
                if key not in seen:
                    self.put(shelf, key, None)
        except Unavailable:
            self._distrust(shelf)
            return
        shelf.comparison = None
        shelf.complete = True

    # -- told ------------------------------------------------------------------------------------

    def looked(
        self, parent: Node, directory: Directory, lname: bytes, name: bytes, node: Node,
        header: Header | None, st: os.stat_result, size: int,
    ) -> None:  # fmt: skip
        if self._off or self._kept(parent) is None:
            return
        shelf = self.shelf_of(parent, directory)
        key = self.catalog.key(shelf.prefix, lname)
        old = self.get(shelf, key) if shelf.comparison is None else shelf.comparison.record(key)
        if not name:
            if old is None:
                return
            name = records.name_of(old)
        if header is None or self.nodes.is_elsewhere(node.ino):
            value = records.opaque(name)
        else:
            value = record_of(node.ino, header, st, size, name)
        if value != old:
            self.put(shelf, key, value)

    def directory_looked(self, node: Node, header: Header, attr: Attr) -> None:
        shelf = self._shelf(node.ino)
        if shelf is None or shelf.object_id != header.object_id:
            shelf = self._new_shelf(node.ino, header)
        shelf.attr = attr

    def directory_listed(self, parent: Node, lname: bytes, name: bytes, node: Node) -> None:
        shelf = self._kept(parent)
        if shelf is not None and name:
            key, value = self.catalog.key(shelf.prefix, lname), records.directory(node.ino, name)
            old = self.get(shelf, key) if shelf.comparison is None else shelf.comparison.record(key)
            if old != value:
                self.put(shelf, key, value)

    def directory_made(self, node: Node, header: Header) -> None:
        shelf = self._new_shelf(node.ino, header)
        shelf.complete = not self._off

    def rekeyed(self, node: Node) -> None:
        shelf = self._shelves.pop(node.ino, None)
        if shelf is not None:
            shelf.complete, shelf.comparison = False, None

    def directory_changed(self, node: Node) -> None:
        shelf = self._shelves.get(node.ino)
        if shelf is not None:
            shelf.attr = None

    def directory_gone(self, node: Node) -> None:
        shelf = self._shelves.pop(node.ino, None)
        if shelf is not None:
            shelf.comparison = None
            if not shelf.complete:  # else every record went with its entry
                self.complete(shelf, set())
            shelf.complete = False

    def made(self, parent: Node, lname: bytes, name: bytes, node: Node) -> None:
        self.directory_changed(parent)
        if node.is_dir:
            self.directory_changed(node)
        elif node.file is not None:
            node.file.named = lname, name
        shelf = self._kept(parent)
        if shelf is not None:
            key = self.catalog.key(shelf.prefix, lname)
            if shelf.comparison is not None:
                shelf.comparison.added(key)
            value = records.directory(node.ino, name) if node.is_dir else records.opaque(name)
            self.put(shelf, key, value)

    def gone(self, parent: Node, lname: bytes) -> None:
        self.directory_changed(parent)
        shelf = self._kept(parent)
        if shelf is not None:
            self.put(shelf, self.catalog.key(shelf.prefix, lname), None)

    def uncertain(self, node: Node) -> None:
        shelf = self._shelves.get(node.ino)
        if shelf is not None:
            shelf.attr = None
            self._distrust(shelf)

    def shared(self, node: Node) -> None:
        shelf = self._shelves.get(node.parent.ino) if node.parent is not None else None
        if shelf is not None:
            key = self.catalog.key(shelf.prefix, node.lname)
            old = self.get(shelf, key)
            if old is not None:
                self.put(shelf, key, records.opaque(records.name_of(old)))

    def closing(self, file: File) -> None:
        node = file.node
        if file.unlinked or node.parent is None or node.dead:
            return
        shelf = self._kept(node.parent)
        if shelf is None:
            return
        if self.nodes.is_elsewhere(node.ino):
            return  # its number is not for ever: opaque since it was last looked up
        key, old = self.catalog.key(shelf.prefix, node.lname), None
        lname, name = file.named
        if lname != node.lname or not shelf.complete:
            old = self.get(shelf, key)
            if old is None:
                return  # not recorded, so not believed: the next look will do it
            name = records.name_of(old)
        value = record_of(node.ino, file.header, os.fstat(file.fd), file.size, name)
        if value != old:
            self.put(shelf, key, value)

    # -- the whole -------------------------------------------------------------------------------

    def status(self) -> str:
        if self.is_off:
            return f"none ({self.why_not or self.catalog.failed})"
        return f"{self.catalog.count()} records, {self.catalog.size() >> 10} KiB"

    def numbers(self) -> dict[str, Any]:
        if self.is_off:
            return {"state": "failed", "reason": self.why_not or self.catalog.failed}
        return {
            "state": "in use",
            "folder": str(self.catalog.folder),
            "bytes": self.catalog.size(),
            "records": self.catalog.count(),
            "directories_known": len(self._shelves),
            "answered": self.answered,
            "begun_anew": self.catalog.found,
        }

    @property
    def is_off(self) -> bool:
        """Whether it failed, and answers nothing any more."""
        return self._off or bool(self.catalog.failed)

    def forget_everything(self) -> None:
        """Begin anew: nothing is believed until it was read again."""
        self._shelves.clear()
        self.catalog.clear()

    def close(self, session: int | None) -> None:
        self.catalog.close(session)

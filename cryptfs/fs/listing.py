"""Listing a directory: from the index where that is complete, else from the ciphertext, comparing the two."""

from __future__ import annotations

import errno
import logging
import stat
from collections.abc import Iterator

from cryptfs.fs.comparison import Comparison
from cryptfs.fs.directory import DirectoryCache
from cryptfs.fs.knowledge import Knowledge
from cryptfs.fs.metadata import Snapshot
from cryptfs.fs.nodes import Node
from cryptfs.fs.objects import Objects
from cryptfs.fs.types import Attr
from cryptfs.fs.witnessing import Witness
from cryptfs.vault.names import NameInvalid

log = logging.getLogger(__name__)

DAMAGED = Attr(0, stat.S_IFREG, 0, 0, 0, 0, 0, 0, 0, 0, 0)

Entry = tuple[bytes, Attr, int]


class Listing:
    """One opendir: the entries as they were when it was (re)wound, and what was offered last.

    The caller holds the namespace lock, also between the entries of one call.
    """

    def __init__(
        self,
        node: Node,
        directories: DirectoryCache,
        objects: Objects,
        knowledge: Knowledge,
        witness: Witness,
    ) -> None:
        self._witness = witness
        self.node = node
        self.offered: dict[int, Node] = {}
        self._directories = directories
        self._objects = objects
        self._knowledge = knowledge
        self._lnames: list[bytes] | None = None
        self._snapshot: Snapshot | None = None
        self._comparison: Comparison | None = None

    def entries(self, offset: int) -> Iterator[Entry]:
        """Name, attributes and next offset of the entries after `offset`.

        An entry that is damaged has no links (`nlink` 0) and no size.
        """
        self.offered.clear()
        if offset == 0 or (self._snapshot is None and self._lnames is None):
            self._wind()
        if self._snapshot is not None:
            return self._indexed(self._snapshot, offset)
        return self._lower(offset)

    def _wind(self) -> None:
        self._lnames = self._comparison = None
        self._snapshot = self._knowledge.entries(self.node)
        if self._snapshot is None:
            directory = self._directories.get(self.node)
            self._comparison = self._knowledge.compare(self.node, directory)
            self._lnames = directory.entries()
            self._witness.listed(self.node, directory.header.object_id, self._lnames)

    def _indexed(self, snapshot: Snapshot, offset: int) -> Iterator[Entry]:
        knowledge, offered = self._knowledge, self.offered
        for position in range(offset, len(snapshot.items)):
            found = knowledge.entry(snapshot, position)
            if found is None:
                continue
            name, node, attr = found
            if node is None or attr is None:
                try:
                    directory = self._directories.get(self.node)
                    node, attr = self._objects.look(self.node, directory, directory.lower_name(name)[0], name)
                except FileNotFoundError:
                    continue
                except OSError as problem:
                    if problem.errno != errno.EIO:
                        raise
                    yield name, DAMAGED, position + 1
                    continue
            offered[node.ino] = node
            yield name, attr, position + 1

    def _lower(self, offset: int) -> Iterator[Entry]:
        directory, comparison = self._directories.get(self.node), self._comparison
        lnames = self._lnames or []
        for position in range(offset, len(lnames)):
            lname, name = lnames[position], b""
            try:
                found = comparison.known(directory, lname) if comparison is not None else None
                if found is None:
                    name = directory.plain_name(lname)
                    found = name, *self._objects.look(self.node, directory, lname, name)
            except FileNotFoundError:
                if comparison is not None:
                    comparison.missing(lname)
                    comparison.done(position)
                continue
            except NameInvalid:
                log.error("a name does not decrypt in its directory: it is not shown")
                if comparison is not None:
                    comparison.nameless(lname)
                    comparison.done(position)
                continue
            except OSError as problem:
                if problem.errno != errno.EIO or not name:
                    raise
                if comparison is not None:
                    comparison.damaged(lname, name)
                    comparison.done(position)
                yield name, DAMAGED, position + 1
                continue
            self.offered[found[1].ino] = found[1]
            if comparison is not None:
                comparison.done(position)
            yield found[0], found[2], position + 1
        if comparison is not None:
            comparison.end(len(lnames))

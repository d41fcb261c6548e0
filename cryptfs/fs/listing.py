"""Listing a directory: from the index where that is complete, else from the ciphertext, comparing the two."""

from __future__ import annotations

import errno
import logging
import stat
from collections.abc import Iterator

from cryptfs.fs.comparison import Comparison
from cryptfs.fs.directory import Directory, DirectoryCache
from cryptfs.fs.knowledge import Knowledge
from cryptfs.fs.metadata import Snapshot
from cryptfs.fs.nodes import ROOT, Listed, Node
from cryptfs.fs.objects import Objects
from cryptfs.fs.types import Attr
from cryptfs.fs.witnessing import Witness
from cryptfs.vault.names import NameInvalid

log = logging.getLogger(__name__)

DAMAGED = Attr(0, stat.S_IFREG, 0, 0, 0, 0, 0, 0, 0, 0, 0)
LEARNED = Attr(ROOT, stat.S_IFREG, 1, 0, 0, 0, 0, 0, 0, 0, 0)
"""Any file that was read into the index."""

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
        self.offered: dict[int, Node | Listed] = {}
        self._directories = directories
        self._objects = objects
        self._knowledge = knowledge
        self._lnames: list[bytes] | None = None
        self._snapshot: Snapshot | None = None
        self._comparison: Comparison | None = None

    def entries(self, offset: int, learning: bool = False) -> Iterator[Entry]:
        """Name, attributes and next offset of the entries after `offset`.

        An entry that is damaged has no links (`nlink` 0) and no size. With `learning` the records of what is
        not in use are written anew, and a file of which that was done is `LEARNED`, without a name.
        """
        self.offered.clear()
        if offset == 0 or (self._snapshot is None and self._lnames is None):
            self._wind(learning)
        if self._snapshot is not None:
            return self._indexed(self._snapshot, offset)
        return self._lower(offset, learning)

    def _wind(self, learning: bool) -> None:
        self._lnames = self._comparison = None
        self._snapshot = self._knowledge.entries(self.node)
        if self._snapshot is None:
            directory = self._directories.get(self.node)
            self._comparison = self._knowledge.compare(self.node, directory)
            self._lnames = directory.entries()
            if self._comparison is not None:
                self._comparison.begin(len(self._lnames))
            self._witness.listed(self.node, directory.header.object_id, self._lnames)
            if learning:
                self._witness.read_ahead(directory.header.object_id, len(self._lnames))

    def _indexed(self, snapshot: Snapshot, offset: int) -> Iterator[Entry]:
        knowledge, offered = self._knowledge, self.offered
        for position in range(offset, len(snapshot.items)):
            quick = knowledge.unchanged_file(snapshot, position)
            if quick is not None:
                offered[quick[1].ino] = quick[0]
                yield quick[0].name, quick[1], position + 1
                continue
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

    def _learn(self, comparison: Comparison, directory: Directory, lname: bytes) -> bool:
        """Record an entry, if it is a file like most; any other, and what is wrong, takes the long way."""
        try:
            found = self._objects.inspect(self.node, directory, lname)
            if found is None or found[1].st_nlink != 1:
                return False
            comparison.learned(lname, directory.plain_name(lname), *found)
        except (OSError, NameInvalid):
            return False
        return True

    def _lower(self, offset: int, learning: bool) -> Iterator[Entry]:
        directory, comparison = self._directories.get(self.node), self._comparison
        lnames = self._lnames or []
        for position in range(offset, len(lnames)):
            lname, name = lnames[position], b""
            if learning and comparison is not None and self._learn(comparison, directory, lname):
                comparison.done(position)
                yield b"", LEARNED, position + 1
                continue
            try:
                found: tuple[bytes, Node | Listed, Attr] | None = None
                if comparison is not None:
                    found = comparison.known(directory, lname)
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
            self.offered[found[2].ino] = found[1]
            if comparison is not None:
                comparison.done(position)
            yield found[0], found[2], position + 1
        if comparison is not None:
            comparison.end(len(lnames))

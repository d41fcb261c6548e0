"""The inodes that the kernel knows: numbers, references, and where they lie.

A node's number is that of its ciphertext file, so it stays the same over mounts and for
all hard links. A node lives as long as somebody holds a reference; nothing here grows
with the number of files ever touched.
"""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptfs.fs.file import File

ROOT = 1


def stale() -> OSError:
    """The inode is gone, or nobody knows any more where it lies."""
    return OSError(errno.ESTALE, os.strerror(errno.ESTALE))


class Node:
    """One inode: its place (parent and ciphertext name) and its content while in use."""

    __slots__ = (
        "__weakref__",
        "_lname",
        "dead",
        "file",
        "generation",
        "ino",
        "is_dir",
        "lazy_name",
        "lookups",
        "mode",
        "others",
        "parent",
    )

    def __init__(self, ino: int, parent: Node | None, lname: bytes, is_dir: bool) -> None:
        self.ino = ino
        self.parent = parent
        self._lname = lname
        self.lazy_name: Callable[[], bytes] | None = None
        """Makes the ciphertext name when somebody wants it, where the index gave the plaintext one only."""
        self.is_dir = is_dir
        self.others: set[tuple[Node, bytes]] | None = None
        """Further places of a file with several names, as far as somebody looked them up."""
        self.lookups = 0
        self.generation = 0
        self.mode = 0
        """Type and permission bits as last seen."""
        self.dead = False
        """The last name is gone; the number may come back as another object."""
        self.file: File | None = None

    @property
    def lname(self) -> bytes:
        """The ciphertext name of the place."""
        if self.lazy_name is not None:
            self._lname, self.lazy_name = self.lazy_name(), None
        return self._lname

    @lname.setter
    def lname(self, lname: bytes) -> None:
        self._lname, self.lazy_name = lname, None

    def move(self, parent: Node, lname: bytes) -> None:
        """The name at the node's place was changed to this one."""
        if self.others is not None:
            self.others.discard((parent, lname))
        self.parent, self.lname = parent, lname

    def seen_at(self, parent: Node, lname: bytes) -> None:
        """The object was found at this place, which may be another than the one known."""
        if self.parent is parent and self.lname == lname:
            return
        if self.parent is not None and not self.is_dir:
            self.others = self.others or set()
            self.others.add((self.parent, self.lname))
        self.move(parent, lname)

    def lost(self, parent: Node, lname: bytes) -> None:
        """One of several names is gone; the node goes on at another, if one is known."""
        if self.others is not None:
            self.others.discard((parent, lname))
        if self.parent is parent and self.lname == lname:
            self.parent = None
            if self.others:
                self.parent, self.lname = self.others.pop()

    def path(self) -> bytes:
        """Ciphertext path relative to `tree/`; ESTALE when the place is not known any more."""
        parts: list[bytes] = []
        node: Node | None = self
        while node is not None and node.ino != ROOT:
            parts.append(node.lname)
            node = node.parent
        if node is None:
            raise stale()
        return b"/".join(reversed(parts))


class NodeTable:
    """Nodes by number. The caller holds the namespace lock."""

    def __init__(self, root_ino: int) -> None:
        self._root_ino = root_ino
        self.root = Node(ROOT, None, b"", True)
        self.root.lookups = 1
        self._nodes: dict[int, Node] = {ROOT: self.root}
        # A node that nobody references may still stand in notes on what is not durable, and
        # as the parent of others: found again, it must be the same one.
        self._released: weakref.WeakValueDictionary[int, Node] = weakref.WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(list(self._nodes.values()))

    def number(self, lower_ino: int) -> int:
        """The inode number shown for a ciphertext file's number."""
        if lower_ino == self._root_ino:
            return ROOT
        # Number 1 stands for the root; a file system whose numbers begin at 1 has its 1 elsewhere.
        return lower_ino if lower_ino != ROOT else self._root_ino

    def get(self, ino: int) -> Node:
        """The node; ESTALE if nobody should know it."""
        try:
            return self._nodes[ino]
        except KeyError:
            raise stale() from None

    def find(self, ino: int) -> Node | None:
        return self._nodes.get(ino)

    def place(self, ino: int, parent: Node, lname: bytes, is_dir: bool) -> Node:
        """The node of an entry just seen, known or new, without a reference taken."""
        node = self._nodes.get(ino)
        if node is None:
            node = self._released.get(ino)
            if node is not None and (node.dead or node.is_dir != is_dir):
                node = None
        if node is None or node.dead:
            fresh = Node(ino, parent, lname, is_dir)
            if node is not None:
                # The number was given to another object while the kernel still holds
                # the old one: a new generation tells them apart, the references add up.
                fresh.generation = node.generation + 1
                fresh.lookups = node.lookups
                self._nodes[ino] = fresh
            return fresh
        node.seen_at(parent, lname)
        return node

    def served(
        self, ino: int, parent: Node, lname: bytes, lazy_name: Callable[[], bytes] | None, is_dir: bool
    ) -> Node:
        """The node of an entry that the index knows, without a reference taken."""
        node = self._nodes.get(ino)
        if node is None or node.dead or node.parent is None:
            node = self.place(ino, parent, lname, is_dir)
            node.lazy_name = lazy_name
        return node

    def reference(self, node: Node) -> None:
        """Take a reference for the kernel."""
        node.lookups += 1
        self._nodes[node.ino] = node

    def keep(self, node: Node) -> None:
        """Register a node whose file is in use: there must never be two of one object."""
        self._nodes[node.ino] = node

    def forget(self, ino: int, count: int) -> None:
        """Give back `count` references."""
        node = self._nodes.get(ino)
        if node is None:
            return
        node.lookups = max(0, node.lookups - count)
        self.release(node)

    def release(self, node: Node) -> None:
        """Drop the node if nothing holds it."""
        if node.lookups == 0 and node.file is None and node.ino != ROOT and self._nodes.get(node.ino) is node:
            del self._nodes[node.ino]
            self._released[node.ino] = node

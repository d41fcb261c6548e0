"""The inodes that the kernel knows: numbers, references, and where they lie.

A node's number is that of its ciphertext file, so it stays the same over mounts and for
all hard links. A node lives as long as somebody holds a reference; nothing here grows
with the number of files ever touched.

A walk makes the kernel hold every file of the archive, and asks nothing of most of them: a file that was
listed from the index is a `Listed` until somebody wants its node.
"""

from __future__ import annotations

import errno
import itertools
import os
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from cryptfs.fs.file import File

ROOT = 1
SUBSTITUTES_FROM = 1 << 62
"""Numbers from here on are shown for ciphertext files whose own number somebody else goes by."""


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

    def respelled(self, parent: Node, old: bytes, new: bytes) -> None:
        """The same plaintext name has another ciphertext name now."""
        if self.others is not None and (parent, old) in self.others:
            self.others.discard((parent, old))
            self.others.add((parent, new))
        if self.parent is parent and self.lname == old:
            self.lname = new

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


class Listed:
    """A file that was listed from the index: what a node is made of, a third as large."""

    __slots__ = ("lookups", "lower", "mode", "name", "parent")

    def __init__(self, parent: Node, lower: Callable[[bytes], bytes], name: bytes, mode: int) -> None:
        self.parent = parent
        self.lower = lower
        """Makes the ciphertext name of the plaintext one."""
        self.name = name
        self.mode = mode
        self.lookups = 0


class _Released(weakref.ref[Node]):
    """A node that nobody references."""

    __slots__ = ("ino",)
    ino: int


class NodeTable:
    """Nodes by number. The caller holds the namespace lock."""

    def __init__(self, root_ino: int) -> None:
        self._root_ino = root_ino
        self.root = Node(ROOT, None, b"", True)
        self.root.lookups = 1
        self._nodes: dict[int, Node] = {ROOT: self.root}
        self._listed: dict[int, Listed] = {}
        """Never one that is a node as well."""
        # A node that nobody references may still stand in notes on what is not durable, and
        # as the parent of others: found again, it must be the same one.
        self._released: dict[int, _Released] = {}
        self._shown: dict[int, int] = {}
        """By the number of a ciphertext file, what is shown for it where that is another."""
        self._lies_in: dict[int, int] = {}
        """The same the other way."""
        self._substitutes = itertools.count(SUBSTITUTES_FROM)

    def __len__(self) -> int:
        return len(self._nodes) + len(self._listed)

    def __iter__(self) -> Iterator[Node]:
        """All but those that were listed and nothing else."""
        return iter(list(self._nodes.values()))

    def number(self, lower_ino: int) -> int:
        """The inode number shown for a ciphertext file's number."""
        if lower_ino == self._root_ino:
            return ROOT
        if self._shown:
            return self._number(lower_ino)
        # Number 1 stands for the root; a file system whose numbers begin at 1 has its 1 elsewhere.
        return lower_ino if lower_ino != ROOT else self._root_ino

    def _number(self, lower_ino: int) -> int:
        shown = self._shown.get(lower_ino)
        if shown is None:
            shown = lower_ino if lower_ino != ROOT else self._root_ino
            if shown in self._lies_in:
                # The lower file system has given the number away again, and a node still goes by it.
                shown = self._shown[lower_ino] = next(self._substitutes)
                self._lies_in[shown] = lower_ino
        return shown

    def replaced(self, node: Node, lower_ino: int) -> None:
        """The object of a node lies in another ciphertext file now, with this number.

        For as long as anybody knows the node its own number stays, and nobody else is given it.
        """
        before = self._lies_in.get(node.ino)
        if before is not None and self._shown.get(before) == node.ino:
            del self._shown[before]
        self._shown[lower_ino] = node.ino
        self._lies_in[node.ino] = lower_ino
        self._watch(node, lower_ino)

    def _watch(self, node: Node, lower_ino: int) -> None:
        weakref.finalize(node, self._let_go, node.ino, lower_ino).atexit = False

    def _let_go(self, ino: int, lower_ino: int) -> None:
        """A node whose ciphertext file was replaced is gone. In whichever thread, without a lock."""
        heir = self._nodes.get(ino)
        if heir is None and (released := self._released.get(ino)) is not None:
            heir = released()
        if heir is not None:
            self._watch(heir, lower_ino)
        elif self._lies_in.get(ino) == lower_ino:
            self._lies_in.pop(ino, None)
            if self._shown.get(lower_ino) == ino:  # else the lower file system gave that away, too
                self._shown.pop(lower_ino, None)

    def is_elsewhere(self, ino: int) -> bool:
        """Whether a number is not the one that the ciphertext file shows once its node is forgotten."""
        return bool(self._lies_in) and ino in self._lies_in

    def get(self, ino: int) -> Node:
        """The node; ESTALE if nobody should know it."""
        node = self._nodes.get(ino) or self._wanted(ino)
        if node is None:
            raise stale()
        return node

    def find(self, ino: int) -> Node | None:
        return self._nodes.get(ino) or self._wanted(ino)

    def _wanted(self, ino: int) -> Node | None:
        """The node of a file that was listed only, from now on."""
        listed = self._listed.pop(ino, None)
        if listed is None:
            return None
        node = self._nodes[ino] = Node(ino, listed.parent, b"", False)
        node.lazy_name = partial(listed.lower, listed.name)
        node.lookups, node.mode = listed.lookups, listed.mode
        return node

    def is_known(self, ino: int) -> bool:
        """Whether there is a node of this number, or somebody may still have one."""
        return ino in self._nodes or ino in self._released

    def place(self, ino: int, parent: Node, lname: bytes, is_dir: bool) -> Node:
        """The node of an entry just seen, known or new, without a reference taken."""
        node = self._nodes.get(ino) or self._wanted(ino)
        if node is None:
            released = self._released.get(ino)
            node = None if released is None else released()
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
        node = self._nodes.get(ino) or self._wanted(ino)
        if node is None or node.dead or node.parent is None:
            node = self.place(ino, parent, lname, is_dir)
            node.lazy_name = lazy_name
        return node

    def reference(self, node: Node) -> None:
        """Take a reference for the kernel."""
        node.lookups += 1
        self.keep(node)

    def reference_listed(self, ino: int, offered: Node | Listed) -> None:
        """Take a reference for the kernel on an entry that a listing offered."""
        node = self._nodes.get(ino)
        if node is None and type(offered) is Listed:
            known = self._listed.setdefault(ino, offered)
            known.lookups += 1
        elif node is None or (node.dead and type(offered) is Node):
            self.reference(cast("Node", offered))
        else:
            node.lookups += 1

    def keep(self, node: Node) -> None:
        """Register a node that is in use: there must never be two of one object."""
        self._nodes[node.ino] = node
        if node.ino in self._listed:
            node.lookups += self._listed.pop(node.ino).lookups

    def forget(self, ino: int, count: int) -> None:
        """Give back `count` references."""
        node = self._nodes.get(ino)
        if node is None:
            listed = self._listed.get(ino)
            if listed is not None:
                listed.lookups -= count
                if listed.lookups <= 0:
                    del self._listed[ino]
            return
        node.lookups = max(0, node.lookups - count)
        self.release(node)

    def release(self, node: Node) -> None:
        """Drop the node if nothing holds it."""
        if node.lookups == 0 and node.file is None and node.ino != ROOT and self._nodes.get(node.ino) is node:
            del self._nodes[node.ino]
            self._released[node.ino] = released = _Released(node, self._gone)
            released.ino = node.ino

    def _gone(self, released: weakref.ref[Node]) -> None:
        """Nobody has this node any more."""
        ino = cast("_Released", released).ino
        if self._released.get(ino) is released:
            del self._released[ino]

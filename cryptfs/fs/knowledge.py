"""What is known of names and attributes without asking the lower file system.

`Knowledge` knows nothing and is what a filesystem without an index has. Everything that changes a name or an
attribute tells it, and everything that wants one asks it first; `metadata.IndexedKnowledge` answers. The
caller of every method holds the namespace lock.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryptfs.fs.comparison import Comparison
    from cryptfs.fs.directory import Directory, DirectoryCache
    from cryptfs.fs.file import File
    from cryptfs.fs.metadata import Snapshot
    from cryptfs.fs.nodes import Listed, Node, NodeTable
    from cryptfs.fs.objects import Objects
    from cryptfs.fs.types import Attr
    from cryptfs.vault.header import Header


class Knowledge:
    """Knows nothing; `why_not` says why."""

    def __init__(self, why_not: str = "") -> None:
        self.why_not = why_not

    def bind(
        self, lock: threading.RLock, nodes: NodeTable, directories: DirectoryCache, objects: Objects
    ) -> None:
        """Begin: with the namespace lock, and what answers where nothing is known."""

    # -- asked -----------------------------------------------------------------------------------

    def find(self, parent: Node, name: bytes) -> tuple[Node, Attr] | None:
        """An entry, without a reference; None if it must be looked up. FileNotFoundError if there is none."""
        return None

    def attr(self, node: Node) -> Attr | None:
        """The attributes of a node whose file is not in use; None if they must be looked up."""
        return None

    def entries(self, node: Node) -> Snapshot | None:
        """The records of all entries of a directory; None if it must be listed."""
        return None

    def entry(self, snapshot: Snapshot, position: int) -> tuple[bytes, Node | None, Attr | None] | None:
        """What one of them is now: its name and, if they need not be looked up, node and attributes.

        None if it is gone.
        """
        raise NotImplementedError

    def unchanged_file(self, snapshot: Snapshot, position: int) -> tuple[Listed, Attr] | None:
        """The same of a file of which nobody has a node, where nothing has changed since; else None."""
        return None

    def compare(self, node: Node, directory: Directory) -> Comparison | None:
        """Begin to compare a directory, while it is listed, with what is known of it."""
        return None

    # -- told ------------------------------------------------------------------------------------

    def looked(
        self, parent: Node, directory: Directory, lname: bytes, name: bytes, node: Node,
        header: Header | None, st: os.stat_result, size: int,
    ) -> None:  # fmt: skip
        """A file was looked up. `name` is empty where the caller does not know it.

        `header` is None for one that is in use: it answers for itself until it is closed.
        """

    def directory_looked(self, node: Node, header: Header, attr: Attr) -> None:
        """A directory's attributes were just read from its ciphertext."""

    def directory_listed(self, parent: Node, lname: bytes, name: bytes, node: Node) -> None:
        """A directory was looked up under this name, which is empty where the caller does not know it."""

    def directory_made(self, node: Node, header: Header) -> None:
        """A directory was made: it is empty."""

    def rekeyed(self, node: Node) -> None:
        """A directory has another key: no ciphertext name in it is what it was."""

    def directory_changed(self, node: Node) -> None:
        """A directory's own attributes changed."""

    def directory_gone(self, node: Node) -> None:
        """A directory was removed."""

    def made(self, parent: Node, lname: bytes, name: bytes, node: Node) -> None:
        """An object has a new name (made, linked, renamed to it)."""

    def gone(self, parent: Node, lname: bytes) -> None:
        """A name is gone (removed, renamed)."""

    def uncertain(self, node: Node) -> None:
        """A change in a directory failed, perhaps half-way: nothing is known of it any more."""

    def shared(self, node: Node) -> None:
        """A file is about to have more names than one."""

    def closing(self, file: File) -> None:
        """A file is about to be closed: all of it is in its ciphertext."""

    # -- the whole -------------------------------------------------------------------------------

    def status(self) -> str:
        """For `cryptfs status`."""
        return f"none ({self.why_not})" if self.why_not else "none"

    def numbers(self) -> dict[str, Any]:
        """The same, for programs."""
        return {"state": "none", "reason": self.why_not}

    def forget_everything(self) -> None:
        """Begin anew: nothing is believed until it was read again."""

    def close(self, session: int | None) -> None:
        """The filesystem is closed; `session` has ended in order, None if none has."""

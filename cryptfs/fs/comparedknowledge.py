"""The metadata index of a mount that is read-only: compared at each listing, believed at none.

Another computer may be writing to the vault, so nothing holds from one request to the next. A listing looks
at each file (one lstat) and takes name and attributes from the record if it holds; so it opens no file and
decrypts nothing but the records. All other requests are answered from the ciphertext.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from cryptfs.fs.comparison import Comparison
from cryptfs.fs.directory import Directory
from cryptfs.fs.metadata import IndexedKnowledge, Shelf, Snapshot
from cryptfs.fs.nodes import Node
from cryptfs.fs.types import Attr
from cryptfs.vault.header import Header

if TYPE_CHECKING:
    from cryptfs.fs.file import File
    from cryptfs.index.catalog import Catalog
    from cryptfs.index.catalogview import CatalogView


class ComparedKnowledge(IndexedKnowledge):
    """Answers nothing but what a comparison has just found to hold."""

    def __init__(self, view: CatalogView) -> None:
        super().__init__(cast("Catalog", view))  # of which it uses nothing that a view does not have
        self._view = view

    def find(self, parent: Node, name: bytes) -> tuple[Node, Attr] | None:
        return None

    def attr(self, node: Node) -> Attr | None:
        return None

    def entries(self, node: Node) -> Snapshot | None:
        return None

    def compare(self, node: Node, directory: Directory) -> Comparison | None:
        self._shelves.pop(node.ino, None)  # the directory may have another key by now
        return super().compare(node, directory)

    def put(self, shelf: Shelf, key: bytes, value: bytes | None) -> None:
        """Nothing is recorded."""

    def complete(self, shelf: Shelf, seen: set[bytes], recorded: Iterable[bytes] | None = None) -> None:
        shelf.comparison = None

    def directory_looked(self, node: Node, header: Header, attr: Attr) -> None:
        """Its attributes are read each time."""

    def closing(self, file: File) -> None:
        """It was not changed."""

    def forget_everything(self) -> None:
        self._shelves.clear()

    def status(self) -> str:
        return f"compared at each listing, {self._view.size() >> 10} KiB"

    def numbers(self) -> dict[str, Any]:
        return {
            "state": "compared",
            "folder": str(self._view.folder),
            "bytes": self._view.size(),
            "answered": self.answered,
        }

    def close(self, session: int | None) -> None:
        self._view.close()

"""Inodes: those that were only listed become nodes when somebody wants them, and none is there twice."""

from __future__ import annotations

import gc
import os
import stat
from pathlib import Path

import pytest

from cryptfs.fs import FileSystem
from cryptfs.fs.nodes import ROOT, Listed, Node, NodeTable
from cryptfs.fs.types import Attr

from .support import ME, get, make_vault, open_fs, put


def lower(name: bytes) -> bytes:
    return b"lower of " + name


@pytest.fixture
def table() -> NodeTable:
    return NodeTable(2)


def offered(table: NodeTable, name: bytes = b"name") -> Listed:
    return Listed(table.root, lower, name, stat.S_IFREG | 0o640)


def test_a_listed_file_becomes_a_node_with_its_references(table: NodeTable) -> None:
    for _ in range(2):
        table.reference_listed(7, offered(table))
    assert len(table) == 2 and [node.ino for node in table] == [ROOT]
    node = table.get(7)
    assert (node.lookups, node.lname, node.parent) == (2, b"lower of name", table.root)
    assert node.mode == stat.S_IFREG | 0o640
    assert table.find(7) is node and len(table) == 2
    table.reference_listed(7, offered(table, b"other"))
    assert node.lookups == 3
    table.forget(7, 3)
    assert len(table) == 1 and table.find(7) is None


def test_a_listed_file_is_forgotten(table: NodeTable) -> None:
    table.reference_listed(7, offered(table))
    table.reference_listed(7, offered(table))
    table.forget(7, 1)
    assert len(table) == 2
    table.forget(7, 1)
    assert len(table) == 1
    with pytest.raises(OSError, match="Stale"):
        table.get(7)


def test_a_node_made_beside_takes_over_the_references(table: NodeTable) -> None:
    made = table.place(7, table.root, b"lower of name", False)
    table.reference_listed(7, offered(table))
    table.reference(made)
    assert made.lookups == 2 and table.find(7) is made and len(table) == 2
    table.forget(7, 2)
    assert len(table) == 1


def test_a_node_that_was_placed_is_the_one_that_was_listed(table: NodeTable) -> None:
    table.reference_listed(7, offered(table))
    node = table.place(7, table.root, b"lower of name", False)
    assert node.lookups == 1 and node.others is None and table.find(7) is node


def test_a_released_node_is_known_as_long_as_somebody_has_it(table: NodeTable) -> None:
    node: Node | None = table.place(7, table.root, b"lname", False)
    assert node is not None
    table.reference(node)
    table.forget(7, 1)
    assert table.is_known(7) and table.find(7) is None
    assert table.place(7, table.root, b"lname", False) is node
    node = None
    gc.collect()
    assert not table.is_known(7)
    assert not table._released, "nothing is kept of it"


def listed(fs: FileSystem, ino: int) -> dict[bytes, Attr]:
    """A listing as the mount makes it: the entries with a reference each."""
    handle = fs.opendir(ino)
    try:
        listing = fs.readdir(handle, 0)
        entries = {name: attr for name, attr, _ in listing}
        fs.remember_listed(handle, [attr.ino for attr in entries.values()])
        return entries
    finally:
        fs.releasedir(handle)


def test_what_was_listed_from_the_index_can_be_used(tmp_path: Path) -> None:
    """Read, renamed with its folder and by itself, removed, made again: as with any other node."""
    path = make_vault(tmp_path / "vault")
    fs = open_fs(path, state=tmp_path / "state")
    folder = fs.mkdir(ROOT, b"folder", 0o755, ME).ino
    for number in range(10):
        fs.forget(put(fs, folder, b"%d" % number, b"content %d" % number), 1)
    fs.sync()  # until then there are notes on the files, which have their nodes
    before = fs.stats()["inodes"]
    entries = listed(fs, folder)
    assert sorted(entries) == [b"%d" % number for number in range(10)]
    assert fs.stats()["inodes"] == before + 10
    assert len(fs._nodes._listed) == 10, "they come from the index"
    handle = fs.open(entries[b"3"].ino, os.O_RDONLY)
    assert bytes(fs.read(handle, 0, 100)) == b"content 3"
    fs.release(handle)
    fs.rename(ROOT, b"folder", ROOT, b"moved")
    assert fs.getattr(entries[b"4"].ino) == entries[b"4"]
    fs.rename(folder, b"5", ROOT, b"five")
    assert fs.getattr(entries[b"5"].ino).size == 9
    assert get(fs, ROOT, b"five") == b"content 5"
    fs.unlink(folder, b"6")
    gone = fs.getattr(entries[b"6"].ino)
    assert (gone.nlink, stat.S_IFMT(gone.mode)) == (0, stat.S_IFREG)
    fs.forget(fs.link(entries[b"7"].ino, ROOT, b"seven").ino, 1)
    assert fs.getattr(entries[b"7"].ino).nlink == 2
    again = listed(fs, folder)
    assert again[b"8"] == entries[b"8"] and b"5" not in again and b"6" not in again
    fs.forget_all([(attr.ino, 1) for attr in entries.values()])
    fs.forget_all([(attr.ino, 1) for attr in again.values()])
    assert fs.stats()["inodes"] == before
    assert not fs._nodes._listed
    fs.close()

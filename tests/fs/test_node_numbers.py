"""Numbers of inodes whose ciphertext file was replaced: the kernel's stays, and nobody else gets it."""

from __future__ import annotations

import random

from cryptfs.fs.nodes import ROOT, SUBSTITUTES_FROM, Node, NodeTable


def looked_up(table: NodeTable, lower: int, lname: bytes) -> Node:
    node = table.place(table.number(lower), table.root, lname, False)
    table.reference(node)
    return node


def test_a_replaced_file_keeps_its_number_until_it_is_forgotten() -> None:
    table = NodeTable(2)
    node = looked_up(table, 100, b"a")
    table.replaced(node, 200)
    assert table.number(200) == 100 and table.is_elsewhere(100)
    assert table.place(table.number(200), table.root, b"a", False) is node
    table.replaced(node, 300)
    assert (table.number(300), table.number(200)) == (100, 200)
    table.forget(100, 1)
    del node
    assert table.number(300) == 300
    assert table.number(100) == 100


def test_a_number_that_is_in_use_is_not_given_to_another() -> None:
    table = NodeTable(2)
    one = looked_up(table, 100, b"a")
    table.replaced(one, 200)
    other = looked_up(table, 100, b"b")  # the disk has given the freed number away
    assert other is not one and other.ino >= SUBSTITUTES_FROM
    assert table.number(100) == other.ino
    table.forget(one.ino, 1)
    del one
    assert table.number(100) == other.ino, "it stays what it was shown as"


def test_a_number_passed_on_while_somebody_still_holds_the_old_one() -> None:
    table = NodeTable(2)
    node = looked_up(table, 100, b"a")
    table.replaced(node, 200)
    node.dead = True  # deleted, and its number 200 given to a new file, while the kernel holds 100
    heir = looked_up(table, 200, b"c")
    assert (heir.ino, heir.generation) == (100, 1)
    del node
    assert table.number(200) == 100
    assert table.find(100) is heir


def test_whatever_is_replaced_and_given_away_no_two_files_have_one_number() -> None:
    rng = random.Random(7)
    table = NodeTable(2)
    free = list(range(10, 60))
    files: dict[bytes, int] = {}
    nodes: dict[bytes, Node] = {}
    for step in range(4000):
        name = b"%d" % rng.randrange(25)
        if name not in files:
            files[name] = free.pop(rng.randrange(len(free)))
        found = looked_up(table, files[name], name)
        if name in nodes:
            assert found is nodes[name], step
        nodes[name] = found
        match rng.randrange(4):
            case 0:  # re-encrypted
                new = free.pop(rng.randrange(len(free)))
                table.replaced(found, new)
                free.append(files[name])
                files[name] = new
            case 1:  # the kernel forgets it
                table.forget(found.ino, found.lookups)
                del nodes[name]
            case 2 if rng.random() < 0.3:  # deleted and forgotten
                found.dead = True
                table.forget(found.ino, found.lookups)
                free.append(files.pop(name))
                del nodes[name]
        del found
        shown = [table.number(lower) for lower in files.values()]
        assert len(set(shown)) == len(shown), step
        assert ROOT not in shown

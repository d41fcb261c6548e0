"""Rewrapping while objects are moved about: none escapes."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptfs.fs import FileSystem, rewrap
from cryptfs.fs.rewrap import Rewrap
from cryptfs.fs.throttle import Throttle
from cryptfs.fs.walk import Folder
from cryptfs.vault.epochs import EpochReader
from tests.fs.rotation import BOTH, OLD, make_vault, open_fs, shown
from tests.fs.support import ME, VAULT_ID, put


def busy(fs: FileSystem, stop: threading.Event, failures: list[BaseException]) -> None:
    """Renames what was there from directory to directory, writes, links, deletes, makes directories."""
    rng = random.Random(1)
    homes = [fs.lookup(1, b"home %d" % number).ino for number in range(3)]
    place = {b"file %d" % number: homes[number % 3] for number in range(30)}
    try:
        while not stop.is_set():
            name = rng.choice(list(place))
            home, to = place[name], rng.choice(homes)
            match rng.randrange(5):
                case 0 | 1:
                    fs.rename(home, name, to, name)
                    place[name] = to
                case 2:
                    attr = fs.lookup(home, name)
                    handle = fs.open(attr.ino, os.O_RDWR)
                    fs.write(handle, len(name), b"+")
                    fs.release(handle)
                    fs.forget(attr.ino, 1)
                case 3:
                    # Another name where the walk may have been, and the first one goes.
                    attr = fs.lookup(home, name)
                    fs.link(attr.ino, to, name + b"'")
                    fs.unlink(home, name)
                    fs.rename(to, name + b"'", to, name)
                    fs.forget(attr.ino, 2)
                    place[name] = to
                case 4:
                    folder = rng.choice(homes)
                    other = rng.choice(homes)
                    if folder != other:
                        name_of = b"sub %d" % homes.index(folder)
                        fs.rename(folder, name_of, other, name_of)
                        fs.rename(other, name_of, folder, name_of)
    except BaseException as error:
        failures.append(error)
        raise


def test_under_load_nothing_escapes(tmp_path: Path) -> None:
    vault = make_vault(tmp_path / "vault")
    fs = open_fs(vault, OLD)
    for number in range(3):
        home = fs.mkdir(1, b"home %d" % number, 0o755, ME).ino
        sub = fs.mkdir(home, b"sub %d" % number, 0o755, ME).ino
        for inner in range(20):
            put(fs, sub, b"inner %d" % inner, b"inner")
    for number in range(30):
        put(fs, fs.lookup(1, b"home %d" % (number % 3)).ino, b"file %d" % number, b"file %d" % number)
    fs.close()
    fs = open_fs(vault, OLD)
    stop, failures = threading.Event(), list[BaseException]()
    threads = [threading.Thread(target=busy, args=(fs, stop, failures)) for _ in range(1)]
    for thread in threads:
        thread.start()
    keyring = OLD
    try:
        for _ in range(2):
            keyring = keyring.with_new_epoch()
            fs.use_keyring(keyring)
            summary = Rewrap(fs, Throttle()).run()
            assert not summary.damaged, summary.damaged
            assert summary.only_current, summary.needs
            keyring = keyring.with_current_only()
            fs.use_keyring(keyring)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    fs.close()
    found = shown(vault, keyring)
    files = {path.split(b"/")[-1]: entry for path, entry in found.items() if b"/file " in path}
    assert len(files) == 30
    assert all(entry.content.rstrip(b"+") == name for name, entry in files.items())
    assert sum(entry.content == b"inner" for entry in found.values()) == 60


class Moving(Throttle):
    """Calls something at each pause, which comes after every entry."""

    def __init__(self) -> None:
        super().__init__()
        self.at_pause: Callable[[], None] = lambda: None

    @property
    def slice_is_over(self) -> bool:
        return True

    def pause(self) -> None:
        self.at_pause()


@pytest.mark.parametrize("how", ["rename", "link and unlink"])
def test_what_moves_to_where_the_walk_has_been_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    vault = make_vault(tmp_path / "vault")
    fs = open_fs(vault, OLD)
    folders = {name: fs.mkdir(1, name, 0o755, ME).ino for name in (b"a", b"b")}
    for name, ino in folders.items():
        put(fs, ino, name + b" file", name)
    fs.close()
    fs = open_fs(vault, BOTH)
    a, b = (fs.lookup(1, name).ino for name in folders)
    monkeypatch.setattr(rewrap, "PASSES", 1)  # the second reading must find nothing to do
    throttle = Moving()
    job = Rewrap(fs, throttle)
    moved: list[bytes] = []
    visited: list[int] = []

    def move() -> None:
        if job.progress.phase != "rewrapping" or job.progress.changed < 3 or moved:
            return
        # The root, one directory and the file in it are done: what is in the other one goes there.
        name, source, target = (b"b file", b, a) if visited[0] == a else (b"a file", a, b)
        moved.append(name)
        if how == "rename":
            fs.rename(source, name, target, name)
        else:
            fs.link(fs.lookup(source, name).ino, target, name)
            fs.unlink(source, name)

    original = job._visit

    def visit(folder: Folder, lname: bytes, fd: int) -> bool:
        visited.append(folder.node.ino)
        return original(folder, lname, fd)

    job._visit = visit  # type: ignore[method-assign]
    throttle.at_pause = move
    summary = job.run()
    assert moved and summary.only_current
    fs.close()
    assert EpochReader(vault, VAULT_ID, BOTH).summary().proved

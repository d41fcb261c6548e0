"""The mount's process is killed while images are being written: what was synced is there, all is readable."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.waiting import wait_until

from .mounts import Mount, is_mounted
from .processes import Child

pytestmark = pytest.mark.system

WRITE_SIZE = 4096


def content_of(number: int) -> bytes:
    """An image of 20 to 120 KB, different for each number."""
    rng = random.Random(number)
    return f"image {number:06}".encode() + rng.randbytes(rng.randint(20_000, 120_000))


def path_of(root: Path, number: int) -> Path:
    digest = f"{random.Random(-number - 1).getrandbits(32):08x}"
    return root / digest[:2] / digest[2:4] / f"{digest}-{number}"


def write_images(root: Path, record: Path, first: int, rest: float = 0.0) -> None:
    """Stores images as Orthanc does, and notes the number of each that is synced. Ends only at an error.

    It rests so many seconds after each.
    """
    with record.open("a", buffering=1) as synced, contextlib.suppress(OSError):
        for number in itertools.count(first):
            content, path = content_of(number), path_of(root, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            try:
                for offset in range(0, len(content), WRITE_SIZE):
                    os.write(descriptor, content[offset : offset + WRITE_SIZE])
                os.fdatasync(descriptor)
                synced.write(f"{number}\n")
            finally:
                os.close(descriptor)
            time.sleep(rest)


def noted(record: Path) -> set[int]:
    return {int(line) for line in record.read_text().splitlines()} if record.exists() else set()


def check_images(root: Path, synced: set[int]) -> None:
    """Every synced image is whole; every other is absent, or readable and the right content's beginning."""
    for number in range(max(synced) + 2):  # the last was begun, perhaps, but not noted
        path, content = path_of(root, number), content_of(number)
        if number in synced:
            assert path.read_bytes() == content, f"image {number} was synced"
        elif path.exists():
            assert content.startswith(path.read_bytes()), f"image {number} was not synced"


@pytest.mark.parametrize("cleanup", ["unmount", "mount"])
def test_killed_while_images_are_written(
    make_mount: Callable[[], Mount], tmp_path: Path, seed: int, cleanup: str
) -> None:
    mount = make_mount()
    mount.mount()
    rng = random.Random(seed)
    record = tmp_path / "synced"
    synced: set[int] = set()
    for _ in range(2):
        first = max(synced, default=-2) + 2
        writer = Child(lambda first=first: write_images(mount.path, record, first))
        enough = first + rng.randint(50, 150)
        wait_until(lambda enough=enough: any(n >= enough for n in noted(record)), "some images are synced")
        mount.kill_daemon()
        if not mount.encrypted:
            writer.kill()
        else:
            writer.result()
        synced = noted(record)
        mount.remount_after_kill(by_unmount=cleanup == "unmount")
        check_images(mount.path, synced)
        mount.remount()
        check_images(mount.path, synced)
    # what a kill left half done can be removed and done again
    number = max(synced) + 1
    path = path_of(mount.path, number)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content_of(number))
    mount.remount()
    check_images(mount.path, synced | {number})


def test_killed_while_a_database_is_written(
    make_mount: Callable[[], Mount], tmp_path: Path, seed: int
) -> None:
    """Transactions that were committed durably are there, and the database is sound."""
    mount = make_mount()
    mount.mount()
    rng = random.Random(seed)
    record = tmp_path / "committed"
    database = mount.path / "index"
    interrupted: set[int] = set()
    for mode in ("DELETE", "WAL", "WAL"):

        def write(mode: str = mode) -> None:
            with record.open("a", buffering=1) as committed, contextlib.suppress(sqlite3.Error):
                connection = sqlite3.connect(database, isolation_level=None)
                connection.execute(f"PRAGMA journal_mode={mode}")
                connection.execute("PRAGMA synchronous=FULL")
                connection.execute("CREATE TABLE IF NOT EXISTS instances(number INTEGER PRIMARY KEY, data)")
                number = connection.execute("SELECT coalesce(max(number), 0) FROM instances").fetchone()[0]
                while True:
                    number += 1
                    connection.execute("INSERT INTO instances VALUES(?, randomblob(2000))", (number,))
                    committed.write(f"{number}\n")

        before = max(noted(record), default=0)
        writer = Child(write)
        enough = before + rng.randint(30, 100)
        wait_until(lambda enough=enough: max(noted(record), default=0) >= enough, "some rows are committed")
        mount.kill_daemon()
        writer.kill()  # in memory mapped from the mount it ends by an error or by a signal
        mount.remount_after_kill(by_unmount=False)
        connection = sqlite3.connect(database)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = {number for (number,) in connection.execute("SELECT number FROM instances")}
        connection.close()
        committed = noted(record)
        assert committed <= rows
        interrupted.add(max(committed) + 1)  # may have been committed, but was not noted any more
        assert rows <= committed | interrupted


def test_a_dead_mount_is_told_and_taken_away(make_mount: Callable[[], Mount]) -> None:
    mount = make_mount()
    mount.mount()
    if not mount.encrypted:
        pytest.skip("a plain folder has no process")
    (mount.path / "f").write_bytes(b"x")
    mount.kill_daemon()
    assert is_mounted(mount.path)
    assert '"dead"' in mount.cli("status", "--json").stdout
    mount.cli("unmount", mount.path)
    assert not is_mounted(mount.path)
    assert list(mount.path.iterdir()) == []
    assert mount.cli("unmount", mount.path, check=False).returncode == 17
    mount.recover()
    assert (mount.path / "f").read_bytes() == b"x"

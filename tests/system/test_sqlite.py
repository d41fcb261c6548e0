"""SQLite on the mount, as imaging software's index: every journal mode, several processes, mapped pages."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from .mounts import Mount
from .processes import in_parallel

pytestmark = pytest.mark.system

WRITERS = 3
ROWS = 60


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=600, isolation_level=None)


def _check(path: Path, expected: int) -> None:
    connection = _connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    rows = connection.execute("SELECT writer, number, length(data) FROM instances ORDER BY 1, 2").fetchall()
    assert len(rows) == expected
    assert rows == [(w, n, 3000) for w in range(expected // ROWS) for n in range(ROWS)]
    connection.close()


@pytest.mark.parametrize("mode", ["DELETE", "TRUNCATE", "PERSIST", "WAL"])
@pytest.mark.parametrize("mmap_size", [0, 1 << 24])
def test_several_writers(shared_mount: Mount, folder: Path, mode: str, mmap_size: int) -> None:
    path = folder / "index"
    connection = _connect(path)
    assert connection.execute(f"PRAGMA journal_mode={mode}").fetchone() == (mode.lower(),)
    connection.execute("CREATE TABLE instances(writer, number, data)")
    connection.execute("CREATE INDEX numbers ON instances(number)")
    connection.close()

    def write(writer: int) -> None:
        connection = _connect(path)
        connection.execute(f"PRAGMA mmap_size={mmap_size}")
        for number in range(ROWS):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO instances VALUES(?,?,randomblob(3000))", (writer, number))
            if number % 7 == 0:  # work for the rollback
                connection.execute("ROLLBACK")
                connection.execute("INSERT INTO instances VALUES(?,?,randomblob(3000))", (writer, number))
            else:
                connection.execute("COMMIT")
        connection.close()

    in_parallel(*(lambda writer=writer: write(writer) for writer in range(WRITERS)))
    _check(path, WRITERS * ROWS)
    shared_mount.remount()
    _check(path, WRITERS * ROWS)


def test_as_orthanc_keeps_its_index(shared_mount: Mount, folder: Path) -> None:
    """WAL, NORMAL, EXCLUSIVE, checkpoints in between, and a vacuum."""
    path = folder / "index"
    for generation in range(2):
        connection = _connect(path)
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("CREATE TABLE IF NOT EXISTS instances(writer, number, data)")
        for number in range(ROWS):
            connection.execute("INSERT INTO instances VALUES(?,?,randomblob(3000))", (generation, number))
            if number % 20 == 19:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("DELETE FROM instances WHERE writer > 100")
        connection.execute("VACUUM")
        connection.close()
        assert sorted(entry.name for entry in folder.iterdir()) == ["index"]
        _check(path, (generation + 1) * ROWS)
        shared_mount.remount()
        _check(path, (generation + 1) * ROWS)

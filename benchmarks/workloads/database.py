"""A database inside the mount: SQLite, as imaging servers keep their index in it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from benchmarks.errors import BenchmarkError
from benchmarks.figures import Figure
from benchmarks.workloads.base import Place, expect, workload

FULL_TRANSACTIONS = 1600
WAL_TRANSACTIONS = 4000
TAGS = 12  # rows that an instance brings, each with two indexes: about 20 pages of 4096 bytes change

SQLITE_FULL = Figure(
    "sqlite-full",
    "tx/s",
    "one insert per transaction, rollback journal, synchronous=FULL",
)
SQLITE_WAL = Figure(
    "sqlite-wal",
    "tx/s",
    "one instance per transaction like Orthanc's: WAL, synchronous=NORMAL",
)


@workload("sqlite", SQLITE_FULL, SQLITE_WAL)
def sqlite(place: Place) -> None:
    """Insert in small transactions, in SQLite's safest mode and in Orthanc's."""
    with place.folder("sqlite") as folder:
        _full(place, folder / "full.db")
        _wal(place, folder / "index")


def _full(place: Place, path: Path) -> None:
    count = place.scaled(FULL_TRANSACTIONS, at_least=10)
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=DELETE")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE event (id INTEGER PRIMARY KEY, body BLOB)")
    rows = [(bytes(place.data.piece(key, 200)),) for key in range(count)]
    with place.meter.timing(SQLITE_FULL, count):
        for row in rows:
            database.execute("INSERT INTO event (body) VALUES (?)", row)
    database.close()
    _check(path, "event", count)


def _wal(place: Place, path: Path) -> None:
    count = place.scaled(WAL_TRANSACTIONS, at_least=10)
    database = sqlite3.connect(path, isolation_level=None)
    for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=NORMAL"):
        database.execute(f"PRAGMA {pragma}")
    database.executescript(
        """
        CREATE TABLE resource (id INTEGER PRIMARY KEY, uid TEXT, parent INTEGER);
        CREATE INDEX resource_uid ON resource (uid);
        CREATE TABLE tag (id INTEGER, name INTEGER, value TEXT, PRIMARY KEY (id, name));
        CREATE INDEX tag_value ON tag (name, value);
        """
    )
    resources = [(key, bytes(place.data.piece(key, 16)).hex(), key // 100) for key in range(count)]
    tags = [
        [(key, name, bytes(place.data.piece(key * TAGS + name, 20)).hex()) for name in range(TAGS)]
        for key in range(count)
    ]
    with place.meter.timing(SQLITE_WAL, count):
        for resource, of_resource in zip(resources, tags, strict=True):
            database.execute("BEGIN")
            database.execute("INSERT INTO resource VALUES (?, ?, ?)", resource)
            database.executemany("INSERT INTO tag VALUES (?, ?, ?)", of_resource)
            database.execute("COMMIT")
    database.close()
    _check(path, "resource", count)


def _check(path: Path, table: str, rows: int) -> None:
    database = sqlite3.connect(path)
    try:
        (verdict,) = database.execute("PRAGMA integrity_check").fetchone()
        if verdict != "ok":
            raise BenchmarkError(f"{path} is damaged: {verdict}.")
        expect(f"rows of {path}", database.execute(f"SELECT count(*) FROM {table}").fetchone()[0], rows)
    finally:
        database.close()

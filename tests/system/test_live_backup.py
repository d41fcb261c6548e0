"""Backups of a vault while it is mounted and written to, without a freeze: restic, borg and rsync.

docs/backup.md says what such a copy holds; here real tools read a real mount under load.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.waiting import wait_until

from .mounts import CryptfsMount
from .processes import Child
from .test_backup import borg, restic, rsync

pytestmark = pytest.mark.system


def content(number: int) -> bytes:
    rng = random.Random(number)
    return f"image {number}".encode() + rng.randbytes(rng.choice([100, 30_000, 150_000]))


def store(path: Path, data: bytes, *, sync: bool) -> None:
    with path.open("wb", buffering=0) as file:
        for at in range(0, len(data), 16_384):
            file.write(data[at : at + 16_384])
        if sync:
            os.fsync(file.fileno())


def load(root: Path, started: Path) -> None:
    """Stores images, overwrites a database, renames and deletes, until it is killed."""
    database = sqlite3.connect(root / "database" / "index", isolation_level=None)
    database.execute("PRAGMA synchronous=FULL")
    number = 0
    while True:
        number += 1
        store(root / "new" / f"{number}.dcm", content(number), sync=number % 3 > 0)
        database.execute("UPDATE patients SET data = randomblob(900) WHERE number % 7 = ?", (number % 7,))
        if number % 4 == 0:
            (root / "new" / f"{number}.dcm").rename(root / "new" / f"renamed {number}.dcm")
        if number > 40:
            for name in (f"{number - 40}.dcm", f"renamed {number - 40}.dcm"):
                (root / "new" / name).unlink(missing_ok=True)
        with (root / "log").open("ab", buffering=0) as log:
            log.write(f"stored {number}\n".encode())
            os.fsync(log.fileno())
        if number == 10:
            started.touch()


@pytest.mark.parametrize("tool", [restic, borg, rsync])
def test_a_backup_under_load(
    vault: CryptfsMount, make_mount: Callable[[], CryptfsMount], tmp_path: Path, tool: Callable[..., None]
) -> None:
    vault.mount()
    for name in ("old", "new", "database"):
        (vault.path / name).mkdir()
    for number in range(60):
        store(vault.path / "old" / f"{number}.dcm", content(-number), sync=True)
    with sqlite3.connect(vault.path / "database" / "index") as database:
        database.execute("CREATE TABLE patients(number INTEGER PRIMARY KEY, data)")
        database.executemany(
            "INSERT INTO patients VALUES(?, randomblob(900))", [(number,) for number in range(2000)]
        )
    database.close()
    # Synced just before the backup begins, its records still in the journal.
    kept = vault.path / "old" / "kept.db"
    store(kept, b"before " * 5000, sync=True)
    with kept.open("r+b", buffering=0) as file:
        file.write(b"overwritten and synced")
        os.fsync(file.fileno())
    expected = kept.read_bytes()
    loader = Child(lambda: load(vault.path, tmp_path / "started"))
    try:
        wait_until((tmp_path / "started").exists, "the load is there")
        elsewhere = make_mount()
        tool_ignoring_vanished(tool)(vault.vault, elsewhere.vault, tmp_path)
        assert os.waitpid(loader.pid, os.WNOHANG) == (0, 0), "the load ended before the backup"
    finally:
        os.kill(loader.pid, signal.SIGKILL)
        os.waitpid(loader.pid, 0)
    elsewhere.cli(
        *("mount", elsewhere.vault, elsewhere.path, "--log", elsewhere.log),
        *("--recovery-key-file", vault.recovery_file),
    )
    for number in range(60):
        assert (elsewhere.path / "old" / f"{number}.dcm").read_bytes() == content(-number)
    assert (elsewhere.path / "old" / "kept.db").read_bytes() == expected
    for path in (elsewhere.path / "new").iterdir():
        number = int(path.stem.removeprefix("renamed "))
        assert content(number).startswith(path.read_bytes()), f"{path.name} is no beginning of its content"
    lines = (elsewhere.path / "log").read_bytes().splitlines(keepends=True)
    assert b"".join(lines[:10]) == b"".join(f"stored {number}\n".encode() for number in range(1, 11))
    # The database was overwritten all the time: pages may be of different times, or be refused, but what
    # can be read is a page of it.
    with (elsewhere.path / "database" / "index").open("rb", buffering=0) as file:
        size, refused = os.fstat(file.fileno()).st_size, 0
        for at in range(0, size, 4096):
            try:
                os.pread(file.fileno(), 4096, at)
            except OSError as error:
                assert error.errno == 5
                refused += 1
        assert refused < size // 4096
    elsewhere.unmount()


def tool_ignoring_vanished(tool: Callable[..., None]) -> Callable[..., None]:
    """Tools report files that vanish while they read (restic 3, borg 1, rsync 24) and go on."""
    usual = subprocess.run

    def run(source: Path, target: Path, scratch: Path) -> None:
        def tolerant(argv: list[str], **options: object) -> subprocess.CompletedProcess[str]:
            options.pop("check", None)
            done: subprocess.CompletedProcess[str] = usual(argv, **options)  # type: ignore[call-overload]
            vanished = {"restic": 3, "borg": 1, "rsync": 24}[argv[0]]
            assert done.returncode in (0, vanished), done.stderr
            done.returncode = 0
            return done

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(subprocess, "run", tolerant)
            tool(source, target, scratch)

    return run


def test_a_database_copied_in_a_freeze_is_sound(
    vault: CryptfsMount, make_mount: Callable[[], CryptfsMount], tmp_path: Path
) -> None:
    """The same load; rsync runs in a freeze: everything is of one instant."""
    vault.mount()
    for name in ("new", "database"):
        (vault.path / name).mkdir()
    with sqlite3.connect(vault.path / "database" / "index") as database:
        database.execute("CREATE TABLE patients(number INTEGER PRIMARY KEY, data)")
        database.executemany(
            "INSERT INTO patients VALUES(?, randomblob(900))", [(number,) for number in range(2000)]
        )
    database.close()
    loader = Child(lambda: load(vault.path, tmp_path / "started"))
    try:
        wait_until((tmp_path / "started").exists, "the load is there")
        elsewhere = make_mount()
        copy = ("rsync", "-rl", f"{vault.vault}/", f"{elsewhere.vault}/")
        vault.cli("freeze", vault.vault, "--timeout", "30m", "--", *copy)
    finally:
        os.kill(loader.pid, signal.SIGKILL)
        os.waitpid(loader.pid, 0)
    elsewhere.cli(
        *("mount", elsewhere.vault, elsewhere.path, "--log", elsewhere.log),
        *("--recovery-key-file", vault.recovery_file),
    )
    with sqlite3.connect(elsewhere.path / "database" / "index") as restored:
        assert restored.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert restored.execute("SELECT count(*) FROM patients").fetchone() == (2000,)
    restored.close()
    elsewhere.unmount()
    done = elsewhere.cli(
        *("verify", elsewhere.vault, "--recovery-key-file", vault.recovery_file), check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr

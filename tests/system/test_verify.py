"""`cryptfs verify` on a real mount: beside a busy imaging server, after a kill, stopped and resumed."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import HANG, wait_until

from .mounts import PROJECT, CryptfsMount, Mount
from .processes import Child
from .test_kill import check_images, noted, write_images

pytestmark = pytest.mark.system

CHECKS = 3


@pytest.fixture
def mount(make_mount: Callable[[], Mount], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CryptfsMount:
    monkeypatch.setenv("CRYPTFS_STATE_DIR", str(tmp_path / "state"))
    mount = make_mount()
    if not isinstance(mount, CryptfsMount):
        pytest.skip("a plain folder has no ciphertext")
    mount.mount()
    return mount


def verify(mount: CryptfsMount, *arguments: str) -> tuple[int, Any]:
    result = mount.cli(
        "verify", mount.vault, "--json", *arguments, "--recovery-key-file", mount.recovery_file, check=False
    )
    assert "Traceback" not in result.stderr
    return result.returncode, json.loads(result.stdout) if result.stdout else None


def write_database(path: Path, record: Path) -> None:
    """One durable transaction after the other, until the mount is gone."""
    try:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE IF NOT EXISTS t(data)")
        while not record.exists():
            connection.execute("INSERT INTO t VALUES(randomblob(3000))")
            connection.execute("DELETE FROM t WHERE rowid % 7 = abs(random()) % 7")
    except sqlite3.Error:
        pass


def test_beside_a_busy_server_and_after_its_death(mount: CryptfsMount, tmp_path: Path) -> None:
    record, stop = tmp_path / "synced", tmp_path / "stop"
    work = [
        Child(lambda: write_images(mount.path, record, 0)),
        Child(lambda: write_database(mount.path / "index", stop)),
    ]
    wait_until(lambda: len(noted(record)) > 20, "images are being written")
    for _ in range(CHECKS):
        code, report = verify(mount)
        problems = [found for found in report["findings"] if found["severity"] != "notice"]
        assert (code, problems) == (0, [])
        assert report["scope"]["mounted_meanwhile"] is True
        assert report["remembered"] == {"witness": "compared", "index": "compared"}
    assert report["checked"]["files"] > 20
    mount.kill_daemon()
    for child in work:
        child.result()
    synced = noted(record)
    code, report = verify(mount)
    problems = [found for found in report["findings"] if found["severity"] != "notice"]
    assert (code, problems) == (0, [])
    assert report["remembered"]["witness"] == "compared"
    mount.cli("unmount", mount.path)
    assert verify(mount, "--repair", "--yes")[0] == 0
    mount.recover()
    check_images(mount.path, synced)
    mount.unmount()
    code, report = verify(mount)
    assert (code, report["findings_by_kind"].keys() & {"content", "cut", "header"}) == (0, set())


def test_stopped_by_a_service_manager_and_resumed(mount: CryptfsMount, tmp_path: Path) -> None:
    for folder in range(20):
        (mount.path / str(folder)).mkdir()
        for number in range(5):
            (mount.path / str(folder) / str(number)).write_bytes(os.urandom(100_000))
    mount.unmount()
    arguments = ["verify", str(mount.vault), "--recovery-key-file", str(mount.recovery_file), "--jobs", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cryptfs", *arguments, "--limit", "50K"],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd="/",
        text=True,
    )
    wait_until(lambda: threads_of(process.pid) > 2 or process.poll() is not None, "it is at work")
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=HANG)
    assert (process.returncode, "--resume" in said) == (130, True), said
    code, report = verify(mount, "--jobs", "2", "--resume")
    if code == 2:  # it was stopped before the first files were done: there is nothing to go on with
        code, report = verify(mount, "--jobs", "2")
    assert (code, report["checked"]["files"], report["finished"]) == (0, 100, True)


def threads_of(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except FileNotFoundError:
        return 0

"""Mounts of a plain directory through the mount layer, and what the tests ask of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cryptfs.mount import control, libc, mountpoint, runtime
from tests.waiting import HANG, wait_until

REPOSITORY = Path(__file__).parents[2]


@dataclass
class Passthrough:
    """A directory `below`, to be mounted at `at`."""

    below: Path
    at: Path
    log: Path

    def run(self, **options: object) -> subprocess.CompletedProcess[str]:
        settings = json.dumps({"log": str(self.log), **options})
        command = [sys.executable, "-m", "tests.mount.mount_passthrough", self.below, self.at, settings]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=HANG)

    def mount(self, **options: object) -> None:
        done = self.run(**options)
        assert done.returncode == 0, done.stderr

    def status(self) -> dict[str, Any]:
        return control.ask(runtime.socket_path(str(self.at)), control.Request("status"), timeout=HANG)

    def record(self) -> runtime.Record:
        record = runtime.find(str(self.at))
        assert record is not None
        return record

    def kill(self, number: signal.Signals) -> None:
        os.kill(self.record().pid, number)

    def is_mounted(self) -> bool:
        return mountpoint.mounted_at(str(self.at)) is not None

    def is_gone(self) -> bool:
        """Whether it is unmounted and its process has nothing left to do but to end."""
        return not self.is_mounted() and runtime.find(str(self.at)) is None

    def unmount(self) -> None:
        control.ask(runtime.socket_path(str(self.at)), control.Request("unmount", timeout=HANG), timeout=HANG)
        wait_until(lambda: runtime.find(str(self.at)) is None)

    def log_text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


@pytest.fixture(autouse=True)
def runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    monkeypatch.setenv("CRYPTFS_RUNTIME_DIR", str(directory))
    return directory


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, as pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="cryptfs-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture
def passthrough(open_folder: Path, runtime_directory: Path) -> Iterator[Passthrough]:
    below, at = open_folder / "below", open_folder / "at"
    below.mkdir()
    at.mkdir()
    setup = Passthrough(below, at, open_folder / "log")
    yield setup
    record = runtime.find(str(at))
    while setup.is_mounted():
        libc.umount(str(at), libc.MNT_DETACH)
    if record is not None:
        wait_until(lambda: not runtime.is_alive(record))
    assert "a request failed" not in setup.log_text()


@pytest.fixture
def mounted(passthrough: Passthrough) -> Passthrough:
    passthrough.mount()
    return passthrough

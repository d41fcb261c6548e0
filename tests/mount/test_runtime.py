"""Records of live mounts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cryptfs.errors import CryptfsError
from cryptfs.mount import control, runtime


def record(mountpoint: str, pid: int, started: int) -> runtime.Record:
    return runtime.Record(
        mountpoint, "/vault", "00" * 16, pid, started, "2026-01-01T00:00:00Z", False, "", ""
    )


def test_records_are_found_again_and_removed() -> None:
    for name in ("/mnt/b", "/mnt/a"):
        runtime.write(record(name, 1, 2))
    assert [found.mountpoint for found in runtime.records()] == ["/mnt/a", "/mnt/b"]
    assert runtime.find("/mnt/b") == record("/mnt/b", 1, 2)
    runtime.remove("/mnt/b")
    runtime.remove("/mnt/b")
    assert runtime.find("/mnt/b") is None


def test_a_reused_process_number_is_not_the_daemon() -> None:
    started = runtime.process_started(os.getpid())
    assert started is not None
    assert runtime.is_alive(record("/mnt", os.getpid(), started))
    assert not runtime.is_alive(record("/mnt", os.getpid(), started - 1))


def test_an_ended_process_is_not_alive() -> None:
    process = subprocess.Popen(["sleep", "60"])
    started = runtime.process_started(process.pid)
    assert started is not None
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    assert not runtime.is_alive(record("/mnt", process.pid, started))
    process.wait()
    assert not runtime.is_alive(record("/mnt", process.pid, started))


def test_a_torn_record_is_no_record(runtime_directory: Path) -> None:
    runtime.write(record("/mnt", 1, 2))
    (file,) = runtime_directory.glob("*.json")
    file.write_bytes(file.read_bytes()[:20])
    assert runtime.records() == []


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o722])
def test_a_directory_that_others_may_write_is_refused(runtime_directory: Path, mode: int) -> None:
    runtime_directory.chmod(mode)
    with pytest.raises(CryptfsError, match="writable by nobody else"):
        runtime.directory()


def test_a_path_too_long_for_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYPTFS_RUNTIME_DIR", str(tmp_path / ("x" * 100)))
    with pytest.raises(CryptfsError, match="too long"):
        runtime.socket_path("/mnt")


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(CryptfsError) as refused:
        control.ask(tmp_path / "socket", control.Request("status"))
    assert refused.value.exit_code == 17

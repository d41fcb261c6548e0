"""The process that reads: its answers, its limits, and its death."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.practice import worker
from cryptfs.practice.reader import Reader, Stopped
from cryptfs.practice.tags import Kind, Reading, Tags
from tests.waiting import HANG

from .images import image


@pytest.fixture
def reader() -> Iterator[Reader]:
    reader = Reader(threading.Event(), idle=False)
    yield reader
    reader.close()


def pid_of(reader: Reader) -> int:
    assert reader._process is not None
    return reader._process.pid


def test_answers(reader: Reader) -> None:
    kind, tags = reader.read(image(name="Müller^Hans"), True)
    assert (kind, tags.patient_name) == (Kind.INSTANCE, "Müller^Hans")
    assert reader.read(bytes(1 << 20), True).kind == Kind.NOT_DICOM
    first = pid_of(reader)
    assert reader.read(b"", True).kind == Kind.NOT_DICOM
    assert pid_of(reader) == first


def test_a_dead_process_is_replaced(reader: Reader) -> None:
    reader.read(image(), True)
    os.kill(pid_of(reader), signal.SIGKILL)
    assert reader.read(image(), True).kind == Kind.INSTANCE


def test_a_file_that_kills_it_counts_as_damaged(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(process: object, start: bytes, whole: bool) -> Reading:
        raise EOFError

    monkeypatch.setattr(reader, "_exchange", die)
    assert reader.read(image(), True) == (Kind.DAMAGED, Tags())
    monkeypatch.undo()
    assert reader.read(image(), True).kind == Kind.INSTANCE


def test_it_can_be_called_off(reader: Reader) -> None:
    reader.read(image(), True)
    os.kill(pid_of(reader), signal.SIGSTOP)
    threading.Timer(0.1, reader._stop.set).start()
    with pytest.raises(Stopped):
        reader.read(image(), True)


def test_it_ends_with_its_input(reader: Reader) -> None:
    reader.read(image(), True)
    process = reader._process
    assert process is not None and process.stdin is not None
    process.stdin.close()
    assert process.wait(HANG) == 0


def test_a_file_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    def forever(start: bytes, whole: bool) -> Reading:
        while True:
            pass

    monkeypatch.setattr(worker, "SECONDS", 0.05)
    monkeypatch.setattr(worker, "read_tags", forever)
    before = signal.signal(signal.SIGVTALRM, worker._too_long)
    last_resort = signal.signal(signal.SIGPROF, signal.SIG_IGN)  # it would end the tests, not the reader
    try:
        assert worker.judge(b"", True).kind == Kind.DAMAGED
    finally:
        signal.signal(signal.SIGVTALRM, before)
        signal.signal(signal.SIGPROF, last_resort)


def test_its_limits(reader: Reader) -> None:
    reader.read(image(), True)
    limits = Path(f"/proc/{pid_of(reader)}/limits").read_text()
    expected = {"Max core file size": 0, "Max file size": 0, "Max address space": worker.MEMORY}
    for name, value in expected.items():
        (line,) = [line for line in limits.splitlines() if line.startswith(name)]
        assert line[len(name) :].split()[0] == str(value)


def test_it_holds_nothing_of_this_process(reader: Reader, tmp_path: Path) -> None:
    """No descriptor of the mount gets into it, and nothing of the environment."""
    with (tmp_path / "secret").open("wb") as held:
        os.set_inheritable(held.fileno(), True)
        os.environ["CRYPTFS_TEST_SECRET"] = "x"
        try:
            reader.read(image(), True)
        finally:
            del os.environ["CRYPTFS_TEST_SECRET"]
    process = Path(f"/proc/{pid_of(reader)}")
    assert str(tmp_path) not in "".join(os.readlink(fd) for fd in (process / "fd").iterdir())
    assert b"CRYPTFS_TEST_SECRET" not in (process / "environ").read_bytes()


def test_it_lets_others_go_first() -> None:
    reader = Reader(threading.Event(), idle=True)
    try:
        reader.read(image(), True)
        assert os.getpriority(os.PRIO_PROCESS, pid_of(reader)) == 19
    finally:
        reader.close()

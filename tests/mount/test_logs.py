"""Where the log goes."""

from __future__ import annotations

import logging
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.errors import UsageError
from cryptfs.mount import logs
from tests.waiting import HANG


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = raising


def test_a_file_for_its_owner_only_that_may_be_rotated(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.configure(str(file), foreground=False, verbose=False)
    logging.getLogger("cryptfs").info("before")
    file.rename(tmp_path / "log.1")
    logging.getLogger("cryptfs").info("after")
    logging.getLogger("cryptfs").debug("only with --verbose")
    assert "before" in (tmp_path / "log.1").read_text()
    assert "after" in file.read_text() and "before" not in file.read_text()
    assert "verbose" not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_warnings_of_the_beginning_are_kept_too(tmp_path: Path) -> None:
    beginning = logs.Beginning()
    logging.getLogger().addHandler(beginning)
    logs.configure(str(tmp_path / "log"), foreground=False, verbose=True)
    log = logging.getLogger("cryptfs")
    log.info("nothing special")
    for number in range(50):
        log.warning("the %s is full", f"disk {number}" + "." * 5000)
    assert len(beginning.warnings) == 20 and beginning.warnings[0].startswith("the disk 0...")
    assert sum(map(len, beginning.warnings)) <= 20_000
    assert (tmp_path / "log").read_text().count("WARNING: the disk") == 50


def test_a_file_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be opened"):
        logs.configure(str(tmp_path / "no/such/folder"), foreground=False, verbose=False)


def test_the_journals_protocol(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "socket"))
        journal.settimeout(HANG)
        handler = logs.JournalHandler(str(tmp_path / "socket"))
        handler.handle(logging.LogRecord("cryptfs", logging.WARNING, "", 0, "one line", None, None))
        handler.handle(logging.LogRecord("cryptfs", logging.ERROR, "", 0, "two\nlines", None, None))
        assert journal.recv(1000) == b"MESSAGE=one line\nPRIORITY=4\nSYSLOG_IDENTIFIER=cryptfs\n"
        two = b"MESSAGE\n\x09\0\0\0\0\0\0\0two\nlines\nPRIORITY=3\nSYSLOG_IDENTIFIER=cryptfs\n"
        assert journal.recv(1000) == two

"""An environment read beside the process that writes it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryptfs.index.environment import Environment
from cryptfs.index.place import Unavailable
from cryptfs.index.reading import Reading
from tests.fs.support import VAULT_ID, FakeKeyring
from tests.tools.project import PROJECT

Say = Callable[[str], None]


@pytest.fixture
def say(tmp_path: Path) -> Iterator[Say]:
    """Have the writer do something; returns when it is done."""
    writer = subprocess.Popen(
        [sys.executable, "-m", "tests.index.writer", str(tmp_path)],
        cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert writer.stdin is not None and writer.stdout is not None
    stdin, stdout = writer.stdin, writer.stdout

    def tell(step: str) -> None:
        stdin.write(step + "\n")
        stdin.flush()
        assert stdout.readline() == "done\n"

    yield tell
    writer.kill()
    writer.communicate()


def reading(place: Path, *, in_use: bool) -> contextlib.closing[Reading]:
    opened = Reading.open(place, "test", VAULT_ID, FakeKeyring(), in_use=in_use)
    assert opened is not None
    return contextlib.closing(opened)


def test_each_read_shows_one_moment(tmp_path: Path, say: Say) -> None:
    say("open")
    say("write a 10")
    with reading(tmp_path, in_use=True) as one:
        assert one.get(b"a") == b"a" * 10
        say("write a 20")
        say("write b 1")
        assert one.get(b"a") == b"a" * 10
        assert one.get(b"b") is None
        one.renew()
        assert (one.get(b"a"), one.get(b"b")) == (b"a" * 20, b"b")
        assert one.scan(b"a") == [(b"a", b"a" * 20)]


def test_it_grows_and_is_opened_again_meanwhile(tmp_path: Path, say: Say) -> None:
    say("open")
    say("write a 1")
    with reading(tmp_path, in_use=True) as one:
        assert one.get(b"a") == b"a"
        table = os.open(tmp_path / "test/lock.mdb", os.O_RDONLY)  # so that its number is given to no other
        say("write big 2000000")
        one.renew()
        assert one.get(b"big") == b"big" * 2_000_000
        say("close")
        say("open")
        assert os.fstat(table).st_nlink == 1, "it belongs to the reader as well"
        for number in range(50):
            say(f"write a {number}")
        assert one.get(b"big") == b"big" * 2_000_000
        one.renew()
        assert one.get(b"a") == b"a" * 49
    say("close")
    say("open")
    assert os.fstat(table).st_nlink == 0, "an old one is not trusted"
    os.close(table)


def test_nothing_there(tmp_path: Path) -> None:
    assert Reading.open(tmp_path, "test", VAULT_ID, FakeKeyring(), in_use=False) is None
    assert list(tmp_path.iterdir()) == []


def test_another_vaults_is_not_read(tmp_path: Path, say: Say) -> None:
    say("open")
    say("close")
    with pytest.raises(Unavailable, match="another vault"):
        Reading.open(tmp_path, "test", b"w" * 16, FakeKeyring(), in_use=False)


def test_what_nobody_closed_is_checked_before_it_is_trusted(tmp_path: Path, say: Say) -> None:
    say("open")
    say("write a 100000")
    say("close")
    data = tmp_path / "test/data.mdb"
    with data.open("r+b") as file:
        file.truncate(3 * 4096)
    with pytest.raises(Unavailable, match="damaged"):
        Reading.open(tmp_path, "test", VAULT_ID, FakeKeyring(), in_use=False)


def test_the_writer_is_never_kept_out(tmp_path: Path, say: Say) -> None:
    say("open")
    say("close")
    with reading(tmp_path, in_use=False) as one:
        assert one.closed_in_order
        say("open")
        say("write a 1")
        assert not one.closed_in_order
        with pytest.raises(Unavailable, match="in use"):
            Environment.open(tmp_path, "test", VAULT_ID, FakeKeyring(), durable=True)

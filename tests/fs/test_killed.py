"""kill -9 in the middle of syncs, while the background work is at it as well, without a pause."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import struct
import threading
import time
from pathlib import Path
from typing import NoReturn

import pytest

from cryptfs.fs import FileSystem
from cryptfs.fs.types import SetAttr
from cryptfs.index.place import prepare
from tests.fs.support import ME, VAULT_ID, close_fs, get, make_vault, open_fs, put
from tests.waiting import HANG

pytestmark = pytest.mark.thorough

_NEWS = struct.Struct("<I?")
NAME = b"a.log"
OPERATIONS = ["begin anew", "append", "overwrite", "shorten", "replace"]


class Change:
    """The n-th change of a file, by what it is called, where it is and what is written there."""

    def __init__(self, kinds: list[str], number: int, size: int) -> None:
        rng = random.Random(f"{kinds} {number}")
        self.kind = rng.choice(kinds) if size < 600_000 else "begin anew"
        self.data = rng.randbytes(rng.choice([1, 100, 5000, 70_000, 200_000]))
        self.at = {"append": size, "overwrite": rng.randint(0, size), "shorten": rng.randint(0, size)}.get(
            self.kind, 0
        )

    def apply(self, content: bytes) -> bytes:
        """The content after it."""
        if self.kind == "shorten":
            return content[: self.at]
        after = content[self.at + len(self.data) :] if self.kind == "overwrite" else b""
        return content[: self.at] + self.data + after

    def do(self, fs: FileSystem) -> None:
        """Durably."""
        name = b"spare" if self.kind == "replace" else NAME
        if self.kind == "replace":
            with contextlib.suppress(FileNotFoundError):
                fs.unlink(1, name)
            handle, attr = fs.create(1, name, 0o600, ME, os.O_RDWR)
        else:
            attr = fs.lookup(1, name)
            handle = fs.open(attr.ino, os.O_RDWR | (os.O_TRUNC if self.kind == "begin anew" else 0))
        if self.kind == "shorten":
            fs.setattr(attr.ino, SetAttr(size=self.at), handle)
        else:
            for at in range(0, len(self.data), 9000):
                fs.write(handle, self.at + at, self.data[at : at + 9000])
        if self.kind == "replace":
            fs.rename(1, name, 1, NAME)
        fs.fsync(handle)
        fs.release(handle)
        fs.forget(attr.ino, 1)


def open_remembering(vault: Path) -> FileSystem:
    """With the index and the witness of a host."""
    return open_fs(vault, place=prepare(VAULT_ID, vault.parent / "state"))


def work(vault: Path, told: int, kinds: list[str], first: int, size: int) -> NoReturn:
    """One change after the other; tell before each, and when it is durable. Never returns."""
    try:
        signal.alarm(int(HANG))  # else whoever waits for its news would wait for ever
        fs = open_remembering(vault)
        committer = fs._committer

        def background() -> None:
            for step in itertools.cycle([committer.checkpoint_all, committer.commit, committer.sync_all]):
                with contextlib.suppress(OSError):
                    step()

        threading.Thread(target=background, daemon=True).start()
        content = bytes(size)
        for number in itertools.count(first):
            os.write(told, _NEWS.pack(number, False))
            change = Change(kinds, number, len(content))
            change.do(fs)
            content = change.apply(content)
            os.write(told, _NEWS.pack(number, True))
            time.sleep(random.random() / 50)  # else each kill would hit what is not synced
    finally:
        os._exit(1)


def killed(vault: Path, kinds: list[str], number: int, size: int) -> tuple[int, bool]:
    """Let it work for a moment and kill it: the number of its last change, and if that was durable."""
    reading, told = os.pipe()
    process = os.fork()
    if process == 0:
        work(vault, told, kinds, number, size)
    os.close(told)
    with open(reading, "rb") as news:
        try:
            for _ in range(random.randint(3, 40)):
                last = _NEWS.unpack(news.read(_NEWS.size))
        finally:
            os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
        assert os.WIFSIGNALED(status), "the process ended by itself"
        return [last, *_NEWS.iter_unpack(news.read())][-1]


@pytest.mark.parametrize("kinds", [[kind] for kind in OPERATIONS] + [OPERATIONS], ids=[*OPERATIONS, "all"])
def test_what_was_synced_is_there(tmp_path: Path, kinds: list[str]) -> None:
    vault = make_vault(tmp_path / "vault")
    content, number = random.Random(0).randbytes(300_000), 1
    fs = open_remembering(vault)
    put(fs, 1, NAME, content)
    close_fs(fs)
    for _ in range(8):
        begun = number
        last, durable = killed(vault, kinds, begun, len(content))
        for number in range(begun, last + durable):
            content = Change(kinds, number, len(content)).apply(content)
        fs = open_remembering(vault)
        found = get(fs, 1, NAME)
        events = fs.stats()["witness"]
        close_fs(fs)
        assert (events["refused"], events["missing"], events["vault"]) == (0, 0, 0)
        if durable:
            assert found == content, (last, len(found), len(content))
        content, number = found, last + 1

"""The lower file system fails, at any of its calls (docs/durability.md).

The caller gets that very error, or none; what was there before stays and can be read; when the fault
is over everything works again, without a new mount, and the next mount finds nothing half-made.
`CRYPTFS_FAULTS=long` tries every call of every workload.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cryptfs.fs import FileSystem
from tests.fs.support import ME, make_vault, open_fs
from tests.powercut.calls import Call, Interposer
from tests.powercut.expect import Client, differences, look
from tests.powercut.test_power_cuts import remove_all, scratch
from tests.powercut.workloads import WITH_ATTRIBUTES, WORKLOADS

__all__ = ["scratch"]

TURNS = 100_000 if os.environ.get("CRYPTFS_FAULTS") == "long" else 10
"""So many calls of each workload fail, with each kind of fault."""
VARYING = {"reencryption", "reencryption_proved_late"}
"""Workloads that need one call more or less, as the ciphertext names happen to be in order."""
SYNCS = ("fsync", "fdatasync", "syncfs")
# What a full disk refuses: what takes room. It still removes and shortens.
ROOM = ("create", "write", "mkdir", "link", "rename", *SYNCS)
CHANGES = (*ROOM, "unlink", "rmdir", "truncate", "attributes")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Faults(Interposer):
    """Refuses the calls of some kinds, from one of them on, for as long as it is told."""

    def __init__(self, root: Path, kinds: tuple[str, ...], code: int) -> None:
        super().__init__(root)
        self._kinds = kinds
        self._code = code
        self.count = 0
        self.fails_at = -1
        self.lasting = False
        self.failed = 0
        self.failed_in: set[str] = set()
        for path in root.rglob("*"):
            self.register(path.stat())

    def _maybe(self, kind: str) -> None:
        if kind not in self._kinds:
            return
        self.count += 1
        if 0 <= self.fails_at < self.count and (self.lasting or not self.failed):
            self.failed += 1
            self.failed_in.add(kind)
            raise OSError(self._code, os.strerror(self._code))

    def perform(self, call: Call, real: Callable[[], Any]) -> Any:  # noqa: ANN401
        self._maybe(call.kind)
        return real()

    def reading(self, kind: str) -> None:
        self._maybe(kind)

    def over(self) -> None:
        """The fault is over."""
        self.fails_at = -1


class Careful:
    """A client of which everything that has returned is to be found, whatever fails next."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        self._client.promise_all()
        return getattr(self._client, name)


def mounted(
    scratch: Path, kinds: tuple[str, ...], code: int, xattrs: bool
) -> tuple[Faults, FileSystem, Client]:
    shutil.rmtree(scratch / "vault", ignore_errors=True)
    faults = Faults(make_vault(scratch / "vault"), kinds, code)
    faults.__enter__()
    fs = open_fs(scratch / "vault", xattrs=xattrs)
    fs._committer.stop()
    return faults, fs, Client(fs, lambda: faults.count)


def calls(scratch: Path, name: str, kinds: tuple[str, ...]) -> tuple[int, int]:
    """At which counts a workload begins and ends."""
    faults, fs, client = mounted(scratch, kinds, 0, name in WITH_ATTRIBUTES)
    try:
        begin = faults.count
        WORKLOADS[name](client)
        return begin, faults.count
    finally:
        fs.close()
        faults.__exit__()


FAULTS = {
    "full": (errno.ENOSPC, ROOM, True),
    "full for a moment": (errno.ENOSPC, ROOM, False),
    "over quota": (errno.EDQUOT, ROOM, True),
    "a bad write": (errno.EIO, CHANGES, False),
    "gone read-only": (errno.EROFS, CHANGES, True),
    "bad reads": (errno.EIO, ("open", "read"), True),
    "a bad read": (errno.EIO, ("open", "read"), False),
}


@pytest.mark.thorough
@pytest.mark.parametrize("fault", FAULTS)
def test_fault(scratch: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The names of the ciphertext, and with them the order of what is done, come from keys that are random.
    monkeypatch.setattr(os, "urandom", random.Random(fault).randbytes)
    code, kinds, lasting = FAULTS[fault]
    for name in WORKLOADS:
        begin, end = calls(scratch, name, kinds)
        rng = random.Random(f"{fault} {name}")
        places = range(begin, end)
        for at in rng.sample(places, min(len(places), TURNS)):
            try:
                one_fault(scratch, name, code, kinds, lasting, at)
            except (AssertionError, OSError) as error:
                raise AssertionError(f"{name}, {fault} at call {at}: {error}") from error


def one_fault(scratch: Path, name: str, code: int, kinds: tuple[str, ...], lasting: bool, at: int) -> None:
    xattrs = name in WITH_ATTRIBUTES
    faults, fs, client = mounted(scratch, kinds, code, xattrs)
    synced_badly = False
    try:
        faults.lasting, faults.fails_at = lasting, at
        careful: Any = Careful(client)
        try:
            WORKLOADS[name](careful)
        except OSError as error:
            assert error.errno == code, f"{error} instead of {os.strerror(code)}"
        assert faults.failed or name in VARYING, "nothing failed"
        if lasting and "read" not in kinds:
            right(fs, client, xattrs, faults)
        faults.over()
        right(fs, client, xattrs, faults)
        if not faults.failed_in & set(SYNCS):  # else syncs fail for good
            go_on(fs, xattrs)
        try:
            fs.sync()
        except OSError:
            synced_badly = True  # after a failed sync nobody is told that all is well
    finally:
        faults.over()
        try:
            fs.close()
        except OSError:
            synced_badly = True
        faults.__exit__()
    assert not synced_badly or set(SYNCS) & set(kinds)
    fs = open_fs(scratch / "vault", xattrs=xattrs)
    try:
        if synced_badly:
            look(fs, xattrs=xattrs)  # what was not synced may be lost, and the caller knows
        else:
            right(fs, client, xattrs, faults)
        remove_all(fs)
    finally:
        fs.close()


def go_on(fs: FileSystem, xattrs: bool) -> None:
    """Work as if nothing had happened: none of it fails, and nothing else is changed by it."""
    before = look(fs, xattrs=xattrs)
    client = Client(fs, lambda: 0)
    client.mkdir("afterwards")
    client.put("afterwards/image", b"i" * 150_000, sync=True)
    image = client.open("afterwards/image")
    client.write(image, 70_000, b"overwritten")
    client.fsync(image)
    client.write(image, 150_000, b"longer" * 20_000)
    client.close(image)
    client.settle()
    client.put("afterwards/other", b"o" * 10, sync=True)
    client.rename("afterwards/other", "afterwards/renamed")
    client.symlink("afterwards/link", b"image")
    client.settle()
    after = look(fs, xattrs=xattrs)
    made = after.entries.pop(b"afterwards").entries
    assert after == before, "something else was changed"
    assert made.keys() == {b"image", b"renamed", b"link"}
    assert made[b"renamed"].content == b"o" * 10 and made[b"link"].content == b"image"
    assert made[b"image"].content == b"i" * 70_000 + b"overwritten" + b"i" * 79_989 + b"longer" * 20_000
    for name in ("image", "renamed", "link"):
        client.unlink(f"afterwards/{name}")
    client.rmdir("afterwards")


def right(fs: FileSystem, client: Client, xattrs: bool, faults: Faults) -> None:
    """Everything is there and as it was, or as the failed call would have made it."""
    found = look(fs, xattrs=xattrs)
    wrong = differences(client.root, found, faults.count + 1)
    assert not wrong, "; ".join(wrong)


def test_a_failed_sync_is_never_taken_for_a_success_later(scratch: Path) -> None:
    """The kernel reports it once and may have dropped the pages: the next sync would find nothing to do."""
    faults, fs, client = mounted(scratch, SYNCS, errno.EIO, False)
    try:
        new, old = client.create("new"), client.create("old")
        client.write(old, 0, b"a" * 10_000)
        client.fsync(old)
        for file, what in ((new, b"n" * 10_000), (old, b"b" * 10)):
            client.write(file, 0, what)
            faults.fails_at, faults.failed = faults.count, 0
            for _ in range(3):
                with pytest.raises(OSError, match="Input/output"):
                    client.fsync(file)
            assert faults.failed == 1
        with pytest.raises(OSError, match="Input/output"):
            fs.sync()
        # Others are not concerned, and what was written can be read.
        other = client.create("other")
        client.write(other, 0, b"o" * 10_000)
        client.fsync(other)
        assert bytes(fs.read(new.handle, 0, 5)) == b"nnnnn" and bytes(fs.read(old.handle, 0, 3)) == b"bbb"
    finally:
        with pytest.raises(OSError, match="Input/output"):
            fs.close()
        faults.__exit__()
    fs = open_fs(scratch / "vault")
    try:
        assert fs.vault.state.found_open, "an unmount that could not sync is no clean end"
        found = look(fs)
        assert found.entries[b"other"].content == b"o" * 10_000
        assert found.entries[b"old"].content in (b"a" * 10_000, b"b" * 10 + b"a" * 9990)
    finally:
        fs.close()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_directory_that_can_neither_be_removed_nor_put_back(scratch: Path, replaced: bool) -> None:
    faults, fs, _ = mounted(scratch, ("rmdir", "write", "create", "unlink"), errno.EROFS, False)
    for name in (b"going", b"other"):
        fs.mkdir(1, name, 0o755, ME)
    fs.sync()
    faults.lasting, faults.fails_at = True, faults.count + 1  # its header goes, and nothing after that
    with pytest.raises(OSError, match="Read-only"):
        if replaced:
            fs.rename(1, b"other", 1, b"going", 0)
        else:
            fs.rmdir(1, b"going")
    left = {b"going"} if replaced else {b"other"}
    assert set(look(fs).entries) == left
    faults.over()
    assert set(look(fs).entries) == left
    fs.sync()
    fs.close()
    faults.__exit__()
    assert len([path for path in (scratch / "vault/tree").iterdir() if path.is_dir()]) == 1
    fs = open_fs(scratch / "vault")
    assert set(look(fs).entries) == left
    fs.close()


def test_a_link_that_can_neither_be_finished_nor_removed(scratch: Path) -> None:
    """It was not made, so it is not shown; when the disk is well again its name is free."""
    faults, fs, _ = mounted(scratch, ("write", "unlink"), errno.EROFS, False)
    faults.lasting, faults.fails_at = True, faults.count + 1  # its header is written, and nothing after that
    with pytest.raises(OSError, match="Read-only"):
        fs.symlink(1, b"link", b"target", ME)
    assert look(fs).entries == {}
    with pytest.raises(OSError, match="Read-only"):
        fs.symlink(1, b"link", b"target", ME)
    faults.over()
    assert look(fs).entries == {}
    assert fs.readlink(fs.symlink(1, b"link", b"target", ME).ino) == b"target"
    fs.sync()
    assert set(look(fs).entries) == {b"link"}
    fs.close()
    faults.__exit__()
    fs = open_fs(scratch / "vault")
    assert fs.readlink(fs.lookup(1, b"link").ino) == b"target"
    fs.close()


def test_a_folder_in_the_place_of_a_link_that_could_not_be_made(scratch: Path) -> None:
    faults, fs, _ = mounted(scratch, ("write", "unlink"), errno.EROFS, False)
    faults.lasting, faults.fails_at = True, faults.count + 1
    with pytest.raises(OSError, match="Read-only"):
        fs.symlink(1, b"name", b"target", ME)
    faults.over()
    fs.mkdir(1, b"name", 0o755, ME)
    found = look(fs).entries
    assert found[b"name"].kind == "directory"
    fs.close()
    faults.__exit__()


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_what_could_not_be_made_does_not_keep_the_folder_it_lies_in(scratch: Path, kind: str) -> None:
    faults, fs, _ = mounted(scratch, ("write", "create", "unlink", "rmdir"), errno.EROFS, False)
    above = fs.mkdir(1, b"above", 0o755, ME).ino
    fs.sync()
    open_before = len(os.listdir("/proc/self/fd"))
    # A link's header is written, a folder has none; nothing after that.
    faults.lasting, faults.fails_at = True, faults.count + (2 if kind == "link" else 0)
    with pytest.raises(OSError, match="Read-only"):
        if kind == "link":
            fs.symlink(above, b"name", b"target", ME)
        else:
            fs.mkdir(above, b"name", 0o755, ME)
    assert look(fs).entries[b"above"].entries == {}
    assert len(list((scratch / "vault/tree").glob("*/*"))) == 2, "its header, and what could not be made"
    assert len(os.listdir("/proc/self/fd")) == open_before + 1, "nobody else may be given its number"
    with pytest.raises(OSError, match="Read-only"):
        fs.rmdir(1, b"above")
    faults.over()
    assert look(fs).entries[b"above"].entries == {}
    fs.rmdir(1, b"above")
    fs.sync()
    assert len(os.listdir("/proc/self/fd")) < open_before + 1
    assert look(fs).entries == {}
    fs.close()
    faults.__exit__()

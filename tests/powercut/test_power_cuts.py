"""Power cuts at every instant: what was promised is there, and everything opens (docs/durability.md).

`CRYPTFS_POWERCUT=long` makes tens of thousands of states instead of hundreds, and
`CRYPTFS_POWERCUT=20000` so many; a failure names the state by its seed.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.fs import FileSystem
from cryptfs.fs.reencrypt import Reencrypt
from cryptfs.fs.throttle import Throttle
from cryptfs.vault.reencryption import Phase
from tests.fs.support import make_vault, open_fs
from tests.powercut.disk import Disk, Recorder, Survivors
from tests.powercut.expect import Client, Found, Unreadable, differences, look, lost
from tests.powercut.workloads import REENCRYPTIONS, WITH_ATTRIBUTES, WORKLOADS

_MODE = os.environ.get("CRYPTFS_POWERCUT", "")
STATES = {"": 6, "long": 1000}.get(_MODE) or int(_MODE) // (2 * len(WORKLOADS)) + 1
"""States for each workload on each kind of file system."""


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder in memory where there is one: nothing here is to reach a disk."""
    shm = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="cryptfs-", dir=shm if os.access(shm, os.W_OK) else None))
    yield path
    shutil.rmtree(path)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Recovery reports what it did; thousands of times that is too much."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def record(scratch: Path, name: str, ordered: bool) -> tuple[Recorder, Client]:
    """Do a workload from the mount on, and stop where the power fails at the latest."""
    vault = make_vault(scratch / "vault")
    with Recorder(vault) as recorder:
        fs = open_fs(vault, xattrs=name in WITH_ATTRIBUTES)
        fs._committer.stop()  # what it does in the background is done where the workload says so
        fs._committer.places.ordered = ordered
        client = Client(fs, lambda: recorder.position)
        WORKLOADS[name](client)
        fs.close()
        client.promise_all()
    return recorder, client


def check(place: Path, client: Client, cut: int, xattrs: bool) -> tuple[Found, FileSystem]:
    """Mount what the power cut left: the tree, and the filesystem over it."""
    fs = open_fs(place, xattrs=xattrs)
    try:
        found = look(fs, xattrs=xattrs)
        wrong = differences(client.root, found, cut) + lost(client, found, cut)
        assert not wrong, "; ".join(wrong)
    except BaseException:
        fs.close()
        raise
    return found, fs


def remove_all(fs: FileSystem, ino: int = 1) -> None:
    """What a power cut left can be taken away like anything else."""
    handle = fs.opendir(ino)
    entries = [(name, attr) for name, attr, _ in fs.readdir(handle, 0)]
    fs.releasedir(handle)
    for name, _ in entries:
        attr = fs.lookup(ino, name)
        try:
            fs.unlink(ino, name)
        except OSError as error:
            if error.errno != errno.EISDIR:
                raise
            remove_all(fs, attr.ino)
            fs.rmdir(ino, name)
        fs.forget(attr.ino, 1)


def one_state(
    scratch: Path, disk: Disk, top: int, client: Client, cut: int, rng: random.Random, name: str
) -> None:
    """Mount one state; sometimes cut the recovery of it, too; sometimes remove everything afterwards."""
    xattrs = name in WITH_ATTRIBUTES
    place = scratch / "state"
    try:
        disk.write(place, top)
        if rng.random() < 0.3:
            with Recorder(place) as again:
                first, fs = check(place, client, cut, xattrs)
                fs.close()
            shutil.rmtree(place)
            second = Survivors(again, rng.randint(0, again.position), ordered=rng.random() < 0.5)
            second.state(rng).write(place, second.top)
        first, fs = check(place, client, cut, xattrs)
        fs.close()
        twice, fs = check(place, client, cut, xattrs)
        assert not fs.vault.state.found_open
        assert twice == first, "the second mount shows something else"
        if name in REENCRYPTIONS:
            assert Reencrypt(fs, Throttle()).renew()
            assert look(fs, xattrs=True) == first, "a re-encryption that goes on shows something else"
            assert fs.vault.reencryption.phase is Phase.DONE
            assert not list(place.rglob("@old"))
        if rng.random() < 0.3:
            remove_all(fs)
        fs.close()
    finally:
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.thorough
@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
@pytest.mark.parametrize("name", WORKLOADS)
def test_power_cut(scratch: Path, name: str, ordered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # The names of the ciphertext, and with them the order of what is done, come from keys that are random.
    monkeypatch.setattr(os, "urandom", random.Random(f"{name} {ordered}").randbytes)
    recorder, client = record(scratch, name, ordered)
    # The cuts are spread over the whole, and differ in every run length but not from run to run.
    for number in range(STATES):
        seed = f"{name} {ordered} {number} {STATES}"
        rng = random.Random(seed)
        cut = round((number + rng.random()) * recorder.position / STATES)
        disk = Survivors(recorder, cut, ordered=ordered)
        try:
            one_state(scratch, disk.state(rng), disk.top, client, cut, rng, name)
        except (AssertionError, OSError, Unreadable) as error:
            calls = [call._replace(data=b"") for call in recorder.calls[max(0, cut - 6) : cut]]
            raise AssertionError(
                f"{seed!r}, cut at {cut} of {recorder.position}: {error}\n{calls}"
            ) from error

"""Rewrapping under a new epoch: nothing is lost at any instant, and nothing needs the old key at the end."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptfs.fs import directory, rewrap
from cryptfs.fs.rewrap import Rewrap
from cryptfs.fs.throttle import Stopped, Throttle
from cryptfs.fs.types import SetAttr
from cryptfs.vault import diskio
from cryptfs.vault.epochs import EpochReader
from cryptfs.vault.header import SLOT_OFFSETS
from tests.fs.rotation import BOTH, NEW, OLD, copy, everything, fill, make_vault, open_fs, shown
from tests.fs.support import ME, VAULT_ID, get, put


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vault = make_vault(tmp_path_factory.mktemp("rewrap") / "vault")
    fs = open_fs(vault, OLD)
    fill(fs)
    fs.close()
    return vault


@pytest.fixture
def vault(pristine: Path, tmp_path: Path) -> Path:
    return copy(pristine, tmp_path / "vault")


def rotate(vault: Path) -> None:
    fs = open_fs(vault, BOTH)
    fs._committer.stop()  # a copy that is made in between is of one instant
    summary = Rewrap(fs, Throttle()).run()
    assert summary.only_current and not summary.damaged
    fs.close()


def old_headers(vault: Path) -> list[Path]:
    """Files in which a header of the first epoch stands, found by its bytes alone."""
    begin = {b"CFH1" + bytes([kind, log2, flags, 0]) + b"\x01\0\0\0"
             for kind in range(1, 9) for log2 in range(21) for flags in range(4)}  # fmt: skip
    found = []
    for path in vault.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            at = data.find(b"CFH1")
            while at >= 0:
                if data[at : at + 12] in begin:
                    found.append(path)
                    break
                at = data.find(b"CFH1", at + 1)
    return found


def test_only_the_new_epoch_opens_what_was_rewrapped(vault: Path) -> None:
    before = shown(vault, OLD)
    assert old_headers(vault)
    rotate(vault)
    assert shown(vault, NEW) == before
    assert not old_headers(vault)
    fs = open_fs(vault, NEW)
    put(fs, 1, b"later", b"content")
    fs.close()
    again = NEW.with_new_epoch()
    fs = open_fs(vault, again)
    assert Rewrap(fs, Throttle()).run().only_current
    fs.close()
    assert shown(vault, again.with_current_only()).keys() == before.keys() | {b"later"}


def test_content_is_not_touched_and_attributes_of_the_object_stay(vault: Path) -> None:
    content = {path: path.read_bytes()[8192:] for path in (vault / "tree").rglob("*") if path.is_file()}
    rotate(vault)
    assert {path: path.read_bytes()[8192:] for path in content} == content


def test_a_copy_of_a_directory_header_opens_under_the_new_epoch(vault: Path) -> None:
    before = shown(vault, OLD)
    rotate(vault)
    for path in (vault / "tree").rglob("@dir"):
        if len(list(path.parent.iterdir())) > 1:  # an empty one has nothing by which a copy is found
            path.unlink()
    assert shown(vault, NEW) == before


class Disk:
    """A disk that loses what was not synced: each such write is lost, torn or there.

    `cuts` has a copy of the vault for each sync and for many of the writes before it.
    """

    def __init__(self, vault: Path, cuts: Path, rng: random.Random) -> None:
        self.vault, self.folder, self.rng = vault, cuts, rng
        self.unsynced: list[tuple[Path, int, bytes, bytes]] = []
        self.cuts: list[Path] = []

    def pwrite_all(self, fd: int, data: bytes, offset: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        before = path.read_bytes()[offset : offset + len(data)].ljust(len(data), b"\0")
        self.unsynced.append((path.relative_to(self.vault), offset, before, bytes(data)))
        diskio.pwrite_all(fd, data, offset)
        if self.rng.random() < 0.4:
            self.cut()

    def syncfs(self, fd: int) -> None:
        self.cut()
        self.unsynced.clear()
        diskio.syncfs(fd)
        self.cut()

    def cut(self) -> None:
        to = copy(self.vault, self.folder / f"cut {len(self.cuts)}")
        for path, offset, before, after in self.unsynced:
            torn = self.rng.randrange(len(after) + 1)
            kept = self.rng.choice([before, after, after[:torn] + before[torn:]])
            with (to / path).open("r+b") as file:
                file.seek(offset)
                file.write(kept)
        self.cuts.append(to)


@pytest.mark.parametrize("seed", [0])
def test_a_cut_at_any_instant_loses_nothing(
    vault: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    before = shown(vault, OLD)
    disk = Disk(vault, tmp_path / "cuts", random.Random(seed))
    monkeypatch.setattr(rewrap, "BATCH", 4)
    monkeypatch.setattr(rewrap, "pwrite_all", disk.pwrite_all)
    monkeypatch.setattr(directory, "pwrite_all", disk.pwrite_all)
    monkeypatch.setattr(rewrap, "syncfs", disk.syncfs)
    rotate(vault)
    monkeypatch.undo()
    assert len(disk.cuts) > 10
    for number, cut in enumerate(disk.cuts):
        assert shown(cut, BOTH) == before, f"cut {number}"
        rotate(cut)
        assert shown(cut, NEW) == before, f"cut {number}, rotation ended"
        shutil.rmtree(cut)


def test_killed_between_two_headers_the_new_one_counts_and_the_old_one_goes(vault: Path) -> None:
    """The new header stands beside the old one, and the run that wrote it is gone."""
    fs = open_fs(vault, BOTH)
    job = Rewrap(fs, Throttle())
    job._finish = lambda: job._batch.clear()  # type: ignore[method-assign]
    job._walk._between = lambda: None
    job._walk.run()
    fs.close()
    assert old_headers(vault)
    rotate(vault)
    assert not old_headers(vault)


class Interrupting(Throttle):
    """Stops after so many pauses."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    @property
    def slice_is_over(self) -> bool:
        return True

    def pause(self) -> None:
        self.after -= 1
        if self.after < 0:
            raise Stopped


def test_stopped_anywhere_it_goes_on(vault: Path) -> None:
    before = shown(vault, OLD)
    stops = 0
    fs = open_fs(vault, BOTH)
    while True:
        try:
            summary = Rewrap(fs, Interrupting(after=stops * 3)).run()
            break
        except Stopped:
            stops += 1
            assert everything(fs) == before
    assert summary.only_current and stops > 3
    fs.use_keyring(NEW)
    assert everything(fs) == before
    fs.close()
    assert shown(vault, NEW) == before


def test_files_in_use_are_rewrapped_with_what_the_journal_holds(vault: Path) -> None:
    fs = open_fs(vault, OLD)
    fs._committer.stop()  # what a kill leaves is copied at one instant
    ino = fs.lookup(1, b"index").ino
    handle = fs.open(ino, os.O_RDWR)
    fs.write(handle, 0, b"A" * 5000)  # durable before: it goes through the journal
    new, _ = fs.create(1, b"new", 0o600, ME, os.O_RDWR)
    fs.write(new, 0, b"first")
    fs.use_keyring(BOTH)
    assert Rewrap(fs, Throttle()).run().only_current
    fs.write(handle, 2000, b"B" * 5000)
    fs.write(new, 5, b", second")
    fs.fsync(handle)
    assert EpochReader(vault, VAULT_ID, BOTH).summary().only_current
    left = copy(vault, vault.parent / "killed")
    fs.use_keyring(NEW)
    fs.write(handle, 0, b"C")
    fs.release(handle)
    fs.release(new)
    fs.close()
    for path, first in ((left, b"A"), (vault, b"C")):
        fs = open_fs(path, NEW)
        content = get(fs, 1, b"index")
        assert content[:1] == first and content[1:2000] == b"A" * 1999 and content[2000:7000] == b"B" * 5000
        assert get(fs, 1, b"new") == b"first, second"
        fs.close()


def damage(path: Path) -> None:
    with path.open("r+b") as file:
        for offset in SLOT_OFFSETS:
            file.seek(offset + 150)
            file.write(b"\xff" * 8)


def test_damage_is_reported_and_stops_nothing(vault: Path) -> None:
    before = shown(vault, OLD)
    victim = max((vault / "tree").rglob("*"), key=lambda path: path.stat().st_size)
    damage(victim)
    fs = open_fs(vault, BOTH)
    summary = Rewrap(fs, Throttle()).run()
    assert [os.fsdecode(finding.path) for finding in summary.damaged] == [str(victim.relative_to(vault))]
    assert summary.only_current
    fs.close()
    fs = open_fs(vault, NEW)
    assert get(fs, 1, b"index") == before[b"index"].content
    fs.close()


def put_back(vault: Path, saved: Path, pattern: str) -> None:
    source = next(path for path in saved.rglob(pattern) if path.is_file() and path.stat().st_size > 4096)
    shutil.copy(source, vault / source.relative_to(saved))


@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (lambda vault, saved: put_back(vault, saved, "tree/*"), b"tree/"),
        (lambda vault, saved: shutil.copy(saved / "tree/@dir", vault / "tree/@dir"), b"tree/@dir"),
        (
            lambda vault, saved: shutil.copy(next((saved / "dirs").iterdir()), vault / "dirs/back.log"),
            b"dirs/back.log",
        ),
        (
            lambda vault, saved: shutil.copy(saved / "journal/state", vault / "journal/state"),
            b"journal/state",
        ),
    ],
)
def test_the_second_reading_finds_what_still_needs_the_old_epoch(
    pristine: Path, vault: Path, spoil: Callable[[Path, Path], object], where: bytes
) -> None:
    rotate(vault)
    reader = EpochReader(vault, VAULT_ID, BOTH)
    assert reader.summary().only_current
    spoil(vault, pristine)
    (need,) = reader.summary().needs
    assert need.path.startswith(where) and need.older == {1}


def test_a_limit_slows_and_a_stop_ends(vault: Path) -> None:
    throttle = Throttle(limit=1000.0)
    throttle.count(10_000)
    stopper = threading.Timer(0.05, throttle.stop)
    stopper.start()
    with pytest.raises(Stopped):
        throttle.pause()  # would wait ten seconds
    stopper.join()
    assert throttle.stopping


def test_read_only_mounts_learn_the_new_epoch(vault: Path) -> None:
    before = shown(vault, OLD)
    reading = open_fs(vault, OLD, read_only=True)
    reading.use_keyring(BOTH)
    rotate(vault)
    reading.use_keyring(NEW)
    assert everything(reading) == before
    reading.close()


def test_a_file_opened_again_before_its_header_was_synced_keeps_the_durable_one(tmp_path: Path) -> None:
    """An update of the header must not go over the one that a sync has just made durable."""
    vault = make_vault(tmp_path / "vault")
    fs = open_fs(vault, OLD)
    ino = put(fs, 1, b"image", b"pixels")
    handle = fs.open(ino, os.O_RDWR)
    fs.fsync(handle)
    (path,) = (entry for entry in (vault / "tree").iterdir() if entry.name != "@dir")
    durable = path.read_bytes()[:192]
    fs.setattr(ino, SetAttr(mode=0o600), handle)
    fs.flush(handle)
    assert path.read_bytes()[:192] == durable
    fs.release(handle)
    fs.close()


def test_it_waits_while_the_vault_is_frozen(vault: Path) -> None:
    fs = open_fs(vault, BOTH)
    fs.gate.close()
    job = rewrap.rewrap_job(fs, Throttle())
    job.start()
    assert not job.wait(0.3)
    assert old_headers(vault) and job.snapshot()["phase"] == "starting"
    fs.gate.open()
    assert job.wait(60) and job.state == "done"
    assert job.result["needs"] == 0
    fs.close()

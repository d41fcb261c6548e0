"""The index of a vault followed through its filesystem, without a mount."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryptfs.errors import CryptfsError
from cryptfs.fs.reencrypt import Reencrypt
from cryptfs.fs.throttle import Throttle
from cryptfs.fs.types import SetAttr
from cryptfs.index.studysearch import Query
from cryptfs.practice.service import PURPOSE, StudyService
from cryptfs.practice.watching import QUEUE_MAX, WatchedFileSystem
from tests.waiting import wait_until

from ..fs.support import ME, FakeKeyring, make_vault, open_fs
from .images import image

FS = WatchedFileSystem


class Opened:
    """A vault with its index; `complete` has everything read."""

    def __init__(self, vault: Path, place: Path, *, read_only: bool = False) -> None:
        self.service = StudyService(open_fs(vault, read_only=read_only), place, FakeKeyring())
        self.fs = self.service.fs
        self.reads = 0

    def complete(self) -> None:
        def progress(read: int, left: int) -> None:
            self.reads = max(self.reads, read)

        self.service.complete(progress)

    def put(self, name: bytes, data: bytes, parent: int = 1) -> int:
        handle, attr = self.fs.create(parent, name, 0o644, ME, os.O_RDWR)
        self.fs.write(handle, 0, data)
        self.fs.release(handle)
        return attr.ino

    def paths(self, **query: str) -> set[bytes]:
        answer = self.service.find(Query(**query))
        assert answer.after == b""
        return {file.path for file in answer.files}

    def close(self) -> None:
        self.fs.close()


@pytest.fixture
def vault(tmp_path: Path) -> Path:
    return make_vault(tmp_path / "vault")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "state"
    place.mkdir(mode=0o700)
    return place


Open = Callable[..., Opened]


@pytest.fixture
def opened(vault: Path, place: Path) -> Iterator[Open]:
    all_: list[Opened] = []

    def make(**options: bool) -> Opened:
        all_.append(Opened(vault, place, **options))
        return all_[-1]

    yield make
    for one in all_:
        if one.service._environment._lock_fd >= 0:
            one.close()


def test_it_follows_everything(opened: Open) -> None:
    one = opened()
    fs = one.fs
    one.complete()
    one.put(b"a.dcm", image(patient_id="A", study="1.1", name="Müller^Hans"))
    folder = fs.mkdir(1, b"folder", 0o755, ME).ino
    b = one.put(b"b", image(patient_id="B", study="1.2"), folder)
    one.put(b"notes.txt", b"no image", folder)
    one.complete()
    assert one.paths(patient="muller") == {b"a.dcm"}
    assert one.paths(patient="B") == {b"folder/b"}
    fs.link(b, 1, b"second")
    assert one.paths(patient="B") == {b"folder/b", b"second"}
    fs.rename(1, b"folder", 1, b"elsewhere", 0)
    assert one.paths(patient="B") == {b"elsewhere/b", b"second"}
    fs.unlink(1, b"second")
    fs.rename(folder, b"b", 1, b"a.dcm", 0)
    assert one.paths() == {b"a.dcm"}
    assert one.paths(patient="B") == {b"a.dcm"}
    fs.unlink(folder, b"notes.txt")
    fs.rmdir(1, b"elsewhere")
    fs.unlink(1, b"a.dcm")
    stats = one.service.stats()
    assert (stats.summary.all_files, stats.summary.patients) == (0, 0)
    assert stats.left.is_complete


def test_another_image_in_the_same_file(opened: Open) -> None:
    one = opened()
    ino = one.put(b"x", image(patient_id="OLD"))
    one.complete()
    handle = one.fs.open(ino, os.O_WRONLY | os.O_TRUNC)
    one.fs.write(handle, 0, image(patient_id="NEW"))
    one.fs.release(handle)
    one.complete()
    assert one.paths(patient="OLD") == set()
    assert one.paths(patient="NEW") == {b"x"}
    one.fs.setattr(ino, SetAttr(size=0))
    one.complete()
    assert one.paths() == set()


def test_what_was_restored_behind_the_mount(vault: Path, place: Path) -> None:
    service = StudyService(open_fs(vault, place=place), place, FakeKeyring())
    fs = service.fs
    try:
        handle, attr = fs.create(1, b"x", 0o644, ME, os.O_RDWR)
        fs.write(handle, 0, image(patient_id="FIRST"))
        fs.release(handle)
        fs.sync()
        lower = next(path for path in (vault / "tree").iterdir() if not path.name.startswith("@"))
        backup = lower.read_bytes()
        handle = fs.open(attr.ino, os.O_RDWR | os.O_TRUNC)
        fs.write(handle, 0, image(patient_id="SECOND"))
        fs.release(handle)
        fs.sync()
        fs.forget(attr.ino, 1)
        service.complete(lambda read, left: None)
        assert [len(service.find(Query(patient=who)).files) for who in ("FIRST", "SECOND")] == [0, 1]

        lower.unlink()
        lower.write_bytes(backup)
        survey = fs.survey()
        survey.run()
        fs.accept(survey)
        service.complete(lambda read, left: None)
        assert [len(service.find(Query(patient=who)).files) for who in ("FIRST", "SECOND")] == [1, 0]
    finally:
        fs.close()


def test_what_is_not_read_yet_is_said(opened: Open) -> None:
    one = opened()
    one.complete()
    one.put(b"x", image())
    answer = one.service.find(Query())
    assert (answer.files, answer.left.files, answer.left.is_complete) == ([], 1, False)
    one.complete()
    assert one.service.find(Query()).left.is_complete


def test_status_says_what_is_left_and_why_there_is_none(opened: Open) -> None:
    one = opened()
    assert one.service.status()["studies"]["state"] == "reading", "nothing was listed yet"
    one.complete()
    one.put(b"x", image())
    one.service.find(Query())
    left = {"state": "reading", "to_read": 1, "to_list": 0, "reason": ""}
    assert one.service.status() == {"studies": left}
    one.complete()
    assert one.service.status()["studies"]["state"] == "complete"
    one.service._indexer.failed = "the disk is full."
    assert one.service.status()["studies"] == left | {
        "state": "none",
        "to_read": 0,
        "reason": "the disk is full",
    }
    one.service._indexer.failed = ""


def test_it_works_in_the_background(opened: Open) -> None:
    one = opened()
    one.service.start(lambda: 0)
    one.put(b"x", image(patient_id="X"))
    wait_until(lambda: one.paths(patient="X") == {b"x"})


def test_it_works_although_requests_never_end(opened: Open) -> None:
    one = opened()
    count = iter(range(1 << 60))
    one.service.start(lambda: next(count))
    one.put(b"x", image(patient_id="X"))
    wait_until(lambda: one.paths(patient="X") == {b"x"})


def test_a_clean_end_leaves_nothing_to_do(opened: Open) -> None:
    one = opened()
    one.complete()
    one.put(b"x", image(patient_id="X"))
    one.complete()
    one.put(b"later", image(patient_id="L"))
    one.close()
    two = opened()
    assert (two.service.find(Query()).left.files, two.service.find(Query()).left.folders) == (1, 0)
    assert two.paths(patient="X") == {b"x"}
    two.complete()
    assert two.reads == 1
    assert two.paths(patient="L") == {b"later"}


def test_after_an_unclean_end_only_what_changed_is_read(opened: Open, vault: Path, place: Path) -> None:
    one = opened()
    one.complete()
    for number in range(5):
        one.put(b"%d" % number, image(patient_id="X"))
    one.complete()
    one.fs.unlink(1, b"0")
    one.put(b"new", image(patient_id="N"))
    one.fs.rename(1, b"1", 1, b"renamed", 0)
    # As a killed process leaves it: nothing of the last events is in the index.
    one.service._inner.sync()
    one.service._environment._lmdb.close()
    os.close(one.service._environment._lock_fd)
    one.service._environment._lock_fd = -1
    one.service._inner.close()
    two = opened()
    assert not two.service.find(Query()).left.is_complete
    two.complete()
    assert two.paths(patient="X") == {b"renamed", b"2", b"3", b"4"}
    assert two.paths(patient="N") == {b"new"}
    assert two.reads <= 2


def test_a_vault_that_was_changed_without_the_index(opened: Open, vault: Path) -> None:
    one = opened()
    one.put(b"x", image(patient_id="X"))
    one.complete()
    one.close()
    other = open_fs(vault)
    other.unlink(1, b"x")
    handle, _ = other.create(1, b"y", 0o644, ME, os.O_RDWR)
    other.write(handle, 0, image(patient_id="Y"))
    other.release(handle)
    other.close()
    two = opened()
    assert not two.service.find(Query()).left.is_complete
    two.complete()
    assert two.paths() == {b"y"}


def test_without_its_state_it_is_made_again(opened: Open, place: Path) -> None:
    one = opened()
    one.put(b"x", image(patient_id="X"))
    one.complete()
    one.close()
    data = place / PURPOSE / "data.mdb"
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    two = opened()
    two.complete()
    assert two.paths() == {b"x"}
    two.close()
    for file in (place / PURPOSE).iterdir():
        file.unlink()
    three = opened()
    three.complete()
    assert three.paths() == {b"x"}


def test_a_vault_that_must_not_be_changed(opened: Open) -> None:
    one = opened()
    one.put(b"x", image(patient_id="X"))
    one.close()
    two = opened(read_only=True)
    two.complete()
    assert two.paths() == {b"x"}
    two.close()
    three = opened(read_only=True)
    assert three.service.find(Query()).left.is_complete


def test_more_than_the_queue_holds(opened: Open) -> None:
    one = opened()
    one.complete()
    one.service._queue._limit = 3
    for number in range(6):
        one.put(b"%d" % number, image(patient_id="X", instance=f"1.{number}"))
    one.fs.unlink(1, b"0")
    one.complete()
    assert one.paths() == {b"%d" % number for number in range(1, 6)}


def test_a_re_encryption_makes_other_objects_of_the_same_images(opened: Open) -> None:
    one = opened()
    ino = one.put(b"a", image(patient_id="A"))
    folder = one.fs.mkdir(1, b"folder", 0o755, ME).ino
    one.put(b"b", image(patient_id="B"), folder)
    one.complete()
    for limit in (QUEUE_MAX, 1):  # the second time nearly all that is told is dropped
        one.service._queue._limit = limit
        assert Reencrypt(one.fs.unwatched, Throttle()).renew()
        one.fs.vault.reencryption.end()
        one.complete()
        assert not one.service._queue.ids_changed
        assert one.paths(patient="A") == {b"a"}
        assert one.paths(patient="B") == {b"folder/b"}
        assert one.service.stats().summary.all_files == 2
        # What is written from now on is noticed under the new object.
        handle = one.fs.open(ino, os.O_WRONLY | os.O_TRUNC)
        one.fs.write(handle, 0, image(patient_id="C"))
        one.fs.release(handle)
        one.complete()
        assert (one.paths(patient="A"), one.paths(patient="C")) == (set(), {b"a"})
        handle = one.fs.open(ino, os.O_WRONLY | os.O_TRUNC)
        one.fs.write(handle, 0, image(patient_id="A"))
        one.fs.release(handle)
        one.complete()


def test_a_damaged_file_does_not_hold_up_the_others(opened: Open, vault: Path) -> None:
    one = opened()
    one.put(b"bad", image(pixels=300_000))
    one.put(b"good", image(patient_id="G"))
    one.close()
    bad = max((vault / "tree").iterdir(), key=lambda path: path.stat().st_size)
    with bad.open("r+b") as file:
        file.seek(9000)
        file.write(b"damage")
    two = opened()
    two.complete()
    assert two.paths() == {b"good"}
    stats = two.service.stats()
    assert stats.summary.kinds == {"damaged": 1, "instance": 1}
    assert stats.left.is_complete


def test_an_index_that_cannot_be_written_any_more(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk of the state directory is full: files are served, and the search says why it does not."""
    one = opened()
    one.service._environment._failed = "The folder cannot be used: No space left on device."
    one.service.start(lambda: 0)
    one.put(b"x", image())
    wait_until(lambda: bool(one.service._indexer.failed))
    one.put(b"y", image())
    with pytest.raises(CryptfsError, match="No space left"):
        one.service.find(Query())


def test_nothing_readable_is_in_its_files(opened: Open, place: Path) -> None:
    one = opened()
    words = [b"Wunderlich", b"PID-4711", b"1.2.826.77", b"ACC-0815", b"20190317", b"ordner", b"datei"]
    folder = one.fs.mkdir(1, b"ordner", 0o755, ME).ino
    one.put(
        b"datei",
        image(
            patient_id="PID-4711", name="Wunderlich^Xaver", study="1.2.826.77.1", series="1.2.826.77.2",
            instance="1.2.826.77.3", accession="ACC-0815", date="20190317",
        ),
        folder,
    )  # fmt: skip
    one.complete()
    assert one.paths(patient="wunderlich") == {b"ordner/datei"}
    one.close()
    content = b"".join(path.read_bytes() for path in place.rglob("*") if path.is_file())
    assert len(content) > 4096
    for word in words:
        assert word not in content and word.lower() not in content.lower()
        assert word.decode().encode("utf-16-le") not in content

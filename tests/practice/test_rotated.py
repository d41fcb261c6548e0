"""After a rotation of the keys the study index is still believed: its images need not be read again."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from cryptfs.fs import FileSystem
from cryptfs.fs.reencrypt import reencrypt_job
from cryptfs.fs.rewrap import rewrap_job
from cryptfs.fs.throttle import Throttle
from cryptfs.index.environment import Environment
from cryptfs.index.place import Unavailable
from cryptfs.index.seal import Seal
from cryptfs.index.studysearch import Query
from cryptfs.practice.service import PURPOSE, StudyService, keep_under
from cryptfs.vault.keyring import Keyring
from tests.waiting import HANG

from ..fs.rotation import BOTH, NEW, OLD, make_vault, open_fs
from ..fs.support import VAULT_ID, put
from .images import image


class Place:
    """A vault with ten images that were read, and what is remembered of it."""

    def __init__(self, tmp_path: Path) -> None:
        self.vault = make_vault(tmp_path / "vault")
        self.state = tmp_path / "state"
        self.state.mkdir(mode=0o700)
        service = self.open(OLD)
        for number in range(10):
            put(service.fs, 1, b"%d.dcm" % number, image(patient_id=f"P{number}", study=f"1.{number}"))  # type: ignore[arg-type]
        assert self.reads(service) == 10
        service.close()

    def open(self, keyring: Keyring) -> StudyService:
        return StudyService(open_fs(self.vault, keyring), self.state, keyring)

    def reads(self, service: StudyService) -> int:
        """How many files it reads to know everything; that it does."""
        most = 0

        def progress(read: int, left: int) -> None:
            nonlocal most
            most = max(most, read)

        service.complete(progress)
        assert len(service.find(Query()).files) == 10
        return most


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def rotate(fs: FileSystem) -> None:
    fs.use_keyring(BOTH)
    job = rewrap_job(fs, Throttle())
    job.start()
    job.wait(HANG)
    assert job.state == "done"
    fs.use_keyring(NEW)


def test_while_it_is_mounted(place: Place) -> None:
    service = place.open(OLD)
    rotate(service._inner)
    service.close()
    service = place.open(NEW)
    assert place.reads(service) == 0
    service.close()


def test_by_a_mount_that_is_killed_then(place: Place) -> None:
    service = place.open(OLD)
    rotate(service._inner)
    service._environment.close()
    service._inner.close()
    service = place.open(NEW)
    assert place.reads(service) == 0
    service.close()


def test_while_it_is_not_mounted(place: Place) -> None:
    fs = open_fs(place.vault, OLD)
    fs.on_rewrapped = partial(keep_under, place=place.state, vault_id=VAULT_ID)
    rotate(fs)
    fs.close()
    service = place.open(NEW)
    assert place.reads(service) == 0
    service.close()


def test_without_it_all_is_read_again(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    fs = open_fs(place.vault, OLD)
    rotate(fs)
    fs.close()
    service = place.open(NEW)
    assert "of an epoch that is gone, as after a rotation of the keys. The study index is made" in caplog.text
    assert place.reads(service) == 10
    service.close()


def test_a_re_encryption_gives_it_a_new_key(place: Place) -> None:
    def key(keyring: Keyring) -> bytes:
        return Seal.load(place.state / PURPOSE, PURPOSE, VAULT_ID, keyring).key

    before = key(OLD)
    service = place.open(OLD)
    service._inner.use_keyring(BOTH)
    job = reencrypt_job(service._inner, Throttle())
    job.start()
    job.wait(HANG)
    assert job.state == "done"
    service._inner.use_keyring(NEW)
    service._inner.reencryption_ended()
    service.close()
    service = place.open(NEW)
    assert place.reads(service) == 10
    service.close()
    assert key(NEW) != before


def test_where_there_is_none_none_is_made(place: Place, tmp_path: Path) -> None:
    keep_under(BOTH, tmp_path, VAULT_ID)
    assert not (tmp_path / PURPOSE).exists()
    (place.state / PURPOSE / "seal").write_bytes(b"x" * 100)
    keep_under(BOTH, place.state, VAULT_ID)
    assert (place.state / PURPOSE / "seal").read_bytes() == b"x" * 100


def test_it_cannot_be_kept(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise Unavailable("The disk is full.")

    service = place.open(OLD)
    monkeypatch.setattr(Environment, "use_keyring", refuse)
    rotate(service._inner)
    assert "the study index is not kept: The disk is full." in caplog.text
    keep_under(BOTH, place.state, VAULT_ID)
    assert "in use by another mount" in caplog.text
    service.close()
    assert os.listdir(place.vault)

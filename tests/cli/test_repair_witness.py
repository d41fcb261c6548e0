"""After `cryptfs verify --repair` no mount takes what was repaired for a rollback, nor the other way."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cryptfs.errors import CryptfsError
from cryptfs.fs.types import SetAttr
from cryptfs.index import place
from tests.check.support import fill
from tests.cli.conftest import Cryptfs, secret_file
from tests.security.archive import Archive, Mounted


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(place.OVERRIDE, str(tmp_path / "state"))
    monkeypatch.setenv("CRYPTFS_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "state"


@pytest.fixture
def archive(tmp_path: Path, state: Path) -> Archive:
    """A vault whose objects have headers in both slots, all of which the computer has seen."""
    archive = Archive(tmp_path / "vault")
    fill(archive)
    archive.state = state
    with archive.mounted(xattrs=True) as mount:
        for path in ("anna", "anna/ct", "anna/ct/1.dcm", "index.db", "sparse"):
            mount.fs.setattr(mount.ino(path), SetAttr(mode=0o700))
            mount.fs.sync()
            mount.fs.setattr(mount.ino(path), SetAttr(mode=0o750))
        mount.fs.sync()
        look(mount)
    return archive


@pytest.fixture
def key(archive: Archive, tmp_path: Path) -> list[str | Path]:
    return ["--recovery-key-file", secret_file(tmp_path / "recovery", archive.recovery.text)]


def look(mount: Mounted, path: str = "") -> dict[str, int]:
    """Everything below a folder: 0, or the errno of looking it up and opening it."""
    found = {}
    for name in mount.list(path):
        inner = f"{path}/{name}".lstrip("/")
        try:
            attr = mount.fs.getattr(mount.ino(inner))
            found[inner] = 0
            if attr.mode & 0o170000 == 0o040000:
                found |= look(mount, inner)
            elif attr.mode & 0o170000 == 0o100000:
                mount.fs.release(mount.fs.open(attr.ino, os.O_RDONLY))
        except OSError as error:
            found[inner] = error.errno or 0
    return found


def newest_slot(data: bytes) -> int:
    return max((0, 4096), key=lambda at: int.from_bytes(data[at + 16 : at + 24], "little"))


def damage_newest_slot(archive: Archive, path: str) -> None:
    lower = archive.lower(path)
    lower = lower / "@dir" if lower.is_dir() else lower
    data = bytearray(lower.read_bytes())
    at = newest_slot(data)
    data[at + 150] ^= 1
    lower.write_bytes(data)


def lose_header(archive: Archive, path: str, *, copies: bool) -> None:
    (archive.lower(path) / "@dir").write_bytes(b"")
    if not copies:
        shutil.rmtree(archive.path / "dirs")
        for file in (archive.path / "tree").rglob("*"):
            if file.is_file() and file.stat().st_size >= 8192:
                with file.open("r+b") as opened:  # headers of folders that it carries
                    opened.seek(256)
                    opened.write(bytes(4096 - 256))


def lose_attributes(archive: Archive) -> None:
    ours = archive.header("index.db").object_id.hex()
    (archive.path / "xattr" / ours[:2] / ours).write_bytes(b"nothing")


def put_a_pipe(archive: Archive) -> None:
    lower = archive.lower("empty")
    lower.unlink()
    os.mkfifo(lower)


DAMAGE: dict[str, Callable[[Archive], Any]] = {
    "a folder's header, with a copy": lambda archive: lose_header(archive, "anna", copies=True),
    "a folder's header, without a copy": lambda archive: lose_header(archive, "anna/ct", copies=False),
    "the newest header of a file": lambda archive: damage_newest_slot(archive, "anna/ct/1.dcm"),
    "the newest header of a folder": lambda archive: damage_newest_slot(archive, "anna"),
    "a long name": lambda archive: next(archive.lower("anna").glob("@l*.name")).unlink(),
    "attributes": lose_attributes,
    "a pipe in the place of a file": put_a_pipe,
    "the session record": lambda archive: (archive.path / "journal/state").write_bytes(b"nothing"),
    "an end": lambda archive: os.truncate(archive.lower("anna/ct/1.dcm"), 8192 + 65536 + 40),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_no_false_event_and_nothing_refused(
    cryptfs: Cryptfs, archive: Archive, key: list[str | Path], what: str
) -> None:
    DAMAGE[what](archive)
    result = cryptfs("verify", archive.path, "--repair", "--yes", "--json", *key)
    assert result.code == (18 if what == "an end" else 0), result.out + result.err
    assert result.json["repair"]["witness"]["problem"] is None
    assert {step["result"] for step in result.json["repair"]["steps"]} == {"done"}
    assert "rollback" not in result.err
    with archive.mounted(xattrs=True) as mount:
        seen = look(mount)
        assert {path for path, error in seen.items() if error} == set()
        events = mount.fs.stats()["witness"]
        assert [events[kind] for kind in ("refused", "missing", "vault")] == [0, 0, 0]
    assert cryptfs("accept-restore", archive.path, "--dry-run", *key).code == 0


def test_a_lost_journal(cryptfs: Cryptfs, archive: Archive, key: list[str | Path], tmp_path: Path) -> None:
    """The newest header of a file is recorded, and was in the part of the journal that is given up."""
    lower = archive.lower("index.db")
    before = lower.read_bytes()
    with archive.mounted() as mount:
        mount.fs._committer.stop()  # the journal is emptied by nobody
        mount.write("index.db", b"overwritten", offset=100)
        shutil.copytree(archive.path / "journal", tmp_path / "journal")
    lower.write_bytes(before)
    shutil.rmtree(archive.path / "journal")
    shutil.copytree(tmp_path / "journal", archive.path / "journal")
    (segment,) = (archive.path / "journal").glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[20] ^= 1
    segment.write_bytes(data)
    with pytest.raises(CryptfsError), archive.mounted():
        pass
    result = cryptfs("verify", archive.path, "--repair", "--yes", "--json", *key)
    assert result.json["repair"]["witness"]["problem"] is None, result.out
    with archive.mounted() as mount:
        assert look(mount)["index.db"] == 0
        assert mount.fs.stats()["witness"]["refused"] == 0


def test_what_was_exchanged_before_is_refused_afterwards(
    cryptfs: Cryptfs, archive: Archive, key: list[str | Path]
) -> None:
    one, two = archive.lower("anna/ct/1.dcm"), archive.lower("anna/ct/2.dcm")
    one.rename(one.with_name("x"))
    two.rename(one)
    one.with_name("x").rename(two)
    archive.lower("empty").unlink()
    lose_header(archive, "anna", copies=True)
    result = cryptfs("verify", archive.path, "--repair", "--yes", "--json", *key)
    assert result.code == 18
    assert result.json["verdict"] == "rolled-back"
    with archive.mounted() as mount:
        seen = look(mount)
        assert seen["anna/ct/1.dcm"] == seen["anna/ct/2.dcm"] == errno.EIO
        events = mount.fs.stats()["witness"]
        assert (events["refused"], events["missing"]) == (2, 1)


def test_only_a_part_is_repaired(cryptfs: Cryptfs, archive: Archive, key: list[str | Path]) -> None:
    """What differs elsewhere was not looked at for damage, and is told of nobody."""
    archive.lower("empty").unlink()
    damage_newest_slot(archive, "anna/ct/1.dcm")
    result = cryptfs("verify", archive.path, "anna", "--repair", "--yes", *key)
    assert result.code == 0, result.out + result.err
    with archive.mounted() as mount:
        look(mount)
        events = mount.fs.stats()["witness"]
        assert (events["refused"], events["missing"]) == (0, 1)


def test_a_witness_that_cannot_be_told(
    cryptfs: Cryptfs, archive: Archive, key: list[str | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryptfs.check.repair import telling

    def refuse(*_: object) -> None:
        raise CryptfsError("The disk is full.")

    monkeypatch.setattr(telling, "tell", refuse)
    put_a_pipe(archive)
    result = cryptfs("verify", archive.path, "--repair", "--yes", *key)
    assert "could not be told (The disk is full.)" in result.out
    assert "accept-restore" in result.out


def test_without_a_witness_nothing_is_made(
    cryptfs: Cryptfs, archive: Archive, key: list[str | Path], tmp_path: Path
) -> None:
    lose_header(archive, "anna", copies=True)
    elsewhere = tmp_path / "elsewhere"
    result = cryptfs("verify", archive.path, "--repair", "--yes", "--state-dir", elsewhere, *key)
    assert result.code == 0
    assert list(elsewhere.rglob("*")) == []

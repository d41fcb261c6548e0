"""Making the index anew and comparing it: counts, faults found, requests in between."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cryptfs.errors import CryptfsError
from cryptfs.fs import upkeep
from cryptfs.index import catalog as catalog_module
from cryptfs.index import records

from .support import ME, make_vault, open_fs, put


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(catalog_module, "RACY_NS", 0)
    path = make_vault(tmp_path / "vault")
    fs = open_fs(path)
    for d in range(2):
        made = fs.mkdir(1, b"d%d" % d, 0o755, ME)
        for i in range(70):
            put(fs, made.ino, b"f%d" % i, b"x" * i)
    fs.link(fs.lookup(made.ino, b"f3").ino, made.ino, b"second")
    fs.close()
    return path


def test_rebuild_records_everything(vault: Path, tmp_path: Path) -> None:
    fs = open_fs(vault, state=tmp_path / "state")
    said: list[int] = []
    outcome = upkeep.rebuild(fs, said.append)
    assert (outcome.directories, outcome.entries, outcome.recorded, outcome.unrecorded) == (3, 143, 141, 2)
    assert said == sorted(said) and said[-1] == 143
    assert fs.stats()["inodes"] == 1, "it keeps no references"
    verified = upkeep.verify(fs, said.append)
    assert (verified.recorded, verified.unrecorded, verified.wrong) == (141, 2, 0)
    fs.close()


def test_verify_finds_what_is_outdated_and_what_is_wrong(vault: Path, tmp_path: Path) -> None:
    fs = open_fs(vault, state=tmp_path / "state")
    upkeep.rebuild(fs, lambda count: None)
    fs.close()
    files = sorted(p for p in (vault / "tree").rglob("*") if p.is_file() and p.name != "@dir")
    fs = open_fs(vault)
    fs.close()
    changed = [path for path in files if path.stat().st_nlink == 1][:2]
    state = tmp_path / "state"
    fs = open_fs(vault, state=state)
    upkeep.rebuild(fs, lambda count: None)
    fs.close()
    for path in changed:
        path.write_bytes(path.read_bytes()[:-1])  # and with it the plaintext's length
    fs = open_fs(vault, state=state)
    outcome = upkeep.verify(fs, lambda count: None)
    assert outcome.damaged + outcome.outdated == 2 and outcome.wrong == 0
    knowledge = upkeep.index_of(fs)
    key = next(
        key
        for key in knowledge.catalog.keys(b"E")
        if records.kind_of(knowledge.catalog.get(key) or b"") == records.FILE
    )
    value = knowledge.catalog.get(key)
    assert value is not None
    wrong = records.file_of(value)._replace(uid=4711)
    knowledge.catalog.put(key, records.file(wrong, records.name_of(value)))
    outcome = upkeep.verify(fs, lambda count: None)
    assert outcome.wrong == 1 and len(outcome.wrong_directories) == 1
    fs.close()


def test_without_an_index(vault: Path) -> None:
    fs = open_fs(vault)
    with pytest.raises(CryptfsError, match="no metadata index"):
        upkeep.rebuild(fs, lambda count: None)
    fs.close()


def test_read_only_has_none(vault: Path, tmp_path: Path) -> None:
    fs = open_fs(vault, read_only=True, state=tmp_path / "state")
    assert "read-only" in fs.stats()["index"]
    fs.close()


def test_two_filesystems_of_one_host(vault: Path, tmp_path: Path) -> None:
    """The place can have one writer: another copy of the vault is served without an index, and says so."""
    import subprocess

    subprocess.run(["cp", "-a", vault, tmp_path / "copy"], check=True)
    one = open_fs(vault, state=tmp_path / "state")
    other = open_fs(tmp_path / "copy", state=tmp_path / "state")
    assert "in use by another mount" in other.stats()["index"]
    assert other.lookup(1, b"d0").mode
    other.close()
    one.close()


def test_what_a_kill_left_half_made_is_not_missing(tmp_path: Path) -> None:
    """A directory that has no header yet is not shown, so nothing is to be recorded of it."""
    vault, state = make_vault(tmp_path / "vault"), tmp_path / "state"
    fs = open_fs(vault)
    put(fs, 1, b"image", b"content")
    copy = Path(shutil.copytree(vault, tmp_path / "copy"))
    lname, _ = fs._directories.get(fs._nodes.root).lower_name(b"half made")
    fs.close()
    (copy / "tree" / os.fsdecode(lname)).mkdir()
    fs = open_fs(copy, state=state)
    handle = fs.opendir(1)
    assert [name for name, _, _ in fs.readdir(handle, 0)] == [b"image"]
    fs.releasedir(handle)
    outcome = upkeep.verify(fs, lambda count: None)
    assert (outcome.wrong, outcome.damaged) == (0, 0)
    fs.close()

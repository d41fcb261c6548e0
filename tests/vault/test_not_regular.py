"""Pipes and links where the vault has files: nothing waits for them or follows them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptfs.errors import ConfigDamaged, IntegrityError, NotAVault, StorageError
from cryptfs.vault import config
from cryptfs.vault.epochs import EpochReader
from tests.fs.rotation import BOTH
from tests.fs.support import ME, VAULT_ID, close_fs, get, make_vault, open_fs, put


def pipe(path: Path) -> None:
    os.mkfifo(path)


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def endless(path: Path) -> None:
    path.symlink_to(path.name)


PLANTED = [pipe, dangling, endless]


@pytest.mark.parametrize("plant", PLANTED)
def test_in_place_of_a_log_of_directory_headers(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    vault = make_vault(tmp_path / "vault")
    plant(vault / "dirs" / "ffff.log")
    (vault / "tree" / "@dir").unlink()
    fs = open_fs(make_entry(vault, tmp_path))
    try:
        assert get(fs, 1, b"file") == b"content"
    finally:
        close_fs(fs)


def make_entry(vault: Path, tmp_path: Path) -> Path:
    """The vault with one file, by whose name its lost root header is found again."""
    held = (vault / "dirs" / "0000000000000000.log").read_bytes()[:192]
    (vault / "tree" / "@dir").write_bytes(held)
    planted = vault / "dirs" / "ffff.log"
    aside = tmp_path / "aside"
    planted.rename(aside)
    fs = open_fs(vault)
    put(fs, 1, b"file", b"content")
    close_fs(fs)
    aside.rename(planted)
    (vault / "tree" / "@dir").unlink()
    return vault


@pytest.mark.parametrize("plant", PLANTED)
@pytest.mark.parametrize("name", ["state", "0000000000000000.seg"])
def test_in_place_of_the_journal(tmp_path: Path, name: str, plant: Callable[[Path], None]) -> None:
    vault = make_vault(tmp_path / "vault")
    plant(vault / "journal" / name)
    with pytest.raises(IntegrityError):
        open_fs(vault)


@pytest.mark.parametrize("plant", PLANTED)
def test_in_place_of_what_the_proof_of_a_rotation_reads(
    tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    vault = make_vault(tmp_path / "vault")
    plant(vault / "dirs" / "ffff.log")
    plant(vault / "journal" / "state")
    assert EpochReader(vault, VAULT_ID, BOTH).summary() is not None


@pytest.mark.parametrize("plant", PLANTED)
def test_in_place_of_a_lock(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    vault = make_vault(tmp_path / "vault")
    plant(vault / "journal" / "lock")
    with contextlib.suppress(StorageError):
        close_fs(open_fs(vault))
    assert not (vault / "journal" / "nowhere").exists(), "a file was made behind a link"


@pytest.mark.parametrize("plant", PLANTED)
def test_in_place_of_the_configuration(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    plant(tmp_path / "cryptfs.json")
    with pytest.raises((ConfigDamaged, NotAVault)):
        config.load(tmp_path)


@pytest.mark.parametrize("plant", PLANTED)
def test_in_place_of_a_folders_header(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    """A copy opens it; what stands there is moved aside, so that it opens without any entry as well."""
    vault = make_vault(tmp_path / "vault")
    fs = open_fs(vault)
    folder = fs.mkdir(1, b"folder", 0o755, ME).ino
    put(fs, folder, b"file", b"content")
    close_fs(fs)
    (header,) = [path for path in (vault / "tree").rglob("@dir") if path.parent.name != "tree"]
    header.unlink()
    plant(header)
    fs = open_fs(vault)
    folder = fs.lookup(1, b"folder").ino
    assert get(fs, folder, b"file") == b"content"
    fs.unlink(folder, b"file")
    close_fs(fs)
    assert header.is_file() and not header.is_symlink()
    fs = open_fs(vault)
    with pytest.raises(FileNotFoundError):
        fs.lookup(fs.lookup(1, b"folder").ino, b"file")
    fs.rmdir(1, b"folder")
    close_fs(fs)


@pytest.mark.parametrize("while_mounted", [False, True])
@pytest.mark.parametrize("content", [False, True])
def test_a_folder_in_place_of_a_folders_header(tmp_path: Path, content: bool, while_mounted: bool) -> None:
    """Somebody's folder keeps the directory it lies in, if there is anything in it."""
    vault = make_vault(tmp_path / "vault")
    fs = open_fs(vault)
    folder = fs.mkdir(1, b"folder", 0o755, ME).ino
    put(fs, folder, b"file", b"content")
    (header,) = [path for path in (vault / "tree").rglob("@dir") if path.parent.name != "tree"]
    if not while_mounted:
        close_fs(fs)
    header.unlink()
    header.mkdir()
    if content:
        (header / "somebody's").write_bytes(b"precious")
    if not while_mounted:
        fs = open_fs(vault)
    folder = fs.lookup(1, b"folder").ino
    fs.unlink(folder, b"file")
    if not content:
        fs.rmdir(1, b"folder")
        assert [path.name for path in (vault / "tree").iterdir()] == ["@dir"]
    else:
        for _ in range(2):
            with pytest.raises(OSError, match="not empty"):
                fs.rmdir(1, b"folder")
        assert [path.read_bytes() for path in (vault / "tree").rglob("somebody's")] == [b"precious"]
        put(fs, folder, b"another", b"it goes on")
    close_fs(fs)
    fs = open_fs(vault)
    if content:
        assert get(fs, fs.lookup(1, b"folder").ino, b"another") == b"it goes on"
    else:
        with pytest.raises(FileNotFoundError):
            fs.lookup(1, b"folder")
    close_fs(fs)

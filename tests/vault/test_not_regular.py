"""Pipes and links where the vault has files: nothing waits for them or follows them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptfs.errors import IntegrityError
from tests.fs.support import close_fs, get, make_vault, open_fs, put


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

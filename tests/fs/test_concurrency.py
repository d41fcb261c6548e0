"""Files are closed and deleted while the background work has them in hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptfs.fs import FileSystem
from tests.fs.support import ME, close_fs, make_vault, open_fs


def overwritten(fs: FileSystem, name: bytes) -> tuple[int, int]:
    """A durable file with live journal records: its inode and an open handle."""
    handle, attr = fs.create(1, name, 0o600, ME, os.O_RDWR)
    fs.write(handle, 0, b"old" * 1000)
    fs.fsync(handle)
    fs.write(handle, 0, b"new")
    fs.fsync(handle)
    return attr.ino, handle


@pytest.fixture
def during_fsync(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Has something done, once, just before the next file is synced."""
    real = os.fsync

    def arrange(action: Callable[[], None]) -> None:
        def fsync(fd: int) -> None:
            monkeypatch.setattr(os, "fsync", real)
            action()
            real(fd)

        monkeypatch.setattr(os, "fsync", fsync)

    return arrange


def test_a_file_deleted_while_it_is_checkpointed(
    tmp_path: Path, during_fsync: Callable[[Callable[[], None]], None]
) -> None:
    """The rename of a folder empties the journal; a file that is deleted meanwhile is no error of it."""
    fs = open_fs(make_vault(tmp_path / "vault"))
    fs.mkdir(1, b"folder", 0o700, ME)
    _, handle = overwritten(fs, b"index-journal")

    def delete() -> None:
        fs.release(handle)
        fs.unlink(1, b"index-journal")

    during_fsync(delete)
    fs.rename(1, b"folder", 1, b"renamed")
    assert fs.lookup(1, b"renamed").ino
    close_fs(fs)


def test_a_file_deleted_while_everything_is_synced(
    tmp_path: Path, during_fsync: Callable[[Callable[[], None]], None]
) -> None:
    fs = open_fs(make_vault(tmp_path / "vault"))
    _, handle = overwritten(fs, b"index-journal")

    def delete() -> None:
        fs.release(handle)
        fs.unlink(1, b"index-journal")

    during_fsync(delete)
    fs.sync()
    close_fs(fs)

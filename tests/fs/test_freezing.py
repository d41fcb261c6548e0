"""A frozen vault stands still, whatever is read, and its ciphertext is that of an unmounted one."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest

from cryptfs.fs import FileSystem
from tests.fs.support import ME, close_fs, get, make_vault, open_fs, put, snapshot


def ciphertext(vault: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(vault)): path.read_bytes() if path.is_file() else None
        for path in vault.rglob("*")
    }


def in_use(vault: Path) -> tuple[FileSystem, int]:
    """A vault with unsynced files, an overwritten one and a deleted one that is open; an open handle."""
    fs = open_fs(make_vault(vault))
    folder = fs.mkdir(1, b"folder", 0o700, ME)
    put(fs, folder.ino, b"new", os.urandom(200_000))
    handle, _ = fs.create(1, b"index", 0o600, ME, os.O_RDWR)
    fs.write(handle, 0, b"old" * 5000)
    fs.fsync(handle)
    fs.write(handle, 0, b"new")
    orphan, _ = fs.create(1, b"deleted", 0o600, ME, os.O_RDWR)
    fs.write(orphan, 0, b"gone" * 5000)
    fs.fsync(orphan)
    fs.write(orphan, 0, b"overwritten")
    fs.unlink(1, b"deleted")
    return fs, handle


def test_the_copy_is_that_of_an_unmounted_vault(tmp_path: Path) -> None:
    fs, handle = in_use(tmp_path / "vault")
    fs.freeze()
    assert sorted(os.listdir(tmp_path / "vault" / "journal")) == ["lock", "state"]
    shutil.copytree(tmp_path / "vault", tmp_path / "copy")
    fs.thaw()
    fs.write(handle, 0, b"later")
    later = snapshot(fs, tmp_path / "later")
    again = open_fs(tmp_path / "copy")
    assert not again.vault.state.unclean and not again.vault.state.found_open
    assert get(again, 1, b"index") == b"new" + (b"old" * 5000)[3:]
    close_fs(again)
    after = open_fs(later)
    assert after.vault.state.found_open  # the session goes on after the thaw
    close_fs(after)
    close_fs(fs)


def test_reading_changes_nothing(tmp_path: Path) -> None:
    """What a power failure left to be repaired is repaired after the thaw; remnants are not shown."""
    fs, _ = in_use(tmp_path / "vault")
    snapshot(fs, tmp_path / "copy")
    close_fs(fs)
    (folder,) = (path for path in (tmp_path / "copy" / "tree").iterdir() if path.is_dir())
    (new,) = (path for path in folder.iterdir() if path.name != "@dir")
    os.truncate(new, 150_000)
    other, remnant = (letter + new.name[1:] for letter in "ABC".replace(new.name[0], "")[:2])
    shutil.copyfile(new, folder / other)
    (folder / remnant).touch()
    fs = open_fs(tmp_path / "copy")
    fs.freeze()
    before = ciphertext(tmp_path / "copy")
    attr = fs.lookup(1, b"folder")
    dh = fs.opendir(attr.ino)
    list(fs.readdir(dh, 0))
    fs.releasedir(dh)
    shortened = get(fs, attr.ino, b"new")
    assert len(shortened) == 2 * 65536
    assert ciphertext(tmp_path / "copy") == before
    fs.thaw()
    assert get(fs, attr.ino, b"new") == shortened
    close_fs(fs)
    fs = open_fs(tmp_path / "copy")
    assert get(fs, fs.lookup(1, b"folder").ino, b"new") == shortened
    close_fs(fs)


def test_background_work_waits(tmp_path: Path) -> None:
    fs, _ = in_use(tmp_path / "vault")
    fs.freeze()
    done = threading.Event()

    def change() -> None:
        with fs.gate.change():
            done.set()

    worker = threading.Thread(target=change)
    worker.start()
    with fs.gate.try_change() as may_change:
        assert not may_change
    assert not done.is_set()
    fs.thaw()
    worker.join(60)
    assert done.is_set()
    close_fs(fs)


def test_what_cannot_be_synced_is_not_frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fs, handle = in_use(tmp_path / "vault")
    with monkeypatch.context() as patch:

        def refuse(fd: int) -> None:
            raise OSError(errno.EIO, "")

        patch.setattr("cryptfs.fs.freezing.syncfs", refuse)
        with pytest.raises(OSError, match=r"Errno 5"):
            fs.freeze()
    with fs.gate.try_change() as may_change:
        assert may_change
    fs.write(handle, 0, b"x")
    fs.freeze()
    close_fs(fs)  # thaws by itself
    fs = open_fs(tmp_path / "vault")
    assert get(fs, 1, b"index").startswith(b"xew")
    close_fs(fs)


def test_a_vault_to_be_read_only_is_still_anyway(tmp_path: Path) -> None:
    fs, _ = in_use(tmp_path / "vault")
    close_fs(fs)
    fs = open_fs(tmp_path / "vault", read_only=True)
    before = ciphertext(tmp_path / "vault")
    fs.freeze()
    fs.thaw()
    close_fs(fs)
    assert ciphertext(tmp_path / "vault") == before

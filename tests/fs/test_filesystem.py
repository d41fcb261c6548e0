"""Everyday use of the filesystem layer, without FUSE."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cryptfs.fs import renaming
from cryptfs.fs.file import File
from cryptfs.fs.types import SetAttr
from tests.fs.support import ME, close_fs, get, make_vault, open_fs, put


@pytest.fixture
def vault(tmp_path: Path) -> Path:
    return make_vault(tmp_path / "vault")


@pytest.mark.parametrize("size", [0, 1, 4096, 65535, 65536, 65537, 131072, 1_000_000])
@pytest.mark.parametrize("step", [4096, 65536, 1 << 20])
def test_content_comes_back_after_reopening(vault: Path, size: int, step: int) -> None:
    data = os.urandom(size)
    fs = open_fs(vault)
    handle, _ = fs.create(1, b"image.dcm", 0o640, ME, os.O_RDWR)
    for at in range(0, size, step):
        assert fs.write(handle, at, data[at : at + step]) == len(data[at : at + step])
    assert bytes(fs.read(handle, 0, size + 10)) == data
    fs.flush(handle)
    fs.fsync(handle)
    fs.release(handle)
    assert get(fs, 1, b"image.dcm") == data
    close_fs(fs)
    fs = open_fs(vault)
    assert get(fs, 1, b"image.dcm") == data
    attr = fs.lookup(1, b"image.dcm")
    assert (attr.size, attr.mode & 0o7777) == (size, 0o640)
    close_fs(fs)


def test_overwrites_of_a_durable_file_survive_the_end_of_the_process(vault: Path) -> None:
    fs = open_fs(vault)
    handle, _ = fs.create(1, b"index", 0o600, ME, os.O_RDWR)
    fs.write(handle, 0, b"a" * 100_000)
    fs.fsync(handle)
    fs.write(handle, 5000, b"b" * 10)
    fs.write(handle, 100_000, b"c" * 10_000)
    fs.fsync(handle)
    # Neither closed nor synced any further: what a killed process leaves.
    fs._committer.stop()
    os.close(fs.vault._lock_fd)
    again = open_fs(vault)
    assert get(again, 1, b"index") == b"a" * 5000 + b"b" * 10 + b"a" * 94_990 + b"c" * 10_000
    close_fs(again)


def test_truncate_both_ways(vault: Path) -> None:
    fs = open_fs(vault)
    ino = put(fs, 1, b"f", b"x" * 200_000)
    for size in (150_000, 65536, 10, 0, 70_000, 3_000_000):
        fs.setattr(ino, SetAttr(size=size))
        assert fs.getattr(ino).size == size
        assert len(get(fs, 1, b"f")) == size
    assert get(fs, 1, b"f") == bytes(3_000_000)
    close_fs(fs)
    fs = open_fs(vault)
    assert get(fs, 1, b"f") == bytes(3_000_000)
    close_fs(fs)


def test_names(vault: Path) -> None:
    fs = open_fs(vault)
    for name in (b"short", b"n" * 175, b"n" * 176, b"\xc3\xa9" * 127, b"m" * 255):
        put(fs, 1, name, name)
    dh = fs.opendir(1)
    listed = {name for name, _, _ in fs.readdir(dh, 0)}
    assert listed == {b"short", b"n" * 175, b"n" * 176, b"\xc3\xa9" * 127, b"m" * 255}
    fs.releasedir(dh)
    fs.rename(1, b"m" * 255, 1, b"plain")
    fs.rename(1, b"n" * 176, 1, b"o" * 200)
    assert get(fs, 1, b"plain") == b"m" * 255
    assert get(fs, 1, b"o" * 200) == b"n" * 176
    fs.unlink(1, b"o" * 200)
    close_fs(fs)
    assert len([e for e in os.listdir(vault / "tree") if e.endswith(".name")]) == 1


def test_directories(vault: Path) -> None:
    fs = open_fs(vault)
    a = fs.mkdir(1, b"a", 0o755, ME)
    b = fs.mkdir(a.ino, b"b", 0o755, ME)
    put(fs, b.ino, b"f", b"data")
    with pytest.raises(OSError, match="not empty"):
        fs.rmdir(a.ino, b"b")
    c = fs.mkdir(1, b"c", 0o755, ME)
    fs.rename(a.ino, b"b", 1, b"c")
    with pytest.raises(FileNotFoundError):
        fs.lookup(a.ino, b"b")
    assert fs.lookup(1, b"c").ino == b.ino != c.ino
    assert get(fs, b.ino, b"f") == b"data"
    fs.unlink(b.ino, b"f")
    fs.rmdir(1, b"c")
    fs.rmdir(1, b"a")
    close_fs(fs)
    assert os.listdir(vault / "tree") == ["@dir"]


def test_a_deleted_inode_takes_the_times_that_the_kernel_writes_back(vault: Path) -> None:
    fs = open_fs(vault)
    ino = put(fs, 1, b"f", b"data")
    fs.unlink(1, b"f")
    attr = fs.setattr(ino, SetAttr(mtime_ns=5))
    assert (attr.ino, attr.nlink, attr.mode & 0o170000) == (ino, 0, 0o100000)
    fs.forget(ino, 1)
    with pytest.raises(OSError, match="Stale"):
        fs.getattr(ino)
    close_fs(fs)


def test_an_inode_with_several_names_is_found_at_whichever_is_left(vault: Path) -> None:
    fs = open_fs(vault)
    ino = put(fs, 1, b"a", b"data")
    fs.link(ino, 1, b"b")
    fs.link(ino, 1, b"c")
    fs.unlink(1, b"a")
    assert fs.setattr(ino, SetAttr(mtime_ns=7)).mtime_ns == 7
    fs.unlink(1, b"c")
    assert fs.setattr(ino, SetAttr(mtime_ns=8)).nlink == 1
    assert fs.lookup(1, b"b").mtime_ns == 8
    assert get(fs, 1, b"b") == b"data"
    close_fs(fs)


def test_a_rename_that_never_comes_to_rest_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As between two copies of one object, which have one id in the journal."""
    fs = open_fs(make_vault(tmp_path / "vault"))
    put(fs, 1, b"file", b"content")
    monkeypatch.setattr(renaming.Renamer, "_try", lambda *_: renaming._Wait(False, [], []))
    with pytest.raises(OSError) as refused:
        fs.rename(1, b"file", 1, b"other")
    assert refused.value.errno == errno.EIO
    monkeypatch.undo()
    assert get(fs, 1, b"file") == b"content"
    close_fs(fs)


@pytest.mark.parametrize(
    ("year", "kept"), [(1600, -(1 << 63)), (1700, None), (2200, None), (2400, (1 << 63) - 1)]
)
def test_times_that_no_header_can_hold_become_the_nearest(
    tmp_path: Path, year: int, kept: int | None
) -> None:
    """`touch -d 2400-01-01` must neither keep a file from being written nor a mount from ending."""
    wanted = (year - 1970) * 31_556_952 * 10**9
    kept = wanted if kept is None else kept
    vault = make_vault(tmp_path / "vault")
    fs = open_fs(vault)
    ino = put(fs, 1, b"image", b"pixels")
    fs.setattr(ino, SetAttr(atime_ns=wanted, mtime_ns=wanted, ctime_ns=wanted))
    assert fs.getattr(ino).mtime_ns == kept
    handle = fs.open(ino, os.O_RDWR)
    fs.setattr(ino, SetAttr(mtime_ns=wanted), handle)
    fs.fsync(handle)
    fs.release(handle)
    fs.setattr(fs.mkdir(1, b"folder", 0o755, ME).ino, SetAttr(mtime_ns=wanted))
    fs.close()
    fs = open_fs(vault)
    attr = fs.lookup(1, b"image")
    assert (attr.atime_ns, attr.mtime_ns) == (kept, kept)
    assert get(fs, 1, b"image") == b"pixels"
    fs.close()


def test_an_internal_error_at_a_close_leaves_no_handle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = open_fs(make_vault(tmp_path / "vault"))
    ino = put(fs, 1, b"image", b"pixels")
    handle = fs.open(ino, os.O_RDWR)
    fs.write(handle, 0, b"Pixels")

    def fails(_file: File) -> None:
        raise ValueError("a defect")

    with monkeypatch.context() as broken:
        broken.setattr(File, "flush", fails)
        with pytest.raises(ValueError, match="a defect"):
            fs.release(handle)
    assert fs._nodes.find(ino) is None or fs._nodes.get(ino).file is None
    assert get(fs, 1, b"image") == b"Pixels"
    fs.close()

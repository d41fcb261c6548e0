"""A full disk ends a write in the middle, and the file is closed: it is not broken by that."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from cryptfs.fs import FileSystem, refused
from cryptfs.fs.types import SetAttr
from tests.faults.test_injected import mounted, scratch
from tests.fs.support import ME, get, open_fs

__all__ = ["scratch"]

OLD, NEW = b"o" * 100_000, bytes(range(256)) * 3000


class Full:
    """A file of which the disk took a part, and then no more; closed."""

    def __init__(self, scratch: Path, took: int) -> None:
        self.vault = scratch / "vault"
        self.faults, self.fs, _ = mounted(scratch, ("create", "write"), errno.ENOSPC, False)
        handle, attr = self.fs.create(1, b"new", 0o644, ME, os.O_RDWR)
        self.ino = attr.ino
        self.fs.write(handle, 0, OLD)
        self.faults.lasting, self.faults.fails_at = True, self.faults.count + took
        with pytest.raises(OSError, match="No space"):
            self.fs.write(handle, len(OLD), NEW)
        with pytest.raises(OSError, match="No space"):
            self.fs.release(handle)

    def content(self, fs: FileSystem | None = None) -> bytes:
        fs = fs or self.fs
        ino = fs.lookup(1, b"new").ino
        handle = fs.open(ino, os.O_RDONLY)
        try:
            size = fs.getattr(ino).size
            data = bytes(fs.read(handle, 0, size + 1))
            assert len(data) == size
            return data
        finally:
            with suppress(OSError):  # its end is still refused, as nobody is told who only reads
                fs.release(handle)
            fs.forget(ino, 1)

    def close(self) -> None:
        self.faults.over()
        self.fs.close()
        self.faults.__exit__()


@pytest.fixture(params=[0, 1, 2, 4], ids="{} writes taken".format)
def full(scratch: Path, request: pytest.FixtureRequest) -> Full:
    return Full(scratch, request.param)


def test_it_can_be_read_meanwhile_and_is_whole_when_there_is_room(full: Full) -> None:
    assert full.content() == OLD + NEW
    full.fs._committer.refused.give_again(full.fs._hold, full.fs._let_go)
    assert full.fs._nodes.find(full.ino).file is not None, "the disk is still full"
    full.faults.over()
    full.fs._committer.refused.give_again(full.fs._hold, full.fs._let_go)
    assert full.fs._nodes.find(full.ino).file is None
    assert full.content() == OLD + NEW
    full.close()
    fs = open_fs(full.vault)
    assert full.content(fs) == OLD + NEW
    fs.close()


def test_one_that_is_not_in_use_any_more_is_forgotten(full: Full) -> None:
    file = full.fs._nodes.get(full.ino).file
    assert file is not None
    full.faults.over()
    full.fs._committer.refused.give_again(full.fs._hold, full.fs._let_go)
    full.fs._committer.refused.add(file)  # as under the key that a re-encryption replaced
    full.fs._committer.refused.give_again(full.fs._hold, full.fs._let_go)
    assert not full.fs._committer.refused
    full.close()


def test_it_can_be_emptied_and_written_anew(full: Full) -> None:
    handle = None
    try:
        handle = full.fs.open(full.ino, os.O_RDWR | os.O_TRUNC)
    except OSError as error:
        assert error.errno == errno.ENOSPC
    assert full.content() == b""
    full.faults.over()
    handle = handle or full.fs.open(full.ino, os.O_RDWR | os.O_TRUNC)
    full.fs.write(handle, 0, b"another")
    full.fs.fsync(handle)
    full.fs.release(handle)
    assert full.content() == b"another"
    full.close()
    fs = open_fs(full.vault)
    assert full.content(fs) == b"another"
    fs.close()


def remove(fs: FileSystem) -> None:
    fs.unlink(1, b"new")


def replace(fs: FileSystem) -> None:
    handle, _ = fs.create(1, b"other", 0o644, ME, os.O_RDWR)
    fs.write(handle, 0, b"another")
    fs.release(handle)
    fs.rename(1, b"other", 1, b"new", 0)


@pytest.mark.parametrize(("change", "left"), [(remove, []), (replace, [b"new"])])
def test_it_can_be_removed_and_replaced(
    full: Full, change: Callable[[FileSystem], None], left: list[bytes]
) -> None:
    full.faults.over()
    change(full.fs)
    assert not full.fs._committer.refused
    assert [entry.name for entry in os.scandir(full.vault / "tree") if entry.name != "@dir"] != [] or not left
    full.close()
    fs = open_fs(full.vault)
    assert not left or full.content(fs) == b"another"
    fs.close()


def test_others_are_synced_all_the_same(full: Full) -> None:
    full.faults.fails_at = -1
    handle, attr = full.fs.create(1, b"other", 0o644, ME, os.O_RDWR)
    full.fs.write(handle, 0, b"another")
    full.fs.release(handle)
    full.faults.fails_at = full.faults.count
    with pytest.raises(OSError, match="No space"):
        full.fs.sync()
    assert full.fs._committer.unsettled(attr.ino) is None
    full.close()


def test_names_beside_it_can_be_made_durable(full: Full) -> None:
    with pytest.raises(OSError, match="No space"):
        full.fs.fsyncdir(1)
    full.faults.fails_at = full.faults.count + 1  # the content is refused, the header is taken
    full.faults.lasting, full.faults.failed = False, 0
    full.fs.fsyncdir(1)
    assert full.faults.failed
    left = full.vault.parent / "left"
    shutil.copytree(full.vault, left)
    fs = open_fs(left)
    assert (OLD + NEW).startswith(full.content(fs))
    fs.close()
    full.close()


def test_a_mount_that_ends_on_a_full_disk_leaves_what_is_whole(full: Full) -> None:
    with pytest.raises(OSError, match="No space"):
        full.fs.close()
    full.faults.over()
    full.faults.__exit__()
    fs = open_fs(full.vault)
    assert (OLD + NEW).startswith(full.content(fs)), "nothing of it was synced, but what is left is its own"
    handle = fs.open(fs.lookup(1, b"new").ino, os.O_RDWR | os.O_TRUNC)
    fs.write(handle, 0, b"another")
    fs.release(handle)
    assert full.content(fs) == b"another"
    fs.close()


class FullUnderDurable:
    """A synced file, open; the disk takes nothing more."""

    def __init__(self, scratch: Path) -> None:
        self.vault = scratch / "vault"
        self.faults, self.fs, _ = mounted(scratch, ("create", "write"), errno.ENOSPC, False)
        self.handle, attr = self.fs.create(1, b"index", 0o644, ME, os.O_RDWR)
        self.ino = attr.ino
        self.content = bytearray(OLD)
        self.fs.write(self.handle, 0, OLD)
        self.fs.fsync(self.handle)
        self.faults.lasting, self.faults.fails_at = True, self.faults.count

    def write(self, at: int, data: bytes) -> None:
        with pytest.raises(OSError, match="No space"):
            self.fs.write(self.handle, at, data)
        self.content[at : at + len(data)] = data

    def read(self) -> bytes:
        return bytes(self.fs.read(self.handle, 0, 1 << 30))

    def killed(self, scratch: Path) -> bytes:
        """What is left of it when the process dies now."""
        copy = Path(shutil.copytree(self.vault, scratch / "copy"))
        fs = open_fs(copy)
        try:
            return get(fs, 1, b"index")
        finally:
            fs.close()
            shutil.rmtree(copy)

    def close(self) -> None:
        self.faults.over()
        self.fs.release(self.handle)
        self.fs.close()
        self.faults.__exit__()


def test_what_the_kernel_shows_is_kept_and_no_sync_succeeds_without_it(scratch: Path) -> None:
    full = FullUnderDurable(scratch)
    full.write(10, b"in the middle")
    full.write(len(OLD) - 5, b"over the end")
    full.write(len(OLD) + 300_000, b"behind a gap")
    full.content[: len(OLD) + 300_000] = full.content[: len(OLD) + 7].ljust(len(OLD) + 300_000, b"\0")
    full.content[len(OLD) + 300_000 :] = b"behind a gap"
    assert full.read() == full.content
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            full.fs.fsync(full.handle)
    assert full.killed(scratch) == OLD
    full.faults.over()
    full.fs.write(full.handle, 0, b"later")
    full.content[:5] = b"later"
    full.fs.fsync(full.handle)
    assert full.read() == full.content == full.killed(scratch)
    full.close()


def test_it_can_be_cut_back_to_what_the_disk_has(scratch: Path) -> None:
    full = FullUnderDurable(scratch)
    full.write(len(OLD), b"more" * 50_000)
    full.fs.setattr(full.ino, SetAttr(size=len(OLD)), full.handle)
    assert full.read() == OLD
    full.write(len(OLD), b"more" * 50_000)
    full.write(0, b"other")
    with pytest.raises(OSError, match="No space"):
        full.fs.setattr(full.ino, SetAttr(size=len(OLD)), full.handle)
    assert full.read() == full.content
    full.faults.over()
    full.fs.setattr(full.ino, SetAttr(size=len(OLD)), full.handle)
    full.fs.fsync(full.handle)
    assert full.read() == full.killed(scratch) == b"other" + OLD[5:]
    full.close()


def test_when_it_cannot_be_emptied_it_keeps_what_was_refused(scratch: Path) -> None:
    full = FullUnderDurable(scratch)
    full.write(len(OLD), b"more")
    with pytest.raises(OSError, match="No space"):
        full.fs.open(full.ino, os.O_RDWR | os.O_TRUNC)
    assert full.read() == full.content
    full.faults.over()
    full.fs.release(full.fs.open(full.ino, os.O_RDWR | os.O_TRUNC))
    assert full.read() == b""
    full.close()


def test_what_is_kept_is_bounded(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refused, "KEPT_MAX", 300_000)
    full = FullUnderDurable(scratch)
    full.write(len(OLD), bytes(200_000))
    kept = full.content[:]
    full.write(len(OLD) + 200_000, bytes(200_000))
    full.content[:] = kept
    assert full.read() == kept
    full.faults.over()
    full.fs.fsync(full.handle)
    assert full.read() == kept == full.killed(scratch)
    full.close()


@pytest.mark.parametrize("closed", [False, True])
def test_what_is_kept_of_all_files_is_bounded(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    monkeypatch.setattr(refused, "REFUSED_MAX", 500_000)
    full = FullUnderDurable(scratch)
    full.faults.over()
    handle, other = full.fs.create(1, b"other", 0o644, ME, os.O_RDWR)
    full.fs.write(handle, 0, OLD)
    full.fs.fsync(handle)
    full.faults.fails_at = full.faults.count
    with pytest.raises(OSError, match="No space"):
        full.fs.write(handle, len(OLD), bytes(350_000))
    if closed:
        with pytest.raises(OSError, match="No space"):
            full.fs.release(handle)
    full.write(len(OLD), bytes(100_000))
    kept = full.content[:]
    full.write(len(kept), bytes(100_000))
    full.content[:] = kept
    assert full.read() == kept
    # When the other one is given up there is room for more.
    if closed:
        full.fs.unlink(1, b"other")
    else:
        full.fs.setattr(other.ino, SetAttr(size=len(OLD)), handle)
    full.write(len(kept), bytes(100_000))
    assert full.read() == full.content
    full.faults.over()
    full.fs.fsync(full.handle)
    if not closed:
        full.fs.release(handle)
    assert full.read() == full.content == full.killed(scratch)
    full.close()


@pytest.mark.parametrize("code", [errno.EIO, errno.EFBIG])
def test_another_error_leaves_the_file_as_it_was(scratch: Path, code: int) -> None:
    full = FullUnderDurable(scratch)
    full.faults._code = code
    with pytest.raises(OSError) as problem:
        full.fs.write(full.handle, 10, b"refused")
    assert problem.value.errno == code
    assert full.read() == OLD
    full.close()


def test_reading_is_not_told_what_is_refused_of_an_earlier_change(scratch: Path) -> None:
    """The mode, or the times of a link, are still to be written, and the disk is full."""
    faults, fs, _ = mounted(scratch, ("create", "write"), errno.ENOSPC, True)
    handle, image = fs.create(1, b"image", 0o644, ME, os.O_RDWR)
    fs.setxattr(image.ino, b"user.note", b"checked")
    link = fs.symlink(1, b"link", b"image", ME)
    fs.fsync(handle)
    faults.lasting, faults.fails_at = True, faults.count
    fs.setattr(image.ino, SetAttr(mode=0o600), handle)
    with pytest.raises(OSError, match="No space"):
        fs.release(handle)
    with pytest.raises(OSError, match="No space"):
        fs.setattr(link.ino, SetAttr(mtime_ns=1))
    for _ in range(2):
        assert fs.listxattr(image.ino) == [b"user.note"]
        assert fs.getxattr(image.ino, b"user.note") == b"checked"
        assert fs.readlink(link.ino) == b"image"
        assert fs.getattr(image.ino).mode & 0o7777 == 0o600
    with pytest.raises(OSError, match="No space"):
        fs.setxattr(image.ino, b"user.note", b"again")
    faults.over()
    fs.close()
    faults.__exit__()
    fs = open_fs(scratch / "vault", xattrs=True)
    assert fs.getattr(fs.lookup(1, b"image").ino).mode & 0o7777 == 0o600
    assert fs.getxattr(image.ino, b"user.note") == b"checked"
    fs.close()


def test_a_job_that_held_a_file_is_not_told_either(full: Full) -> None:
    """Else a re-encryption would leave the other files that it holds in use for ever."""
    for file in full.fs.hold_files():
        full.fs.give_back(file)
    file = full.fs._nodes.get(full.ino).file
    assert file is not None and file.handles == 0
    assert full.content() == OLD + NEW
    full.close()

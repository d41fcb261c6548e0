"""What programs see through a mount: POSIX, as far as the mount layer has a part in it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import socket
import stat
from pathlib import Path

import pytest

from tests.mount.conftest import Passthrough
from tests.waiting import wait_until

pytestmark = pytest.mark.system

_libc = ctypes.CDLL(None, use_errno=True)


def rename2(old: Path, new: Path, flags: int) -> None:
    if _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def test_written_data_reaches_the_directory_below_and_comes_back(mounted: Passthrough) -> None:
    data = os.urandom(3_000_001)
    (mounted.at / "image.dcm").write_bytes(data)
    assert (mounted.below / "image.dcm").read_bytes() == data
    assert (mounted.at / "image.dcm").read_bytes() == data


def test_cold_read_of_a_large_file(mounted: Passthrough) -> None:
    data = os.urandom(5_000_123)
    (mounted.below / "scan").write_bytes(data)
    assert (mounted.at / "scan").read_bytes() == data


def test_an_absent_name_is_remembered_by_the_kernel_until_it_is_made(mounted: Passthrough) -> None:
    name = mounted.at / "absent"
    assert not name.exists()
    before = mounted.status()["requests"]
    for _ in range(50):
        assert not name.exists()
    assert mounted.status()["requests"] - before < 10
    name.write_text("here")
    assert name.read_text() == "here"


def test_attributes_are_remembered_by_the_kernel(mounted: Passthrough) -> None:
    name = mounted.at / "file"
    name.write_text("x")
    os.stat(name)
    before = mounted.status()["requests"]
    for _ in range(50):
        os.stat(name)
    assert mounted.status()["requests"] - before < 10


def test_extended_attributes_are_asked_for_once_and_never_again(mounted: Passthrough) -> None:
    name = mounted.at / "file"
    name.write_text("x")
    with pytest.raises(OSError) as first:
        os.getxattr(name, "user.a")
    assert first.value.errno == errno.ENOTSUP
    before = mounted.status()["requests"]
    for _ in range(50):
        with pytest.raises(OSError):
            os.getxattr(name, "user.a")
        with pytest.raises(OSError):
            os.setxattr(name, "user.a", b"b")
    assert mounted.status()["requests"] - before < 10


def test_a_file_opened_for_writing_only_can_be_changed_inside_a_page(mounted: Passthrough) -> None:
    # The kernel must read the page to change a part of it, with a handle opened O_WRONLY.
    (mounted.below / "db").write_bytes(b"a" * 10_000)
    fd = os.open(mounted.at / "db", os.O_WRONLY)
    os.pwrite(fd, b"b" * 24, 5000)
    os.close(fd)
    assert (mounted.below / "db").read_bytes() == b"a" * 5000 + b"b" * 24 + b"a" * 4976


def test_append_by_two_writers(mounted: Passthrough) -> None:
    name = mounted.at / "index.dat"
    first = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    second = os.open(name, os.O_WRONLY | os.O_APPEND)
    for number in range(20):
        os.write(first if number % 2 else second, b"%04d" % number)
    os.close(first)
    os.close(second)
    assert name.read_bytes() == b"".join(b"%04d" % number for number in range(20))
    assert (mounted.below / "index.dat").read_bytes() == name.read_bytes()


def test_open_with_truncation(mounted: Passthrough) -> None:
    name = mounted.at / "file"
    name.write_bytes(b"long old content")
    fd = os.open(name, os.O_WRONLY | os.O_TRUNC)
    assert os.fstat(fd).st_size == 0
    os.write(fd, b"new")
    os.close(fd)
    assert (mounted.below / "file").read_bytes() == b"new"


def test_truncate_and_extend(mounted: Passthrough) -> None:
    name = mounted.at / "file"
    name.write_bytes(b"0123456789")
    os.truncate(name, 4)
    assert name.read_bytes() == b"0123"
    with name.open("r+b") as file:
        file.truncate(6)
    assert name.read_bytes() == b"0123\0\0"
    assert (mounted.below / "file").read_bytes() == b"0123\0\0"


def test_modification_times_of_cached_writes_and_set_ones(mounted: Passthrough) -> None:
    name = mounted.at / "file"
    for content in (b"x", b"longer", b"long again"):
        name.write_bytes(content)
        assert (mounted.below / "file").stat().st_mtime_ns == name.stat().st_mtime_ns
    os.utime(name, ns=(1_000_000_007, 2_000_000_009))
    assert name.stat().st_mtime_ns == 2_000_000_009
    assert (mounted.below / "file").stat().st_mtime_ns == 2_000_000_009
    assert (mounted.below / "file").stat().st_atime_ns == 1_000_000_007


def test_a_file_without_a_name_stays_usable(mounted: Passthrough) -> None:
    name = mounted.at / "temporary"
    with name.open("w+b") as file:
        file.write(b"a" * 10_000)
        file.flush()
        name.unlink()
        assert not name.exists()
        file.seek(5000)
        file.write(b"b")
        file.flush()
        assert os.fstat(file.fileno()).st_size == 10_000
        file.seek(4999)
        assert file.read(3) == b"aba"
    assert list(mounted.below.iterdir()) == []


def test_rename_over_an_open_file(mounted: Passthrough) -> None:
    (mounted.at / "old").write_bytes(b"old")
    (mounted.at / "new").write_bytes(b"new")
    with (mounted.at / "old").open("rb") as file:
        os.rename(mounted.at / "new", mounted.at / "old")
        assert (mounted.at / "old").read_bytes() == b"new"
        assert file.read() == b"old"
    assert os.listdir(mounted.at) == ["old"]


def test_rename_flags(mounted: Passthrough) -> None:
    one, two = mounted.at / "one", mounted.at / "two"
    one.write_text("1")
    two.write_text("2")
    with pytest.raises(FileExistsError):
        rename2(one, two, 1)
    assert two.read_text() == "2"
    rename2(one, two, 2)
    assert (one.read_text(), two.read_text()) == ("2", "1")


def test_rename_of_a_directory_with_known_children(mounted: Passthrough) -> None:
    (mounted.at / "incoming/study").mkdir(parents=True)
    (mounted.at / "incoming/study/1.dcm").write_text("image")
    (mounted.at / "database").mkdir()
    os.rename(mounted.at / "incoming/study", mounted.at / "database/study")
    assert (mounted.at / "database/study/1.dcm").read_text() == "image"
    assert not (mounted.at / "incoming/study").exists()


def test_exclusive_creation(mounted: Passthrough) -> None:
    name = mounted.at / "lock"
    os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    with pytest.raises(FileExistsError):
        os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)


def test_links(mounted: Passthrough) -> None:
    (mounted.at / "file").write_text("x")
    os.link(mounted.at / "file", mounted.at / "hard")
    os.symlink("file", mounted.at / "soft")
    assert (mounted.at / "file").stat().st_nlink == 2
    assert (mounted.at / "hard").stat().st_ino == (mounted.at / "file").stat().st_ino
    assert os.readlink(mounted.at / "soft") == "file"
    assert (mounted.at / "soft").read_text() == "x"
    (mounted.at / "file").unlink()
    assert (mounted.at / "hard").stat().st_nlink == 1


def test_special_files(mounted: Passthrough) -> None:
    os.mkfifo(mounted.at / "fifo", 0o640)
    assert stat.S_ISFIFO((mounted.at / "fifo").stat().st_mode)
    with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(mounted.at):
        listener.bind("socket")
    assert stat.S_ISSOCK((mounted.at / "socket").stat().st_mode)


def test_a_large_directory_is_listed_whole_with_dots(mounted: Passthrough) -> None:
    names = {f"{number:04d}-{'n' * 60}.dcm" for number in range(1500)}
    for name in names:
        (mounted.below / name).touch()
    assert set(os.listdir(mounted.at)) == names
    raw = os.popen(f"ls -fa {mounted.at}").read().split()
    assert raw[:2] == [".", ".."] and set(raw[2:]) == names and len(raw) == len(names) + 2


def test_umask_mode_and_owner_of_what_is_made(mounted: Passthrough) -> None:
    old = os.umask(0o027)
    try:
        os.close(os.open(mounted.at / "file", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(mounted.at / "folder", 0o777)
    finally:
        os.umask(old)
    assert stat.S_IMODE((mounted.at / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((mounted.at / "folder").stat().st_mode) == 0o750
    assert (mounted.at / "file").stat().st_uid == os.geteuid()


def test_setgid_directory_hands_its_group_down(mounted: Passthrough) -> None:
    folder = mounted.at / "shared"
    folder.mkdir()
    os.chown(folder, -1, 4242)
    folder.chmod(0o2775)
    (folder / "file").touch()
    (folder / "below").mkdir()
    assert (folder / "file").stat().st_gid == 4242
    assert (folder / "below").stat().st_gid == 4242
    assert (folder / "below").stat().st_mode & stat.S_ISGID


def test_shared_mapping(mounted: Passthrough) -> None:
    name = mounted.at / "index-shm"
    name.write_bytes(bytes(32768))
    with name.open("r+b") as file, mmap.mmap(file.fileno(), 32768) as mapping:
        mapping[100:104] = b"word"
        mapping.flush()
    assert (mounted.below / "index-shm").read_bytes()[100:104] == b"word"


def test_locks(mounted: Passthrough) -> None:
    name = mounted.at / "index"
    name.touch()
    with name.open("r+b") as first, name.open("r+b") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with name.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 5)
        child = os.fork()
        if child == 0:
            try:
                with name.open("r+b") as other:
                    fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)
                os._exit(0)
            except BlockingIOError:
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_fsync_of_files_and_directories(mounted: Passthrough) -> None:
    with (mounted.at / "file").open("wb") as file:
        file.write(b"x")
        os.fsync(file.fileno())
        os.fdatasync(file.fileno())
    folder = os.open(mounted.at, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(folder)
    os.close(folder)


def test_statvfs(mounted: Passthrough) -> None:
    shown, below = os.statvfs(mounted.at), os.statvfs(mounted.below)
    assert shown.f_blocks * shown.f_frsize == below.f_blocks * below.f_frsize
    assert shown.f_namemax == below.f_namemax


def test_all_references_are_given_back(mounted: Passthrough) -> None:
    (mounted.at / "a/b").mkdir(parents=True)
    for number in range(300):
        (mounted.at / f"a/b/{number}").write_bytes(b"x" * 100)
    os.link(mounted.at / "a/b/0", mounted.at / "a/hard")
    for _ in range(3):
        for folder, _, files in os.walk(mounted.at):
            for file in files:
                (Path(folder) / file).read_bytes()
    os.rename(mounted.at / "a/b/1", mounted.at / "a/b/2")
    assert mounted.status()["inodes"] > 300
    for folder, folders, files in os.walk(mounted.at, topdown=False):
        for name in files:
            (Path(folder) / name).unlink()
        for name in folders:
            (Path(folder) / name).rmdir()
    # Every inode that the kernel has let go of is gone; the root stays.
    wait_until(lambda: mounted.status()["inodes"] == 1)
    assert mounted.status()["open_files"] == 0


def test_read_only(passthrough: Passthrough) -> None:
    (passthrough.below / "file").write_text("x")
    passthrough.mount(read_only=True)
    assert (passthrough.at / "file").read_text() == "x"
    with pytest.raises(OSError) as refused:
        (passthrough.at / "other").touch()
    assert refused.value.errno == errno.EROFS


def test_everything_belongs_to_the_chosen_owner(passthrough: Passthrough) -> None:
    (passthrough.below / "file").write_text("x")
    passthrough.mount(owner=[4321, 1234], allow_other=True)
    file = passthrough.at / "file"
    assert (file.stat().st_uid, file.stat().st_gid) == (4321, 1234)
    with pytest.raises(PermissionError):
        os.chown(file, 0, 0)
    os.chown(file, 4321, 1234)
    (passthrough.at / "folder").mkdir()
    assert (passthrough.at / "folder").stat().st_uid == 4321
    assert (passthrough.below / "folder").stat().st_uid == 4321


def test_other_users_are_kept_out_unless_let_in(passthrough: Passthrough) -> None:
    passthrough.mount()
    assert _list_as_nobody(passthrough.at) == errno.EACCES
    passthrough.unmount()
    passthrough.mount(allow_other=True)
    assert _list_as_nobody(passthrough.at) == 0


def _list_as_nobody(path: Path) -> int:
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        try:
            os.listdir(path)
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 255)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_extended_attributes_and_flags(passthrough: Passthrough) -> None:
    passthrough.mount(xattrs=True)
    name = passthrough.at / "file"
    name.touch()
    os.setxattr(name, "user.origin", b"scanner", os.XATTR_CREATE)
    with pytest.raises(FileExistsError):
        os.setxattr(name, "user.origin", b"other", os.XATTR_CREATE)
    os.setxattr(name, "user.origin", b"archive", os.XATTR_REPLACE)
    assert os.getxattr(name, "user.origin") == b"archive"
    assert os.listxattr(name) == ["user.origin"]
    os.removexattr(name, "user.origin")
    with pytest.raises(OSError) as absent:
        os.setxattr(name, "user.origin", b"x", os.XATTR_REPLACE)
    assert absent.value.errno == errno.ENODATA
    assert os.listxattr(name) == []

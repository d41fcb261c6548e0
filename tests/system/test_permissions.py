"""Attributes and who may do what: the kernel checks permissions, the filesystem must keep them right."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.waiting import wait_until

from .mounts import Mount
from .processes import NOBODY, as_user
from .test_names import errno_of

pytestmark = pytest.mark.system
_KERNEL_CLOCK = 5  # CLOCK_REALTIME_COARSE, by which the kernel dates changes


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_another_user_gets_only_what_the_mode_allows(folder: Path) -> None:
    folder.chmod(0o755)
    for mode, may_read, may_write in ((0o600, False, False), (0o644, True, False), (0o646, True, True)):
        path = folder / oct(mode)
        path.write_bytes(b"x")
        path.chmod(mode)
        assert as_user(lambda path=path: errno_of(path.read_bytes) == 0) is may_read
        assert as_user(lambda path=path: errno_of(path.open, "ab") == 0) is may_write
    path = folder / "group"
    path.write_bytes(b"x")
    os.chown(path, 0, NOBODY)
    path.chmod(0o640)
    assert as_user(path.read_bytes) == b"x"
    assert as_user(lambda: errno_of(path.read_bytes), gid=12345) == 13
    assert as_user(lambda: errno_of((folder / "new").touch)) == 13
    assert as_user(lambda: errno_of(path.unlink)) == 13
    assert as_user(lambda: errno_of(path.chmod, 0o777)) == 1
    assert as_user(lambda: errno_of(os.chown, path, NOBODY, NOBODY)) == 1
    folder.chmod(0o700)
    assert as_user(lambda: errno_of(os.stat, path)) == 13


def test_what_another_user_makes_is_his(shared_mount: Mount, folder: Path) -> None:
    folder.chmod(0o777)

    def work() -> None:
        os.umask(0o027)
        (folder / "file").write_bytes(b"x")
        (folder / "directory").mkdir()
        (folder / "link").symlink_to("file")
        os.mkfifo(folder / "fifo")
        (folder / "file").chmod(0o4751)

    as_user(work)
    shared_mount.remount()
    for name in ("file", "directory", "link", "fifo"):
        status = (folder / name).lstat()
        assert (status.st_uid, status.st_gid) == (NOBODY, NOBODY), name
    assert mode_of(folder / "file") == 0o4751
    assert mode_of(folder / "directory") == 0o750
    assert mode_of(folder / "fifo") == 0o640


def test_modes_and_owners_survive(shared_mount: Mount, folder: Path) -> None:
    modes = [0o000, 0o400, 0o644, 0o755, 0o777, 0o1777, 0o2755, 0o4755, 0o7777]
    for mode in modes:
        (folder / f"file-{mode:o}").touch()
        (folder / f"directory-{mode:o}").mkdir()
        for path in (folder / f"file-{mode:o}", folder / f"directory-{mode:o}"):
            os.chown(path, 1234, 2**32 - 3)
            path.chmod(mode)
    (folder / "link").symlink_to("nowhere")
    os.lchown(folder / "link", 99, 98)
    shared_mount.remount()
    for mode in modes:
        for path in (folder / f"file-{mode:o}", folder / f"directory-{mode:o}"):
            status = path.stat()
            assert (status.st_uid, status.st_gid, mode_of(path)) == (1234, 2**32 - 3, mode), path.name
    assert ((folder / "link").lstat().st_uid, (folder / "link").lstat().st_gid) == (99, 98)


def test_umask(folder: Path) -> None:
    previous = os.umask(0o077)
    try:
        (folder / "file").touch()
        (folder / "directory").mkdir()
        os.umask(0)
        os.close(os.open(folder / "open", os.O_CREAT | os.O_WRONLY, 0o666))
    finally:
        os.umask(previous)
    assert [mode_of(folder / name) for name in ("file", "directory", "open")] == [0o600, 0o700, 0o666]


def test_setgid_directory_hands_its_group_down(folder: Path) -> None:
    os.chown(folder, 0, 4321)
    folder.chmod(0o2775)
    (folder / "file").touch()
    (folder / "directory" / "below").mkdir(parents=True)
    (folder / "link").symlink_to("x")
    for name in ("file", "directory", "directory/below", "link"):
        assert (folder / name).lstat().st_gid == 4321, name
    assert mode_of(folder / "directory") & stat.S_ISGID
    assert mode_of(folder / "directory" / "below") & stat.S_ISGID
    assert not mode_of(folder / "file") & stat.S_ISGID


def test_sticky_directory(folder: Path) -> None:
    folder.chmod(0o1777)
    (folder / "roots").touch()
    (folder / "roots").chmod(0o666)
    assert as_user(lambda: errno_of((folder / "roots").unlink)) == 1
    assert as_user(lambda: errno_of((folder / "roots").rename, folder / "mine")) == 1
    as_user((folder / "own").touch)
    assert as_user(lambda: errno_of((folder / "own").unlink)) == 0


def test_setuid_bit_is_lost_by_writing_and_chown(shared_mount: Mount, folder: Path) -> None:
    for name in ("written", "given"):
        (folder / name).write_bytes(b"x")
        (folder / name).chmod(0o6777)
    folder.chmod(0o777)

    def write() -> None:
        with (folder / "written").open("ab") as file:
            file.write(b"y")

    as_user(write)
    os.chown(folder / "given", NOBODY, NOBODY)
    shared_mount.remount()
    assert mode_of(folder / "written") == 0o777
    assert mode_of(folder / "given") == 0o777


def test_times_to_the_nanosecond(shared_mount: Mount, folder: Path) -> None:
    (folder / "file").write_bytes(b"x")
    (folder / "directory").mkdir()
    (folder / "link").symlink_to("x")
    names = ("file", "directory", "link")
    atime, mtime = 1_234_567_890_123_456_789, 987_654_321_987_654_321
    for name in names:
        os.utime(folder / name, ns=(atime, mtime), follow_symlinks=False)
    shared_mount.remount()
    for name in names:
        status = (folder / name).lstat()
        assert (status.st_atime_ns, status.st_mtime_ns) == (atime, mtime), name
    os.utime(folder / "file", ns=(-1_500_000_000, -999_999_999))  # before 1970
    assert (folder / "file").stat().st_mtime_ns == -999_999_999
    shared_mount.remount()
    assert (folder / "file").stat().st_mtime_ns == -999_999_999


def test_times_set_while_the_file_is_being_written(shared_mount: Mount, folder: Path) -> None:
    """As cp -p and rsync do: write, set the times, close."""
    with (folder / "file").open("wb") as file:
        file.write(b"x" * 100_000)
        file.flush()
        os.utime(file.fileno(), ns=(10**18, 10**18 + 1))
        (folder / "file").chmod(0o444)
    assert (folder / "file").stat().st_mtime_ns == 10**18 + 1
    shared_mount.remount()
    assert (folder / "file").stat().st_mtime_ns == 10**18 + 1
    assert (folder / "file").stat().st_size == 100_000


def wait_until_after(nanoseconds: int) -> None:
    """The kernel's clock has ticks of some milliseconds."""
    wait_until(lambda: time.clock_gettime_ns(_KERNEL_CLOCK) > nanoseconds)


def test_what_changes_which_time(folder: Path) -> None:
    past = 10**18
    path = folder / "file"

    def changed(action: Callable[[], object], subject: Path) -> tuple[bool, bool]:
        """Whether an action changed (mtime, ctime) of a file whose times were set to the past."""
        os.utime(subject, ns=(past, past), follow_symlinks=False)
        ctime = subject.lstat().st_ctime_ns
        wait_until_after(ctime)
        action()
        status = subject.lstat()
        return status.st_mtime_ns != past, status.st_ctime_ns > ctime

    path.write_bytes(b"x")
    assert changed(lambda: path.write_bytes(b"y"), path) == (True, True)
    assert changed(lambda: os.truncate(path, 100), path) == (True, True)
    assert changed(lambda: path.chmod(0o600), path) == (False, True)
    assert changed(lambda: os.chown(path, 5, 5), path) == (False, True)
    assert changed(lambda: os.link(path, folder / "link"), path) == (False, True)
    assert changed((folder / "link").unlink, path) == (False, True)
    assert changed(lambda: path.read_bytes(), path) == (False, False)
    assert changed(lambda: (folder / "new").touch(), folder)[0]
    assert changed(lambda: (folder / "new").rename(folder / "newer"), folder)[0]
    assert changed(lambda: (folder / "newer").unlink(), folder)[0]
    assert changed(lambda: path.chmod(0o644), folder) == (False, False)
    assert changed(lambda: folder.chmod(0o750), folder) == (False, True)
    assert changed(lambda: os.chown(folder, 0, 5), folder) == (False, True)


@pytest.mark.parametrize("kind", ["fifo", "symlink"])
def test_the_change_time_of_what_is_no_file(folder: Path, kind: str) -> None:
    path, other = folder / "one", folder / "other"
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("elsewhere")

    def changes(action: Callable[[], object]) -> None:
        before = path.lstat().st_ctime_ns
        wait_until_after(before)
        action()
        assert path.lstat().st_ctime_ns > before

    changes(lambda: os.chown(path, 0, 5, follow_symlinks=False))
    (folder / "new").touch()
    for lose in (other.unlink, lambda: (folder / "new").rename(other)):
        changes(lambda: os.link(path, other, follow_symlinks=False))
        changes(lose)


def test_statfs_is_that_of_the_disk_below(shared_mount: Mount, folder: Path) -> None:
    below = os.statvfs(shared_mount.base)
    while True:  # until nothing else changed it meanwhile: there are disks whose size does
        before, above = below, os.statvfs(folder)
        below = os.statvfs(shared_mount.base)
        if (before.f_blocks, before.f_files) == (below.f_blocks, below.f_files):
            break
    assert above.f_namemax == 255
    assert above.f_blocks * above.f_frsize == below.f_blocks * below.f_frsize
    assert 0 < above.f_bavail * above.f_frsize <= below.f_blocks * below.f_frsize
    assert above.f_files == below.f_files


def test_attributes_without_xattrs_are_refused(make_mount: Callable[[], Mount]) -> None:
    mount = make_mount()
    mount.mount()
    (mount.path / "f").touch()
    if mount.encrypted:
        assert errno_of(os.setxattr, mount.path / "f", "user.a", b"1") == 95
        assert errno_of(os.getxattr, mount.path / "f", "user.a") == 95


def test_extended_attributes(make_mount: Callable[[], Mount]) -> None:
    mount = make_mount()
    mount.mount(xattrs=True)
    (mount.path / "file").write_bytes(b"x")
    (mount.path / "directory").mkdir()
    for path in (mount.path / "file", mount.path / "directory"):
        os.setxattr(path, "user.empty", b"")
        before = path.stat().st_ctime_ns
        wait_until_after(before)
        os.setxattr(path, "user.empty", b"")
        assert path.stat().st_ctime_ns > before
        os.setxattr(path, "user.binary", bytes(range(256)))
        os.setxattr(path, "user.é", b"name")
        assert errno_of(os.setxattr, path, "user.empty", b"y", os.XATTR_CREATE) == 17
        assert errno_of(os.setxattr, path, "user.none", b"y", os.XATTR_REPLACE) == 61
        assert errno_of(os.getxattr, path, "user.none") == 61
    mount.remount()
    for path in (mount.path / "file", mount.path / "directory"):
        assert sorted(os.listxattr(path)) == sorted(["user.empty", "user.binary", "user.é"])
        assert os.getxattr(path, "user.binary") == bytes(range(256))
        assert os.getxattr(path, "user.empty") == b""
        os.removexattr(path, "user.binary")
        os.setxattr(path, "user.empty", b"no longer")
        assert errno_of(os.removexattr, path, "user.binary") == 61
    (mount.path / "file").rename(mount.path / "directory" / "renamed")
    mount.remount()
    renamed = mount.path / "directory" / "renamed"
    assert sorted(os.listxattr(renamed)) == ["user.empty", "user.é"]
    assert os.getxattr(renamed, "user.empty") == b"no longer"


def test_access_control_lists_are_obeyed(make_mount: Callable[[], Mount]) -> None:
    mount = make_mount()
    mount.mount(xattrs=True)
    granted, refused = mount.path / "granted", mount.path / "refused"
    for path in (granted, refused):
        path.write_bytes(b"x")
    granted.chmod(0o600)
    refused.chmod(0o644)
    subprocess.run(["setfacl", "-m", f"u:{NOBODY}:r", granted], check=True)
    subprocess.run(["setfacl", "-m", f"u:{NOBODY}:-", refused], check=True)
    mount.remount()
    assert as_user(granted.read_bytes) == b"x"
    assert as_user(lambda: errno_of(refused.read_bytes)) == 13
    (mount.path / "directory").mkdir()
    subprocess.run(["setfacl", "-d", "-m", f"u:{NOBODY}:rw", mount.path / "directory"], check=True)
    (mount.path / "directory" / "heir").touch()
    listing = subprocess.run(
        ["getfacl", "-cpn", mount.path / "directory" / "heir"], capture_output=True, text=True
    )
    assert f"user:{NOBODY}:rw-" in listing.stdout


def test_owner_mount_is_closed_to_others(make_mount: Callable[[], Mount], service_account: str) -> None:
    mount = make_mount()
    mount.mount(owner=service_account)
    uid, gid = (int(subprocess.check_output(["id", flag, service_account])) for flag in ("-u", "-g"))
    path = mount.path / "1.dcm"
    as_user(lambda: path.write_bytes(b"x"), uid, gid)
    assert as_user(path.read_bytes, uid, gid) == b"x"
    assert path.stat().st_uid == uid
    assert as_user(lambda: errno_of(path.read_bytes)) == 13
    assert as_user(lambda: errno_of(os.listdir, mount.path)) == 13


def test_read_only_mount(make_mount: Callable[[], Mount]) -> None:
    mount = make_mount()
    mount.mount()
    (mount.path / "f").write_bytes(b"x")
    if not mount.encrypted:
        pytest.skip("a plain folder cannot be mounted read-only")
    mount.unmount()
    mount.mount(read_only=True)
    assert (mount.path / "f").read_bytes() == b"x"
    for action in (
        lambda: (mount.path / "f").write_bytes(b"y"),
        lambda: (mount.path / "f").unlink(),
        lambda: (mount.path / "d").mkdir(),
        lambda: (mount.path / "f").chmod(0o600),
        lambda: os.truncate(mount.path / "f", 0),
    ):
        assert errno_of(action) == 30

"""Names and directories: what may be called what, and how it moves."""

from __future__ import annotations

import errno
import os
import random
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fs.trees import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2

from .mounts import CryptfsMount, Mount
from .processes import run

pytestmark = pytest.mark.system


def errno_of(function, *arguments: object) -> int:  # type: ignore[no-untyped-def]
    """The errno a call fails with, 0 if it succeeds."""
    try:
        function(*arguments)
    except OSError as error:
        return error.errno or -1
    return 0


@pytest.mark.parametrize(
    "name",
    [
        b"x" * 255,
        ("é" * 127 + "z").encode(),
        ("画像診断" * 21 + "科").encode(),
        b"\xff\xfe latin-1 \xe9\xe8",
        b"a\nb\tc\\d'e\"f*?",
        b" leading and trailing ",
        b"-rf",
        b"@dir",
        b"@l" + b"A" * 43,
        b"...",
        b"x" * 143,
        b"x" * 174,
        b"x" * 175,
        b"x" * 176,
    ],
)
def test_names_are_kept_byte_for_byte(shared_mount: Mount, folder: Path, name: bytes) -> None:
    path = folder / os.fsdecode(name)
    path.write_bytes(name)
    assert os.listdir(os.fsencode(folder)) == [name]
    shared_mount.remount()
    assert os.listdir(os.fsencode(folder)) == [name]
    assert path.read_bytes() == name
    renamed = path.rename(folder / ("y" + path.name[1:]))
    assert os.listdir(folder) == [renamed.name]
    renamed.unlink()
    path.mkdir()
    assert os.listdir(os.fsencode(folder)) == [name]
    path.rmdir()
    assert os.listdir(folder) == []


def test_name_of_256_bytes_is_too_long(folder: Path) -> None:
    assert errno_of(os.mkdir, folder / ("x" * 256)) == errno.ENAMETOOLONG
    assert os.listdir(folder) == []


def test_names_differ_by_case_and_normal_form(folder: Path) -> None:
    names = ["müller", "mu\u0308ller", "MÜLLER"]
    for name in names:
        (folder / name).write_text(name)
    assert sorted(os.listdir(folder)) == sorted(names)
    assert [(folder / name).read_text() for name in names] == names


def test_deep_tree(shared_mount: Mount, folder: Path) -> None:
    """Below a path of 200 levels, longer than PATH_MAX in ciphertext and in plaintext."""
    depth = 200
    descriptor = os.open(folder, os.O_RDONLY)
    for level in range(depth):
        name = f"level-{level:03}-of-a-deep-tree"
        os.mkdir(name, dir_fd=descriptor)
        below = os.open(name, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    with os.fdopen(os.open("bottom", os.O_WRONLY | os.O_CREAT, dir_fd=descriptor), "wb") as file:
        file.write(b"here")
        file.flush()
        os.fsync(file.fileno())
    os.close(descriptor)
    shared_mount.remount()
    levels = 0
    for _, directories, files, descriptor in os.fwalk(folder):
        if directories:
            levels += 1
        else:
            assert files == ["bottom"]
            assert os.stat("bottom", dir_fd=descriptor).st_size == 4
    assert levels == depth
    # from the bottom upwards, as rm -r does
    for _, directories, files, descriptor in os.fwalk(folder, topdown=False):
        for name in files:
            os.unlink(name, dir_fd=descriptor)
        for name in directories:
            os.rmdir(name, dir_fd=descriptor)
    assert os.listdir(folder) == []


def test_many_entries_in_one_directory(shared_mount: Mount, folder: Path) -> None:
    count = int(os.environ.get("CRYPTFS_TEST_ENTRIES", "20000"))
    expected = {f"1.2.840.113619.2.{number}.dcm" for number in range(count)}
    for number in range(count):
        os.close(os.open(folder / f"1.2.840.113619.2.{number}.dcm", os.O_CREAT | os.O_WRONLY))
    shared_mount.remount()
    names = os.listdir(folder)
    assert len(names) == count
    assert set(names) == expected
    with os.scandir(folder) as entries:
        assert all(entry.stat().st_size == 0 for entry in entries)
    # removing while the directory is being read, as rm -r does
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.endswith("7.dcm"):
                os.unlink(entry.path)
    assert set(os.listdir(folder)) == {name for name in expected if name.endswith("7.dcm")}


def test_hard_links_share_everything(shared_mount: Mount, folder: Path) -> None:
    (folder / "sub").mkdir()
    first, second, third = folder / "first", folder / ("n" * 255), folder / "sub" / "third"
    first.write_bytes(b"content")
    os.link(first, second)
    os.link(second, third)
    shared_mount.remount()
    with third.open("ab") as file:
        file.write(b", more" * 20_000)
    first.chmod(0o600)
    os.utime(second, ns=(1, 2))
    for path in (first, second, third):
        status = path.stat()
        assert (status.st_nlink, stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (3, 0o600, 2)
        assert path.read_bytes() == b"content" + b", more" * 20_000
    assert first.samefile(third)
    first.unlink()
    shared_mount.remount()
    assert third.stat().st_nlink == 2
    assert second.read_bytes() == b"content" + b", more" * 20_000
    second.rename(third)  # two names of one file: nothing happens
    assert second.exists() and third.exists()
    assert errno_of(os.link, folder / "sub", folder / "hard") == errno.EPERM


def _replace_by_file(path: Path) -> None:
    (path.parent / "new").touch()
    (path.parent / "new").rename(path)


def _replace_by_fifo(path: Path) -> None:
    os.mkfifo(path.parent / "new")
    (path.parent / "new").rename(path)


@pytest.mark.parametrize("take_away", [Path.unlink, _replace_by_file, _replace_by_fifo])
def test_one_of_two_names_goes(shared_mount: Mount, folder: Path, take_away: Callable[[Path], None]) -> None:
    """The file goes on under its other name, whichever of the two was looked up last."""
    for kept_is_last in (False, True):
        kept, lost = folder / f"kept-{kept_is_last}", folder / "sub" / f"lost-{kept_is_last}"
        lost.parent.mkdir(exist_ok=True)
        kept.write_bytes(b"content")
        os.link(kept, lost)
        shared_mount.remount()
        for path in (lost, kept) if kept_is_last else (kept, lost):
            assert path.stat().st_nlink == 2
        take_away(lost)
        assert kept.stat().st_nlink == 1
        with kept.open("r+b", buffering=0) as file:
            file.write(b"CONTENT")
        kept.chmod(0o600)
        os.truncate(kept, 3)
        run("sync", "--file-system", folder)
        assert kept.read_bytes() == b"CON"


def test_symbolic_links(shared_mount: Mount, folder: Path) -> None:
    targets = ["x", "../elsewhere", "/absolute/DOE^JANE", "é" * 2000, "a/" * 2000 + "end"]
    for number, target in enumerate(targets):
        (folder / f"link{number}").symlink_to(target)
    shared_mount.remount()
    for number, target in enumerate(targets):
        link = folder / f"link{number}"
        assert os.readlink(link) == target
        assert link.lstat().st_size == len(os.fsencode(target))
        assert stat.S_ISLNK(link.lstat().st_mode)
    (folder / "x").write_bytes(b"followed")
    assert (folder / "link0").read_bytes() == b"followed"
    assert errno_of(os.symlink, "again", folder / "link0") == errno.EEXIST


def test_fifos_and_sockets(shared_mount: Mount, folder: Path) -> None:
    os.mkfifo(folder / "fifo", 0o640)
    server = socket.socket(socket.AF_UNIX)
    directory = os.open(folder, os.O_RDONLY)
    server.bind(f"/proc/self/fd/{directory}/socket")  # a path short enough for AF_UNIX
    server.listen()
    reader = os.open(folder / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(folder / "fifo", os.O_WRONLY)
    os.write(writer, b"through")
    assert os.read(reader, 100) == b"through"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"/proc/self/fd/{directory}/socket")
    for descriptor in (reader, writer, directory):
        os.close(descriptor)
    server.close()
    shared_mount.remount()
    assert stat.S_ISFIFO((folder / "fifo").stat().st_mode)
    assert stat.S_IMODE((folder / "fifo").stat().st_mode) == 0o640
    assert stat.S_ISSOCK((folder / "socket").stat().st_mode)


def test_rename_noreplace(folder: Path) -> None:
    (folder / "a").write_bytes(b"a")
    (folder / "b").write_bytes(b"b")
    assert errno_of(renameat2, folder / "a", folder / "b", RENAME_NOREPLACE) == errno.EEXIST
    assert ((folder / "a").read_bytes(), (folder / "b").read_bytes()) == (b"a", b"b")
    renameat2(folder / "a", folder / "c", RENAME_NOREPLACE)
    assert sorted(os.listdir(folder)) == ["b", "c"]
    assert (folder / "c").read_bytes() == b"a"


def test_rename_exchange(shared_mount: Mount, folder: Path) -> None:
    long_name = folder / ("n" * 250)
    long_name.write_bytes(b"file")
    (folder / "directory").mkdir()
    (folder / "directory" / "inside").write_bytes(b"inside")
    renameat2(long_name, folder / "directory", RENAME_EXCHANGE)
    shared_mount.remount()
    assert (folder / "directory").read_bytes() == b"file"
    assert (long_name / "inside").read_bytes() == b"inside"
    assert errno_of(renameat2, long_name, folder / "absent", RENAME_EXCHANGE) == errno.ENOENT


def test_rename_over_what_is_there(folder: Path) -> None:
    for name in ("empty", "full", "directory"):
        (folder / name).mkdir()
    (folder / "full" / "x").touch()
    (folder / "file").write_bytes(b"file")
    assert errno_of(os.rename, folder / "directory", folder / "full") in (errno.ENOTEMPTY, errno.EEXIST)
    assert errno_of(os.rename, folder / "directory", folder / "file") == errno.ENOTDIR
    assert errno_of(os.rename, folder / "file", folder / "empty") == errno.EISDIR
    assert errno_of(os.rename, folder / "full", folder / "full" / "below") == errno.EINVAL
    assert errno_of(os.rmdir, folder / "full") in (errno.ENOTEMPTY, errno.EEXIST)
    os.rename(folder / "full", folder / "empty")
    assert sorted(os.listdir(folder)) == ["directory", "empty", "file"]
    assert os.listdir(folder / "empty") == ["x"]


def test_directories_moved_with_open_files_below(shared_mount: Mount, folder: Path) -> None:
    (folder / "a" / "b").mkdir(parents=True)
    with (folder / "a" / "b" / "f").open("wb") as file:
        file.write(b"x" * 70_000)
        file.flush()
        (folder / "a").rename(folder / "moved")
        file.write(b"y" * 70_000)
        file.flush()
        os.fsync(file.fileno())
        (folder / "new").mkdir()
        (folder / "moved" / "b").rename(folder / "new" / "b")
        file.write(b"z")
    shared_mount.remount()
    assert (folder / "new" / "b" / "f").read_bytes() == b"x" * 70_000 + b"y" * 70_000 + b"z"


def test_link_counts_of_directories(folder: Path) -> None:
    before = folder.stat().st_nlink
    for number in range(3):
        (folder / str(number)).mkdir()
    assert folder.stat().st_nlink == before + 3
    (folder / "0").rename(folder / "1" / "0")
    (folder / "2").rmdir()
    assert folder.stat().st_nlink == before + 1


def test_negative_lookups_end_when_the_name_appears(folder: Path) -> None:
    for way in (Path.touch, Path.mkdir, lambda path: os.mkfifo(path), lambda path: path.symlink_to("x")):
        path = folder / "name"
        assert not path.is_symlink() and not path.exists()
        way(path)
        path.lstat()
        path.rmdir() if path.is_dir() else path.unlink()
        assert errno_of(os.lstat, path) == errno.ENOENT


def test_nothing_is_left_of_deleted_names(make_mount, seed: int) -> None:  # type: ignore[no-untyped-def]
    """After everything was deleted the ciphertext tree holds the root directory alone."""
    mount = make_mount()
    mount.mount()
    rng = random.Random(seed)
    for number in range(60):
        directory = mount.path / f"{'d' * rng.randint(1, 240)}{number}"
        directory.mkdir()
        (directory / ("f" * rng.randint(1, 255))).write_bytes(b"x")
        (directory / "link").symlink_to("y")
        directory.rename(mount.path / f"{'r' * rng.randint(1, 240)}{number}")
    for directory in list(mount.path.iterdir()):
        for entry in list(directory.iterdir()):
            entry.unlink()
        directory.rmdir()
    mount.unmount()
    if isinstance(mount, CryptfsMount):
        assert [path.name for path in (mount.vault / "tree").iterdir()] == ["@dir"]
    else:
        assert list(mount.path.iterdir()) == []

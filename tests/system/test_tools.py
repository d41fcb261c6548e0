"""The tools that people use on an archive: rsync, git, tar, cp, find, du."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from .mounts import Mount
from .processes import run

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real tree of about 500 source files: part of Python's standard library."""
    library = Path(sysconfig.get_path("stdlib"))
    target = tmp_path_factory.mktemp("source") / "tree"
    skipped = shutil.ignore_patterns(
        "site-packages", "dist-packages", "test", "tests", "__pycache__", "*.so", "config-*"
    )
    shutil.copytree(library, target, symlinks=True, ignore=skipped)
    return target


def _decorate(tree: Path) -> None:
    """All that rsync -aHAX can carry."""
    tree.mkdir()
    (tree / "directory").mkdir(mode=0o750)
    (tree / "empty").mkdir(mode=0o700)
    (tree / "file").write_bytes(b"content" * 30_000)
    os.link(tree / "file", tree / "directory" / "hard link")
    (tree / "symbolic link").symlink_to("directory/hard link")
    (tree / "dangling").symlink_to("nowhere")
    os.mkfifo(tree / "fifo")
    (tree / ("long " * 51)).write_bytes(b"long")
    (tree / "DOE^JANE^^^.dcm").write_bytes(b"\0" * 128 + b"DICM")
    (tree / "DOE^JANE^^^.dcm").chmod(0o640)
    os.chown(tree / "DOE^JANE^^^.dcm", 1234, 4321)
    os.setxattr(tree / "file", "user.comment", b"a comment")
    os.setxattr(tree / "directory", "user.comment", b"on a directory")
    run("setfacl", "-m", "u:1234:rw,g:4321:r", tree / "file")
    run("setfacl", "-m", "u:1234:rwx,d:u:1234:rx", tree / "directory")
    for number, path in enumerate(sorted(tree.rglob("*"), reverse=True)):
        os.utime(path, ns=(10**18 + number, 10**18 + number), follow_symlinks=False)


def test_rsync_round_trip(make_mount: Callable[[], Mount], tmp_path: Path) -> None:
    mount = make_mount()
    mount.mount(xattrs=True)
    original, returned = tmp_path / "original", tmp_path / "returned"
    _decorate(original)
    run("rsync", "-aHAX", f"{original}/", f"{mount.path}/tree/")
    mount.remount()
    compare = ("rsync", "-aHAXni", "--checksum", "--delete")
    assert run(*compare, f"{original}/", f"{mount.path}/tree/") == ""
    run("rsync", "-aHAX", f"{mount.path}/tree/", f"{returned}/")
    assert run(*compare, f"{original}/", f"{returned}/") == ""
    assert (mount.path / "tree" / "file").stat().st_nlink == 2
    acl = run("getfacl", "-pncs", mount.path / "tree" / "file")
    assert acl == run("getfacl", "-pncs", original / "file")


def test_rsync_updates(folder: Path, shared_mount: Mount, source_tree: Path) -> None:
    """A second run after some changes, both with temporary files and in place."""
    work = folder / "work"
    shutil.copytree(source_tree / "json", work)
    for flag in ("--inplace", "--delay-updates", "--append-verify"):
        target = folder / flag.strip("-")
        run("rsync", "-a", f"{work}/", f"{target}/")
        with (work / "decoder.py").open("ab") as file:
            file.write(b"# one more line\n")
        run("rsync", "-a", "--no-whole-file", flag, f"{work}/", f"{target}/")
        shared_mount.remount()
        assert run("diff", "-r", work, target) == ""


def test_git(folder: Path, shared_mount: Mount, source_tree: Path) -> None:
    repository, clone = folder / "repository", folder / "clone"
    git = ("git", "-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main")
    git += ("-c", "safe.directory=*", "-c", "gc.auto=0", "-c", "maintenance.auto=false")
    shutil.copytree(source_tree / "email", repository)
    run(*git, "init", "-q", repository)
    run(*git, "add", ".", cwd=repository)
    run(*git, "commit", "-qm", "first", cwd=repository)
    (repository / "message.py").unlink()
    (repository / "added.txt").write_text("added")
    run(*git, "add", "-A", cwd=repository)
    run(*git, "commit", "-qm", "second", cwd=repository)
    run(*git, "gc", "-q", "--aggressive", cwd=repository)
    run(*git, "clone", "-q", "--no-local", repository, clone)
    shared_mount.remount()
    for place in (repository, clone):
        run(*git, "fsck", "--full", "--strict", cwd=place)
        assert run(*git, "status", "--porcelain", cwd=place) == ""
        assert len(run(*git, "log", "--oneline", cwd=place).splitlines()) == 2
    run(*git, "checkout", "-q", "HEAD~1", cwd=clone)
    assert (clone / "message.py").read_bytes() == (source_tree / "email" / "message.py").read_bytes()
    assert not (clone / "added.txt").exists()


def _tar_digest(tree: Path) -> str:
    """One hash of everything tar keeps: names, modes, owners, times, links and content."""
    archive = subprocess.run(
        ["tar", "--sort=name", "--format=posix", "--pax-option=delete=atime,delete=ctime", "-cf", "-", "."],
        cwd=tree,
        capture_output=True,
        check=True,
    )
    return hashlib.sha256(archive.stdout).hexdigest()


def test_tar_of_a_source_tree(folder: Path, shared_mount: Mount, source_tree: Path, tmp_path: Path) -> None:
    archive = tmp_path / "tree.tar"
    run("tar", "--format=posix", "-cf", archive, ".", cwd=source_tree)
    run("tar", "-xpf", archive, cwd=folder)
    shared_mount.remount()
    assert run("diff", "-r", "--no-dereference", source_tree, folder) == ""
    assert _tar_digest(folder) == _tar_digest(source_tree)


def test_cp_and_mv(folder: Path, shared_mount: Mount, source_tree: Path, tmp_path: Path) -> None:
    run("cp", "-a", source_tree / "asyncio", folder / "copied")
    run("cp", "-a", folder / "copied", folder / "again")
    run("mv", folder / "again", tmp_path / "out")
    run("mv", tmp_path / "out", folder / "back")
    shared_mount.remount()
    for tree in (folder / "copied", folder / "back"):
        assert _tar_digest(tree) == _tar_digest(source_tree / "asyncio")
    assert not (folder / "again").exists()
    run("rm", "-r", folder / "copied")
    assert os.listdir(folder) == ["back"]


def test_find_du_and_sparse_cp(folder: Path, source_tree: Path) -> None:
    run("cp", "-a", source_tree / "json", folder / "tree")
    assert sorted(run("find", ".", cwd=folder / "tree").split()) == sorted(
        run("find", ".", cwd=source_tree / "json").split()
    )
    apparent = ("du", "-s", "--apparent-size", "--block-size=1")
    files = [path for path in (folder / "tree").rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in files)
    assert int(run(*apparent, *files[:1]).split()[0]) == files[0].stat().st_size
    assert sum(int(line.split()[0]) for line in run(*apparent, *files).splitlines()) == total
    with (folder / "sparse").open("wb") as file:
        file.truncate(20 << 20)
        file.write(b"head")
    run("cp", "--sparse=always", folder / "sparse", folder / "copy")
    run("cmp", folder / "sparse", folder / "copy")
    assert (folder / "copy").stat().st_blocks * 512 < 2 << 20

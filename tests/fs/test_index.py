"""The metadata index is never believed where the ciphertext says otherwise.

Each test changes the ciphertext tree behind the filesystem's back and compares all that a filesystem with the
index shows with what one without it shows.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryptfs.errors import CryptfsError
from cryptfs.fs import FileSystem, upkeep
from cryptfs.fs.comparedknowledge import ComparedKnowledge
from cryptfs.fs.metadata import IndexedKnowledge
from cryptfs.fs.types import Attr, SetAttr
from cryptfs.index import catalog as catalog_module
from cryptfs.index.environment import Environment
from tests.waiting import wait_for_another_time

from .support import ME, get, make_vault, open_fs, put

Shown = dict[bytes, object]


@pytest.fixture(autouse=True)
def believe_fresh_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' files are younger than those that are believed; their times are exact enough here."""
    monkeypatch.setattr(catalog_module, "RACY_NS", 0)


@pytest.fixture
def vault(tmp_path: Path) -> Path:
    """Directories with files, links of both kinds, long names and an empty directory."""
    path = make_vault(tmp_path / "vault")
    fs = open_fs(path)
    for d in range(3):
        made = fs.mkdir(1, b"study%d" % d, 0o755, ME)
        for i in range(12):
            put(fs, made.ino, b"image%02d.dcm" % i, b"%d-%d" % (d, i) * (50 * i + 1))
        put(fs, made.ino, b"n" * 230, b"a long name")
        fs.symlink(made.ino, b"link", b"image00.dcm", ME)
        source = fs.lookup(made.ino, b"image03.dcm")
        fs.link(source.ino, made.ino, b"second name")
        fs.mknod(made.ino, b"pipe", stat.S_IFIFO | 0o600, 0, ME)
        inner = fs.mkdir(made.ino, b"series", 0o750, ME)
        put(fs, inner.ino, b"deep", b"content")
        fs.mkdir(made.ino, b"empty", 0o700, ME)
    fs.close()
    return path


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def show(fs: FileSystem, *, content: bool = True) -> Shown:
    """Everything that can be seen: by listing, by looking up, by asking again, by reading."""
    shown: Shown = {}

    def walk(ino: int, path: bytes) -> None:
        directory = fs.opendir(ino)
        try:
            entries = [(name, attr) for name, attr, _ in fs.readdir(directory, 0)]
            for _, attr in entries:
                if attr.ino:
                    fs.remember(attr.ino)
        finally:
            fs.releasedir(directory)
        for name, attr in entries:
            where = path + b"/" + name
            if not attr.ino:
                shown[where] = "damaged"
                continue
            found = fs.lookup(ino, name)
            assert plain(found) == plain(attr) == plain(fs.getattr(attr.ino)), where
            shown[where] = plain(attr)
            if stat.S_ISDIR(attr.mode):
                walk(attr.ino, where)
            elif content and stat.S_ISREG(attr.mode):
                try:
                    shown[where + b" content"] = get(fs, ino, name)
                except OSError as error:
                    shown[where + b" content"] = error.errno
            fs.forget(attr.ino, 2)
        for name in (b"image00.dcm", b"absent", b"n" * 230):
            try:
                shown[path + b" has " + name] = plain(fs.lookup(ino, name))
                fs.forget(fs.lookup(ino, name).ino, 2)
            except FileNotFoundError:
                shown[path + b" has " + name] = None
            except OSError as error:
                shown[path + b" has " + name] = error.errno

    shown[b"/"] = plain(fs.getattr(1))
    walk(1, b"")
    return shown


def plain(attr: Attr) -> Attr:
    """Without what changes by itself: access times of directories, and blocks, allocated late."""
    atime = 0 if stat.S_ISDIR(attr.mode) else attr.atime_ns
    return attr._replace(atime_ns=atime, blocks=0, generation=0)


def truth(vault: Path) -> Shown:
    fs = open_fs(vault)
    try:
        return show(fs)
    finally:
        fs.close()


def fill(vault: Path, state: Path) -> None:
    """A session that leaves everything in the index. What is changed after it has another time."""
    fs = open_fs(vault, state=state)
    show(fs)
    fs.close()
    wait_for_another_time(vault.parent)


def check(vault: Path, state: Path) -> None:
    """What a session with the index shows, at the first look and at later ones, is the truth.

    The session with the index is the first one after the change.
    """
    fs = open_fs(vault, state=state)
    first, second = show(fs), show(fs, content=False)
    fs.close()
    expected = truth(vault)
    assert first == expected
    assert second == {where: what for where, what in expected.items() if not where.endswith(b" content")}


def objects(vault: Path) -> list[Path]:
    """Object files, in an order that is the same each time."""
    found = [path for path in (vault / "tree").rglob("*") if path.is_file() and not path.name.startswith("@")]
    return sorted(found, key=lambda path: path.stat().st_ino)


def folders(vault: Path) -> list[Path]:
    return sorted(path for path in (vault / "tree").rglob("*") if path.is_dir())


def one_of(vault: Path, *, links: int = 1, size: int = 9000) -> Path:
    return next(p for p in objects(vault) if p.stat().st_nlink == links and p.stat().st_size > size)


# -- changes behind its back


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def remove(vault: Path) -> None:
    one_of(vault).unlink()


def remove_folder(vault: Path) -> None:
    shutil.rmtree(folders(vault)[2])


def add_a_copy(vault: Path) -> None:
    """A second file of the same content and id, under a name that is another file's."""
    one, other = objects(vault)[2:4]
    shutil.copy2(one, other)


def replace_by_rename(vault: Path) -> None:
    one, other = objects(vault)[4:6]
    shutil.copy2(one, one.with_name("aside"))
    one.with_name("aside").rename(other)


def swap_by_rename(vault: Path) -> None:
    swap(*objects(vault)[4:6])


def swap_across_folders(vault: Path) -> None:
    found = objects(vault)
    swap(found[3], next(p for p in found if p.parent != found[3].parent and p.stat().st_nlink == 1))


def swap_in_place(vault: Path) -> None:
    """The same inodes, names, lengths and modification times; other bytes."""
    found = [p for p in objects(vault) if p.stat().st_nlink == 1]
    one, other = next((a, b) for a in found for b in found if a < b and a.stat().st_size == b.stat().st_size)
    for path, data, st in ((one, other.read_bytes(), one.stat()), (other, one.read_bytes(), other.stat())):
        with open(path, "r+b") as file:
            file.write(data)
        os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))


def exchange_folders(vault: Path) -> None:
    found = [path for path in folders(vault) if path.parent == vault / "tree"]
    swap(found[0], found[1])


def touch(vault: Path) -> None:
    for path in objects(vault)[:6]:
        os.utime(path)


def old_times(vault: Path) -> None:
    for path in [*objects(vault), *folders(vault)]:
        os.utime(path, ns=(10**18, 10**18))


def cut(vault: Path) -> None:
    os.truncate(one_of(vault, size=10000), 9000)


def cut_to_nothing(vault: Path) -> None:
    os.truncate(one_of(vault), 0)


def extend(vault: Path) -> None:
    with open(one_of(vault), "ab") as file:
        file.write(b"x" * 500)


def damage_header(vault: Path) -> None:
    with open(one_of(vault), "r+b") as file:
        file.seek(16)
        file.write(b"\xff")


def link(vault: Path) -> None:
    """A second name made below: of an entry whose name is free."""
    found = [p for p in objects(vault) if p.stat().st_nlink == 1]
    found[1].unlink()
    os.link(found[0], found[1])


def unlink_one_of_two(vault: Path) -> None:
    one_of(vault, links=2, size=0).unlink()


def lose_long_name(vault: Path) -> None:
    next((vault / "tree").rglob("@l*.name")).unlink()


def lose_directory_header(vault: Path) -> None:
    next(path for path in (vault / "tree").rglob("*/@dir")).unlink()


def change_directory_header(vault: Path) -> None:
    fs = open_fs(vault)
    fs.setattr(fs.lookup(1, b"study1").ino, SetAttr(mode=0o711, uid=12345))
    fs.close()


def foreign_entry(vault: Path) -> None:
    (folders(vault)[0] / ".nfs000001").write_text("x")
    (folders(vault)[0] / ("A" * 44)).write_text("x")


def file_for_folder(vault: Path) -> None:
    path = folders(vault)[-1]
    shutil.rmtree(path)
    shutil.copy2(objects(vault)[0], path)


def edit_elsewhere(vault: Path) -> None:
    """A session of another host, which has an index of its own or none."""
    fs = open_fs(vault)
    one = fs.lookup(1, b"study0")
    handle = fs.open(fs.lookup(one.ino, b"image01.dcm").ino, os.O_RDWR)
    fs.write(handle, 0, b"edited")
    fs.release(handle)
    fs.rename(one.ino, b"image02.dcm", one.ino, b"image04.dcm", 0)
    fs.unlink(one.ino, b"image05.dcm")
    fs.setattr(fs.lookup(one.ino, b"image06.dcm").ino, SetAttr(mode=0o600, mtime_ns=10**18))
    put(fs, one.ino, b"added", b"new")
    fs.mkdir(one.ino, b"added folder", 0o755, ME)
    fs.rename(1, b"study2", one.ino, b"moved", 0)
    fs.close()


CHANGES = [
    remove, remove_folder, add_a_copy, replace_by_rename, swap_by_rename, swap_across_folders, swap_in_place,
    exchange_folders, touch, old_times, cut, cut_to_nothing, extend, damage_header, link, unlink_one_of_two,
    lose_long_name, lose_directory_header, change_directory_header, foreign_entry, file_for_folder,
    edit_elsewhere,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_change_is_seen_by_the_next_session(vault: Path, state: Path, change: Callable[[Path], None]) -> None:
    fill(vault, state)
    change(vault)
    check(vault, state)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_change_is_seen_by_a_reader(vault: Path, state: Path, change: Callable[[Path], None]) -> None:
    """A mount that is read-only shows the same with the index as without, whatever others change."""
    fill(vault, state)
    with_index, without = open_fs(vault, read_only=True, state=state), open_fs(vault, read_only=True)
    assert isinstance(with_index.knowledge, ComparedKnowledge)
    assert show(with_index) == show(without)
    answered = with_index.knowledge.answered
    assert answered >= 40, "the listings are answered from records"
    change(vault)
    assert show(with_index) == show(without)
    with_index.close()
    without.close()
    with_index, without = open_fs(vault, read_only=True, state=state), open_fs(vault, read_only=True)
    assert show(with_index) == show(without)
    with_index.close()
    without.close()


def test_a_reader_compares_no_directory_that_has_two_keys(vault: Path, state: Path) -> None:
    """In the middle of a re-encryption an entry may stand under either, so its place cannot be told."""
    fill(vault, state)
    fs = open_fs(vault, read_only=True, state=state)
    root = fs._nodes.root
    directory = fs._directories.get(root)
    assert fs.knowledge.compare(root, directory) is not None
    directory.old = directory.names
    assert fs.knowledge.compare(root, directory) is None
    directory.old = None
    fs.close()


def test_a_reader_leaves_the_index_as_it_is(vault: Path, state: Path) -> None:
    fill(vault, state)
    folder = next(state.rglob("metadata"))
    before = {folder / name: (folder / name).read_bytes() for name in ("data.mdb", "seal")}
    fs = open_fs(vault, read_only=True, state=state)
    show(fs)
    with pytest.raises(CryptfsError, match="read-only"):
        upkeep.index_of(fs)
    assert fs.stats()["index"].startswith("compared at each listing")
    fs.close()
    assert {path: path.read_bytes() for path in before} == before
    fs = open_fs(vault, state=state)
    assert fs.knowledge.numbers()["begun_anew"] == ""
    fs.close()


@pytest.mark.parametrize("what", ["nothing", "in use", "damaged", "another session", "removed"])
def test_a_reader_without_an_index_to_believe(vault: Path, state: Path, what: str) -> None:
    writer = None
    if what != "nothing":
        fill(vault, state)
    data = next(state.rglob("metadata/data.mdb"), None)  # there is that of the rollback witness, too
    if what == "in use":
        writer = open_fs(vault, state=state)
    elif what == "damaged":
        assert data is not None
        data.write_bytes(data.read_bytes()[: 3 * 4096])
    elif what == "another session":
        open_fs(vault).close()
    elif what == "removed":
        assert data is not None
        data.unlink()
    fs = open_fs(vault, read_only=True, state=state)
    assert fs.stats()["index"].startswith("none (mounted read-only: ")
    shown = show(fs)
    fs.close()
    if writer is not None:
        writer.close()
    assert shown == truth(vault)


@pytest.mark.parametrize("how", ["moved", "copied", "copied with times", "in place", "in place with times"])
def test_older_tree_is_seen(vault: Path, state: Path, tmp_path: Path, how: str) -> None:
    """A backup is restored: as folders, file by file over what is there, with and without its times."""
    shutil.copytree(vault / "tree", tmp_path / "backup", symlinks=True)
    edit_elsewhere(vault)
    fill(vault, state)
    if how.startswith("in place"):
        for path in objects(vault):
            source = tmp_path / "backup" / path.relative_to(vault / "tree")
            if source.exists():
                path.write_bytes(source.read_bytes())
                if how.endswith("times"):
                    shutil.copystat(source, path)
    else:
        (vault / "tree").rename(tmp_path / "newer")
        if how == "moved":
            (tmp_path / "backup").rename(vault / "tree")
        else:
            copy = shutil.copy2 if how.endswith("times") else shutil.copy
            shutil.copytree(tmp_path / "backup", vault / "tree", copy_function=copy)
    check(vault, state)


def test_copy_of_the_vault_is_not_taken_for_it(vault: Path, state: Path, tmp_path: Path) -> None:
    fill(vault, state)
    shutil.copytree(vault, tmp_path / "copy")
    one = objects(tmp_path / "copy")[3]
    one.unlink()
    check(tmp_path / "copy", state)
    check(vault, state)


def test_index_of_an_older_state_put_back(vault: Path, state: Path, tmp_path: Path) -> None:
    """A snapshot of the host's state directory is restored beside a vault that went on."""
    fill(vault, state)
    shutil.copytree(state, tmp_path / "older")
    edit_elsewhere(vault)
    fill(vault, state)
    shutil.rmtree(state)
    shutil.copytree(tmp_path / "older", state)
    check(vault, state)


def test_index_can_be_removed_at_any_time(vault: Path, state: Path) -> None:
    fill(vault, state)
    shutil.rmtree(state)
    check(vault, state)
    fs = open_fs(vault, state=state)
    show(fs)
    shutil.rmtree(state)
    put(fs, 1, b"more", b"content")
    shown = show(fs)
    fs.close()
    assert shown == truth(vault)
    check(vault, state)


def test_killed_session_is_not_believed(vault: Path, state: Path) -> None:
    """The process is gone after it changed things, with and without what it had collected."""
    fill(vault, state)
    pid = os.fork()
    if pid == 0:
        fs = open_fs(vault, state=state)
        show(fs)
        study = fs.lookup(1, b"study0")
        fs.unlink(study.ino, b"image01.dcm")
        put(fs, study.ino, b"added", b"content")
        os._exit(0)
    os.waitpid(pid, 0)
    check(vault, state)


def test_session_without_index_in_between(vault: Path, state: Path) -> None:
    """Even if it changed nothing that could be seen by times."""
    fill(vault, state)
    fs = open_fs(vault)
    fs.close()
    fs = open_fs(vault, state=state)
    assert "without it" in knowledge(fs).catalog.found
    fs.close()


# -- one session


def knowledge(fs: FileSystem) -> IndexedKnowledge:
    assert isinstance(fs.knowledge, IndexedKnowledge)
    return fs.knowledge


@pytest.fixture
def both(
    vault: Path, state: Path, tmp_path: Path
) -> Iterator[Callable[[Callable[[FileSystem], None]], None]]:
    """Do something with the index and without it (on a copy), and compare what is seen then."""
    fill(vault, state)
    subprocess.run(["cp", "-a", vault, tmp_path / "copy"], check=True)
    with_index, without = open_fs(vault, state=state), open_fs(tmp_path / "copy")
    show(with_index)

    def compare(change: Callable[[FileSystem], None]) -> None:
        change(with_index)
        change(without)
        assert comparable(show(with_index)) == comparable(show(without))

    yield compare
    with_index.close()
    without.close()
    assert comparable(truth(vault)) == comparable(truth(tmp_path / "copy"))
    check(vault, state)


def comparable(shown: Shown) -> Shown:
    """What two vaults with the same content have in common: not inode numbers, times, directories' sizes."""
    return {
        where: (what.mode, what.nlink, what.uid, what.gid, 0 if stat.S_ISDIR(what.mode) else what.size)
        if isinstance(what, Attr)
        else what
        for where, what in shown.items()
    }


def child(fs: FileSystem, *names: bytes) -> int:
    ino = 1
    for name in names:
        ino = fs.lookup(ino, name).ino
    return ino


SESSION_CHANGES: dict[str, Callable[[FileSystem], object]] = {
    "create": lambda fs: put(fs, child(fs, b"study0"), b"new", b"content"),
    "overwrite": lambda fs: fs.write(
        fs.open(child(fs, b"study0", b"image05.dcm"), os.O_RDWR), 100000, b"longer"
    ),
    "truncate": lambda fs: fs.setattr(child(fs, b"study0", b"image05.dcm"), SetAttr(size=3)),
    "chmod": lambda fs: fs.setattr(child(fs, b"study0", b"image05.dcm"), SetAttr(mode=0o400)),
    "chmod of a directory": lambda fs: fs.setattr(child(fs, b"study0"), SetAttr(mode=0o700, uid=77)),
    "utimes": lambda fs: fs.setattr(child(fs, b"study0", b"image05.dcm"), SetAttr(mtime_ns=5, atime_ns=6)),
    "unlink": lambda fs: fs.unlink(child(fs, b"study0"), b"image05.dcm"),
    "unlink of one of two names": lambda fs: fs.unlink(child(fs, b"study0"), b"second name"),
    "unlink of a long name": lambda fs: fs.unlink(child(fs, b"study0"), b"n" * 230),
    "link": lambda fs: fs.link(child(fs, b"study0", b"image05.dcm"), child(fs, b"study1"), b"linked"),
    "rename": lambda fs: fs.rename(child(fs, b"study0"), b"image05.dcm", child(fs, b"study1"), b"renamed", 0),
    "rename over": lambda fs: fs.rename(
        child(fs, b"study0"), b"image05.dcm", child(fs, b"study1"), b"image06.dcm", 0
    ),
    "exchange": lambda fs: fs.rename(
        child(fs, b"study0"), b"image05.dcm", child(fs, b"study1"), b"series", 2
    ),
    "rename of a directory": lambda fs: fs.rename(1, b"study0", child(fs, b"study1"), b"moved", 0),
    "rename over a directory": lambda fs: fs.rename(
        child(fs, b"study0"), b"series", child(fs, b"study0"), b"empty", 0
    ),
    "mkdir": lambda fs: put(fs, fs.mkdir(child(fs, b"study0"), b"made", 0o755, ME).ino, b"in it", b"x"),
    "rmdir": lambda fs: fs.rmdir(child(fs, b"study0"), b"empty"),
    "symlink": lambda fs: fs.symlink(child(fs, b"study0"), b"new link", b"target", ME),
    "mknod": lambda fs: fs.mknod(child(fs, b"study0"), b"new pipe", stat.S_IFIFO | 0o600, 0, ME),
}


@pytest.mark.thorough
@pytest.mark.parametrize("what", SESSION_CHANGES)
def test_change_in_a_session_is_seen(
    both: Callable[[Callable[[FileSystem], object]], None], what: str
) -> None:
    both(SESSION_CHANGES[what])


def test_no_lower_call_in_steady_state(vault: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once everything was listed, neither listing nor looking up asks below; hard links do."""
    fs = open_fs(vault, state=state)
    fs._committer.stop()
    show(fs)
    for study in (b"study0", b"study1", b"study2"):
        fs.unlink(child(fs, study), b"second name")
    before = show(fs, content=False)
    knowledge(fs).catalog.flush()

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a call to the lower file system")

    for name in ("open", "stat", "fstat", "listdir", "scandir", "pread", "dup"):
        monkeypatch.setattr(os, name, refuse)
    assert show(fs, content=False) == before
    monkeypatch.undo()
    fs.close()


def test_first_walk_opens_no_file(vault: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first listing after a mount looks at each file once, without opening it."""
    fill(vault, state)
    opened = []
    fs = open_fs(vault, state=state)
    fs._committer.stop()
    really = os.open

    def record(path: object, *args: object, **kwargs: object) -> int:
        opened.append(os.fsencode(path))  # type: ignore[call-overload]
        return really(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", record)
    directory = fs.opendir(child(fs, b"study0"))
    opened.clear()
    assert len(list(fs.readdir(directory, 0))) == 18
    monkeypatch.undo()
    # Two hard links, two directories with their headers; the sidecar of the long name.
    assert len(opened) == 7
    fs.close()


def test_change_while_it_is_compared(vault: Path, state: Path) -> None:
    """Files are made, removed and renamed while the first listing goes on; then the records are complete."""
    fill(vault, state)
    fs = open_fs(vault, state=state)
    study = child(fs, b"study0")
    directory = fs.opendir(study)
    offset = 0
    for name in (b"one", b"two", b"three"):
        _, attr, offset = next(fs.readdir(directory, offset))
        fs.remember(attr.ino)
        put(fs, study, name, name)
    fs.unlink(study, b"image07.dcm")
    fs.rename(study, b"image08.dcm", study, b"renamed", 0)
    fs.rename(study, b"two", child(fs, b"study1"), b"two", 0)
    for _ in fs.readdir(directory, offset):
        pass
    fs.releasedir(directory)
    assert knowledge(fs)._trusted(fs._nodes.get(study)) is not None
    first = show(fs)
    fs.close()
    assert first == truth(vault)


def test_damaged_record_is_read_anew(vault: Path, state: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(vault, state)
    fs = open_fs(vault, state=state)
    before = show(fs)
    catalog = knowledge(fs).catalog
    catalog.flush()
    keys = catalog.keys(b"E")
    catalog._environment._write([(key, b"\0" * 80) for key in keys[::3]])
    assert show(fs) == before
    assert "is damaged" in caplog.text
    fs.close()
    check(vault, state)


def test_full_disk_during_a_session(
    vault: Path, state: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fs = open_fs(vault, state=state)
    show(fs)

    def full(self: Environment, sealed: object, removed: object) -> None:
        raise self._fail(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    monkeypatch.setattr(Environment, "_write", full)
    put(fs, child(fs, b"study0"), b"more", b"content")
    knowledge(fs).catalog.flush()
    shown = show(fs)
    assert "No space left on device" in caplog.text
    assert "No space left" in fs.stats()["index"]
    fs.close()
    assert shown == truth(vault)


def test_forgotten_directories_are_compared_again(
    vault: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than so many directories are remembered; the others answer as before."""
    monkeypatch.setattr("cryptfs.fs.metadata.SHELVES_MAX", 3)
    fs = open_fs(vault, state=state)
    for _ in range(3):
        put(fs, child(fs, b"study0"), b"more", b"content")
        fs.rename(child(fs, b"study0"), b"more", child(fs, b"study1", b"series"), b"more", 0)
        shown = show(fs)
    assert len(knowledge(fs)._shelves) <= 3
    fs.close()
    assert shown == truth(vault)
    check(vault, state)


def test_young_files_are_not_recognised_by_their_times(
    vault: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changed at the end of a session might have changed again in the same tick of the clock."""
    monkeypatch.undo()
    fill(vault, state)
    fs = open_fs(vault, state=state)
    assert knowledge(fs).catalog.believed_until < time.time_ns() - 2 * 10**9
    fs.close()


@pytest.mark.thorough
def test_random_changes_over_sessions(tmp_path: Path, state: Path, seed: int) -> None:
    """Sessions with the index, changes behind their back, and sessions without it, in any order."""
    rng = random.Random(seed)
    vault = make_vault(tmp_path / "v")
    for _ in range(25):
        fs = open_fs(vault, state=state if rng.random() < 0.8 else None)
        if rng.random() < 0.5:
            show(fs)
        for _ in range(rng.randrange(12)):
            change_at_random(fs, rng)
        shown = show(fs)
        fs.close()
        assert shown == truth(vault)
        wait_for_another_time(tmp_path)
        files = objects(vault)
        if len(files) > 2:
            rng.choice((touch, old_times, lambda _vault, files=files: rng.choice(files).unlink()))(vault)
        check(vault, state)


def change_at_random(fs: FileSystem, rng: random.Random) -> None:
    parents = [1]
    for ino in parents:
        directory = fs.opendir(ino)
        found = [(name, attr) for name, attr, _ in fs.readdir(directory, 0)]
        for _, attr in found:
            fs.remember(attr.ino)
        fs.releasedir(directory)
        parents += [attr.ino for _, attr in found if stat.S_ISDIR(attr.mode)]
    one, other = rng.choice(parents), rng.choice(parents)
    names = [b"a", b"b", b"c", b"L" * 240]
    name, second = rng.choice(names), rng.choice(names)
    try:
        match rng.randrange(7):
            case 0 | 1:
                put(fs, one, name, os.urandom(rng.randrange(100)))
            case 2:
                fs.mkdir(one, name, 0o755, ME)
            case 3:
                fs.rename(one, name, other, second, rng.choice((0, 0, 2)))
            case 4:
                fs.unlink(one, name)
            case 5:
                fs.link(child(fs, name), other, second)
            case 6:
                fs.setattr(fs.lookup(one, name).ino, SetAttr(mode=rng.choice((0o600, 0o640))))
    except OSError as error:
        if error.errno in (errno.EIO, errno.ESTALE):
            raise

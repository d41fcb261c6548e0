"""The process dies at any instant: what the lower file system holds then is opened again.

A copy of the vault's folder while it is in use is exactly what a killed process leaves.
Beyond that, `lose` plays a power cut for files that were never synced: their ciphertext
is cut, zeroed or empty.
"""

from __future__ import annotations

import os
import random
import shutil
import threading
from pathlib import Path

import pytest

from cryptfs.fs import FileSystem
from cryptfs.fs.file import File
from cryptfs.fs.recovery import overlays
from cryptfs.fs.types import SetAttr
from tests.fs.support import ME, close_fs, get, make_vault, open_fs, put


def snapshot(fs: FileSystem, to: Path) -> Path:
    """What a killed process would leave."""
    shutil.copytree(fs.vault.path, to)
    return to


def read_all(fs: FileSystem, ino: int = 1) -> dict[bytes, bytes]:
    """Every file of one directory; any error is a failure."""
    dh = fs.opendir(ino)
    entries = [(name, attr) for name, attr, _ in fs.readdir(dh, 0)]
    fs.releasedir(dh)
    assert all(attr.nlink for _, attr in entries), "an entry is damaged"
    return {name: get(fs, ino, name) for name, _ in entries}


@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(12))
def test_synced_content_survives_and_everything_opens(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    fs = open_fs(make_vault(tmp_path / "vault"))
    names = [b"a.dcm", b"index", b"b.dcm", b"index-wal"]
    content = {name: bytearray() for name in names}
    handles = {name: fs.create(1, name, 0o600, ME, os.O_RDWR)[0] for name in names}
    synced: dict[bytes, bytes] = {}
    for step in range(60):
        name = rng.choice(names)
        data = content[name]
        match rng.randrange(6):
            case 0 | 1:
                at = rng.randrange(len(data) + 1)
                piece = rng.randbytes(rng.choice([1, 24, 4096, 65536, 200_000]))
                assert fs.write(handles[name], at, piece) == len(piece)
                data[at : at + len(piece)] = piece
            case 2:
                size = rng.choice([0, len(data) // 2, len(data) + 5000])
                fs.setattr(fs.lookup(1, name).ino, SetAttr(size=size), handles[name])
                data[size:] = b""
                data.extend(bytes(size - len(data)))
            case 3:
                fs.flush(handles[name])
            case 4:
                fs.fsync(handles[name])
                synced[name] = bytes(data)
            case 5:
                assert bytes(fs.read(handles[name], 0, len(data) + 1)) == data
        if step % 10 == 9:
            fs.fsync(handles[name])
            synced[name] = bytes(data)
            copy = snapshot(fs, tmp_path / f"copy{step}")
            again = open_fs(copy)
            found = read_all(again)
            # What was synced this instant is there to the byte; the others open, whatever they hold.
            assert found[name] == synced[name]
            close_fs(again)
            twice = open_fs(copy)
            assert read_all(twice) == found
            close_fs(twice)
            shutil.rmtree(copy)
    for handle in handles.values():
        fs.release(handle)
    close_fs(fs)
    final = open_fs(tmp_path / "vault")
    assert read_all(final) == {name: bytes(data) for name, data in content.items()}
    close_fs(final)


@pytest.mark.parametrize("length", [0, 100, 191, 192, 8191, 8192, 8200, 8232, 9000, 73_000, 150_000])
def test_a_new_file_cut_by_a_power_failure_is_shortened_or_gone(tmp_path: Path, length: int) -> None:
    data = os.urandom(200_000)
    fs = open_fs(make_vault(tmp_path / "vault"))
    put(fs, 1, b"durable", b"kept")
    fs.sync()
    put(fs, 1, b"new.dcm", data)
    copy = snapshot(fs, tmp_path / "copy")
    close_fs(fs)
    newest = max((copy / "tree").iterdir(), key=lambda path: path.stat().st_size)
    os.truncate(newest, length)
    for _ in range(2):  # recovery is the same when done again
        fs = open_fs(copy)
        found = read_all(fs)
        assert found.pop(b"durable") == b"kept"
        if length < 192:
            assert found == {}
        else:
            (whole,) = found.values()
            assert data.startswith(whole) and len(whole) == max(0, length - 8192) // 65576 * 65536
        close_fs(fs)


def test_a_file_that_was_durable_is_never_shortened_silently(tmp_path: Path) -> None:
    vault = make_vault(tmp_path / "vault")
    fs = open_fs(vault)
    put(fs, 1, b"image.dcm", os.urandom(200_000))
    close_fs(fs)
    (path,) = (entry for entry in (vault / "tree").iterdir() if entry.name != "@dir")
    os.truncate(path, 8192 + 2 * 65576)
    fs = open_fs(vault)
    with pytest.raises(OSError, match="Input/output error"):
        get(fs, 1, b"image.dcm")
    close_fs(fs)


def test_what_was_settled_before_an_unclean_stop_is_not_shortened_either(tmp_path: Path) -> None:
    fs = open_fs(make_vault(tmp_path / "vault"))
    put(fs, 1, b"image.dcm", os.urandom(200_000))
    fs.sync()
    copy = snapshot(fs, tmp_path / "copy")
    close_fs(fs)
    (path,) = (entry for entry in (copy / "tree").iterdir() if entry.name != "@dir")
    os.truncate(path, 8192 + 2 * 65576)
    fs = open_fs(copy)
    with pytest.raises(OSError, match="Input/output error"):
        get(fs, 1, b"image.dcm")
    close_fs(fs)


def test_a_chunk_lost_in_flight_shortens_the_file_before_it(tmp_path: Path) -> None:
    data = os.urandom(200_000)
    fs = open_fs(make_vault(tmp_path / "vault"))
    put(fs, 1, b"image.dcm", data)
    copy = snapshot(fs, tmp_path / "copy")
    close_fs(fs)
    (path,) = (entry for entry in (copy / "tree").iterdir() if entry.name != "@dir")
    with path.open("r+b") as file:
        file.seek(8192 + 65576)
        file.write(bytes(4096))
    for _ in range(2):
        fs = open_fs(copy)
        assert get(fs, 1, b"image.dcm") == data[:65536]
        close_fs(fs)


def test_a_directory_without_its_header_is_opened_from_the_copy(tmp_path: Path) -> None:
    vault = make_vault(tmp_path / "vault")
    fs = open_fs(vault)
    inner = fs.mkdir(1, b"patient", 0o750, ME)
    put(fs, inner.ino, b"slice", b"pixels")
    close_fs(fs)
    for path in (vault / "tree").rglob("@dir"):
        path.unlink()
    fs = open_fs(vault)
    found = fs.lookup(1, b"patient")
    assert found.mode & 0o777 == 0o750
    assert get(fs, found.ino, b"slice") == b"pixels"
    close_fs(fs)
    assert len(list((vault / "tree").rglob("@dir"))) == 2


@pytest.mark.parametrize("ordered", [True, False])
def test_fsync_alone_saves_the_headers_of_new_directories(tmp_path: Path, ordered: bool) -> None:
    vault = make_vault(tmp_path / "vault")
    fs = open_fs(vault)
    fs._committer.places.ordered = ordered
    inner = fs.mkdir(fs.mkdir(1, b"ab", 0o755, ME).ino, b"cd", 0o755, ME).ino
    handle, _ = fs.create(inner, b"image", 0o600, ME, os.O_RDWR)
    fs.write(handle, 0, b"pixels")
    fs.fsync(handle)
    copy = snapshot(fs, tmp_path / "copy")
    fs.release(handle)
    close_fs(fs)
    # None of these was synced by itself, but for the log of headers where that is the rule.
    for path in (copy / "tree").rglob("@dir"):
        if path.parent != copy / "tree":
            path.unlink()
    if ordered:
        for path in (copy / "dirs").iterdir():
            if path.name != "0000000000000000.log":
                path.unlink()
    again = open_fs(copy)
    found = again.lookup(again.lookup(1, b"ab").ino, b"cd")
    assert get(again, found.ino, b"image") == b"pixels"
    close_fs(again)


def test_a_read_only_vault_shows_what_the_journal_holds(tmp_path: Path) -> None:
    fs = open_fs(make_vault(tmp_path / "vault"))
    handle, _ = fs.create(1, b"index", 0o600, ME, os.O_RDWR)
    fs.write(handle, 0, b"a" * 20_000)
    fs.fsync(handle)
    fs._committer.stop()  # so that the journal is applied by nobody
    fs.write(handle, 10_000, b"b" * 30_000)
    fs.flush(handle)
    copy = snapshot(fs, tmp_path / "copy")
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    reader = open_fs(copy, read_only=True)
    assert get(reader, 1, b"index") == b"a" * 10_000 + b"b" * 30_000
    with pytest.raises(OSError, match="Read-only"):
        reader.create(1, b"x", 0o600, ME, os.O_RDWR)
    close_fs(reader)
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    fs.release(handle)
    close_fs(fs)


def test_a_deleted_file_stays_usable_and_is_not_brought_back(tmp_path: Path) -> None:
    fs = open_fs(make_vault(tmp_path / "vault"))
    handle, _ = fs.create(1, b"index", 0o600, ME, os.O_RDWR)
    fs.write(handle, 0, b"a" * 10_000)
    fs.fsync(handle)
    fs.write(handle, 0, b"b" * 10)
    fs.fsync(handle)
    fs.unlink(1, b"index")
    fs.write(handle, 5, b"c" * 10)
    assert bytes(fs.read(handle, 0, 20)) == b"b" * 5 + b"c" * 10 + b"a" * 5
    copy = snapshot(fs, tmp_path / "copy")
    fs.release(handle)
    close_fs(fs)
    again = open_fs(copy)
    assert read_all(again) == {}
    close_fs(again)


def test_a_rename_keeps_what_the_journal_holds(tmp_path: Path) -> None:
    fs = open_fs(make_vault(tmp_path / "vault"))
    folder = fs.mkdir(1, b"d", 0o700, ME).ino
    handle, _ = fs.create(folder, b"index", 0o600, ME, os.O_RDWR)
    fs.write(handle, 0, b"a" * 10_000)
    fs.fsync(handle)
    fs.write(handle, 0, b"b" * 5000)
    fs.fsync(handle)
    fs.rename(1, b"d", 1, b"e")
    fs.write(handle, 5000, b"c" * 5000)
    fs.fsync(handle)
    copy = snapshot(fs, tmp_path / "copy")
    fs.release(handle)
    close_fs(fs)
    again = open_fs(copy)
    assert get(again, again.lookup(1, b"e").ino, b"index") == b"b" * 5000 + b"c" * 5000
    close_fs(again)


def test_the_journal_does_not_outgrow_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cryptfs.fs.commit.JOURNAL_FULL", 3 << 20)
    fs = open_fs(make_vault(tmp_path / "vault"))
    fs._committer.stop()  # the background work is too slow to be of any help
    handle, _ = fs.create(1, b"index", 0o600, ME, os.O_RDWR)
    data = bytearray(os.urandom(4 << 20))
    fs.write(handle, 0, data)
    fs.fsync(handle)
    largest = 0
    for at in range(0, len(data) - 500_000, 200_000):
        piece = os.urandom(500_000)
        fs.write(handle, at, piece)
        data[at : at + len(piece)] = piece
        largest = max(largest, fs.vault.journal.size)
    assert 1 << 20 < largest < 5 << 20
    assert bytes(fs.read(handle, 0, len(data))) == data
    fs.release(handle)
    close_fs(fs)
    assert [path.name for path in (tmp_path / "vault" / "journal").iterdir() if path.suffix == ".seg"] == []


def test_checkpoints_at_the_same_time_do_not_close_each_others_files(tmp_path: Path) -> None:
    fs = open_fs(make_vault(tmp_path / "vault"))
    failed: list[BaseException] = []
    done = threading.Event()

    def checkpoint() -> None:
        try:
            while not done.is_set():
                fs._committer.checkpoint_all()
        except BaseException as error:
            failed.append(error)

    inos = [put(fs, 1, b"index-%d" % number, b"a" * 10_000) for number in range(8)]
    fs.sync()
    threads = [threading.Thread(target=checkpoint) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(1200):
        handle = fs.open(inos[number % 8], os.O_RDWR)
        fs.write(handle, number, b"b")
        fs.release(handle)
    done.set()
    for thread in threads:
        thread.join()
    assert failed == []
    for number in range(8):
        assert get(fs, 1, b"index-%d" % number).count(b"b") == 150
    close_fs(fs)


def test_a_write_during_a_checkpoint_is_not_declared_settled(tmp_path: Path) -> None:
    fs = open_fs(make_vault(tmp_path / "vault"))
    fs._committer.stop()
    handle, _ = fs.create(1, b"index", 0o600, ME, os.O_RDWR)
    fs.write(handle, 0, b"a" * 10_000)
    fs.fsync(handle)
    fs.write(handle, 0, b"b" * 10)
    (file,) = fs._files()
    sync = file.sync_in_place

    def sync_and_write() -> int | None:
        at = sync()
        file.sync_in_place = sync  # type: ignore[method-assign]
        fs.write(handle, 20, b"c" * 10)
        fs._committer.commit()
        return at

    file.sync_in_place = sync_and_write  # type: ignore[method-assign]
    fs._committer.checkpoint(file)
    # What recovery would find: the write that came in between must still be there.
    held = [extent for record in overlays(fs.vault)[file.header.object_id] for extent in record.extents]
    assert held
    fs.fsync(handle)
    fs.release(handle)
    close_fs(fs)


def test_a_file_that_the_background_work_holds_when_it_is_closed_loses_nothing(tmp_path: Path) -> None:
    """The background work gives back the last use of it then, and with it what was changed meanwhile."""
    vault = make_vault(tmp_path / "vault")
    fs = open_fs(vault)
    ino = put(fs, 1, b"image", b"pixels")
    handle = fs.open(ino, os.O_RDWR)
    file = fs._nodes.get(ino).file
    assert fs._hold(file)
    file.flush()
    fs.setattr(ino, SetAttr(mode=0o640, mtime_ns=10**18), handle)
    fs.release(handle)
    fs._let_go(file)
    copy = tmp_path / "copy"
    shutil.copytree(vault, copy)
    fs.close()
    for place in (vault, copy):
        fs = open_fs(place)
        attr = fs.lookup(1, b"image")
        assert (attr.mode & 0o777, attr.mtime_ns) == (0o640, 10**18)
        fs.close()


@pytest.mark.parametrize("again", [b"", b"more"])
def test_a_file_emptied_and_written_during_a_checkpoint_is_whole_when_it_is_synced(
    tmp_path: Path, again: bytes
) -> None:
    """Of such a file the journal says that it is empty, until it says that what is in place is durable."""
    data = os.urandom(150_000)
    fs = open_fs(make_vault(tmp_path / "vault"))
    put(fs, 1, b"a.log", b"what was there before")
    fs.sync()
    attr = fs.lookup(1, b"a.log")
    handle = fs.open(attr.ino, os.O_RDWR | os.O_TRUNC)
    fs.write(handle, 0, data)
    committer, file = fs._committer, fs._handles[handle]
    real = committer._settle_file
    calls = 0

    def change_before(changed: File) -> bool:
        """Somebody changes the file between two steps of the checkpoint."""
        nonlocal calls
        calls += 1
        if calls == 1:
            fs.setattr(attr.ino, SetAttr(mode=0o640), handle)
            file.flush()
        return real(changed)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(committer, "_settle_file", change_before)
        committer.checkpoint_all()
    assert calls
    fs.write(handle, len(data), again)
    fs.fsync(handle)
    copy = snapshot(fs, tmp_path / "copy")
    fs.release(handle)
    close_fs(fs)
    for path in (copy, tmp_path / "vault"):
        fs = open_fs(path)
        assert read_all(fs) == {b"a.log": data + again}
        close_fs(fs)


def test_a_sync_does_not_rely_on_one_that_has_not_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = open_fs(make_vault(tmp_path / "vault"))
    handle, _ = fs.create(1, b"image", 0o600, ME, os.O_RDWR)
    fs.write(handle, 0, b"content")
    begun, go_on = threading.Event(), threading.Event()
    (file,) = fs._files()
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        name = threading.current_thread().name
        if name == "first":
            begun.set()
            assert go_on.wait(60)
        real(fd)
        if fd == file.fd:
            synced.append(name)

    monkeypatch.setattr(os, "fsync", fsync)
    first = threading.Thread(target=fs.fsync, args=(handle,), name="first")
    first.start()
    assert begun.wait(60)
    fs.fsync(handle)
    assert synced == ["MainThread"]
    go_on.set()
    first.join()
    monkeypatch.undo()
    fs.release(handle)
    close_fs(fs)


def test_a_file_that_is_written_to_all_the_time_is_settled_all_the_same(tmp_path: Path) -> None:
    fs = open_fs(make_vault(tmp_path / "vault"))
    put(fs, 1, b"a.log", b"before")
    fs.sync()
    attr = fs.lookup(1, b"a.log")
    handle = fs.open(attr.ino, os.O_RDWR | os.O_TRUNC)
    fs.write(handle, 0, bytes(70_000))
    committer = fs._committer
    real = committer.commit

    def commit_and_write() -> None:
        real()
        fs.write(handle, 0, b"again")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(committer, "commit", commit_and_write)
        fs.write(handle, 0, b"again")
        fs.fsync(handle)
    copy = snapshot(fs, tmp_path / "copy")
    fs.release(handle)
    close_fs(fs)
    fs = open_fs(copy)
    assert read_all(fs) == {b"a.log": b"again" + bytes(70_000 - 5)}
    close_fs(fs)


def test_an_emptied_file_counts_as_synced_only_when_the_journal_says_so_durably(tmp_path: Path) -> None:
    fs = open_fs(make_vault(tmp_path / "vault"))
    fs._committer.stop()
    put(fs, 1, b"a.log", b"before")
    fs.sync()
    handle = fs.open(fs.lookup(1, b"a.log").ino, os.O_RDWR | os.O_TRUNC)
    fs.write(handle, 0, bytes(70_000))
    (file,) = fs._files()
    file.flush()
    fs._committer.commit()
    assert file.unsynced
    assert fs._committer._settle_file(file)
    assert not file.unsynced
    journal = fs.vault.journal
    assert journal.synced == journal.appended
    fs.release(handle)
    close_fs(fs)

"""The rollback witness never cries wolf: whatever is killed or loses power, at any instant.

A power cut is played with the durable contract alone: of the vault, each name may be as at the last settle
or as at the cut, whatever the other names are; of the host's state, everything that was synced is there.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.fs import FileSystem
from cryptfs.fs.types import SetAttr
from cryptfs.fs.upkeep import rebuild
from cryptfs.fs.witnessing import Batch, Witness
from cryptfs.index import marks, witness
from tests.fs.support import ME, VAULT_ID, FakeKeyring, get, make_vault, open_fs, put
from tests.fs.trees import scratch

RENAME_EXCHANGE = 2


class Host:
    """One computer and its vault. What is open can be killed, and put into any state that was kept."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.live = base / "live"
        self.vault, self.place = self.live / "vault", self.live / "place"
        self.live.mkdir()
        self.place.mkdir()
        make_vault(self.vault)
        self._kept = 0
        self.fs: FileSystem | None = None

    def open(self, *, read_only: bool = False, background: bool = False) -> FileSystem:
        self.fs = open_fs(self.vault, read_only=read_only, place=self.place)
        if not background:
            self.fs._committer.stop()
        return self.fs

    def close(self) -> None:
        assert self.fs is not None
        self.fs.close()
        self.fs = None

    def keep(self) -> Path:
        """A copy of vault and host, as they are."""
        self._kept += 1
        kept = self.base / f"kept{self._kept}"
        copy(self.live, kept)
        return kept

    def become(self, kept: Path) -> None:
        """What is open is gone, and the disks hold what was kept."""
        if self.fs is not None:
            self.close()
        shutil.rmtree(self.live)
        kept.rename(self.live)

    def look(self) -> dict[str, bytes]:
        """Every file, in two sessions, with no event in either."""
        found: dict[str, bytes] = {}
        for _ in range(2):
            fs = self.open()
            try:
                found = contents(fs)
                stats = fs.stats()["witness"]
                assert (stats["refused"], stats["missing"], stats["vault"]) == (0, 0, 0), stats
                assert stats["state"] == "on", stats
            finally:
                self.close()
        return found


def contents(fs: FileSystem, ino: int = 1, path: str = "") -> dict[str, bytes]:
    """Every file below a directory by its path, directories with a slash. No error is tolerated."""
    found: dict[str, bytes] = {}
    dh = fs.opendir(ino)
    entries = [(name, attr) for name, attr, _ in fs.readdir(dh, 0)]
    fs.releasedir(dh)
    for name, attr in entries:
        assert attr.nlink, f"{path}/{name!r} is damaged"
        inner = f"{path}/{os.fsdecode(name)}"
        if attr.mode & 0o170000 == 0o040000:
            found[inner + "/"] = b""
            child = fs.lookup(ino, name)
            found |= contents(fs, child.ino, inner)
            fs.forget(child.ino, 1)
        else:
            found[inner] = get(fs, ino, name)
    return found


@pytest.fixture
def host() -> Iterator[Host]:
    made = scratch("cryptfs-witness-")
    host = Host(made)
    yield host
    if host.fs is not None:
        host.close()
    shutil.rmtree(made)


class Workload:
    """Random changes of names and files, never synced but by `settle`."""

    def __init__(self, host: Host, rng: random.Random) -> None:
        self.host, self.rng = host, rng
        self.open_handles: list[int] = []

    @property
    def fs(self) -> FileSystem:
        assert self.host.fs is not None
        return self.host.fs

    def step(self) -> None:
        rng, fs = self.rng, self.fs
        name, other = (b"n%d" % rng.randrange(5) for _ in range(2))
        try:
            parent, into = self.walk(), self.walk()
            match rng.randrange(12):
                case 0 | 1:
                    handle, _ = fs.create(parent, name, 0o600, ME, os.O_RDWR)
                    fs.write(handle, 0, rng.randbytes(rng.choice([0, 10, 5000])))
                    self.open_handles.append(handle)
                    if rng.random() < 0.8:
                        fs.flush(handle)
                        fs.release(self.open_handles.pop())
                case 2:
                    fs.mkdir(parent, name, 0o700, ME)
                case 3:
                    fs.unlink(parent, name)
                case 4:
                    fs.rmdir(parent, name)
                case 5 | 6:
                    fs.rename(parent, name, into, other)
                case 7:
                    fs.rename(parent, name, into, other, RENAME_EXCHANGE)
                case 8:
                    fs.link(fs.lookup(parent, name).ino, into, other)
                case 9:
                    handle = fs.open(fs.lookup(parent, name).ino, os.O_RDWR | rng.choice([0, os.O_TRUNC]))
                    fs.write(handle, rng.choice([0, 3, 4096]), rng.randbytes(100))
                    fs.flush(handle)
                    fs.release(handle)
                case 10:
                    fs.setattr(fs.lookup(parent, name).ino, SetAttr(mode=0o600 + rng.randrange(8)))
                case 11:
                    if self.open_handles:
                        fs.write(self.open_handles[-1], 0, b"more")
                        fs.flush(self.open_handles[-1])
        except OSError as error:
            expected = ["ENOENT", "EEXIST", "ENOTEMPTY", "EISDIR", "ENOTDIR", "EPERM", "EINVAL"]
            assert errno.errorcode[error.errno or 0] in expected, error

    def walk(self) -> int:
        """A directory at random."""
        ino = 1
        while self.rng.random() < 0.5:
            try:
                attr = self.fs.lookup(ino, b"n%d" % self.rng.randrange(5))
            except FileNotFoundError:
                break
            if attr.mode & 0o170000 != 0o040000:
                break
            ino = attr.ino
        return ino

    def release_all(self) -> None:
        for handle in self.open_handles:
            self.fs.release(handle)
        self.open_handles.clear()

    def settle(self) -> None:
        self.fs._committer.sync_all()


@pytest.mark.parametrize("number", range(int(os.environ.get("CRYPTFS_TEST_CHAINS", "3"))))
def test_a_chain_of_kills_raises_no_alarm(host: Host, seed: int, number: int) -> None:
    rng = random.Random(seed + number)
    for _ in range(8):
        host.open()
        work = Workload(host, rng)
        for _ in range(rng.randrange(60)):
            work.step()
            if rng.random() < 0.1:
                work.settle()
        kept = host.keep()
        work.release_all()
        host.become(kept)
        if rng.random() < 0.5:
            host.look()


def mixed(old: Path, new: Path, rng: random.Random) -> None:
    """Put some names of a directory, and of those below, back to what they were: into `new`."""
    for name in sorted({path.name for path in (*old.iterdir(), *new.iterdir())}):
        before, after = old / name, new / name
        if before.is_dir() and after.is_dir() and same_directory(before, after) and rng.random() < 0.7:
            mixed(before, after, rng)
        elif rng.random() < 0.5:
            if after.is_dir():
                shutil.rmtree(after)
            elif after.exists():
                after.unlink()
            if before.is_dir():
                copy(before, after)
            elif before.exists():
                shutil.copy2(before, after)


def without_twins(tree: Path) -> None:
    """No file system has a directory at two places, or one object in two files."""
    seen: dict[bytes, Path] = {}
    for path in sorted(tree.rglob("*")):
        if not path.exists() or path.name == "@dir" or (path.is_dir() and not (path / "@dir").exists()):
            continue
        object_id = (path / "@dir" if path.is_dir() else path).read_bytes()[24:40]
        first = seen.setdefault(object_id, path)
        if first is path:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        elif first.exists():
            path.unlink()
            os.link(first, path)


def copy(source: Path, target: Path) -> None:
    """A tree with its hard links."""
    subprocess.run(["cp", "-a", source, target], check=True)


def same_directory(one: Path, two: Path) -> bool:
    headers = [(place / "@dir").read_bytes()[24:40] for place in (one, two) if (place / "@dir").exists()]
    return len(headers) == 2 and headers[0] == headers[1]


@pytest.mark.parametrize("number", range(int(os.environ.get("CRYPTFS_TEST_CHAINS", "4"))))
def test_a_power_cut_raises_no_alarm(
    host: Host, seed: int, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed + number)
    durable: list[Path] = []
    commit = Witness.commit

    def keep_and_commit(self: Witness, batch: Batch) -> None:
        # All that was there when the settle began is durable here, and nothing is recorded yet.
        durable.append(host.keep())
        commit(self, batch)

    monkeypatch.setattr(Witness, "commit", keep_and_commit)
    for _ in range(3):
        host.open()
        work = Workload(host, rng)
        work.settle()
        for _ in range(rng.randrange(20, 80)):
            work.step()
            if rng.random() < 0.05:
                work.settle()
        host.fs.vault.journal.sync()  # type: ignore[union-attr]
        kept = host.keep()
        work.release_all()
        if durable:
            mixed(durable[-1] / "vault" / "tree", kept / "vault" / "tree", rng)
            without_twins(kept / "vault" / "tree")
        host.become(kept)
        host.look()
        # A cut between a settle and what is recorded after it.
        if durable:
            host.become(durable[-1])
            host.look()
        durable.clear()


def test_new_files_cost_no_sync_and_the_first_removal_in_a_directory_one(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = host.open()
    written: list[int] = []
    write = marks.Marks._write

    def counted(self: marks.Marks, now: dict[bytes, int], *, durably: bool = True) -> None:
        written.append(durably)
        write(self, now, durably=durably)

    monkeypatch.setattr(marks.Marks, "_write", counted)
    folders = [fs.mkdir(1, b"d%d" % number, 0o700, ME).ino for number in range(40)]
    for folder in folders:
        for number in range(3):
            put(fs, folder, b"image%d" % number, b"pixels")
            fs.rename(folder, b"image%d" % number, folder, b"renamed%d" % number)
        put(fs, folder, b"gone", b"x")
        fs.unlink(folder, b"gone")
    assert written == []
    fs._committer.sync_all()
    for number in range(3):
        fs.unlink(folders[0], b"renamed%d" % number)
    assert written == [True]
    for folder in folders[1:]:
        fs.unlink(folder, b"renamed0")
        fs.unlink(folder, b"renamed1")
    assert written == [True] * (marks.MOST + 1)
    assert marks.EVERYWHERE in fs.witness.store.marks.now  # type: ignore[union-attr]
    fs._committer.sync_all()
    assert written[-1] is False
    assert fs.witness.store.marks.now == {}  # type: ignore[union-attr]


def test_a_mark_set_during_a_settle_outlives_it(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = host.open()
    for name in (b"a", b"b", b"c"):
        put(fs, 1, name, b"x")
    fs._committer.sync_all()
    fs.unlink(1, b"a")
    commit = Witness.commit

    def unlink_first(self: Witness, batch: Batch) -> None:
        fs.unlink(1, b"b")
        commit(self, batch)

    monkeypatch.setattr(Witness, "commit", unlink_first)
    fs._committer.sync_all()
    monkeypatch.undo()
    assert len(fs.witness.store.marks.now) == 1  # type: ignore[union-attr]
    host.become(host.keep())
    assert set(host.look()) == {"/c"}


def test_a_name_written_while_it_is_being_recorded_is_marked(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = host.open()
    put(fs, 1, b"a", b"x")
    commit = Witness.commit

    def unlink_first(self: Witness, batch: Batch) -> None:
        fs.unlink(1, b"a")
        commit(self, batch)

    monkeypatch.setattr(Witness, "commit", unlink_first)
    fs._committer.sync_all()
    monkeypatch.undo()
    host.become(host.keep())
    assert host.look() == {}


def test_what_could_not_be_settled_is_recorded_later(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = host.open()
    put(fs, 1, b"a", b"x")

    def fail() -> None:
        raise OSError(errno.ENOSPC, "no")

    monkeypatch.setattr(fs._committer, "checkpoint_all", fail)  # not a sync: that would fail for good
    with pytest.raises(OSError, match="no"):
        fs._committer.sync_all()
    store = fs.witness.store
    assert store is not None
    before = store.count()
    put(fs, 1, b"b", b"x")
    monkeypatch.undo()
    fs._committer.sync_all()
    assert store.count() >= before + 2
    host.close()
    assert set(host.look()) == {"/a", "/b"}


def test_another_computer_may_replace_anything(host: Host) -> None:
    fs = host.open()
    for name in (b"a", b"b", b"c"):
        put(fs, 1, name, name)
    host.close()
    elsewhere = open_fs(host.vault)
    elsewhere.rename(1, b"a", 1, b"b")
    elsewhere.unlink(1, b"c")
    put(elsewhere, 1, b"d", b"d")
    elsewhere.close()
    assert host.look() == {"/b": b"a", "/d": b"d"}


def test_what_was_confirmed_after_another_computer_wrote_is_compared_strictly(host: Host) -> None:
    fs = host.open()
    for name in (b"a", b"b"):
        put(fs, 1, name, name)
    host.close()
    open_fs(host.vault).close()
    assert host.look() == {"/a": b"a", "/b": b"b"}
    one, two = (path for path in (host.vault / "tree").iterdir() if path.name != "@dir")
    shutil.copyfile(one, two)
    fs = host.open()
    outcomes = []
    for name in (b"a", b"b"):
        try:
            outcomes.append(get(fs, 1, name))
        except OSError as error:
            outcomes.append(error.errno)
    assert errno.EIO in outcomes
    assert fs.stats()["witness"]["refused"] == 1


def test_a_copy_of_the_vault_has_a_witness_of_its_own_and_a_moved_one_keeps_it(host: Host) -> None:
    fs = host.open()
    put(fs, 1, b"a", b"x")
    host.close()
    twin = host.base / "twin"
    copy(host.vault, twin)
    for _ in range(2):
        fs = open_fs(twin, place=host.place)
        fs.unlink(1, b"a")
        put(fs, 1, b"a", b"y")
        assert fs.stats()["witness"]["vault"] == 0
        fs.close()
    assert host.look() == {"/a": b"x"}
    moved = host.live / "moved"
    host.vault.rename(moved)
    host.vault = moved
    (entry,) = (path for path in (moved / "tree").iterdir() if path.name != "@dir")
    (other,) = (path for path in (twin / "tree").iterdir() if path.name != "@dir")
    shutil.copyfile(other, entry)
    fs = host.open()
    with pytest.raises(OSError, match="Input/output error"):
        get(fs, 1, b"a")


def test_a_reader_compares_but_remembers_nothing(host: Host) -> None:
    fs = host.open()
    put(fs, 1, b"a", b"x")
    host.close()
    open_fs(host.vault).close()
    fs = host.open(read_only=True)
    assert contents(fs) == {"/a": b"x"}
    store = fs.witness.store
    assert store is not None
    count = store.count()
    host.close()
    fs = host.open(read_only=True)
    assert fs.witness.store is not None
    assert fs.witness.store.count() <= count + 1
    assert fs.witness.store.state.number == 1


@pytest.mark.parametrize("what", ["gone", "garbage", "cut", "seal"])
def test_a_damaged_witness_begins_anew_and_says_so(
    host: Host, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    host.open()
    put(host.fs, 1, b"a", b"x")  # type: ignore[arg-type]
    host.close()
    (folder,) = host.place.glob("at-*/witness")
    if what == "gone":
        shutil.rmtree(folder.parent)
    elif what == "seal":
        (folder / "seal").write_bytes(b"no seal")
    elif what == "cut":
        os.truncate(folder / "data.mdb", 5000)
    else:
        data = folder / "data.mdb"
        data.write_bytes(os.urandom(data.stat().st_size))
    with caplog.at_level(logging.INFO):
        fs = host.open()
    assert len([r for r in caplog.records if "the rollback witness begins" in r.getMessage()]) == 1
    assert get(fs, 1, b"a") == b"x"
    host.close()
    host.look()


def test_a_full_or_failing_host_disk_stops_the_witness_and_nothing_else(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fs = host.open()
    put(fs, 1, b"a", b"x")
    fs._committer.sync_all()

    def fail(*_: object, **__: object) -> None:
        raise witness.Unavailable("The disk is full.")

    monkeypatch.setattr(witness.WitnessStore, "commit", fail)
    put(fs, 1, b"b", b"x")
    fs._committer.sync_all()
    assert fs.stats()["witness"]["state"] == "The disk is full."
    monkeypatch.undo()
    # Nobody watches now; what is done meanwhile must be no surprise later, even after a kill.
    fs.unlink(1, b"a")
    fs.rename(1, b"b", 1, b"a")
    host.become(host.keep())
    assert host.look() == {"/a": b"x"}
    assert sum("switched off" in record.getMessage() for record in caplog.records) == 1


def test_so_does_a_disk_that_takes_no_mark(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = host.open()
    put(fs, 1, b"a", b"x")
    fs._committer.sync_all()

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(marks.Marks, "_write", fail)
    fs.unlink(1, b"a")
    monkeypatch.undo()
    put(fs, 1, b"a", b"y")
    host.become(host.keep())
    fs = host.open()
    assert get(fs, 1, b"a") == b"y"


def test_a_damaged_mark_counts_for_everything(host: Host) -> None:
    fs = host.open()
    put(fs, 1, b"a", b"x")
    fs._committer.sync_all()
    fs.unlink(1, b"a")
    kept = host.keep()
    (place,) = kept.glob("place/at-*/witness/marks")
    data = bytearray(place.read_bytes())
    data[5] ^= 1
    place.write_bytes(data)
    host.become(kept)
    assert host.look() == {}


def test_a_changed_generation_is_told_with_the_place_it_is_in(host: Host) -> None:
    # The header of an open file is recorded as it is in place, not as it is in memory or in the journal.
    fs = host.open()
    handle, _ = fs.create(1, b"index", 0o600, ME, os.O_RDWR)
    fs.write(handle, 0, b"a" * 10_000)
    fs.fsync(handle)
    for step in range(5):
        fs.write(handle, step, b"b")
        fs.flush(handle)
    generations: list[int] = []
    placed = Witness.placed

    def noted(self: Witness, directory_id: bytes, lname: bytes, record: witness.Held) -> None:
        generations.append(record.generation)
        placed(self, directory_id, lname, record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Witness, "placed", noted)
        fs._committer.sync_all()
    (entry,) = (path for path in (host.vault / "tree").iterdir() if path.name != "@dir")
    data = entry.read_bytes()
    on_disk = max(int.from_bytes(data[at + 16 : at + 24], "little") for at in (0, 4096))
    assert generations
    assert max(generations) <= on_disk
    fs.release(handle)


def test_store_opens_only_with_keys_that_are_not_older(tmp_path: Path) -> None:
    from tests.index.support import OtherKeyring

    witness.WitnessStore.open(tmp_path, tmp_path, VAULT_ID, FakeKeyring()).close()
    witness.WitnessStore.open(tmp_path, tmp_path, VAULT_ID, OtherKeyring(both=True)).close()
    with pytest.raises(witness.KeysTooOld, match="accept-restore"):
        witness.WitnessStore.open(tmp_path, tmp_path, VAULT_ID, FakeKeyring())


def test_it_outlives_the_epoch_it_was_made_under(host: Host) -> None:
    from tests.index.support import OtherKeyring

    fs = host.open()
    put(fs, 1, b"a", b"x")
    fs._committer.sync_all()
    fs.use_keyring(OtherKeyring(both=True))
    kept = host.keep()
    store = fs.witness.store
    assert store is not None
    count = store.count()
    host.become(kept)
    again = witness.WitnessStore.open(host.place, host.vault, VAULT_ID, OtherKeyring(both=False))
    assert again.count() >= count
    assert again.state.number == 1
    again.close()


def test_records_read_ahead_give_way_to_newer_ones(host: Host) -> None:
    fs = host.open()
    put(fs, 1, b"image", b"first")
    put(fs, 1, b"other", b"second")
    host.close()
    fs = host.open()
    fs.witness.read_ahead(fs.identity(1), 2)
    assert len(fs.witness._ahead) == 2
    fs.rename(1, b"other", 1, b"image")
    fs._committer.sync_all()
    assert get(fs, 1, b"image") == b"second"
    assert fs.stats()["witness"]["refused"] == 0


def test_a_rebuild_of_the_index_compares_every_file(host: Host) -> None:
    fs = host.open()
    put(fs, 1, b"image", b"first")
    put(fs, 1, b"other", b"second")
    put(fs, 1, b"third", b"third")
    host.close()
    tree = host.vault / "tree"
    one, other = (tree / os.fsdecode(lname_of(host, name)) for name in (b"image", b"other"))
    one.rename(tree / "x")
    other.rename(one)
    (tree / "x").rename(other)
    fs = host.open()
    outcome = rebuild(fs, lambda entries: None)
    assert (outcome.damaged, outcome.recorded) == (2, 1)
    assert fs.stats()["witness"]["refused"] == 2


def lname_of(host: Host, name: bytes) -> bytes:
    """The ciphertext name of a file in the root."""
    fs = host.open(read_only=True)
    try:
        return fs._directories.get(fs._nodes.get(1)).lower_name(name)[0]
    finally:
        host.close()

"""Re-encrypting everything: new keys and names, nothing lost, whatever is done meanwhile."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cryptfs.errors import StorageError
from cryptfs.fs import FileSystem, FsOptions, orphans, recopying, renewing, upkeep
from cryptfs.fs.file import File
from cryptfs.fs.jobs import Job
from cryptfs.fs.orphans import Orphans
from cryptfs.fs.reencrypt import Reencrypt, reencrypt_job
from cryptfs.fs.throttle import Progress, Stopped, Throttle
from cryptfs.fs.types import SetAttr
from cryptfs.index.place import prepare
from cryptfs.vault import Vault
from cryptfs.vault.keyring import Keyring
from cryptfs.vault.reencryption import Phase
from cryptfs.vault.xattrs import XattrStore
from tests.faults.test_injected import Faults
from tests.fs.rotation import BOTH, NEW, OLD, everything, fill, make_vault, open_fs, shown
from tests.fs.support import ME, VAULT_ID, get, put
from tests.powercut.calls import Call


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vault = make_vault(tmp_path_factory.mktemp("reencrypt") / "vault")
    fs = open_fs(vault, OLD)
    fill(fs)
    handle, _ = fs.create(1, b"sparse", 0o644, ME, os.O_RDWR)
    fs.write(handle, 0, b"begin")
    fs.write(handle, 5_300_001, b"end")
    fs.release(handle)
    put(fs, 1, b"large", os.urandom(3_000_000))
    fs.close()
    return vault


def copy(path: Path, to: Path) -> Path:
    """What a killed process leaves, hard links as hard links."""
    subprocess.run(["cp", "-a", path, to], check=True)
    return to


@pytest.fixture
def vault(pristine: Path, tmp_path: Path) -> Path:
    return copy(pristine, tmp_path / "vault")


def with_memory(vault: Path, keyring: Keyring, state: Path) -> FileSystem:
    """With a metadata index and a rollback witness below the folder `state`."""
    opened = Vault(vault, VAULT_ID, keyring)
    return FileSystem(opened, FsOptions(xattrs=True), place=prepare(VAULT_ID, state))


def keys(vault: Path, keyring: Keyring) -> tuple[set[bytes], set[bytes]]:
    """The keys of all objects, and the ids of those that are not directories."""
    opened = Vault(vault, VAULT_ID, keyring, read_only=True)
    try:
        found = [
            opened.codec.read(path.read_bytes()[:8192])[0]
            for path in (vault / "tree").rglob("*")
            if path.is_file() and path.suffix != ".name"
        ]
        return {header.key for header in found}, {header.object_id for header in found if header.kind != 2}
    finally:
        opened.close()


def entries(vault: Path) -> set[str]:
    return {path.name for path in (vault / "tree").rglob("*") if path.name != "@dir"}


def times(vault: FileSystem) -> dict[bytes, tuple[int, int]]:
    """Of directories, by their path."""

    def below(ino: int, path: bytes) -> Iterator[tuple[bytes, tuple[int, int]]]:
        attr = vault.getattr(ino)
        yield path, (attr.mtime_ns, attr.nlink)
        handle = vault.opendir(ino)
        for name, found, _ in list(vault.readdir(handle, 0)):
            if found.mode & 0o170000 == 0o040000:
                inner = vault.lookup(ino, name)
                yield from below(inner.ino, path + b"/" + name)
                vault.forget(inner.ino, 1)
        vault.releasedir(handle)

    return dict(below(1, b""))


def run(fs: FileSystem) -> Reencrypt:
    work = Reencrypt(fs, Throttle())
    summary = work.run()
    assert summary is not None and summary.proved and not summary.damaged
    return work


class Interrupting(Throttle):
    """Calls something between two slices, each of which is one step; with `stop_at`, stops there."""

    def __init__(self, do: Callable[[int], None] = lambda number: None, stop_at: int = 1 << 60) -> None:
        super().__init__()
        self._do, self._stop_at, self.number = do, stop_at, 0

    @property
    def slice_is_over(self) -> bool:
        return True

    def check(self) -> None:
        self.number += 1
        if self.number > self._stop_at:
            raise Stopped
        self._do(self.number)


def test_everything_is_new_and_everything_is_there(vault: Path) -> None:
    before, old_keys, old_entries = shown(vault, OLD), keys(vault, OLD), entries(vault)
    fs = open_fs(vault, BOTH)
    old_times = times(fs)
    run(fs)
    assert times(fs) == old_times
    assert everything(fs) == before
    fs.close()
    assert shown(vault, NEW) == before
    new_keys = keys(vault, NEW)
    assert len(new_keys[0]) == len(old_keys[0])
    assert not new_keys[0] & old_keys[0] and not new_keys[1] & old_keys[1]
    assert not entries(vault) & old_entries
    assert not list(vault.rglob("@old"))
    assert not [path for path in vault.rglob("@tmp*")]


def test_holes_stay_holes_links_stay_links_and_old_attributes_go(vault: Path) -> None:
    fs = open_fs(vault, BOTH)
    run(fs)
    names = {name: fs.lookup(1, name) for name in (b"sparse", b"patient")}
    assert names[b"sparse"].blocks * 512 < 400_000 < names[b"sparse"].size
    study = next(name for name, _, _ in fs.readdir(fs.opendir(names[b"patient"].ino), 0) if b"study" in name)
    inner = fs.lookup(names[b"patient"].ino, study)
    one = fs.lookup(inner.ino, b"slice 1")
    assert one.nlink == 2
    assert fs.lookup(names[b"patient"].ino, b"the same slice").ino == one.ino
    fs.close()
    # One file of attributes for the image, one for the directory: none of before.
    assert len([path for path in (vault / "xattr").rglob("*") if path.is_file()]) == 2


def attributes(vault: Path) -> set[str]:
    """Ids of the objects for which there are extended attributes."""
    return {path.name for path in (vault / "xattr").rglob("*") if path.is_file()}


def test_attributes_that_a_kill_left_go_when_it_ends(
    vault: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a copy that was given up, and of a file that was replaced, but had its attributes yet."""
    fs = open_fs(vault, OLD)
    there = attributes(vault)
    fs.setxattr(fs.lookup(1, b"large").ino, b"user.l", b"large", 0)
    fs.close()
    before = shown(vault, OLD)
    monkeypatch.setattr(renewing, "BATCH_FILES", 1)
    (of_large,) = attributes(vault) - there
    fs = open_fs(vault, BOTH)
    ino = fs.lookup(1, b"large").ino
    original = fs.identity(ino)
    left: dict[str, Path] = {}

    def killed(number: int) -> None:
        if of_large in attributes(vault) and len(attributes(vault)) > 3:
            kind = "copied" if fs.identity(ino) == original else "replaced"
            if kind not in left:
                left[kind] = copy(vault, tmp_path / kind)

    assert Reencrypt(fs, Interrupting(killed)).renew()
    fs.close()
    for kind in ("copied", "replaced"):
        assert of_large in attributes(left[kind])
        fs = open_fs(left[kind], BOTH)
        run(fs)
        assert everything(fs) == before
        fs.close()
        assert len(attributes(left[kind])) == 3 and of_large not in attributes(left[kind])


class TestAttributesOfNobody:
    @pytest.fixture
    def fs(self, vault: Path) -> Iterator[FileSystem]:
        fs = open_fs(vault, OLD)
        put(fs, 1, b"gone", b"with its attributes")
        fs.setxattr(fs.lookup(1, b"gone").ino, b"user.a", b"1", 0)
        fs.sync()
        yield fs
        fs.close()

    def clean(self, fs: FileSystem, throttle: Throttle | None = None) -> int:
        throttle = throttle or Throttle()
        with throttle.working(fs.gate):
            return Orphans(fs, throttle, Progress()).run()

    def test_those_of_a_removed_file_go_when_that_is_durable(
        self, fs: FileSystem, vault: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert self.clean(fs) == 0
        fs.unlink(1, b"gone")
        steps: list[str] = []
        remove, sync = XattrStore.remove, orphans.syncfs
        monkeypatch.setattr(orphans, "syncfs", lambda fd: (steps.append("sync"), sync(fd)))
        monkeypatch.setattr(
            XattrStore, "remove", lambda store, name: (steps.append("removed"), remove(store, name))
        )
        assert (self.clean(fs), steps) == (1, ["sync", "removed"])
        assert len(attributes(vault)) == 2

    def test_those_of_a_file_that_is_open_stay(self, fs: FileSystem) -> None:
        ino = fs.lookup(1, b"gone").ino
        handle = fs.open(ino, os.O_RDONLY)
        fs.unlink(1, b"gone")
        assert self.clean(fs) == 0
        assert fs.getxattr(ino, b"user.a") == b"1"
        fs.release(handle)
        fs.forget(ino, 100)
        assert self.clean(fs) == 1

    def test_those_of_files_that_are_made_and_renamed_meanwhile_stay(self, fs: FileSystem) -> None:
        patient = fs.lookup(1, b"patient").ino
        made = 0

        def disturb(number: int) -> None:
            nonlocal made
            made += 1
            put(fs, patient, b"made %d" % number, b"x")
            fs.setxattr(fs.lookup(patient, b"made %d" % number).ino, b"user.n", b"%d" % number, 0)
            one, other = (1, patient) if made % 2 else (patient, 1)
            fs.rename(one, b"gone", other, b"gone")

        assert self.clean(fs, Interrupting(lambda number: disturb(number) if made < 9 else None)) == 0
        assert made == 9
        assert fs.getxattr(fs.lookup(patient, b"gone").ino, b"user.a") == b"1"

    def test_nothing_goes_while_something_cannot_be_read(self, fs: FileSystem, vault: Path) -> None:
        fs.unlink(1, b"gone")
        place = vault / "tree" / os.fsdecode(fs._directories.get(fs._nodes.root).lower_name(b"large")[0])
        before = place.read_bytes()
        place.write_bytes(bytes(8192) + before[8192:])
        assert self.clean(fs) == 0
        place.write_bytes(before)
        assert self.clean(fs) == 1

    def test_nor_while_a_directory_cannot_be_read(self, vault: Path) -> None:
        fs = open_fs(vault, OLD)
        put(fs, 1, b"gone", b"with its attributes")
        fs.setxattr(fs.lookup(1, b"gone").ino, b"user.a", b"1", 0)
        fs.unlink(1, b"gone")
        folder = os.fsdecode(fs._directories.get(fs._nodes.root).lower_name(b"patient")[0])
        fs.close()
        (vault / "tree" / folder / "@dir").write_bytes(bytes(8192))
        for log in (vault / "dirs").iterdir():
            log.unlink()
        for file in (vault / "tree" / folder).rglob("*"):  # those may carry a copy of its header
            if file.is_file() and file.name != "@dir":
                file.unlink()
        fs = open_fs(vault, OLD)
        assert self.clean(fs) == 0
        fs.close()


def test_who_may_read_the_ciphertext_may_read_it_afterwards(vault: Path) -> None:
    for path in (vault / "tree").rglob("*"):
        path.chmod(0o750 if path.is_dir() else 0o640)
    mask = os.umask(0o077)
    try:
        fs = open_fs(vault, BOTH)
        run(fs)
        fs.close()
    finally:
        os.umask(mask)
    files = [path for path in (vault / "tree").rglob("*") if path.is_file() and path.name[0] != "@"]
    assert len(files) > 5
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}


def test_stopped_anywhere_it_goes_on_where_it_was(vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewing, "BATCH_FILES", 2)
    before = shown(vault, OLD)
    renewed, stop_at, runs = 0, 3, 0
    while True:
        fs = open_fs(vault, BOTH)
        work = Reencrypt(fs, Interrupting(stop_at=stop_at))
        runs += 1
        try:
            work.renew()
            renewed += work.progress.changed
            fs.close()
            break
        except Stopped:
            renewed += work.progress.changed
            stop_at += 4  # each time a little further, or it would never come to the end
        assert everything(fs) == before
        fs.close()
        assert shown(vault, BOTH) == before
        for header in vault.rglob("@old"):
            header.with_name("@tmp-00112233").touch()  # as a kill may leave it
    assert runs > 5
    # Every object once, but for those of which a batch was given up: so nearly nothing twice.
    assert renewed < 3 * len(before)
    assert shown(vault, BOTH) == before
    assert not list(vault.rglob("@old")) and not list(vault.rglob("@tmp-*"))


def test_a_vault_in_the_middle_can_be_read_only_and_without_its_record(vault: Path, tmp_path: Path) -> None:
    before = shown(vault, OLD)
    fs = open_fs(vault, BOTH)
    with pytest.raises(Stopped):
        Reencrypt(fs, Interrupting(stop_at=20)).renew()
    cut = copy(vault, tmp_path / "cut")
    fs.close()
    for place in (vault, cut):
        assert list(place.rglob("@old"))
        for _ in range(2):
            reader = open_fs(place, BOTH, read_only=True)
            assert everything(reader) == before
            reader.close()
            (place / "journal" / "reencryption").unlink(missing_ok=True)
        fs = open_fs(place, BOTH)
        assert fs.vault.reencryption.phase is Phase.SWITCHING
        run(fs)
        assert everything(fs) == before
        fs.close()
        assert shown(place, NEW) == before


def test_a_lost_directory_header_is_found_again_in_the_middle(vault: Path) -> None:
    before = shown(vault, OLD)
    fs = open_fs(vault, BOTH)
    with pytest.raises(Stopped):
        Reencrypt(fs, Interrupting(stop_at=25)).renew()
    fs.close()
    lost = [path.parent / "@dir" for path in vault.rglob("@old")]
    assert len(lost) > 1
    for path in lost:
        path.unlink()
    assert shown(vault, BOTH) == before


def test_what_is_under_the_oldest_epoch_comes_first(vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = open_fs(vault, BOTH)
    newer = [b"index", b"nothing", b"latest", b"fifo"]
    for name in newer:
        fs.setattr(fs.lookup(1, name).ino, SetAttr(uid=ME.uid))
    three = BOTH.with_new_epoch()
    fs.use_keyring(three)
    order: list[int] = []
    real = renewing.Renewer.add
    monkeypatch.setattr(
        renewing.Renewer, "add", lambda self, node, size: (order.append(node.ino), real(self, node, size))
    )
    inos = {name: fs.lookup(1, name).ino for name in [*newer, b"large", b"sparse"]}
    assert Reencrypt(fs, Interrupting()).renew()
    places = {name: order.index(ino) for name, ino in inos.items()}
    assert max(places[b"large"], places[b"sparse"]) < min(places[name] for name in newer)
    fs.close()


class TestWhileItRuns:
    def test_names_change(self, vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whatever is renamed, linked, exchanged and made meanwhile: all is under new keys at the end."""
        monkeypatch.setattr(renewing, "BATCH_FILES", 2)
        fs = open_fs(vault, OLD)
        for number in range(12):
            folder = fs.mkdir(1, b"d%d" % number, 0o755, ME).ino
            for file in range(3):
                put(fs, folder, b"f%d" % file, b"%d %d" % (number, file))
        fs.close()
        old_keys = keys(vault, OLD)[0]
        fs = open_fs(vault, BOTH)
        at = {number: fs.lookup(1, b"d%d" % number).ino for number in range(12)}
        expected = {(n, b"f%d" % f): b"%d %d" % (n, f) for n in range(12) for f in range(3)}
        done = 0

        def disturb(number: int) -> None:
            nonlocal done
            if number % 2 or done >= 40:
                return
            one, other, what = done % 12, (done * 7 + 3) % 12, done % 5
            done += 1
            there = [key for key in sorted(expected) if key[0] == one]
            if what == 0 and there:  # into another directory, or over what is there
                name = there[0][1]
                fs.rename(at[one], name, at[other], name)
                expected[other, name] = expected.pop((one, name))
            elif what == 1 and there:
                new = b"n%d" % done
                fs.rename(at[one], there[0][1], at[other], new)
                expected[other, new] = expected.pop(there[0])
            elif what == 2 and there:
                swapped = [key for key in sorted(expected) if key[0] == other and other != one]
                if swapped:
                    fs.rename(at[one], there[0][1], at[other], swapped[0][1], 2)
                    expected[there[0]], expected[swapped[0]] = expected[swapped[0]], expected[there[0]]
            elif what == 3:
                made = fs.mkdir(at[other], b"made %d" % done, 0o755, ME).ino
                if there:
                    fs.rename(at[one], there[-1][1], made, b"moved")
                    expected[100 + done, b"moved"] = expected.pop(there[-1])
                    at[100 + done] = made
            elif there:
                found = fs.lookup(at[one], there[0][1])
                fs.link(found.ino, at[other], b"link %d" % done)
                expected[other, b"link %d" % done] = expected[there[0]]
                put(fs, at[other], b"new %d" % done, b"new")
                expected[other, b"new %d" % done] = b"new"

        work = Reencrypt(fs, Interrupting(disturb))
        assert work.renew()
        assert done == 40
        for (number, name), content in expected.items():
            assert get(fs, at[number], name) == content
        fs.close()
        assert not keys(vault, BOTH)[0] & old_keys
        fs = open_fs(vault, BOTH)
        found = [entry for path, entry in everything(fs).items() if path.startswith(b"d")]
        contents = sorted(entry.content for entry in found if stat.S_ISREG(entry.mode))
        assert contents == sorted(expected.values())
        fs.close()

    def test_an_open_file_is_written(self, vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(renewing, "FEW", 0)
        fs = open_fs(vault, BOTH)
        ino = fs.lookup(1, b"large").ino
        handle = fs.open(ino, os.O_RDWR)
        mirror = bytearray(fs.read(handle, 0, 4_000_000))
        identity = fs.identity(ino)
        count = 0

        def write(number: int) -> None:
            nonlocal count
            count += 1
            if count > 60:
                return
            offset = count * 51_111 % len(mirror)
            data = b"%06d" % count * 20
            fs.write(handle, offset, data)
            if offset + len(data) > len(mirror):
                mirror.extend(bytes(offset + len(data) - len(mirror)))
            mirror[offset : offset + len(data)] = data
            if count % 7 == 0:
                fs.fsync(handle)
            if count == 30:
                fs.setattr(ino, SetAttr(size=1_500_000), handle)
                del mirror[1_500_000:]
            if count == 33:
                fs.setattr(ino, SetAttr(size=2_200_000, mode=0o600), handle)
                mirror.extend(bytes(2_200_000 - len(mirror)))

        assert Reencrypt(fs, Interrupting(write)).renew()
        assert count > 60
        assert fs.identity(ino) != identity
        assert bytes(fs.read(handle, 0, 5_000_000)) == mirror
        fs.write(handle, 5, b"and on")
        mirror[5:11] = b"and on"
        fs.fsync(handle)
        assert fs.lookup(1, b"large").ino == ino
        fs.release(handle)
        assert get(fs, 1, b"large") == mirror
        assert fs.getattr(ino).mode & 0o777 == 0o600
        fs.close()
        assert shown(vault, BOTH)[b"large"].content == mirror

    def test_the_last_change_comes_when_the_copy_is_complete(
        self, vault: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Just before it is put in place: what was written then is in it."""
        fs = open_fs(vault, BOTH)
        handle = fs.open(fs.lookup(1, b"large").ino, os.O_RDWR)
        real = recopying.Copy.catch_up
        written = []

        def late(copy: recopying.Copy) -> set[int] | None:
            if copy.file.size == 3_000_000 and not written:
                fs.write(handle, 2_999_990, b"x" * 30)
                fs.write(handle, 0, b"y")
                written.append(True)
            return real(copy)

        monkeypatch.setattr(recopying.Copy, "catch_up", late)
        assert Reencrypt(fs, Throttle()).renew()
        assert written
        found = bytes(fs.read(handle, 0, 4_000_000))
        assert (found[:1], found[2_999_990:]) == (b"y", b"x" * 30)
        fs.release(handle)
        fs.close()
        assert shown(vault, BOTH)[b"large"].content == found

    def test_unlinked_while_open(self, vault: Path) -> None:
        fs = open_fs(vault, BOTH)
        handle = fs.open(fs.lookup(1, b"large").ino, os.O_RDWR)
        content = bytes(fs.read(handle, 0, 3_000_000))
        fs.unlink(1, b"large")
        run(fs)
        fs.write(handle, 0, b"still")
        assert bytes(fs.read(handle, 0, 3_000_000)) == b"still" + content[5:]
        fs.release(handle)
        fs.close()
        assert b"large" not in shown(vault, NEW)

    def test_readers_and_writers_in_other_threads(self, vault: Path) -> None:
        fs = open_fs(vault, BOTH)
        expected = everything(fs)[b"large"].content
        handle = fs.open(fs.lookup(1, b"large").ino, os.O_RDONLY)
        stop, problems = threading.Event(), []

        def read() -> None:
            at = 0
            while not stop.is_set():
                at = (at + 131_071) % len(expected)
                if bytes(fs.read(handle, at, 200_000)) != expected[at : at + 200_000]:
                    problems.append(at)

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        try:
            for _ in range(3):
                run(fs)
                fs.vault.reencryption.end()
        finally:
            stop.set()
            for reader in readers:
                reader.join()
        assert not problems
        fs.release(handle)
        fs.close()


def test_neither_index_nor_witness_raises_a_false_alarm(vault: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    fs = with_memory(vault, OLD, state)
    before = everything(fs)
    fs.close()
    fs = with_memory(vault, OLD, state)
    fs.use_keyring(BOTH)
    looked_up = {name: fs.lookup(1, name).ino for name in (b"index", b"sparse", b"latest", b"patient")}
    assert everything(fs) == before
    with pytest.raises(Stopped):
        Reencrypt(fs, Interrupting(stop_at=20)).renew()
    killed, killed_state = copy(vault, tmp_path / "killed"), copy(state, tmp_path / "killed state")
    assert everything(fs) == before
    run(fs)
    assert {name: fs.lookup(1, name).ino for name in looked_up} == looked_up
    for _ in range(2):
        assert everything(fs) == before
    upkeep.rebuild(fs, lambda count: None)
    # The kernel forgets them, and with that the numbers of before.
    for name, ino in looked_up.items():
        fs.forget(ino, 1 << 20)
        assert everything(fs) == before, name
    assert upkeep.verify(fs, lambda count: None).wrong == 0
    assert fs.witness.stats()["state"] == "on"
    fs.close()
    for place, memory in ((vault, state), (killed, killed_state)):
        fs = with_memory(place, BOTH, memory)
        assert everything(fs) == before
        fs.sync()
        found = fs.witness.stats()
        assert (found["refused"], found["missing"], found["vault"]) == (0, 0, 0), place
        fs.close()


def test_what_is_on_disk_twice_is_bounded(vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches of copies at a time; a file larger than a batch begins when no other copy is left."""
    batch = 100_000
    monkeypatch.setattr(renewing, "BATCH_BYTES", batch)
    fs = open_fs(vault, OLD)
    folder = fs.mkdir(1, b"many", 0o755, ME).ino
    for number in range(30):
        put(fs, folder, b"small %d" % number, bytes(19_000))
        if number % 10 == 0:
            put(fs, folder, b"larger %d" % number, bytes(500_000))
    fs.close()
    seen: list[tuple[int, list[int]]] = []
    real = recopying.Copy.fill

    def fill_and_look(copy: recopying.Copy, *arguments: Any) -> None:  # noqa: ANN401
        real(copy, *arguments)
        others = [path.stat() for path in (vault / "journal").glob("@tmp-copy-*")]
        seen.append((copy.size, [st.st_size for st in others if st.st_ino != os.fstat(copy.fd).st_ino]))

    monkeypatch.setattr(recopying.Copy, "fill", fill_and_look)
    fs = open_fs(vault, BOTH)
    run(fs)
    fs.close()
    assert len([size for size, _ in seen if size > batch]) == 7
    assert {len(others) for size, others in seen if size > batch} == {0}
    small = [others for size, others in seen if size <= batch]
    assert max(len(others) for others in small) >= 5
    assert max(sum(size for size in others if size <= batch) for others in small) <= 2 * batch
    assert max(len([size for size in others if size > batch]) for others in small) <= 1


def test_it_can_be_frozen_while_it_waits_for_a_batch_to_be_read_back(
    vault: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = shown(vault, OLD)
    fs = open_fs(vault, BOTH)
    begun, go_on = threading.Event(), threading.Event()
    real = recopying.Copy.verify

    def held(copy: recopying.Copy, *arguments: Any, **named: Any) -> None:  # noqa: ANN401
        begun.set()
        assert go_on.wait(60)
        real(copy, *arguments, **named)

    monkeypatch.setattr(recopying.Copy, "verify", held)
    job = reencrypt_job(fs, Throttle())
    job.start()
    assert begun.wait(60)
    freezing = threading.Thread(target=fs.freeze)
    freezing.start()
    freezing.join(60)
    held_up = freezing.is_alive()
    go_on.set()
    freezing.join()
    fs.thaw()
    assert not held_up
    assert job.wait(120) and job.state == "done"
    assert everything(fs) == before
    fs.close()


@pytest.mark.parametrize("what", ["chunk", "header", "length"])
def test_a_copy_that_reads_back_differently_takes_no_place(
    vault: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    before, names = shown(vault, OLD), entries(vault)
    fs = open_fs(vault, BOTH)

    def spoil(fd: int, _begin: int, _size: int, advice: int) -> None:
        """In the place of dropping the pages: the disk gives back something else than it was given."""
        if advice != os.POSIX_FADV_DONTNEED:
            return
        if what == "length":
            os.ftruncate(fd, os.fstat(fd).st_size + 1)
        else:
            at = 8192 + 30 if what == "chunk" else 150
            os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ 1]) if os.fstat(fd).st_size > at else b"", at)

    with monkeypatch.context() as patched:
        patched.setattr(recopying.os, "posix_fadvise", spoil)
        job = reencrypt_job(fs, Throttle())
        job.start()
        assert job.wait(60)
    assert job.state == "failed" and "does not read back" in job.message
    assert everything(fs) == before
    run(fs)
    assert everything(fs) == before
    fs.close()
    assert not entries(vault) & names


def test_what_is_damaged_stays_as_it_is_until_it_may_go(vault: Path) -> None:
    before = shown(vault, OLD)
    fs = open_fs(vault, OLD)
    place = vault / "tree" / os.fsdecode(fs._directories.get(fs._nodes.root).lower_name(b"large")[0])
    fs.close()
    data = bytearray(place.read_bytes())
    data[20_000] ^= 1
    place.write_bytes(data)
    fs = open_fs(vault, BOTH)
    job = reencrypt_job(fs, Throttle())
    job.start()
    assert job.wait(60)
    assert job.state == "done" and job.result["damaged"] == 1
    assert job.result["named"] == [f"tree/{place.name}"]
    assert fs.vault.reencryption.phase is Phase.SWITCHING
    patient = fs.lookup(1, b"patient").ino
    assert everything(fs, patient, b"patient/") == {
        path: entry for path, entry in before.items() if path.startswith(b"patient/")
    }
    with pytest.raises(OSError, match="Input/output error"):
        get(fs, 1, b"large")
    job = reencrypt_job(fs, Throttle(), despite_damage=True)
    job.start()
    assert job.wait(60)
    assert job.state == "done" and job.result["damaged"] == 0
    handle = fs.open(fs.lookup(1, b"large").ino, os.O_RDONLY)
    assert bytes(fs.read(handle, 1_000_000, 1000)) == before[b"large"].content[1_000_000:1_001_000]
    fs.release(handle)
    fs.close()
    assert not list(vault.rglob("@old"))


def test_so_do_damaged_attributes_of_a_directory(vault: Path) -> None:
    before = shown(vault, OLD)
    fs = open_fs(vault, OLD)
    ino = fs.lookup(1, b"patient").ino
    object_id = fs.identity(ino)
    fs.close()
    (place,) = (path for path in (vault / "xattr").rglob("*") if object_id.hex() in path.name)
    place.write_bytes(place.read_bytes()[:-1])
    fs = open_fs(vault, BOTH)
    for _ in range(2):  # another run tells of them, too
        job = reencrypt_job(fs, Throttle())
        job.start()
        assert job.wait(60)
        assert job.state == "done" and job.result["damaged"] == 1
        (name,) = job.result["named"]
        assert (vault / name / "@old").exists()
    job = reencrypt_job(fs, Throttle(), despite_damage=True)
    job.start()
    assert job.wait(60)
    assert job.state == "done" and job.result["damaged"] == 0
    assert not list(vault.rglob("@old"))
    patient = fs.lookup(1, b"patient").ino
    assert everything(fs, patient, b"patient/") == {
        path: entry for path, entry in before.items() if path.startswith(b"patient/")
    }
    with pytest.raises(OSError, match="Input/output error"):
        fs.listxattr(patient)
    fs.close()


class Failing(Faults):
    """Refuses calls on some files only, for as long as `on` says."""

    on = False

    def __init__(
        self, root: Path, kinds: tuple[str, ...], code: int, is_meant: Callable[[Call], bool]
    ) -> None:
        super().__init__(root, kinds, code)
        self._is_meant = is_meant

    def perform(self, call: Call, real: Callable[[], Any]) -> Any:  # noqa: ANN401
        if self.on and call.kind in self._kinds and self._is_meant(call):
            self.failed += 1
            raise OSError(self._code, os.strerror(self._code))
        return real()

    def reading(self, kind: str) -> None:
        pass


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("what", ["content", "a new folder key"])
def test_a_disk_that_does_not_take_it_ends_the_job(vault: Path, code: int, what: str) -> None:
    """It is no damage of what is read, which would be given up by `despite_damage`."""
    before = shown(vault, OLD)
    content = what == "content"
    faults = Failing(
        vault, ("write",), code, lambda call: (call.offset == 8192 and len(call.data) > 50_000) == content
    )
    with faults:
        fs = open_fs(vault, BOTH)
        fs.vault.reencryption.begin()
        faults.on = True
        job = reencrypt_job(fs, Throttle(), despite_damage=True)
        job.start()
        assert job.wait(60)
        assert faults.failed
        assert (job.state, job.exit_code) == ("failed", StorageError.exit_code)
        assert os.strerror(code) in job.message
        faults.on = False
        assert everything(fs) == before
        fs.close()
    assert shown(vault, BOTH) == before
    fs = open_fs(vault, BOTH)
    run(fs)
    fs.close()
    assert shown(vault, NEW) == before


@pytest.mark.parametrize("when", ["first", "last"])
def test_a_disk_that_does_not_give_a_file_back_is_damage_of_that_file(
    vault: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """At the first reading of it, or when it was copied and changes once more before it is put in place."""
    before = shown(vault, OLD)
    fs = open_fs(vault, BOTH)
    ino = fs.lookup(1, b"large").ino
    handle = fs.open(ino, os.O_RDWR)
    real, real_catch_up = File.read, recopying.Copy.catch_up
    late = when == "first"

    def bad(file: File, offset: int, size: int) -> Any:  # noqa: ANN401
        if late and file.size == 3_000_000 and size == recopying.PIECE:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(file, offset, size)

    def catch_up(copy: recopying.Copy) -> set[int] | None:
        nonlocal late
        if copy.file.size == 3_000_000:
            fs.write(handle, 0, before[b"large"].content[:10])
            late = True
        return real_catch_up(copy)

    with monkeypatch.context() as patched:
        patched.setattr(File, "read", bad)
        patched.setattr(recopying.Copy, "catch_up", catch_up)
        job = reencrypt_job(fs, Throttle())
        job.start()
        assert job.wait(60)
    assert (job.state, job.result["damaged"]) == ("done", 1)
    fs.release(handle)
    assert {path: entry.content for path, entry in everything(fs).items()} == {
        path: entry.content for path, entry in before.items()
    }
    run(fs)
    fs.close()


@pytest.mark.parametrize("how", ["over", "exchange", "exchanged", "link", "into a new directory"])
def test_what_is_not_done_stays_marked_wherever_it_goes(
    vault: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(renewing, "BATCH_FILES", 1)
    fs = open_fs(vault, OLD)
    names = [b"file %d" % number for number in range(8)]
    for name in names:
        put(fs, 1, name, name)
    fs.close()
    old_keys = keys(vault, OLD)[0]
    fs = open_fs(vault, BOTH)

    def split() -> tuple[list[bytes], list[bytes]]:
        root, marks = fs._directories.get(fs._nodes.root), fs._directories.marks
        assert marks is not None
        done = [name for name in names if marks.is_done(root, root.lower_name(name)[0])]
        return done, [name for name in names if name not in done]

    def stop_when_mixed(number: int) -> None:
        if fs._directories.marks is not None and root_is_begun() and all(map(bool, split())):
            raise Stopped

    def root_is_begun() -> bool:
        return fs._directories.get(fs._nodes.root).old is not None

    with pytest.raises(Stopped):
        Reencrypt(fs, Interrupting(stop_when_mixed)).renew()
    done, undone = split()
    expected = {name: name for name in names}
    match how:
        case "over":
            fs.rename(1, undone[0], 1, done[0])
            expected[done[0]] = expected.pop(undone[0])
            assert done[0] not in split()[0]
        case "exchange":
            fs.rename(1, undone[0], 1, done[0], 2)
            expected[done[0]], expected[undone[0]] = undone[0], done[0]
            assert done[0] not in split()[0]
        case "exchanged":
            fs.rename(1, done[0], 1, undone[0], 2)
            expected[done[0]], expected[undone[0]] = undone[0], done[0]
            assert done[0] not in split()[0]
        case "link":
            fs.link(fs.lookup(1, undone[0]).ino, 1, b"linked")
            names.append(b"linked")
            expected[b"linked"] = undone[0]
            assert b"linked" not in split()[0]
        case _:
            made = fs.mkdir(1, b"made", 0o755, ME).ino
            fs.rename(1, undone[0], made, b"moved")
            del expected[undone[0]]
    fs.close()
    fs = open_fs(vault, BOTH)
    run(fs)
    for name, content in expected.items():
        assert get(fs, 1, name) == content
    if how == "into a new directory":
        assert get(fs, fs.lookup(1, b"made").ino, b"moved") == undone[0]
    fs.close()
    assert not keys(vault, NEW)[0] & old_keys


class Holding(Throttle):
    """Waits at one of its pauses until somebody lets it go on."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._at, self.number, self.waits = at, 0, threading.Event()

    @property
    def slice_is_over(self) -> bool:
        return True

    def check(self) -> None:
        self.number += 1
        if self.number == self._at:
            self.hold()
            self.waits.set()
        self.pause()


def held_in_the_middle(fs: FileSystem, at: int) -> tuple[Job, Holding]:
    """A job that waits at one of its pauses."""
    throttle = Holding(at)
    job = reencrypt_job(fs, throttle)
    job.start()
    assert throttle.waits.wait(60)
    return job, throttle


def test_a_frozen_copy_of_the_middle_is_a_vault_like_any_other(vault: Path, tmp_path: Path) -> None:
    before = shown(vault, OLD)
    fs = open_fs(vault, BOTH)
    job, throttle = held_in_the_middle(fs, 20)
    fs.freeze()
    frozen = copy(vault, tmp_path / "frozen")
    fs.thaw()
    throttle.go()
    assert job.wait(120) and job.state == "done"
    assert everything(fs) == before
    fs.close()
    assert list(frozen.rglob("@old"))
    fs = open_fs(frozen, BOTH)
    assert not fs.vault.state.found_open
    assert everything(fs) == before
    run(fs)
    assert everything(fs) == before
    fs.close()
    assert shown(frozen, NEW) == before


def test_stopped_while_the_vault_is_frozen_it_changes_nothing(vault: Path) -> None:
    before = shown(vault, OLD)
    fs = open_fs(vault, BOTH)
    job, _ = held_in_the_middle(fs, 40)
    fs.freeze()
    frozen = ciphertext(vault)
    assert any("@tmp-copy-" in name for name in frozen)
    job.stop()
    assert job.state == "stopped"
    assert ciphertext(vault) == frozen
    fs.thaw()
    assert everything(fs) == before
    run(fs)
    assert everything(fs) == before
    fs.close()
    assert not list(vault.rglob("@tmp-copy-*"))


def ciphertext(vault: Path) -> dict[str, bytes]:
    """Every file of a vault."""
    return {str(path): path.read_bytes() for path in vault.rglob("*") if path.is_file()}

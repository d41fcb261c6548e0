"""The LMDB environment: what it keeps, what it does not believe, what its files show."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cryptfs.index import environment as module
from cryptfs.index import pages, place
from cryptfs.index.batch import Batch
from cryptfs.index.environment import Damaged, Environment, Unavailable, ValueDamaged, discard
from tests.waiting import wait_for_another_time

from .support import VAULT_ID, FakeKeyring, OtherKeyring, open_environment

ITEMS = [(b"k%05d" % i, b"value %d" % i * 4) for i in range(3000)]


def filled(path: Path, *, durable: bool = False) -> Path:
    environment = open_environment(path, durable=durable)
    environment.write(ITEMS)
    environment.write([(key, None) for key, _ in ITEMS[100:200]])
    environment.close()
    return path / "test" / "data.mdb"


def test_keeps_records_over_openings(tmp_path: Path) -> None:
    filled(tmp_path)
    environment = open_environment(tmp_path)
    assert environment.found == ""
    assert environment.get(ITEMS[0][0]) == ITEMS[0][1]
    assert environment.get(ITEMS[150][0]) is None
    assert environment.scan(b"k000", limit=3, after=ITEMS[98][0]) == [ITEMS[99]]
    assert environment.scan(b"k00") == ITEMS[:100] + ITEMS[200:1000]
    assert environment.scan(b"k029", limit=5) == ITEMS[2900:2905]
    environment.close()


def test_map_grows_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAP_START", 1 << 18)
    environment = open_environment(tmp_path)
    environment.write(ITEMS[:10])
    stop, problems = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            if environment.get(ITEMS[3][0]) != ITEMS[3][1] or len(environment.scan(b"k0000")) != 10:
                problems.append("a read went wrong")

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for part in range(40):
        environment.write([(b"x%d-%d" % (part, i), os.urandom(400)) for i in range(100)])
    stop.set()
    for reader in readers:
        reader.join()
    assert not problems
    assert environment.count() == 10 + 4000 + 1
    environment.close()
    assert open_environment(tmp_path).get(ITEMS[3][0]) == ITEMS[3][1]


def test_the_last_of_a_key_counts(tmp_path: Path) -> None:
    environment = open_environment(tmp_path)
    environment.write([(b"a", None), (b"a", b"1"), (b"b", b"2"), (b"b", None), (b"c", b"3"), (b"c", b"4")])
    assert [environment.get(key) for key in (b"a", b"b", b"c")] == [b"1", None, b"4"]
    environment.close()


def test_clear(tmp_path: Path) -> None:
    environment = open_environment(tmp_path)
    environment.write(ITEMS)
    assert environment.get(ITEMS[-1][0]) == ITEMS[-1][1]
    environment.clear()
    assert environment.get(ITEMS[-1][0]) is None
    environment.write(ITEMS[:1])
    environment.close()
    assert open_environment(tmp_path).get(ITEMS[0][0]) == ITEMS[0][1]


def test_one_writer(tmp_path: Path) -> None:
    environment = open_environment(tmp_path)
    with pytest.raises(Unavailable, match="in use"):
        open_environment(tmp_path)
    with pytest.raises(Unavailable, match="in use"):
        discard(tmp_path, "test")
    environment.close()
    assert discard(tmp_path, "test")
    assert not discard(tmp_path, "test")


def test_files_show_nothing(tmp_path: Path) -> None:
    names = [f"MUSTERMANN^ERIKA-{i:06}.dcm".encode() for i in range(500)]
    environment = open_environment(tmp_path)
    for name in names:
        environment.write([(b"E" + environment.hashed(20, name), name + b"1234567890" * 3)])
    environment.close()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert b"MUSTERMANN" not in data and b"1234567890" not in data, path
            assert VAULT_ID not in data and VAULT_ID.hex().encode() not in data, path


def test_values_do_not_move(tmp_path: Path) -> None:
    """A sealed value is one of its own key only, and equal values are not equal on disk."""
    environment = open_environment(tmp_path)
    environment.write([(b"a", b"same"), (b"b", b"same")])
    one, two = environment._raw(b"a"), environment._raw(b"b")
    assert one is not None and two is not None and one[10:] != two[10:]
    environment._write([(b"b", one)])
    with pytest.raises(ValueDamaged):
        environment.get(b"b")
    environment.close()


def test_nonces_are_never_used_twice(tmp_path: Path) -> None:
    """Each opening has a run of its own, even when the runs of before were lost."""
    seen = set()
    for _ in range(5):
        environment = open_environment(tmp_path)
        environment.write([(b"a", b"same")])
        raw = environment._raw(b"a")
        assert raw is not None
        seen.add(raw)
        environment.clear()
        environment.close()
    assert len(seen) == 5


# -- what is not believed


def test_unclean_stop_empties_what_can_be_rebuilt(tmp_path: Path) -> None:
    code = (
        "import sys, os; from pathlib import Path; from tests.index.support import open_environment\n"
        "e = open_environment(Path(sys.argv[1])); e.write([(b'a', b'1')]); os._exit(9)"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, check=False)
    environment = open_environment(tmp_path)
    assert "did not end cleanly" in environment.found
    assert environment.get(b"a") is None
    environment.close()


def test_unclean_stop_keeps_what_must_be_kept(tmp_path: Path) -> None:
    code = (
        "import sys, os; from pathlib import Path; from tests.index.support import open_environment\n"
        "e = open_environment(Path(sys.argv[1]), durable=True); e.write([(b'a', b'1')]); os._exit(9)"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, check=False)
    environment = open_environment(tmp_path, durable=True)
    assert environment.get(b"a") == b"1"
    environment.close()


def damage(data: Path, how: str) -> None:
    size = data.stat().st_size
    if how == "cut":
        os.truncate(data, size // 2)
    elif how == "emptied":
        os.truncate(data, 0)
    elif how == "zeroed":
        data.write_bytes(bytes(size))
    elif how == "touched":
        data.write_bytes(data.read_bytes())
    elif how == "copied":
        copy = data.with_name("copy")
        shutil.copy2(data, copy)
        os.replace(copy, data)
    elif how == "gone":
        data.unlink()
    elif how == "no seal":
        data.with_name("seal").unlink()
    elif how == "cut seal":
        os.truncate(data.with_name("seal"), 40)
    elif how == "wrong seal":
        seal = bytearray(data.with_name("seal").read_bytes())
        seal[-1] ^= 1
        data.with_name("seal").write_bytes(seal)


DAMAGES = ["cut", "emptied", "zeroed", "touched", "copied", "gone", "no seal", "cut seal", "wrong seal"]


@pytest.mark.parametrize("how", DAMAGES)
def test_changed_file_is_begun_anew(tmp_path: Path, how: str) -> None:
    data = filled(tmp_path)
    wait_for_another_time(tmp_path)
    damage(data, how)
    environment = open_environment(tmp_path)
    assert environment.get(ITEMS[0][0]) is None
    assert environment.found.startswith("it was begun anew, because") or how == "gone"
    environment.write(ITEMS)
    environment.close()
    assert open_environment(tmp_path).get(ITEMS[0][0]) == ITEMS[0][1]


@pytest.mark.parametrize("how", [how for how in DAMAGES if how != "gone"])
def test_changed_durable_file_is_refused_or_whole(tmp_path: Path, how: str) -> None:
    damage(filled(tmp_path, durable=True), how)
    if how in ("touched", "copied"):
        environment = open_environment(tmp_path, durable=True)
        assert environment.get(ITEMS[0][0]) == ITEMS[0][1]
        environment.close()
        return
    with pytest.raises(Damaged):
        open_environment(tmp_path, durable=True)
    assert discard(tmp_path, "test")
    open_environment(tmp_path, durable=True).close()


def test_stop_while_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut before the first commit leaves nothing that looks like damage."""
    monkeypatch.setattr(Environment, "_begin_run", lambda self: os.open("/nonexistent", 0))
    with pytest.raises(Unavailable):
        open_environment(tmp_path, durable=True)
    monkeypatch.undo()
    damage(tmp_path / "test/data.mdb", "emptied")
    environment = open_environment(tmp_path, durable=True)
    environment.write([(b"a", b"1")])
    assert environment.get(b"a") == b"1"
    environment.close()


def test_fuzzed_pages_are_found_or_harmless(tmp_path: Path, seed: int) -> None:
    """Whatever `pages.check` lets pass, LMDB reads in a process that must not die."""
    data = filled(tmp_path, durable=True)
    original, rng = data.read_bytes(), random.Random(seed)
    cases = tmp_path / "cases"
    cases.mkdir()
    passed = 0
    for case in range(150):
        changed = bytearray(original)
        for _ in range(rng.choice((1, 1, 8, 200))):
            at = rng.randrange(len(changed) // 4096) * 4096 + rng.choice(
                (rng.randrange(64), rng.randrange(4096))
            )
            changed[at] = rng.randrange(256)
        fuzzed = cases / str(case)
        fuzzed.write_bytes(changed)
        with open(fuzzed, "rb") as file:
            try:
                pages.check(file)
                passed += 1
            except pages.PagesDamaged:
                fuzzed.unlink()
    code = (
        "import sys, lmdb, pathlib\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    env = lmdb.open(str(path), subdir=False, map_size=1 << 26, max_readers=4)\n"
        "    try:\n"
        "        with env.begin() as txn:\n"
        "            sum(len(v) for _, v in txn.cursor())\n"
        "            [txn.get(b'k%05d' % i) for i in range(3000)]\n"
        "        with env.begin(write=True) as txn:\n"
        "            [txn.put(b'k%05d' % i, b'x' * 60) for i in range(0, 3000, 7)]\n"
        "    except lmdb.Error:\n"
        "        pass\n"
        "    env.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(cases)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 0 < passed < 150


def test_another_vaults_environment(tmp_path: Path) -> None:
    filled(tmp_path)
    environment = open_environment(tmp_path, vault_id=b"w" * 16)
    assert "another vault" in environment.found and environment.get(ITEMS[0][0]) is None
    environment.close()
    (tmp_path / "durable").mkdir()
    filled(tmp_path / "durable", durable=True)
    with pytest.raises(Damaged):
        open_environment(tmp_path / "durable", durable=True, vault_id=b"w" * 16)


def test_another_copy_of_the_vault(tmp_path: Path) -> None:
    filled(tmp_path)
    environment = open_environment(tmp_path, subject=b"s" * 16)
    assert "another copy" in environment.found and environment.get(ITEMS[0][0]) is None
    environment.close()


def test_new_epoch(tmp_path: Path) -> None:
    """What can be rebuilt is begun anew; what must be kept is sealed under the new epoch at once."""
    filled(tmp_path)
    environment = open_environment(tmp_path, keyring=OtherKeyring(both=True))
    assert "epoch" in environment.found and environment.get(ITEMS[0][0]) is None
    environment.close()
    kept = tmp_path / "kept"
    kept.mkdir()
    filled(kept, durable=True)
    for keyring in (OtherKeyring(both=True), OtherKeyring(both=False)):
        environment = open_environment(kept, durable=True, keyring=keyring)
        assert environment.get(ITEMS[0][0]) == ITEMS[0][1]
        environment.close()
    with pytest.raises(Damaged):
        open_environment(kept, durable=True, keyring=FakeKeyring())


# -- where it cannot be


def test_place_in_the_vault_or_on_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place.prepare(VAULT_ID, tmp_path / "state", outside=[tmp_path / "vault"])
    assert path == tmp_path / "state" / VAULT_ID.hex()
    assert path.stat().st_mode & 0o777 == 0o700
    with pytest.raises(Unavailable, match="inside"):
        place.prepare(VAULT_ID, tmp_path / "state", outside=[tmp_path])
    for kind in ("nfs4", "cifs", "fuse.sshfs"):
        monkeypatch.setattr(place, "file_system_type", lambda fd, kind=kind: kind)
        with pytest.raises(Unavailable, match=f"on a {kind} file system"):
            place.prepare(VAULT_ID, tmp_path / "state")


def test_place_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.prepare(VAULT_ID, tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(Unavailable, match="belongs to another user"):
        place.prepare(VAULT_ID, tmp_path)


def test_place_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="cannot be used"):
        place.prepare(VAULT_ID, tmp_path / "file" / "state")
    (tmp_path / VAULT_ID.hex()).write_text("")
    with pytest.raises(Unavailable):
        place.prepare(VAULT_ID, tmp_path)


def test_default_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(place.OVERRIDE, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert place.base() == tmp_path / "cryptfs"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", "/nobody")
    assert place.base() == Path("/nobody/.local/state/cryptfs")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert place.base() == Path("/var/lib/cryptfs")
    monkeypatch.setenv(place.OVERRIDE, str(tmp_path / "o"))
    assert place.base() == tmp_path / "o"
    assert place.base(tmp_path / "p") == tmp_path / "p"


def test_only_what_can_be_rebuilt_is_tagged_as_cache(tmp_path: Path) -> None:
    filled(tmp_path)
    assert (
        (tmp_path / "test/CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")
    )
    discard(tmp_path, "test")
    filled(tmp_path, durable=True)
    assert not (tmp_path / "test/CACHEDIR.TAG").exists()


# -- collected writes


def test_batch_shows_what_was_put(tmp_path: Path) -> None:
    batch = Batch(open_environment(tmp_path))
    batch.put(b"ka", b"1")
    batch.put(b"kb", b"2")
    batch.flush()
    batch.put(b"kb", None)
    batch.put(b"kc", b"3")
    assert [batch.get(key) for key in (b"ka", b"kb", b"kc", b"kd")] == [b"1", None, b"3", None]
    assert batch.scan(b"k") == {b"ka": b"1", b"kc": b"3"}
    batch.close()
    environment = open_environment(tmp_path)
    assert environment.scan(b"k") == [(b"ka", b"1"), (b"kc", b"3")]
    environment.close()


def test_batch_is_consistent_while_it_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cryptfs.index.batch.FULL", 10)
    batch = Batch(open_environment(tmp_path))
    for i in range(5000):
        key = b"k%d" % (i % 50)
        batch.put(key, b"%d" % i)
        assert batch.get(key) == b"%d" % i
    assert len(batch.scan(b"k")) == 50
    batch.close()


def test_batch_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    batch = Batch(open_environment(tmp_path), said.append)
    batch.put(b"a", b"1")
    batch.flush()

    def full(self: Environment, sealed: object, removed: object) -> None:
        raise self._fail(OSError(28, "No space left on device"))

    monkeypatch.setattr(Environment, "_write", full)
    batch.put(b"b", b"2")
    batch.flush()
    batch.put(b"c", b"3")
    batch.flush()
    assert len(said) == 1 and "No space left" in said[0]
    with pytest.raises(Unavailable):
        batch.get(b"a")
    assert batch.failed
    batch.close()
    monkeypatch.undo()
    assert "did not end cleanly" in open_environment(tmp_path).found

"""What is authentic but not what was there last: older versions, other files of the vault, deletions.

The attacker replaces ciphertext while the vault is locked; the computer that mounts it again remembers.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path

import pytest

from cryptfs.errors import IntegrityError
from tests.security.archive import Archive, Mounted

ALICE, BOB = b"pixels of Alice " * 5000, b"pixels of Bob " * 4000


@pytest.fixture
def watched(archive: Archive, tmp_path: Path) -> Archive:
    """Some files and directories that the computer has seen."""
    archive.state = tmp_path / "state"
    with archive.mounted() as mounted:
        mounted.mkdir("alice")
        mounted.mkdir("bob")
        mounted.write("alice/ct", ALICE)
        mounted.write("alice/mr", ALICE[:1000])
        mounted.write("bob/ct", BOB)
        mounted.write("report", b"the first version")
        assert events(mounted) == (0, 0, 0)
    return archive


def events(mounted: Mounted) -> tuple[int, int, int]:
    """How much was refused, is missing, or is wrong with the vault as a whole."""
    found = mounted.fs.stats()["witness"]
    return found["refused"], found["missing"], found["vault"]


def refused(mounted: Mounted, path: str) -> bool:
    try:
        mounted.read(path)
    except OSError as error:
        assert error.errno == errno.EIO
        return True
    return False


def put_back(kept: Path, place: Path) -> None:
    """Replace a file or directory by a copy of it, or of another one."""
    if place.is_dir():
        shutil.rmtree(place)
        shutil.copytree(kept, place)
    else:
        place.unlink()
        shutil.copy2(kept, place)


def rewrite(mounted: Mounted, path: str, data: bytes) -> None:
    """Open with O_TRUNC and write: the object stays the same."""
    handle = mounted.fs.open(mounted.ino(path), os.O_WRONLY | os.O_TRUNC)
    mounted.fs.write(handle, 0, data)
    mounted.fs.flush(handle)
    mounted.fs.release(handle)


def test_the_same_files_are_served_again_and_again(watched: Archive) -> None:
    for _ in range(3):
        with watched.mounted() as mounted:
            assert mounted.read("alice/ct") == ALICE
            assert mounted.list("") == ["alice", "bob", "report"]
            assert mounted.list("alice") == ["ct", "mr"]
            assert events(mounted) == (0, 0, 0)


def test_another_file_under_its_name_is_refused(watched: Archive, caplog: pytest.LogCaptureFixture) -> None:
    put_back(watched.lower("alice/ct"), watched.lower("bob/ct"))
    with watched.mounted() as mounted:
        for _ in range(2):
            assert refused(mounted, "bob/ct")
        assert mounted.read("alice/ct") == ALICE
        assert mounted.list("bob") == ["ct"]
        assert events(mounted) == (1, 0, 0)
    (told,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert "cryptfs accept-restore" in told
    assert "bob" not in told


def test_two_files_exchanged_are_both_refused(watched: Archive) -> None:
    one, two = watched.lower("alice/ct"), watched.lower("alice/mr")
    one.rename(one.with_name("x"))
    two.rename(one)
    one.with_name("x").rename(two)
    with watched.mounted() as mounted:
        assert refused(mounted, "alice/ct")
        assert refused(mounted, "alice/mr")
        assert mounted.read("bob/ct") == BOB


def test_its_own_older_version_is_refused(watched: Archive, tmp_path: Path) -> None:
    shutil.copy2(watched.lower("report"), tmp_path / "kept")
    with watched.mounted() as mounted:
        rewrite(mounted, "report", b"the second version")
    put_back(tmp_path / "kept", watched.lower("report"))
    with watched.mounted() as mounted:
        assert refused(mounted, "report")
        assert events(mounted) == (1, 0, 0)


def test_an_older_header_over_the_same_content_is_refused(watched: Archive, tmp_path: Path) -> None:
    kept = watched.lower("report").read_bytes()[:8192]
    with watched.mounted() as mounted:
        mounted.write("report", b"THE")
    place = watched.lower("report")
    place.write_bytes(kept + place.read_bytes()[8192:])
    with watched.mounted() as mounted:
        assert refused(mounted, "report")


def test_an_older_version_that_was_another_object_is_refused(watched: Archive, tmp_path: Path) -> None:
    shutil.copy2(watched.lower("report"), tmp_path / "kept")
    with watched.mounted() as mounted:
        mounted.write("new", b"the second version")
        mounted.fs.rename(1, b"new", 1, b"report")
    put_back(tmp_path / "kept", watched.lower("report"))
    with watched.mounted() as mounted:
        assert refused(mounted, "report")


@pytest.mark.parametrize("how", ["list", "look up"])
def test_a_deleted_file_is_reported(watched: Archive, how: str, caplog: pytest.LogCaptureFixture) -> None:
    watched.lower("alice/mr").unlink()
    for _ in range(2):  # in each session
        caplog.clear()
        with watched.mounted() as mounted:
            for _ in range(2):
                if how == "list":
                    assert mounted.list("alice") == ["ct"]
                else:
                    with pytest.raises(FileNotFoundError):
                        mounted.ino("alice/mr")
            assert events(mounted) == (0, 1, 0)
        assert len([record for record in caplog.records if "is missing" in record.getMessage()]) == 1


def test_a_deleted_directory_is_reported(watched: Archive) -> None:
    shutil.rmtree(watched.lower("alice"))
    with watched.mounted() as mounted:
        assert mounted.list("") == ["bob", "report"]
        assert events(mounted) == (0, 1, 0)


def test_a_wiped_file_is_no_remnant_of_a_power_cut(watched: Archive, tmp_path: Path) -> None:
    # A vault that was killed takes objects without a header for remnants, and removes them.
    with watched.mounted():
        state = (watched.path / "journal" / "state").read_bytes()
    (watched.path / "journal" / "state").write_bytes(state)
    wiped = watched.lower("alice/ct")
    wiped.write_bytes(bytes(8192))
    with watched.mounted() as mounted:
        with pytest.raises(OSError, match="Input/output error"):
            mounted.ino("alice/ct")
        assert events(mounted) == (0, 1, 1)
    assert wiped.exists()


def test_an_older_tree_is_refused_where_it_differs(watched: Archive, tmp_path: Path) -> None:
    shutil.copytree(watched.path / "tree", tmp_path / "kept")
    with watched.mounted() as mounted:
        rewrite(mounted, "report", b"the second version")
        mounted.write("alice/new", b"x")
        mounted.fs.unlink(mounted.ino("bob"), b"ct")
        mounted.write("bob/ct", b"another")
    put_back(tmp_path / "kept", watched.path / "tree")
    with watched.mounted() as mounted:
        assert refused(mounted, "report")
        assert refused(mounted, "bob/ct")
        assert mounted.read("alice/ct") == ALICE
        assert mounted.list("alice") == ["ct", "mr"]
        assert events(mounted) == (2, 1, 0)


def test_another_directory_under_its_name_is_refused(watched: Archive) -> None:
    put_back(watched.lower("alice"), watched.lower("bob"))
    with watched.mounted() as mounted:
        with pytest.raises(OSError, match="Input/output error"):
            mounted.ino("bob/ct")
        assert mounted.read("alice/ct") == ALICE
        assert events(mounted)[0] == 1


def test_an_older_header_of_a_directory_is_reported(watched: Archive, tmp_path: Path) -> None:
    from cryptfs.fs.types import SetAttr

    shutil.copy2(watched.lower("alice") / "@dir", tmp_path / "kept")
    with watched.mounted() as mounted:
        mounted.fs.setattr(mounted.ino("alice"), SetAttr(mode=0o700))
    put_back(tmp_path / "kept", watched.lower("alice") / "@dir")
    with watched.mounted() as mounted:
        assert mounted.read("alice/ct") == ALICE
        assert events(mounted) == (1, 0, 0)


def test_another_root_is_refused(watched: Archive) -> None:
    inner = watched.lower("alice")
    shutil.copytree(inner, watched.path / "kept")
    put_back(watched.path / "kept", watched.path / "tree")
    with pytest.raises(IntegrityError, match="accept-restore"), watched.mounted():
        pass


def test_an_older_vault_as_a_whole_is_noticed_when_it_is_mounted(watched: Archive, tmp_path: Path) -> None:
    shutil.copytree(watched.path, tmp_path / "kept")
    with watched.mounted() as mounted:
        rewrite(mounted, "report", b"the second version")
    put_back(tmp_path / "kept", watched.path)
    with watched.mounted() as mounted:
        assert events(mounted) == (0, 0, 1)
        assert refused(mounted, "report")
        assert mounted.read("alice/ct") == ALICE


def test_an_older_record_of_a_session_does_not_pass(watched: Archive) -> None:
    # With "this session is writing" put back, files of that session could be cut like after a power cut.
    state = watched.path / "journal" / "state"
    with watched.mounted():
        kept = state.read_bytes()
    state.write_bytes(kept)
    with watched.mounted() as mounted:
        assert events(mounted) == (0, 0, 1)


def test_a_kill_does_not_open_the_door(watched: Archive, tmp_path: Path) -> None:
    # The session before was killed while nothing was being renamed or removed: all is compared as ever.
    host = tmp_path / "host"
    with watched.mounted() as mounted:
        mounted.fs._committer.stop()  # vault and host are copied at one instant
        mounted.write("alice/new", b"x")
        mounted.fs.sync()
        host.mkdir()
        assert watched.state is not None
        shutil.copytree(watched.path, host / "vault")
        shutil.copytree(watched.state, host / "state")
    put_back(host / "vault", watched.path)
    put_back(host / "state", watched.state)
    put_back(watched.lower("alice/ct"), watched.lower("bob/ct"))
    with watched.mounted() as mounted:
        assert mounted.fs.stats()["unclean_sessions"] == 1
        assert refused(mounted, "bob/ct")
        assert mounted.read("alice/new") == b"x"


def test_an_older_configuration_does_not_begin_the_witness_anew(watched: Archive, tmp_path: Path) -> None:
    from cryptfs.index import place
    from cryptfs.index.witness import WitnessStore
    from cryptfs.vault.keyring import Keyring

    unlocked = watched.unlock()
    assert watched.state is not None
    where = place.of_vault(unlocked.vault_id, watched.state)
    newer = unlocked.keyring.with_new_epoch()
    WitnessStore.open(where, watched.path, unlocked.vault_id, newer).close()
    with watched.mounted() as mounted:
        assert events(mounted) == (0, 0, 1)
    store = WitnessStore.open(where, watched.path, unlocked.vault_id, newer)
    assert store.count() > 5
    store.close()
    assert isinstance(newer, Keyring)


def test_nothing_of_the_vault_shows_in_the_witness(watched: Archive) -> None:
    keys = watched.keys()
    assert keys is not None
    secrets = [b"alice", b"report", watched.header("report").object_id, watched.lower("report").name.encode()]
    secrets += [watched.header("alice").object_id, watched.header("").object_id, os.fsencode(watched.path)]
    assert watched.state is not None
    files = [path for path in watched.state.rglob("*") if path.is_file()]
    assert any(path.name == "data.mdb" for path in files)
    for path in files:
        data = path.read_bytes()
        assert not any(secret in data for secret in secrets), path


def test_a_name_that_nobody_wrote_does_not_stop_the_witness(watched: Archive) -> None:
    """A second spelling of a name is looked at before its folder is removed."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    name = watched.lower("report").name  # 6 + 16 bytes: four unused bits
    spelling = name[:-1] + alphabet[alphabet.index(name[-1]) | 1]
    assert spelling != name
    with watched.mounted() as mounted:
        mounted.mkdir("empty")
    shutil.copy(watched.lower("report"), watched.lower("empty") / spelling)
    with watched.mounted() as mounted:
        with pytest.raises(OSError, match="not empty"):
            mounted.fs.rmdir(1, b"empty")
        mounted.fs.sync()
        assert mounted.fs.stats()["witness"]["state"] == "on"
        assert events(mounted) == (0, 0, 0)

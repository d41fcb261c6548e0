"""What this host remembers of a vault, compared by a check: the rollback witness and the metadata index."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.check.context import Context
from cryptfs.check.finding import Finding, Kind, Severity
from cryptfs.check.host import Host
from cryptfs.check.hostindex import HostIndex
from cryptfs.check.report import Report
from cryptfs.check.run import Check
from cryptfs.fs import metadata
from cryptfs.fs.types import SetAttr
from cryptfs.index import catalog, place
from tests.check.support import copy, fill
from tests.security.archive import Archive
from tests.tools.project import PROJECT

FOREVER = 300


def check(archive: Archive, *, in_use: bool = False) -> Report:
    """Check with what the computer remembers."""
    unlocked = archive.unlock()
    context = Context(archive.path, unlocked.vault_id, unlocked.keyring, live=in_use)
    with contextlib.closing(context):
        kept = place.of_vault(unlocked.vault_id, archive.state)
        context.host = Host.open(context, kept, in_use=in_use)
        context.index = HostIndex.open(context, kept, in_use=in_use)
        return Check(context).run()


def differences(archive: Archive) -> list[Finding]:
    report = check(archive)
    found = [one for one in report.tally.findings if one.severity is Severity.ROLLBACK]
    assert report.verdict == ("rolled-back" if found else "clean")
    return found


def place_of(archive: Archive, path: str) -> bytes:
    return os.fsencode(archive.lower(path).relative_to(archive.path))


@pytest.fixture
def watched(archive: Archive, tmp_path: Path) -> Archive:
    """A vault that the computer has seen all of, with an index closed in order."""
    archive.state = tmp_path / "state"
    fill(archive)
    with archive.mounted(xattrs=True) as mount:
        for folder in ("", "anna", "anna/ct"):
            mount.list(folder)
    return archive


def test_nothing_differs(watched: Archive) -> None:
    report = check(watched)
    assert (report.verdict, report.tally.findings) == ("clean", [])
    assert report.remembered == {"witness": "compared", "index": "compared"}
    assert report.as_json()["remembered"]["witness"] == "compared"
    assert "compared" in report.as_text()


def test_it_changes_nothing_on_the_host(watched: Archive) -> None:
    def content() -> dict[str, bytes]:
        assert watched.state is not None
        files = [path for path in watched.state.rglob("*") if path.is_file()]
        # What tells LMDB and the writer of readers.
        return {str(path): path.read_bytes() for path in files if path.name not in ("lock.mdb", "readers")}

    before = content()
    check(watched)
    assert content() == before
    with watched.mounted(xattrs=True) as mount:
        mount.list("anna")
        assert mount.fs.knowledge.numbers()["begun_anew"] == ""


def test_a_computer_that_never_saw_the_vault(archive: Archive, tmp_path: Path) -> None:
    fill(archive)
    archive.state = tmp_path / "nothing"
    report = check(archive)
    assert report.verdict == "clean"
    assert "has not seen the vault" in report.remembered["witness"]
    assert not archive.state.exists()


def test_another_object(watched: Archive) -> None:
    one, two = watched.lower("anna/ct/1.dcm"), watched.lower("anna/ct/2.dcm")
    was = watched.header("anna/ct/2.dcm").object_id
    shutil.copyfile(one, two)
    report = check(watched)
    (found,) = [one for one in report.tally.findings if one.kind is Kind.REPLACED]
    assert found.place == place_of(watched, "anna/ct/2.dcm")
    assert was.hex() in found.detail and "accept-restore" in found.detail
    assert report.verdict == "damaged", "the same object in two files is damage as well"


def test_an_exchange(watched: Archive) -> None:
    one, two = watched.lower("anna/ct"), watched.lower("index.db")
    one.rename(one.with_name("x"))
    two.rename(one)
    one.with_name("x").rename(two)
    found = differences(watched)
    assert {one.kind for one in found} == {Kind.REPLACED}
    assert {one.place for one in found} == {
        os.fsencode(path.relative_to(watched.path)) for path in (one, two)
    }


def test_an_older_version(watched: Archive, tmp_path: Path) -> None:
    shutil.copy2(watched.lower("anna/ct/1.dcm"), tmp_path / "kept")
    shutil.copy2(watched.lower("anna") / "@dir", tmp_path / "folder")
    with watched.mounted() as mount:
        mount.fs.setattr(mount.ino("anna/ct/1.dcm"), SetAttr(mode=0o600))
        mount.fs.setattr(mount.ino("anna"), SetAttr(mode=0o700))
    shutil.copy2(tmp_path / "kept", watched.lower("anna/ct/1.dcm"))
    shutil.copy2(tmp_path / "folder", watched.lower("anna") / "@dir")
    found = differences(watched)
    assert {(one.kind, one.place) for one in found} == {
        (Kind.OLDER, place_of(watched, "anna/ct/1.dcm")),
        (Kind.OLDER, place_of(watched, "anna")),
    }
    assert all("generation" in one.detail for one in found)


def test_what_is_missing(watched: Archive) -> None:
    gone = [watched.lower("empty"), watched.lower("anna/ct")]
    places = {os.fsencode(path.relative_to(watched.path)) for path in gone}
    gone[0].unlink()
    shutil.rmtree(gone[1])
    found = differences(watched)
    assert {(one.kind, one.place) for one in found} == {(Kind.MISSING, place) for place in places}


def test_an_older_vault_as_a_whole_and_a_lost_state(watched: Archive, tmp_path: Path) -> None:
    kept = copy(watched, tmp_path / "kept")
    with watched.mounted() as mount:
        mount.write("new", b"x")
    shutil.rmtree(watched.path)
    copy(kept, watched.path)
    assert {one.kind for one in differences(watched) if one.place == b"journal/state"} == {Kind.OLDER_VAULT}
    (watched.path / "journal/state").unlink()
    (whole,) = [one for one in differences(watched) if one.kind is Kind.OLDER_VAULT]
    assert "is gone" in whole.detail


def test_another_root(watched: Archive) -> None:
    shutil.copytree(watched.lower("anna"), watched.path / "other")
    shutil.rmtree(watched.path / "tree")
    (watched.path / "other").rename(watched.path / "tree")
    assert b"tree" in {one.place for one in check(watched).tally.findings if one.kind is Kind.REPLACED}


def test_what_another_computer_did_is_no_rollback(watched: Archive, tmp_path: Path) -> None:
    here, watched.state = watched.state, tmp_path / "elsewhere"
    with watched.mounted(xattrs=True) as mount:
        mount.write("new", b"x")
        mount.fs.unlink(1, b"empty")
        mount.fs.rename(1, b"new", mount.ino("anna/ct"), b"1.dcm")
    watched.state = here
    assert differences(watched) == []
    # An older version of the same object is one all the same.
    with watched.mounted() as mount:
        mount.fs.setattr(mount.ino("sparse"), SetAttr(mode=0o600))
    kept = watched.lower("sparse").read_bytes()[:8192]
    with watched.mounted() as mount:
        mount.fs.setattr(mount.ino("sparse"), SetAttr(mode=0o640))
    with watched.lower("sparse").open("r+b") as file:
        file.write(kept)
    assert [one.kind for one in differences(watched)] == [Kind.OLDER]


def test_only_the_parts_that_were_asked_for(watched: Archive) -> None:
    from cryptfs.check import names

    watched.lower("empty").unlink()
    unlocked = watched.unlock()
    context = Context(watched.path, unlocked.vault_id, unlocked.keyring)
    with contextlib.closing(context):
        context.host = Host.open(context, place.of_vault(unlocked.vault_id, watched.state), in_use=False)
        report = Check(context, parts=[names.find(context, b"anna", ciphertext=False)]).run()
    assert report.verdict == "clean"


# --- the index --------------------------------------------------------------------------------------


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of files that changed a moment ago are believed as well."""
    monkeypatch.setattr(catalog, "RACY_NS", 0)
    monkeypatch.setattr("cryptfs.check.hostindex.RACY_NS", 0)


def test_a_wrong_record(watched: Archive, at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(watched).verdict == "clean"
    right = metadata.record_of

    def wrong(ino: int, header: metadata.Header, st: os.stat_result, size: int, name: bytes) -> bytes:
        changed = header.copy()
        changed.mode ^= 0o100 if name == b"1.dcm" else 0
        return right(ino, changed, st, size, name)

    with monkeypatch.context() as patch, watched.mounted(xattrs=True) as mount:
        patch.setattr(metadata, "record_of", wrong)
        mount.fs.setattr(mount.ino("anna/ct/1.dcm"), SetAttr(mtime_ns=1))
        mount.list("anna/ct")
        mount.fs.setattr(mount.ino("anna/ct/1.dcm"), SetAttr(mtime_ns=2))
    report = check(watched)
    assert report.verdict == "index-wrong"
    (found,) = report.tally.findings
    assert (found.kind, found.place) == (Kind.INDEX_WRONG, place_of(watched, "anna/ct/1.dcm"))
    assert "cryptfs index rebuild" in found.kind.sentence


def test_a_record_that_is_out_of_date_is_not_wrong(watched: Archive, at_once: None) -> None:
    with watched.lower("anna/ct/1.dcm").open("r+b") as file:
        file.write(file.read(192))  # written again, as it is
    assert check(watched).verdict == "clean"


def test_an_index_that_is_made_anew_is_not_compared(watched: Archive, tmp_path: Path) -> None:
    here, watched.state = watched.state, tmp_path / "elsewhere"
    with watched.mounted():
        pass
    watched.state = here
    assert "mounted without it" in check(watched).remembered["index"]


# --- beside a mount ---------------------------------------------------------------------------------


# Something is believed to be wrong only if it is so for so long: more than a busy machine holds a writer up.
PATIENT = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)


@contextlib.contextmanager
def written_to(archive: Archive) -> Iterator[None]:
    """Somebody writes to the vault, in a process of its own, as a mount would."""
    arguments = [str(archive.path), str(archive.state), archive.recovery.text]
    writer = subprocess.Popen(
        [sys.executable, "-m", "tests.check.writer", *arguments],
        cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        yield
        _, said = writer.communicate("", timeout=FOREVER)
        assert writer.returncode == 0, said
    finally:
        writer.kill()
        writer.wait()


def test_no_false_alarm_beside_a_writer(watched: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cryptfs.check.context.LIVE_DELAYS", PATIENT)
    with written_to(watched):
        for _ in range(4):
            report = check(watched, in_use=True)
            assert report.remembered == {"witness": "compared", "index": "compared"}
            wrong = [
                one for one in report.tally.findings if one.severity in (Severity.ROLLBACK, Severity.INDEX)
            ]
            assert wrong == []
    assert check(watched).verdict == "clean"


def test_an_attack_is_found_beside_a_writer(watched: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cryptfs.check.context.LIVE_DELAYS", PATIENT[:-2])
    with written_to(watched):
        attacked = place_of(watched, "anna/ct/2.dcm")
        shutil.copyfile(watched.lower("anna/ct/1.dcm"), watched.lower("anna/ct/2.dcm"))
        found = [one for one in check(watched, in_use=True).tally.findings if one.kind is Kind.REPLACED]
        assert [one.place for one in found] == [attacked]

"""After a restore: what differs is shown, and accepted exactly as it was shown."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from cryptfs.cli.main import cli
from cryptfs.cli.main import run as run_cryptfs
from tests.security.archive import Archive
from tests.security.test_rollback import ALICE, events, put_back, refused, rewrite, watched

__all__ = ["watched"]


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "vault")


@pytest.fixture
def restored(watched: Archive, tmp_path: Path) -> Archive:
    """The tree of an earlier day was put back."""
    shutil.copytree(watched.path / "tree", tmp_path / "kept", symlinks=True)
    with watched.mounted() as mounted:
        rewrite(mounted, "report", b"the second version")
        mounted.mkdir("carol")
        mounted.write("carol/ct", b"x")
        mounted.fs.unlink(mounted.ino("bob"), b"ct")
        mounted.write("bob/ct", b"another")
    put_back(tmp_path / "kept", watched.path / "tree")
    return watched


class Command:
    """`cryptfs accept-restore` as it would be typed."""

    def __init__(self, archive: Archive, tmp_path: Path) -> None:
        secret = tmp_path / "recovery"
        secret.write_text(archive.recovery.text)
        self._arguments = [
            "accept-restore", str(archive.path), "--state-dir", str(archive.state),
            "--recovery-key-file", str(secret),
        ]  # fmt: skip

    def __call__(self, *arguments: str) -> int:
        return run_cryptfs([*self._arguments, *arguments])


@pytest.fixture
def accept(restored: Archive, tmp_path: Path) -> Command:
    return Command(restored, tmp_path)


def test_a_dry_run_shows_what_differs_and_changes_nothing(
    restored: Archive, accept: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: data for path, data in restored.ciphertext() if path != "journal/lock"}
    assert accept("--dry-run") == 18
    shown = capsys.readouterr().out
    assert "1 is another file or folder than before:\n    bob/ct" in shown
    assert "1 is older than before:\n    report" in shown
    assert "1 is missing:\n    carol" in shown
    assert "1 more files and folders" in shown
    assert {path: data for path, data in restored.ciphertext() if path != "journal/lock"} == before
    with restored.mounted() as mounted:
        assert refused(mounted, "report")


def test_for_programs(restored: Archive, accept: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert accept("--yes", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["replaced"], found["older"], found["missing"]) == (["bob/ct"], ["report"], ["carol"])
    assert found["counts"] == {"replaced": 1, "older": 1, "missing": 1, "missing_below": 1}
    assert found["accepted"] is True
    assert found["vault"] == []
    assert accept("--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["differs"] is False


def test_what_was_accepted_is_served_and_compared_from_then_on(restored: Archive, accept: Command) -> None:
    assert accept("--yes") == 0
    for _ in range(2):
        with restored.mounted() as mounted:
            assert mounted.read("report") == b"the first version"
            assert mounted.list("") == ["alice", "bob", "report"]
            assert not refused(mounted, "bob/ct")
            assert events(mounted) == (0, 0, 0)
    put_back(restored.lower("alice/ct"), restored.lower("bob/ct"))
    with restored.mounted() as mounted:
        assert refused(mounted, "bob/ct")


def test_nothing_is_accepted_without_being_asked(
    restored: Archive, accept: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cryptfs.cli.terminal.available", lambda: False)
    assert accept() == 2
    assert accept("--json") == 2
    monkeypatch.setattr("cryptfs.cli.terminal.available", lambda: True)
    monkeypatch.setattr("cryptfs.cli.terminal.ask", lambda prompt: "")
    assert accept() == 130
    with restored.mounted() as mounted:
        assert refused(mounted, "report")
    monkeypatch.setattr("cryptfs.cli.terminal.ask", lambda prompt: "y")
    assert accept() == 0
    with restored.mounted() as mounted:
        assert not refused(mounted, "report")


def test_an_older_vault_is_accepted_as_a_whole(watched: Archive, tmp_path: Path) -> None:
    shutil.copytree(watched.path, tmp_path / "kept")
    with watched.mounted() as mounted:
        rewrite(mounted, "report", b"the second version")
    put_back(tmp_path / "kept", watched.path)
    accept = Command(watched, tmp_path)
    assert accept("--dry-run") == 18
    assert accept("--yes") == 0
    with watched.mounted() as mounted:
        assert events(mounted) == (0, 0, 0)
        assert mounted.read("report") == b"the first version"


def test_another_root_is_accepted(watched: Archive, tmp_path: Path) -> None:
    shutil.copytree(watched.lower("alice"), tmp_path / "kept")
    put_back(tmp_path / "kept", watched.path / "tree")
    assert Command(watched, tmp_path)("--yes") == 0
    with watched.mounted() as mounted:
        assert mounted.read("ct") == ALICE


def test_older_keys_begin_anew_when_accepted(watched: Archive, tmp_path: Path) -> None:
    from cryptfs.index import place
    from cryptfs.index.witness import WitnessStore

    unlocked = watched.unlock()
    where = place.of_vault(unlocked.vault_id, watched.state)
    newer = unlocked.keyring.with_new_epoch()
    WitnessStore.open(where, watched.path, unlocked.vault_id, newer).close()
    accept = Command(watched, tmp_path)
    assert accept("--dry-run") == 18
    assert accept("--yes") == 0
    with watched.mounted() as mounted:
        assert mounted.read("alice/ct") == ALICE
        assert events(mounted) == (0, 0, 0)


def test_on_a_live_filesystem_changes_go_on_meanwhile(restored: Archive) -> None:
    with restored.mounted() as mounted:
        assert refused(mounted, "report")
        survey = mounted.fs.survey()
        summary = survey.run()
        assert summary.counts == {"replaced": 1, "older": 1, "missing": 1}
        # Changed after it was looked at: this is right, whatever the survey saw.
        mounted.fs.unlink(mounted.ino("alice"), b"mr")
        mounted.write("alice/mr", b"new")
        mounted.write("alice/more", b"new")
        mounted.fs.accept(survey)
        survey.close()
        assert mounted.read("report") == b"the first version"
        assert events(mounted) == (0, 0, 0)
    with restored.mounted() as mounted:
        assert mounted.read("alice/mr") == b"new"
        assert mounted.list("alice") == ["ct", "more", "mr"]
        assert events(mounted) == (0, 0, 0)


def test_what_cannot_be_read_is_told_and_its_record_kept(restored: Archive, accept: Command) -> None:
    place = restored.lower("alice/ct")
    kept = place.read_bytes()
    place.write_bytes(b"\1" * 8192)
    assert accept("--yes") == 0
    place.write_bytes(kept)
    with restored.mounted() as mounted:
        assert mounted.read("alice/ct") == ALICE
        assert events(mounted) == (0, 0, 0)
    put_back(restored.lower("alice/mr"), place)
    with restored.mounted() as mounted:
        assert refused(mounted, "alice/ct")


def test_without_a_witness_there_is_a_sentence(restored: Archive, accept: Command) -> None:
    assert restored.state is not None
    with restored.mounted() as mounted:
        assert mounted.fs.witness.store is not None
        assert accept("--dry-run") == 19  # in use by this process
    assert errno.EIO
    assert CliRunner().invoke(cli, ["accept-restore", "--help"]).exit_code == 0
    assert os.path.isdir(restored.state)

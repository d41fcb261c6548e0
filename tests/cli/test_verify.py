"""`cryptfs verify`: what it shows, what it does not show, and how it ends."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from cryptfs.check import run as runs
from cryptfs.check.batch import Batch
from cryptfs.check.engine import Engine
from cryptfs.index import place
from tests.check.support import fill
from tests.cli.conftest import Cryptfs, secret_file
from tests.security.archive import Archive


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(place.OVERRIDE, str(tmp_path / "state"))
    monkeypatch.setenv("CRYPTFS_RUNTIME_DIR", str(tmp_path / "run"))


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    archive = Archive(tmp_path / "vault")
    fill(archive)
    return archive


@pytest.fixture
def key(archive: Archive, tmp_path: Path) -> list[str | Path]:
    return ["--recovery-key-file", secret_file(tmp_path / "recovery", archive.recovery.text)]


def harm(archive: Archive, path: str) -> Path:
    lower = archive.lower(path)
    data = bytearray(lower.read_bytes())
    data[8192 + 100] ^= 1
    lower.write_bytes(data)
    return lower


def test_a_clean_vault(cryptfs: Cryptfs, archive: Archive, key: list[str | Path]) -> None:
    result = cryptfs("verify", archive.path, *key)
    assert (result.code, result.err) == (0, "")
    assert "3 directories and 8 objects" in result.out
    assert "0 damaged" in result.out


def test_damage_has_its_exit_code_and_shows_no_name(
    cryptfs: Cryptfs, archive: Archive, key: list[str | Path], tmp_path: Path
) -> None:
    lower = harm(archive, "anna/ct/1.dcm")
    for arguments in ([], ["--json"], ["--report", tmp_path / "report.txt"]):
        result = cryptfs("verify", archive.path, *arguments, *key)
        assert result.code == 18
        assert "damaged" in result.err
        assert lower.name in result.out
        assert "anna" not in result.out + result.err
    report = (tmp_path / "report.txt").read_text()
    assert lower.name in report and "anna" not in report
    assert (tmp_path / "report.txt").stat().st_mode & 0o077 == 0
    for field in (
        "vault id",
        "started",
        "ended",
        "chunks",
        "DAMAGE WAS FOUND",
        "unreadable bytes 0 to 65536",
    ):
        assert field in report
    assert "anna/ct/1.dcm" in cryptfs("verify", archive.path, "--names", *key).out


def test_the_report_of_a_program(
    cryptfs: Cryptfs, archive: Archive, key: list[str | Path], tmp_path: Path
) -> None:
    lower = harm(archive, "anna/ct/1.dcm")
    result = cryptfs("verify", archive.path, "--json", "--names", "--report", tmp_path / "r.json", *key)
    assert result.json == json.loads((tmp_path / "r.json").read_text())
    (found,) = result.json["findings"]
    assert found["place"] == lower.relative_to(archive.path).as_posix()
    assert found["name"] == "/anna/ct/1.dcm"
    assert (found["kind"], found["severity"]) == ("content", "damage")
    assert found["unreadable_ranges"] == [[0, 65536]]
    assert found["object"] == archive.header("anna/ct/1.dcm").object_id.hex()
    assert result.json["verdict"] == "damaged" and result.json["finished"]
    assert result.json["checked"]["files"] == 7
    assert result.json["vault_id"] == archive.unlock().vault_id.hex()


def test_parts_of_a_vault(cryptfs: Cryptfs, archive: Archive, key: list[str | Path]) -> None:
    lower = harm(archive, "anna/ct/1.dcm")
    ciphertext = lower.relative_to(archive.path).as_posix()
    assert cryptfs("verify", archive.path, "index.db", "anna/ct/2.dcm", *key).code == 0
    assert cryptfs("verify", archive.path, "anna", *key).code == 18
    assert cryptfs("verify", archive.path, "--ciphertext", ciphertext, *key).code == 18
    folder = archive.lower("anna/ct").relative_to(archive.path).as_posix()
    result = cryptfs("verify", archive.path, "--ciphertext", folder, "--json", *key)
    assert (result.code, result.json["checked"]["objects"]) == (18, 2)
    for wrong in (
        ["nobody"],
        ["index.db/x"],
        [".."],
        ["--ciphertext", "anna"],
        ["--ciphertext", "tree/@dir"],
    ):
        assert cryptfs("verify", archive.path, *wrong, *key).code == 2


def test_content_of_some_files_only(cryptfs: Cryptfs, archive: Archive, key: list[str | Path]) -> None:
    harm(archive, "anna/ct/1.dcm")
    result = cryptfs("verify", archive.path, "--since", "2099-01-01", "--json", *key)
    assert (result.code, result.json["checked"]["content_skipped"]) == (0, 8)
    assert result.json["scope"]["content_since"].startswith("2098-12-31") or result.json["scope"][
        "content_since"
    ].startswith("2099-01-01")
    assert cryptfs("verify", archive.path, "--since", "7d", *key).code == 18
    result = cryptfs("verify", archive.path, "--sample", "100", "--json", *key)
    assert (result.code, result.json["checked"]["content_skipped"]) == (18, 0)
    result = cryptfs("verify", archive.path, "--sample", "0.000000001", "--json", *key)
    assert (result.code, result.json["checked"]["content_skipped"]) == (0, 8)
    # A damaged header shows even so.
    archive.lower("index.db").write_bytes(os.urandom(9000))
    assert cryptfs("verify", archive.path, "--since", "2099-01-01", *key).code == 18


def test_a_check_that_was_stopped_goes_on(
    cryptfs: Cryptfs, archive: Archive, key: list[str | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with archive.mounted() as mount:
        for number in range(12):
            mount.mkdir(f"d{number}")
            mount.write(f"d{number}/file", bytes(200))
    harm(archive, "d0/file")
    harm(archive, "d11/file")
    whole = cryptfs("verify", archive.path, "--json", *key).json
    put, pause, seen = Engine._put, runs.Check._pause, []

    def in_step(engine: Engine, batch: Batch) -> None:
        """Nothing is given to the threads before they are done with what they have."""
        put(engine, batch)
        while not (batch.done or engine._failure or engine.context.stop.is_set()):
            time.sleep(1e-3)

    def interrupted(check: runs.Check) -> None:
        pause(check)
        if check.engine.reached is not None and check.engine.reached not in seen:
            seen.append(check.engine.reached)
            if len(seen) % 4 == 0:
                raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "_put", in_step)
    monkeypatch.setattr(runs.Check, "_pause", interrupted)
    result = cryptfs("verify", archive.path, *key)
    assert (result.code, "--resume" in result.err) == (130, True)
    stopped = 1
    while (result := cryptfs("verify", archive.path, "--json", "--resume", *key)).code == 130:
        stopped += 1
        assert stopped < 100
    assert stopped > 1 and result.code == 18
    found = result.json
    del found["checked"]["bytes_read"], whole["checked"]["bytes_read"]
    for field in ("checked", "findings_by_kind", "findings"):
        assert found[field] == whole[field]
    result = cryptfs("verify", archive.path, "--resume", *key)
    assert result.code == 2 and "no check" in result.err


def test_options_that_do_not_fit(cryptfs: Cryptfs, archive: Archive, key: list[str | Path]) -> None:
    for wrong in (
        ["--sample", "0"], ["--sample", "101"], ["--since", "yesterday"], ["--limit", "fast"],
        ["--limit", "0"], ["--jobs", "0"], ["--ciphertext"], ["--resume", "anna"],
    ):  # fmt: skip
        result = cryptfs("verify", archive.path, *wrong, *key)
        assert (result.code, result.err.count("\n")) == (2, 1), wrong


def test_what_cannot_be_read_is_not_called_clean(
    cryptfs: Cryptfs, archive: Archive, key: list[str | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lower = archive.lower("anna/ct/1.dcm")
    real = os.open

    def refused(path: str | bytes, flags: int, *rest: int, dir_fd: int | None = None) -> int:
        if os.fsencode(path) == os.fsencode(lower.name):
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *rest, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refused)
    result = cryptfs("verify", archive.path, *key)
    assert result.code == 24
    assert "unchecked: " in result.out


def test_no_vault_and_no_secret(cryptfs: Cryptfs, archive: Archive, tmp_path: Path) -> None:
    assert cryptfs("verify", tmp_path, "--recovery-key-file", tmp_path / "x").code == 13
    wrong = secret_file(tmp_path / "wrong", Archive(tmp_path / "other").recovery.text)
    assert cryptfs("verify", archive.path, "--recovery-key-file", wrong).code == 10
    (archive.path / "cryptfs.json").unlink()
    os.mkfifo(archive.path / "cryptfs.json")
    assert cryptfs("verify", archive.path, "--recovery-key-file", wrong).code == 18


def test_what_this_computer_last_saw_is_compared(
    cryptfs: Cryptfs, archive: Archive, key: list[str | Path], tmp_path: Path
) -> None:
    archive.state = tmp_path / "state"
    with archive.mounted() as mount:
        for folder in ("", "anna", "anna/ct"):
            mount.list(folder)
    result = cryptfs("verify", archive.path, *key)
    assert result.code == 0
    assert "Rollback witness: compared; index: compared." in result.out
    gone = archive.lower("empty")
    gone.unlink()
    result = cryptfs("verify", archive.path, "--report", tmp_path / "report.txt", *key)
    assert result.code == 18
    assert "0 damaged, 1 not what this computer last saw" in result.out
    assert "accept-restore" in result.err and "damaged" not in result.err
    assert f"rollback: tree/{gone.name}" in result.out
    filed = (tmp_path / "report.txt").read_text()
    assert "witness        compared" in filed and "rollback: 1" in filed
    assert "NOT WHAT THIS COMPUTER LAST SAW THERE" in filed
    result = cryptfs("verify", archive.path, "--json", "--names", *key)
    (found,) = result.json["findings"]
    assert (found["kind"], found["severity"], found["name"]) == ("missing", "rollback", "/empty")
    assert result.json["verdict"] == "rolled-back"
    assert result.json["remembered"] == {"witness": "compared", "index": "compared"}
    # Somewhere else there is nothing to compare with.
    result = cryptfs("verify", archive.path, "--state-dir", tmp_path / "elsewhere", *key)
    assert (result.code, "has not seen the vault" in result.out) == (0, True)
    assert cryptfs("accept-restore", archive.path, "--yes", *key).code == 0
    assert cryptfs("verify", archive.path, *key).code == 0

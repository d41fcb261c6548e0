"""`cryptfs verify --repair` at the command line: asking, dry runs, what is kept, the configuration."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cryptfs.index import place
from cryptfs.keyslots import RecoveryKey
from cryptfs.vault import config
from tests.check.support import fill
from tests.cli.conftest import Cryptfs, secret_file
from tests.cli.terminal import Terminal
from tests.security.archive import Archive

State = dict[str, bytes]


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


def files(archive: Archive) -> State:
    return dict(archive.ciphertext())


def test_a_dry_run_changes_nothing(cryptfs: Cryptfs, archive: Archive, key: list[str | Path]) -> None:
    (archive.lower("anna") / "@dir").unlink()
    before = files(archive)
    result = cryptfs("verify", archive.path, "--repair", "--dry-run", *key)
    assert result.code == 18
    assert "would repair: tree/" in result.out
    result = cryptfs("verify", archive.path, "--repair", "--dry-run", "--json", *key)
    ((step),) = result.json["repair"]["steps"]
    assert (step["kind"], step["result"]) == ("directory-header", "not done")
    assert files(archive) == before


def test_without_a_terminal_it_has_to_be_confirmed(
    cryptfs: Cryptfs, archive: Archive, key: list[str | Path]
) -> None:
    (archive.lower("anna") / "@dir").unlink()
    before = files(archive)
    result = cryptfs("verify", archive.path, "--repair", *key)
    assert (result.code, "--yes" in result.err) == (2, True)
    assert {name for name in files(archive) if name != "journal/lock"} == set(before) - {"journal/lock"}


def test_it_is_repaired_and_reported(
    cryptfs: Cryptfs, archive: Archive, key: list[str | Path], tmp_path: Path
) -> None:
    (archive.lower("anna") / "@dir").write_bytes(os.urandom(4096))
    report = tmp_path / "report.txt"
    result = cryptfs("verify", archive.path, "--repair", "--yes", "--report", report, *key)
    assert (result.code, result.err) == (0, "")
    assert "repaired: tree/" in result.out
    (kept,) = archive.path.glob("repair-*")
    assert kept.name in result.out and kept.name in report.read_text()
    assert (kept / "000001").stat().st_size == 4096
    assert all(json.loads(line)["action"] for line in (kept / "log.jsonl").read_text().splitlines())
    assert cryptfs("verify", archive.path, *key).code == 0


def test_what_cannot_be_repaired_is_still_damage(
    cryptfs: Cryptfs, archive: Archive, key: list[str | Path]
) -> None:
    lower = archive.lower("anna/ct/1.dcm")
    data = bytearray(lower.read_bytes())
    data[8192 + 100] ^= 1
    lower.write_bytes(data)
    (archive.lower("anna/ct") / "@dir").unlink()
    result = cryptfs("verify", archive.path, "--repair", "--yes", "--json", *key)
    assert result.code == 18
    assert [found["kind"] for found in result.json["findings"] if found["severity"] == "damage"] == [
        "content"
    ]
    assert [step["result"] for step in result.json["repair"]["steps"]] == ["done"]
    (left,) = result.json["repair"]["not_repaired"]
    assert left["kind"] == "content" and "readable" in left["reason"]
    assert lower.read_bytes() == bytes(data)


def test_asking_at_a_terminal(archive: Archive, key: list[str | Path], tmp_path: Path) -> None:
    (archive.lower("anna") / "@dir").unlink()
    for answer, code in (("n", 130), ("y", 0)):
        terminal = Terminal("verify", str(archive.path), "--repair", *map(str, key))
        terminal.expect("[y/N]")
        terminal.type(answer)
        assert terminal.end() == code
        assert (archive.lower("").joinpath("@dir")).exists()
        assert bool(list(archive.path.glob("repair-*"))) == (answer == "y")


def test_a_mounted_vault_is_refused(cryptfs: Cryptfs, archive: Archive, key: list[str | Path]) -> None:
    with archive.mounted():
        assert cryptfs("verify", archive.path, "--repair", "--yes", *key).code == 14
        assert cryptfs("verify", archive.path, *key).code == 0


@pytest.mark.parametrize("how", ["gone", "garbage", "changed"])
def test_the_configuration_comes_back_from_the_one_before(
    cryptfs: Cryptfs, archive: Archive, key: list[str | Path], how: str
) -> None:
    config.add_slot(archive.unlock(), RecoveryKey.new())
    file = archive.path / "cryptfs.json"
    good = file.read_bytes()
    file.unlink()
    if how == "garbage":
        file.write_bytes(b"{")
    if how == "changed":
        file.write_bytes(good.replace(b'"backup_group": false', b'"backup_group": true'))
    assert cryptfs("verify", archive.path, *key).code == 11
    result = cryptfs("verify", archive.path, "--repair", "--dry-run", *key)
    assert (result.code, "would repair: cryptfs.json" in result.out) == (0, True)
    assert cryptfs("verify", archive.path, "--repair", *key).code == 2
    result = cryptfs("verify", archive.path, "--repair", "--yes", *key)
    assert result.code == 0
    assert file.read_bytes() == (archive.path / "cryptfs.json.previous").read_bytes()
    assert cryptfs("verify", archive.path, *key).code == 0
    assert len(list(archive.path.glob("repair-*/000001"))) == (how != "gone")


def test_options_that_do_not_fit(cryptfs: Cryptfs, archive: Archive, key: list[str | Path]) -> None:
    for wrong in (
        ["--yes"], ["--dry-run"], ["--repair", "--since", "1d"], ["--repair", "--sample", "5"],
        ["--repair", "--resume"],
    ):  # fmt: skip
        result = cryptfs("verify", archive.path, *wrong, *key)
        assert (result.code, result.err.count("\n")) == (2, 1), wrong

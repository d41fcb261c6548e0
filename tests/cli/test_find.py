"""`cryptfs find` and `cryptfs stats` of a vault that is not mounted, and what they refuse."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cryptfs.cli.find import DateRange
from cryptfs.fs import FileSystem
from cryptfs.keyslots import RecoveryKey
from cryptfs.vault import Vault
from cryptfs.vault.config import load, unlock

from ..fs.support import ME
from ..practice.images import image
from .conftest import Cryptfs, secret_file


@pytest.fixture
def vault(cryptfs: Cryptfs, password: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A vault with three images, and its recovery key beside it."""
    monkeypatch.setenv("CRYPTFS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("CRYPTFS_RUNTIME_DIR", str(tmp_path / "run"))
    path, key = tmp_path / "vault", tmp_path / "recovery"
    assert cryptfs("init", path, "--passphrase-file", password, "--recovery-key-file", key).code == 0
    unlocked = unlock(load(path), RecoveryKey.parse(key.read_text()))
    fs = FileSystem(Vault(path, unlocked.vault_id, unlocked.keyring))
    for name, data in {
        b"anna": image(patient_id="1", name="Müller^Anna", study="1.1", date="20240131"),
        b"b\xff": image(patient_id="2", name="\x1b]0;title^X", study="1.2", modality="MR", date="20250101"),
        b"note": b"text",
    }.items():
        handle, _ = fs.create(1, name, 0o644, ME, os.O_RDWR)
        fs.write(handle, 0, data)
        fs.release(handle)
    fs.close()
    return path


def key(vault: Path) -> tuple[str, Path]:
    return "--recovery-key-file", vault.parent / "recovery"


def test_paths(cryptfs: Cryptfs, vault: Path) -> None:
    result = cryptfs("find", vault, "--patient", "muller", *key(vault))
    assert (result.code, result.out) == (0, "anna\n")
    assert cryptfs("find", vault, "-d", "2024..2024-02", *key(vault)).out == "anna\n"
    assert cryptfs("find", vault, "-p", "nobody", *key(vault)).out == ""


def test_json_has_any_name(cryptfs: Cryptfs, vault: Path) -> None:
    answer = json.loads(cryptfs("find", vault, "-m", "mr", "--json", *key(vault)).out)
    (found,) = answer["found"]
    assert answer["complete"] is True
    assert os.fsencode(found["path"]) == b"b\xff"
    assert (found["patient_id"], found["date"], found["modality"]) == ("2", "20250101", "MR")


def test_a_table_of_studies_does_not_move_the_cursor(cryptfs: Cryptfs, vault: Path) -> None:
    result = cryptfs("find", vault, "--studies", *key(vault))
    assert "Müller Anna" in result.out and "2024-01-31" in result.out
    assert "\x1b]0" not in result.out


def test_stats(cryptfs: Cryptfs, vault: Path) -> None:
    answer = json.loads(cryptfs("stats", vault, "--json", *key(vault)).out)
    assert [answer[name] for name in ("patients", "studies", "instances", "all_files")] == [2, 2, 2, 3]
    assert answer["modalities"]["CT"]["instances"] == 1
    assert answer["years"]["2025"]["studies"] == 1
    assert answer["transfer_syntaxes"]["1.2.840.10008.1.2.1"]["compression"] == "none"
    assert "people" in cryptfs("stats", vault, *key(vault)).out


def test_what_is_no_vault(cryptfs: Cryptfs, vault: Path, tmp_path: Path) -> None:
    result = cryptfs("find", tmp_path)
    assert (result.code, result.err.count("\n")) == (13, 1)


def test_a_wrong_secret(cryptfs: Cryptfs, vault: Path, tmp_path: Path) -> None:
    wrong = secret_file(tmp_path / "wrong", "nicht dieses\n")
    assert cryptfs("stats", vault, "--passphrase-file", wrong).code == 10


@pytest.mark.parametrize("text", ["", "..", "24", "2024-13", "2024-01-32", "2025..2024", "gestern", "2024-1"])
def test_dates_that_are_none(cryptfs: Cryptfs, vault: Path, text: str) -> None:
    result = cryptfs("find", vault, "--date", text, *key(vault))
    assert result.code == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024", ("20240101", "20241231")),
        ("2024-02", ("20240201", "20240231")),
        ("20240203", ("20240203", "20240203")),
        ("2023..2024-03", ("20230101", "20240331")),
        ("..2019", ("", "20191231")),
        ("2020-05..", ("20200501", "")),
    ],
)
def test_dates(text: str, expected: tuple[str, str]) -> None:
    assert DateRange().convert(text, None, None) == expected

"""`cryptfs freeze` on vaults that are not mounted; the live ones are in tests/system."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Cryptfs


@pytest.fixture
def vault(
    cryptfs: Cryptfs, tmp_path: Path, password: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    monkeypatch.setenv("CRYPTFS_RUNTIME_DIR", str(tmp_path / "run"))
    path = tmp_path / "vault"
    done = cryptfs("init", path, "--passphrase-file", password, "--recovery-key-file", tmp_path / "recovery")
    assert done.code == 0
    yield path


def test_the_command_runs_and_its_code_is_ours(cryptfs: Cryptfs, vault: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    assert cryptfs("freeze", vault, "--", "cp", "-r", vault, copy).code == 0
    assert (copy / "cryptfs.json").read_bytes() == (vault / "cryptfs.json").read_bytes()
    assert cryptfs("freeze", vault, "--timeout", "1h", "--", "sh", "-c", "exit 3").code == 3


def test_a_vault_in_use_is_refused(cryptfs: Cryptfs, vault: Path) -> None:
    with (vault / "journal" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = cryptfs("freeze", vault, "--", "true")
    assert done.code == 14
    assert "as the user who mounted it" in done.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["{vault}"], 2),
        (["{vault}", "--timeout", "0s", "--", "true"], 2),
        (["{vault}", "--", "no-such-program-anywhere"], 2),
        (["{vault}/nothing", "--", "true"], 13),
        (["{vault}/tree", "--", "true"], 13),
    ],
)
def test_bad_input(cryptfs: Cryptfs, vault: Path, arguments: list[str], code: int) -> None:
    done = cryptfs("freeze", *(argument.format(vault=vault) for argument in arguments))
    assert done.code == code
    assert done.err.startswith("cryptfs: ")
    assert os.listdir(vault)

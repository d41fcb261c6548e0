"""Keys that are rotated, before a check and while it runs, are no damage."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryptfs.check.context import Context
from cryptfs.check.finding import Kind
from cryptfs.check.run import Check
from cryptfs.fs.rewrap import Rewrap
from cryptfs.fs.throttle import Throttle
from cryptfs.vault.keyring import Keyring
from tests.check.support import check_path, damage, kinds
from tests.fs.rotation import BOTH, NEW, OLD, fill, make_vault, open_fs
from tests.fs.support import VAULT_ID


@pytest.fixture
def vault(tmp_path: Path) -> Path:
    vault = make_vault(tmp_path / "vault")
    fs = open_fs(vault, OLD)
    fill(fs)
    fs.close()
    return vault


def rotate(vault: Path) -> None:
    fs = open_fs(vault, BOTH)
    Rewrap(fs, Throttle()).run()
    fs.close()


@pytest.mark.parametrize("keyring", [BOTH, NEW], ids=["both epochs", "the new one alone"])
def test_a_rotated_vault_is_clean(vault: Path, keyring: Keyring) -> None:
    rotate(vault)
    report = check_path(vault, VAULT_ID, keyring)
    assert damage(report) == []
    assert set(report.tally.epochs) == {2}


def test_keys_that_are_rotated_while_a_check_runs_are_fetched(vault: Path) -> None:
    with_old = Context(vault, VAULT_ID, OLD, reload_keys=lambda: NEW)
    rotate(vault)
    report = Check(with_old).run()
    with_old.close()
    assert damage(report) == []


def test_a_header_under_an_epoch_that_is_gone_is_damage(vault: Path) -> None:
    """As after restoring a file from before a rotation."""
    place = next(path for path in (vault / "tree").iterdir() if path.is_file() and path.name[0] != "@")
    before = place.read_bytes()
    rotate(vault)
    place.write_bytes(before)
    assert Kind.HEADER in kinds(check_path(vault, VAULT_ID, NEW))

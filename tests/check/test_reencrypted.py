"""A vault in the middle of a re-encryption is checked and repaired like any other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cryptfs.check import names
from cryptfs.check.context import Context
from cryptfs.check.finding import Kind
from cryptfs.fs.reencrypt import Reencrypt
from cryptfs.fs.throttle import Stopped
from cryptfs.vault.epochs import EpochReader
from tests.check.support import check_path, damage, kinds
from tests.fs.rotation import BOTH, OLD, Cut, fill, make_vault, open_fs
from tests.fs.support import VAULT_ID


@pytest.fixture(scope="module")
def in_the_middle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vault = make_vault(tmp_path_factory.mktemp("middle") / "vault")
    fs = open_fs(vault, OLD)
    fill(fs)
    fs.close()
    fs = open_fs(vault, BOTH)
    with pytest.raises(Stopped):
        Reencrypt(fs, Cut(25)).renew()
    fs.close()
    return vault


@pytest.fixture
def vault(in_the_middle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(in_the_middle, tmp_path / "vault"))


def test_nothing_is_wrong_with_it(in_the_middle: Path) -> None:
    assert len(list(in_the_middle.rglob("@old"))) > 1
    report = check_path(in_the_middle, VAULT_ID, BOTH)
    assert damage(report) == []
    assert not kinds(report) & {Kind.FOREIGN, Kind.NAME, Kind.ATTRIBUTES, Kind.HEADER_SLOT}


def test_a_lost_header_is_found_by_the_former_one(vault: Path) -> None:
    for old in vault.rglob("@old"):
        (old.parent / "@dir").unlink()
    found = kinds(check_path(vault, VAULT_ID, BOTH))
    assert Kind.DIRECTORY_HEADER in found
    assert not found & {Kind.DIRECTORY_LOST, Kind.NAME}


def test_a_damaged_former_header_is_named(vault: Path) -> None:
    for old in vault.rglob("@old"):
        old.write_bytes(bytes(192))
    found = kinds(check_path(vault, VAULT_ID, BOTH))
    assert {Kind.HEADER_SLOT, Kind.NAME} <= found


def test_paths_are_found_both_ways(in_the_middle: Path) -> None:
    context = Context(in_the_middle, VAULT_ID, BOTH)
    try:
        for path in (b"patient", b"patient/the same slice", b"latest", b"index"):
            part = names.find(context, path, ciphertext=False)
            place = part.place.path(part.lname) if part.lname else part.place.path()
            assert names.plain_path(context, place) == b"/" + path
    finally:
        context.close()


def test_the_former_headers_count_as_what_needs_a_key(in_the_middle: Path) -> None:
    found = {finding.path for finding in EpochReader(in_the_middle, VAULT_ID, BOTH).read_tree()}
    assert b"tree/@old" in found

"""Epochs in the configuration, and how a mounted process learns of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cryptfs.crypto import aead
from cryptfs.errors import CryptfsError, VaultInUse
from cryptfs.vault import config, configfile, rotation
from cryptfs.vault.config import Unlocked
from cryptfs.vault.document import RootKeys
from cryptfs.vault.keyring import Epoch, Keyring
from tests.keyslots.material import RECOVERY


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pristine") / "vault"
    path.mkdir()
    config.create(path, [(RECOVERY, "paper")])
    return path


@pytest.fixture
def vault(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "vault"))


def unlock(vault: Path) -> Unlocked:
    return config.unlock(config.load(vault), RECOVERY)


def learn(vault: Path, keys: RootKeys, known: Keyring) -> Keyring:
    return rotation.learn(vault, config.load(vault).vault_id, rotation.handover(keys), known)


def test_a_rotation_in_the_configuration(vault: Path) -> None:
    before = unlock(vault)
    assert not rotation.is_under_way(before.keyring)
    begun = rotation.begin(before)
    assert rotation.is_under_way(unlock(vault).keyring)
    assert [epoch.number for epoch in begun.keyring] == [1, 2]
    assert begun.keyring.get(1) == before.keyring.current
    assert learn(vault, begun.keys, before.keyring) == begun.keyring
    ended = rotation.destroy_old(begun)
    assert unlock(vault).keyring == ended.keyring
    assert [epoch.number for epoch in ended.keyring] == [2]
    assert learn(vault, ended.keys, begun.keyring) == ended.keyring
    assert ended.keys.volume != begun.keys.volume


def test_what_was_unlocked_before_opens_nothing_after(vault: Path) -> None:
    """Neither the keys taken from the old configuration nor `.previous` give a later keyring."""
    begun = rotation.begin(unlock(vault))
    rotation.destroy_old(begun)
    with pytest.raises(rotation.EpochRefused):
        learn(vault, begun.keys, begun.keyring)
    assert (vault / configfile.PREVIOUS).read_bytes() == (vault / configfile.NAME).read_bytes()
    with pytest.raises(VaultInUse):
        rotation.begin(begun)


def forge(vault: Path, keyring: Keyring, keys: RootKeys) -> None:
    """A keyring in cryptfs.json from somebody who can write there and reach the socket, and has no slot."""
    loaded = config.load(vault)
    forged = Unlocked(loaded, keys, keyring, "")
    document = config._seal_document(loaded.document, loaded.slots, keys, keyring)
    config._write(Unlocked(config.Config(vault, document), forged.keys, keyring, ""))


@pytest.mark.parametrize("number", [1, 2])
def test_a_keyring_made_by_a_stranger_is_refused(vault: Path, number: int) -> None:
    known = unlock(vault).keyring
    stranger = RootKeys(os.urandom(aead.KEY_SIZE), os.urandom(aead.KEY_SIZE))
    made_up = [
        Epoch(1, os.urandom(32), "2026-01-01T00:00:00Z"),
        Epoch(2, os.urandom(32), "2026-01-01T00:00:00Z"),
    ]
    forge(vault, Keyring(tuple(made_up[number - 1 :])), stranger)
    with pytest.raises(rotation.EpochRefused):
        learn(vault, stranger, known)


def test_a_keyring_that_lost_the_epoch_in_use_is_refused(vault: Path) -> None:
    unlocked = unlock(vault)
    newer = rotation.destroy_old(rotation.begin(unlocked))
    with pytest.raises(rotation.EpochRefused):
        learn(vault, newer.keys, unlocked.keyring)


def test_the_keyring_is_not_endless(vault: Path) -> None:
    unlocked = unlock(vault)
    keyring = unlocked.keyring
    while len(keyring) < 64:
        keyring = keyring.with_new_epoch()
    full = config.replace_keyring(unlocked, keyring)
    with pytest.raises(CryptfsError, match="full"):
        rotation.begin(full)

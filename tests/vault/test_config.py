"""Creating, unlocking and changing a configuration."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptfs.crypto import aead, hpke
from cryptfs.errors import (
    ConfigDamaged,
    CryptfsError,
    NotAVault,
    SlotRefused,
    UsageError,
    VaultInUse,
    WrongSecret,
)
from cryptfs.keyslots import KeyFile, RecoveryKey, Secret
from cryptfs.vault import config, configfile
from cryptfs.vault.config import Unlocked
from cryptfs.vault.document import RootKeys, parse
from cryptfs.vault.keyring import Epoch, Keyring, KeyringDamaged
from tests.keyslots.material import KEY_FILE, RECOVERY, make, passphrase

OTHER_RECOVERY = RecoveryKey(bytes(32))
OTHER_KEY_FILE = KeyFile(bytes(32))
ZERO_KEYS = RootKeys(bytes(32), bytes(32))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once: its passphrase slot costs two Argon2 hashes."""
    path = tmp_path_factory.mktemp("pristine") / "vault"
    make(path)
    return path


@pytest.fixture
def vault(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "vault"))


def unlock(vault: Path, secret: Secret = RECOVERY) -> Unlocked:
    return config.unlock(config.load(vault), secret)


def slot_of(vault: Path, kind: str) -> str:
    return next(slot.id for slot in config.load(vault).slots if slot.type == kind)


def opens(vault: Path, secret: Secret) -> bool:
    try:
        unlock(vault, secret)
    except WrongSecret:
        return False
    return True


def test_every_secret_opens_the_same_keys(vault: Path) -> None:
    by_recovery = unlock(vault)
    for secret in (KEY_FILE, passphrase()):
        other = unlock(vault, secret)
        assert other.keys == by_recovery.keys
        assert other.keyring == by_recovery.keyring
        assert next(s.type for s in other.config.slots if s.id == other.slot_id) == secret.type
    assert by_recovery.keyring.current.number == 1
    assert len(by_recovery.vault_id) == 16


def test_wrong_secrets(vault: Path) -> None:
    with pytest.raises(WrongSecret, match="Wrong passphrase"):
        unlock(vault, passphrase("wrong"))
    with pytest.raises(WrongSecret, match="Wrong recovery key"):
        unlock(vault, OTHER_RECOVERY)
    only_recovery = vault.parent / "other"
    only_recovery.mkdir()
    config.create(only_recovery, [(RECOVERY, "")])
    with pytest.raises(WrongSecret, match="has no key file slot"):
        unlock(only_recovery, KEY_FILE)


def test_slots_of_the_same_type_are_all_tried(vault: Path) -> None:
    config.add_slot(unlock(vault), OTHER_RECOVERY)
    assert unlock(vault, OTHER_RECOVERY).slot_id == config.load(vault).slots[-1].id


def test_keys_are_not_shown(vault: Path) -> None:
    unlocked = unlock(vault)
    shown = repr(unlocked) + repr(list(unlocked.keyring))
    assert repr(unlocked.keys.volume) not in shown
    assert repr(unlocked.keys.authority) not in shown
    assert repr(unlocked.keyring.current.key) not in shown


def test_a_slot_is_added_without_the_other_secrets(vault: Path) -> None:
    before = unlock(vault, KEY_FILE)
    after = config.add_slot(before, OTHER_KEY_FILE, "second stick")
    assert [slot.label for slot in after.config.slots] == ["paper", "stick", "desk", "second stick"]
    assert after.config.document.generation == before.config.document.generation + 1
    for secret in (RECOVERY, KEY_FILE, OTHER_KEY_FILE):
        assert unlock(vault, secret).keyring == before.keyring
    # An added slot revokes nothing: the configuration before it is kept.
    assert parse((vault / configfile.PREVIOUS).read_bytes()) == before.config.document


def test_removing_replaces_the_volume_key_and_leaves_no_way_back(vault: Path) -> None:
    before = unlock(vault)
    config.add_slot(before, OTHER_KEY_FILE)
    after = config.remove_slot(before, slot_of(vault, "keyfile"))
    assert after.keys.volume != before.keys.volume
    assert after.keyring == before.keyring
    assert not opens(vault, KEY_FILE)
    for secret in (RECOVERY, OTHER_KEY_FILE, passphrase()):
        assert unlock(vault, secret).keys.volume == after.keys.volume
    assert {entry.name for entry in vault.iterdir()} == {
        configfile.NAME,
        configfile.PREVIOUS,
        configfile.LOCK,
    }
    (vault / configfile.PREVIOUS).replace(vault / configfile.NAME)
    assert not opens(vault, KEY_FILE)
    assert opens(vault, RECOVERY)


def test_changing_keeps_id_and_label_and_replaces_the_volume_key(vault: Path) -> None:
    before = unlock(vault)
    slot_id = slot_of(vault, "recovery")
    after = config.change_slot(before, slot_id, OTHER_RECOVERY)
    assert after.keys.volume != before.keys.volume
    assert after.config.slot(slot_id).label == "paper"
    assert not opens(vault, RECOVERY)
    (vault / configfile.PREVIOUS).replace(vault / configfile.NAME)
    assert not opens(vault, RECOVERY)
    assert unlock(vault, OTHER_RECOVERY).keyring == before.keyring
    assert opens(vault, KEY_FILE)
    config.change_slot(after, slot_id, OTHER_RECOVERY, "safe")
    assert config.load(vault).slot(slot_id).label == "safe"


def test_the_authority_key_stays_as_long_as_another_slot_holds_it(vault: Path) -> None:
    first = unlock(vault)
    again = config.change_slot(first, slot_of(vault, "recovery"), OTHER_RECOVERY)
    for kind in ("keyfile", "passphrase"):
        again = config.remove_slot(again, slot_of(vault, kind))
        assert again.keys.authority == first.keys.authority
    # Now nobody else has to learn a new one: this is how a former holder loses it.
    alone = config.change_slot(again, slot_of(vault, "recovery"), RECOVERY)
    assert alone.keys.authority != first.keys.authority
    assert unlock(vault).keys == alone.keys
    more = config.add_slot(alone, OTHER_KEY_FILE)
    assert unlock(vault, OTHER_KEY_FILE).keys == more.keys == alone.keys


def test_the_last_typeable_slot_stays(vault: Path) -> None:
    unlocked = config.remove_slot(unlock(vault), slot_of(vault, "passphrase"))
    text = (vault / configfile.NAME).read_bytes()
    with pytest.raises(SlotRefused, match="can type"):
        config.remove_slot(unlocked, slot_of(vault, "recovery"))
    with pytest.raises(SlotRefused, match="can type"):
        config.change_slot(unlocked, slot_of(vault, "recovery"), OTHER_KEY_FILE)
    assert (vault / configfile.NAME).read_bytes() == text
    with pytest.raises(SlotRefused, match="can type"):
        config.create(vault, [(KEY_FILE, "")])


def test_at_most_64_slots(vault: Path) -> None:
    unlocked = config.create(vault.parent, [(RECOVERY, str(n)) for n in range(64)], write=False)
    (vault / configfile.NAME).unlink()
    unlocked = Unlocked(
        config.Config(vault, unlocked.config.document),
        unlocked.keys,
        unlocked.keyring,
        unlocked.slot_id,
    )
    config.write_new(unlocked)
    with pytest.raises(SlotRefused, match="at most 64"):
        config.add_slot(unlocked, KEY_FILE)


def test_slots_are_found_by_the_beginning_of_their_id(vault: Path) -> None:
    loaded = config.load(vault)
    assert loaded.slot(loaded.slots[1].id[:8]) is loaded.slots[1]
    for wrong in ("", "zz", loaded.slots[0].id + "0"):
        with pytest.raises(SlotRefused, match="key list"):
            loaded.slot(wrong)


@pytest.mark.parametrize("label", ["x" * 201, "two\nlines", "\x1b[2J"])
def test_unusable_labels(vault: Path, label: str) -> None:
    with pytest.raises(UsageError, match="label"):
        config.add_slot(unlock(vault), KEY_FILE, label)


def test_two_administrators(vault: Path) -> None:
    first, second = unlock(vault), unlock(vault)
    with configfile.locked(vault), pytest.raises(VaultInUse, match="try again"):
        config.add_slot(first, OTHER_KEY_FILE)
    # Additions of both are kept: each change starts from what is on the disk.
    config.add_slot(first, OTHER_KEY_FILE)
    config.add_slot(second, OTHER_RECOVERY)
    assert opens(vault, OTHER_KEY_FILE)
    assert opens(vault, OTHER_RECOVERY)
    # After one revoked a slot, the other's keys are out of date.
    config.remove_slot(first, slot_of(vault, "passphrase"))
    with pytest.raises(VaultInUse, match="in the meantime"):
        config.add_slot(second, KEY_FILE)


def test_another_vault_under_the_same_path(vault: Path) -> None:
    unlocked = unlock(vault)
    (vault / configfile.NAME).unlink()
    make(vault)
    with pytest.raises(VaultInUse, match="in the meantime"):
        config.add_slot(unlocked, KEY_FILE)


def test_create_does_not_overwrite(vault: Path) -> None:
    text = (vault / configfile.NAME).read_bytes()
    with pytest.raises(VaultInUse, match="vault already"):
        make(vault)
    assert (vault / configfile.NAME).read_bytes() == text


def test_keyring_with_a_new_epoch_and_without_the_old(vault: Path) -> None:
    unlocked = unlock(vault)
    two = config.replace_keyring(unlocked, unlocked.keyring.with_new_epoch())
    assert unlock(vault).keyring == two.keyring
    assert two.keyring.get(1) == unlocked.keyring.current
    assert two.keys.volume == unlocked.keys.volume
    with pytest.raises(VaultInUse, match="rotated"):
        config.replace_keyring(unlocked, unlocked.keyring.with_new_epoch())
    one = config.replace_keyring(two, two.keyring.with_current_only())
    assert [epoch.number for epoch in one.keyring] == [2]
    (vault / configfile.PREVIOUS).replace(vault / configfile.NAME)
    assert unlock(vault).keyring.get(1) is None


def test_modes_and_owner(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    unlocked = config.create(tmp_path, [(RECOVERY, "")], backup_group=True)
    file = tmp_path / configfile.NAME
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    file.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(file, 12345, 54321)
    config.add_slot(unlocked, KEY_FILE)
    for name in (configfile.NAME, configfile.PREVIOUS):
        status = (tmp_path / name).stat()
        assert stat.S_IMODE(status.st_mode) == 0o600
        if os.geteuid() == 0:
            assert (status.st_uid, status.st_gid) == (12345, 54321)


def test_not_a_vault(tmp_path: Path) -> None:
    with pytest.raises(NotAVault, match="no folder"):
        config.load(tmp_path / "none")
    with pytest.raises(NotAVault, match=r"has no cryptfs\.json"):
        config.load(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotAVault, match="not a folder"):
        config.load(tmp_path / "file")


@pytest.mark.parametrize("damage", ["missing", "empty", "changed"])
def test_what_to_do_when_only_the_previous_one_is_good(vault: Path, damage: str) -> None:
    config.add_slot(unlock(vault), OTHER_KEY_FILE)
    file = vault / configfile.NAME
    if damage == "missing":
        file.unlink()
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        file.write_bytes(file.read_bytes().replace(b'"generation": 2', b'"generation": 3'))
    with pytest.raises(ConfigDamaged, match=r"copy it to cryptfs\.json"):
        unlock(vault)
    (vault / configfile.PREVIOUS).replace(file)
    assert opens(vault, RECOVERY)


def test_no_advice_when_the_previous_one_is_damaged_too(vault: Path) -> None:
    for name in (configfile.NAME, configfile.PREVIOUS):
        (vault / name).write_bytes(b"{}")
    with pytest.raises(ConfigDamaged) as caught:
        config.load(vault)
    assert "copy" not in str(caught.value)


def count_and_fail(monkeypatch: pytest.MonkeyPatch, fail_at: int) -> Callable[[], int]:
    """Let the nth call that changes the disk fail; how many there were is what is returned."""
    calls = 0

    def wrap(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def call(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls == fail_at:
                raise OSError(28, "No space left on device")
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    for owner, name in ((os, "open"), (os, "fsync"), (os, "fchmod"), (Path, "rename"), (Path, "stat")):
        wrap(owner, name)
    return lambda: calls


@pytest.mark.parametrize("change", ["add", "remove"])
def test_a_failure_at_any_step_leaves_a_whole_configuration(
    vault: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot_id = slot_of(vault, "keyfile")
    fail_at, finished = 0, False
    while not finished:
        fail_at += 1
        unlocked = unlock(vault)
        before = config.load(vault).document
        with monkeypatch.context() as patch:
            count = count_and_fail(patch, fail_at)
            try:
                if change == "add":
                    config.add_slot(unlocked, OTHER_KEY_FILE)
                else:
                    config.remove_slot(unlocked, slot_id)
                finished = count() < fail_at
            except configfile.NotDurable:
                # The one failure after the commit says that the change was made.
                assert config.load(vault).document != before
                finished = True
            except OSError:
                assert config.load(vault).document == before
        after = unlock(vault)
        assert after.keyring == unlocked.keyring
    assert fail_at > 8
    assert opens(vault, KEY_FILE) == (change == "add")


def test_a_write_that_does_not_read_back_changes_nothing(
    vault: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlocked, before = unlock(vault), (vault / configfile.NAME).read_bytes()
    real = configfile.read
    monkeypatch.setattr(
        configfile, "read", lambda file: real(file)[:-40] if file.name.startswith("@tmp") else real(file)
    )
    with pytest.raises(CryptfsError, match="could not be read back"):
        config.add_slot(unlocked, OTHER_KEY_FILE)
    assert (vault / configfile.NAME).read_bytes() == before
    assert not list(vault.glob("@tmp*"))


def test_leftovers_of_a_killed_change_are_removed(vault: Path) -> None:
    leftover = vault / "@tmp-config-0123"
    leftover.write_bytes(b"half")
    config.add_slot(unlock(vault), OTHER_KEY_FILE)
    assert not leftover.exists()


def test_a_substituted_volume_key_is_refused(vault: Path) -> None:
    """Somebody who knows the public keys can seal a volume key of their own, but not keep the keyring."""
    loaded = config.load(vault)
    document = loaded.document
    slots = [
        config.msgspec.structs.replace(
            slot, volume=hpke.seal(slot.public, bytes(32), config.volume_info(loaded.vault_id, slot.id))
        )
        for slot in document.slots
    ]
    forged = config.msgspec.structs.replace(document, slots=slots)
    keys = RootKeys(bytes(32), bytes(32))
    forged = config.msgspec.structs.replace(forged, mac=config.compute_mac(forged, keys))
    (vault / configfile.NAME).write_bytes(config.format_document(forged))
    with pytest.raises(ConfigDamaged, match="not authentic"):
        unlock(vault)


def test_keyring_rules() -> None:
    epochs = [Epoch(n, bytes([n]) * 32, "2026-01-01T00:00:00Z") for n in range(1, 66)]
    for wrong in ((), (epochs[1], epochs[0]), (epochs[0], epochs[0]), tuple(epochs)):
        with pytest.raises(ValueError, match="keyring"):
            Keyring(wrong)
    keyring = Keyring(tuple(epochs[:64]))
    assert keyring.current == epochs[63]
    assert keyring.get(65) is None
    with pytest.raises(ValueError, match="keyring"):
        keyring.with_new_epoch()
    with pytest.raises(ValueError, match="keyring"):
        Keyring((Epoch(1 << 32, bytes(32), epochs[0].created),))
    sealed = keyring.seal(ZERO_KEYS, bytes(16))
    assert Keyring.open(ZERO_KEYS, bytes(16), sealed) == keyring
    for keys, vault_id, text in (
        (RootKeys(bytes(31) + b"x", bytes(32)), bytes(16), sealed),
        (RootKeys(bytes(32), bytes(31) + b"x"), bytes(16), sealed),
        (ZERO_KEYS, bytes(15) + b"x", sealed),
        (ZERO_KEYS, bytes(16), sealed[:-1]),
    ):
        with pytest.raises(KeyringDamaged):
            Keyring.open(keys, vault_id, text)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"epochs":[]}',
        b'{"epochs":[{"number":0,"key":"' + b"A" * 43 + b'=","created":"2026-01-01T00:00:00Z"}]}',
        b'{"epochs":[{"number":1,"key":"AAAA","created":"2026-01-01T00:00:00Z"}]}',
    ],
)
def test_an_authentic_keyring_is_checked_all_the_same(content: bytes) -> None:
    sealed = aead.seal(ZERO_KEYS.expand("cryptfs v1 keyring"), content, b"cryptfs v1 keyring" + bytes(16))
    with pytest.raises(KeyringDamaged):
        Keyring.open(ZERO_KEYS, bytes(16), sealed)

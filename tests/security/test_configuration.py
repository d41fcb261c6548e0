"""Attacks on cryptfs.json: guessing, changing, replaying (docs/security.md G2, G4, G9, G10, G13)."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from cryptfs.crypto import hpke, kdf
from cryptfs.crypto.kdf import floor
from cryptfs.errors import ConfigDamaged, CryptfsError, WrongSecret
from cryptfs.keyslots import Passphrase, RecoveryKey
from cryptfs.vault import config
from cryptfs.vault.document import (
    RootKeys,
    compute_mac,
    format_document,
    mac_is_right,
    parse,
    volume_info,
)
from cryptfs.vault.keyring import Keyring, KeyringDamaged

PASSPHRASE = "vier Zähne oben links"
WRONG = "sechs Wurzeln"


class Keys:
    """A folder with nothing but a configuration."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.recovery = RecoveryKey.new()
        self.passphrase = Passphrase(PASSPHRASE, cost=floor())
        config.create(path, [(self.passphrase, "desk"), (self.recovery, "paper")])

    @property
    def file(self) -> Path:
        return self.path / "cryptfs.json"

    def unlock(self, secret: Any = None) -> config.Unlocked:  # noqa: ANN401
        return config.unlock(config.load(self.path), secret or self.recovery)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys")


def test_a_wrong_secret_opens_nothing(keys: Keys) -> None:
    for wrong in (Passphrase(PASSPHRASE + " "), Passphrase(PASSPHRASE.lower()), RecoveryKey(bytes(32))):
        with pytest.raises(WrongSecret):
            keys.unlock(wrong)
    assert keys.unlock(keys.passphrase).keys == keys.unlock().keys


@pytest.mark.thorough
@pytest.mark.parametrize(
    "change",
    [
        {"time": 1},
        {"time": 2, "memory_kib": 65536},
        {"memory_kib": 65535},
        {"memory_kib": 8},
        {"memory_kib": 4194305},
        {"time": 65},
        {"time": 10**9},
        {"lanes": 0},
        {"lanes": 17},
        {"salt": ""},
        {"name": "hkdf-sha256"},
    ],
)
def test_argon2_outside_its_bounds_is_refused_before_it_is_run(
    keys: Keys, change: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    document = json.loads(keys.file.read_text())
    slot = next(slot for slot in document["slots"] if slot["type"] == "passphrase")
    slot["kdf"] |= change
    if change == {"name": "hkdf-sha256"}:
        slot["kdf"] = {"name": "hkdf-sha256", "salt": slot["kdf"]["salt"]}
    keys.file.write_text(json.dumps(document))
    monkeypatch.setattr(kdf, "argon2id", lambda *_: pytest.fail("Argon2id was run"))
    with pytest.raises(ConfigDamaged):
        keys.unlock(keys.passphrase)


def test_cheaper_argon2_within_its_bounds_does_not_open(keys: Keys) -> None:
    document = json.loads(keys.file.read_text())
    slot = next(slot for slot in document["slots"] if slot["type"] == "passphrase")
    slot["kdf"] |= {"lanes": slot["kdf"]["lanes"] + 1}
    keys.file.write_text(json.dumps(document))
    with pytest.raises(WrongSecret):
        keys.unlock(keys.passphrase)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:  # noqa: ANN401
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from leaves(item, (*path, name))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))
    else:
        yield path


def other(value: object) -> object:
    """A value of the same type that is not the same; for base64 another byte."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        first = "1" if value[:1] == "0" else "0"
        return ("B" if value[:1] == "A" else "A") + value[1:] if len(value) > 40 else first + value[1:]
    return {"unexpected": 1} if isinstance(value, dict) else ["unexpected"]


def test_no_field_of_the_configuration_can_be_changed(keys: Keys) -> None:
    """Every leaf of the document, one after the other, is changed, emptied and left out."""
    good = keys.file.read_text()
    paths = list(leaves(json.loads(good)))
    assert len(paths) > 30
    for path in paths:
        for act in ("change", "remove"):
            document = json.loads(good)
            parent = document
            for step in path[:-1]:
                parent = parent[step]
            if act == "change":
                parent[path[-1]] = other(parent[path[-1]])
            else:
                del parent[path[-1]]
            keys.file.write_text(json.dumps(document))
            with pytest.raises(CryptfsError):
                keys.unlock()
                pytest.fail(f"opened after {act} of {path}")


def test_slots_cannot_be_added_removed_reordered_or_replayed(keys: Keys, tmp_path: Path) -> None:
    good = json.loads(keys.file.read_text())
    foreign = json.loads(Keys(tmp_path / "foreign").file.read_text())
    first, second = good["slots"]
    for slots in ([second], [second, first], [first, second, foreign["slots"][0]], [first, second, second]):
        keys.file.write_text(json.dumps({**good, "slots": slots}))
        with pytest.raises(ConfigDamaged):
            keys.unlock()
    for name in ("keyring", "mac", "vault"):
        keys.file.write_text(json.dumps({**good, name: foreign[name]}))
        with pytest.raises((ConfigDamaged, WrongSecret)):
            keys.unlock()


def test_a_slot_does_not_open_in_another_vault_with_the_same_passphrase(keys: Keys, tmp_path: Path) -> None:
    target = Keys(tmp_path / "target")
    stolen = next(s for s in json.loads(keys.file.read_text())["slots"] if s["type"] == "recovery")
    document = json.loads(target.file.read_text())
    document["slots"] = [stolen if s["type"] == "recovery" else s for s in document["slots"]]
    target.file.write_text(json.dumps(document))
    with pytest.raises(WrongSecret):
        target.unlock(keys.recovery)


def test_a_removed_slot_opens_nothing_even_with_an_old_copy(keys: Keys) -> None:
    old_text = keys.file.read_bytes()
    before = keys.unlock()
    slot = next(slot for slot in before.config.slots if slot.type == "passphrase")
    after = config.remove_slot(before, slot.id)
    with pytest.raises(WrongSecret):
        keys.unlock(keys.passphrase)
    # The old keys, had by whoever kept the old file, are of no use for the new one.
    assert after.keys.volume != before.keys.volume
    text = keys.file.read_bytes()
    with pytest.raises(KeyringDamaged):
        Keyring.open(before.keys, before.vault_id, parse(text).keyring)
    assert not mac_is_right(parse(text), before.keys)
    # Nothing in the vault's folder still opens with what was revoked.
    for file in keys.path.iterdir():
        if file.name.startswith("cryptfs.json"):
            with pytest.raises(WrongSecret):
                config.unlock(config.Config(keys.path, parse(file.read_bytes())), keys.passphrase)
    # The old slot put back into the new file is noticed.
    document = json.loads(text)
    document["slots"] += [s for s in json.loads(old_text)["slots"] if s["id"] == slot.id]
    keys.file.write_text(json.dumps(document))
    with pytest.raises(ConfigDamaged):
        keys.unlock(keys.passphrase)


def test_a_changed_passphrase_ends_the_old_one(keys: Keys) -> None:
    before = keys.unlock()
    slot = next(slot for slot in before.config.slots if slot.type == "passphrase")
    after = config.change_slot(before, slot.id, Passphrase("fünf Kronen", cost=floor()))
    assert after.keys.volume != before.keys.volume
    for file in keys.path.iterdir():
        if file.name.startswith("cryptfs.json"):
            with pytest.raises(WrongSecret):
                config.unlock(config.Config(keys.path, parse(file.read_bytes())), keys.passphrase)
    assert keys.unlock(Passphrase("fünf Kronen")).keyring == before.keyring


def test_no_secret_in_messages_tracebacks_or_repr(keys: Keys) -> None:
    unlocked = keys.unlock(keys.passphrase)
    secrets = [PASSPHRASE.encode(), unlocked.keys.volume, unlocked.keys.authority]
    secrets += [*(epoch.key for epoch in unlocked.keyring)]
    shown = [repr(unlocked), repr(unlocked.config), repr(unlocked.keyring), repr(list(unlocked.keyring))]
    shown += [repr(keys.passphrase), repr(keys.recovery), str(keys.passphrase), repr(unlocked.config.slots)]
    for broken in (
        lambda: keys.unlock(Passphrase(WRONG)),
        lambda: RecoveryKey.parse(keys.recovery.text[:-1] + "U"),
        lambda: RecoveryKey.parse(keys.recovery.text[1:]),
        lambda: Passphrase(WRONG * 100),
    ):
        try:
            broken()
        except CryptfsError as error:
            shown.append("".join(traceback.format_exception(error)))
            shown.append(repr(error.args))
    assert len(shown) == 8 + 2 * 4
    text = "\n".join(shown)
    assert WRONG not in text
    assert keys.recovery.text[:20] not in text
    for secret in secrets:
        assert repr(secret)[2:-1] not in text
        assert secret.hex() not in text.lower()


def forge(keys: Keys, authority: bytes) -> None:
    """Write a configuration with a volume key and a keyring of the forger's own, sealed to every slot."""
    document = parse(keys.file.read_bytes())
    root = RootKeys(bytes(32), authority)
    slots = [
        replace(slot, volume=hpke.seal(slot.public, root.volume, volume_info(document.vault_id, slot.id)))
        for slot in document.slots
    ]
    keyring = Keyring.new().seal(root, document.vault_id)
    forged = replace(document, generation=document.generation + 1, slots=slots, keyring=keyring)
    keys.file.write_bytes(format_document(replace(forged, mac=compute_mac(forged, root))))


def test_a_configuration_made_by_somebody_without_a_secret_is_refused(keys: Keys) -> None:
    """The forger knows the public keys and everything else in the file, but no authority key."""
    forge(keys, bytes(32))
    for secret in (keys.recovery, keys.passphrase):
        with pytest.raises(ConfigDamaged):
            keys.unlock(secret)


def test_the_forgery_is_refused_for_nothing_but_the_authority_key(keys: Keys) -> None:
    """The test above must be able to fail: who once held a slot can do it (docs/security.md section 3)."""
    before = keys.unlock()
    forge(keys, before.keys.authority)
    assert keys.unlock().keyring != before.keyring


def test_slots_made_anew_end_the_forger_who_once_held_one(keys: Keys) -> None:
    known = keys.unlock()
    unlocked = config.remove_slot(known, next(s.id for s in known.config.slots if s.type == "passphrase"))
    keys.recovery = RecoveryKey.new()
    unlocked = config.change_slot(unlocked, unlocked.config.slots[0].id, keys.recovery)
    config.add_slot(unlocked, Passphrase("neun Brücken", cost=floor()))
    forge(keys, known.keys.authority)
    for secret in (keys.recovery, Passphrase("neun Brücken")):
        with pytest.raises(ConfigDamaged):
            keys.unlock(secret)

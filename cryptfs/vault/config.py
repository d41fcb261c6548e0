"""Opening and changing a vault's configuration: slots, volume key, keyring (docs/format.md section 3).

`load` reads and bounds-checks; `unlock` takes a secret from `cryptfs.keyslots` and
checks the MAC. To add or remove a slot no other slot's secret is needed: the
volume key is sealed to each slot's public key, and the authority key, which says that
somebody with a slot did it, is the same in every slot.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from cryptfs.crypto import aead, hpke
from cryptfs.errors import (
    ConfigDamaged,
    CryptfsError,
    NotAVault,
    SlotRefused,
    TpmRefused,
    UsageError,
    VaultInUse,
    WrongSecret,
)
from cryptfs.keyslots import TYPEABLE, Secret
from cryptfs.tpm.errors import OtherTpm
from cryptfs.vault import configfile
from cryptfs.vault.diskio import NotRegular
from cryptfs.vault.document import (
    AUTHORITY_SIZE,
    MAX_LABEL,
    MAX_SLOTS,
    Document,
    Options,
    RootKeys,
    Slot,
    compute_mac,
    format_document,
    mac_is_right,
    now,
    parse,
    slot_associated,
    volume_info,
)
from cryptfs.vault.keyring import Keyring, KeyringDamaged

_WHAT = {
    "passphrase": "passphrase",
    "recovery": "recovery key",
    "keyfile": "key file",
    "tpm2": "TPM",
}


@dataclass(frozen=True)
class Config:
    """A cryptfs.json within bounds, not yet authenticated."""

    path: Path
    document: Document = field(repr=False)

    @property
    def vault_id(self) -> bytes:
        """16 bytes."""
        return self.document.vault_id

    @property
    def slots(self) -> Sequence[Slot]:
        return self.document.slots

    @property
    def backup_group(self) -> bool:
        """Ciphertext is created readable by its group."""
        return self.document.options.backup_group

    def slot(self, slot_id: str) -> Slot:
        """The slot of this id, or of the only id that begins so; SlotRefused."""
        found = [slot for slot in self.slots if slot.id.startswith(slot_id)] if slot_id else []
        if len(found) != 1:
            raise SlotRefused(
                f"This vault has {'more than one' if found else 'no'} key slot {slot_id!r}: "
                "`cryptfs key list` shows them."
            )
        return found[0]


@dataclass(frozen=True)
class Unlocked:
    """An authentic configuration and the keys in it."""

    config: Config
    keys: RootKeys = field(repr=False)
    keyring: Keyring = field(repr=False)
    slot_id: str

    @property
    def vault_id(self) -> bytes:
        return self.config.vault_id


def load(path: Path | str) -> Config:
    """Read VAULT/cryptfs.json. Nothing in it may be believed before `unlock`.

    NotAVault, ConfigDamaged, UnsupportedFormat; OSError if the disk refuses.
    """
    path = Path(path)
    file = path / configfile.NAME
    try:
        return Config(path, parse(configfile.read(file)))
    except NotRegular:
        raise ConfigDamaged(
            f"{file} is not a file: something else was put in its place{_hint(path)}."
        ) from None
    except NotADirectoryError:
        raise NotAVault(f"{path} is not a folder.") from None
    except FileNotFoundError:
        if not path.is_dir():
            raise NotAVault(f"There is no folder {path}.") from None
        if not (path / configfile.PREVIOUS).exists():
            raise NotAVault(f"{path} is not a vault: it has no {configfile.NAME}.") from None
        raise ConfigDamaged(f"{file} is missing{_hint(path)}.") from None
    except CryptfsError as error:
        word = "is damaged" if isinstance(error, ConfigDamaged) else "cannot be used"
        raise type(error)(f"{file} {word}: {error}{_hint(path)}.") from None


def unlock(config: Config, secret: Secret, slot_id: str | None = None) -> Unlocked:
    """Open the first slot that the secret opens, and check everything else with the keys in it.

    WrongSecret if it opens none; ConfigDamaged if what was opened is not authentic; TpmRefused and
    TpmUnavailable. A passphrase costs about a second for each passphrase slot tried. With
    `slot_id` only that slot is tried.
    """
    tried = [slot for slot in config.slots if slot.type == secret.type and slot_id in (None, slot.id)]
    if not tried:
        raise WrongSecret(f"This vault has no {_WHAT[secret.type]} slot: unlock it in another way.")
    refused: list[TpmRefused | WrongSecret] = []
    for slot in tried:
        try:
            private = _open_private(config.vault_id, slot, secret)
        except (TpmRefused, WrongSecret) as error:
            refused.append(error)  # each machine with a TPM has a slot of its own: the next may be this one's
            continue
        if private is not None:
            return _open_with(config, slot, *private)
    if refused:
        raise next((error for error in refused if not isinstance(error, OtherTpm)), refused[0])
    raise WrongSecret(f"Wrong {_WHAT[secret.type]}: it opens no key slot of this vault.")


def reload(unlocked: Unlocked) -> Unlocked:
    """The configuration as it is on the disk now, opened with the keys at hand.

    VaultInUse if they no longer open it: a slot was changed or removed meanwhile.
    """
    config = load(unlocked.config.path)
    try:
        keyring = _authentic_keyring(config.document, unlocked.keys)
    except KeyringDamaged:
        raise VaultInUse("The keys of this vault were changed in the meantime: start again.") from None
    return Unlocked(config, unlocked.keys, keyring, unlocked.slot_id)


def is_authentic(unlocked: Unlocked, text: bytes) -> bool:
    """Whether this is a configuration of the same vault under the same keys.

    True also of `cryptfs.json.previous`, whose keys are those of the current one (format section 2).
    """
    try:
        document = parse(text)
        _authentic_keyring(document, unlocked.keys)
    except (CryptfsError, KeyringDamaged):
        return False
    return document.vault_id == unlocked.vault_id


def create(
    path: Path, secrets: Sequence[tuple[Secret, str]], *, backup_group: bool = False, write: bool = True
) -> Unlocked:
    """A new vault's configuration, with one slot for each secret and label.

    With write=False nothing is written: `write_new` does that last, when the rest of the vault is there.
    """
    vault_id = os.urandom(16)
    keys = RootKeys(os.urandom(aead.KEY_SIZE), os.urandom(AUTHORITY_SIZE))
    keyring = Keyring.new()
    slots = [_make_slot(vault_id, keys, secret, label) for secret, label in secrets]
    _check_slots(slots)
    blank = Document(
        format="cryptfs",
        version=1,
        vault=vault_id.hex(),
        created=now(),
        generation=0,
        features=[],
        options=Options(backup_group=backup_group),
        slots=slots,
        keyring=b"",
        mac=bytes(32),
    )
    document = _seal_document(blank, slots, keys, keyring)
    unlocked = Unlocked(Config(path, document), keys, keyring, slots[0].id)
    if write:
        write_new(unlocked)
    return unlocked


def write_new(unlocked: Unlocked) -> None:
    """Write what `create(…, write=False)` made; VaultInUse if there is a configuration already."""
    path = unlocked.config.path
    with configfile.locked(path):
        if (path / configfile.NAME).exists():
            raise VaultInUse(f"{path} is a vault already.")
        _write(unlocked, mode=0o640 if unlocked.config.backup_group else 0o600)


def add_slot(unlocked: Unlocked, secret: Secret, label: str = "") -> Unlocked:
    """One more slot. The vault as it is on the disk now is the one that is changed."""
    with _changing(unlocked) as fresh:
        slot = _make_slot(fresh.vault_id, fresh.keys, secret, label)
        return _replace(fresh, [*fresh.config.slots, slot], slot_id=fresh.slot_id)


def change_slot(unlocked: Unlocked, slot_id: str, secret: Secret, label: str | None = None) -> Unlocked:
    """Another secret for a slot, under the same id.

    The volume key is replaced: with an old copy of cryptfs.json, the old secret would
    otherwise open every later configuration too. If it is the only slot, so is the authority
    key: nobody else has to learn the new one.
    """
    with _changing(unlocked) as fresh:
        old = fresh.config.slot(slot_id)
        label = old.label if label is None else label
        keys = fresh.keys
        if len(fresh.config.slots) == 1:
            keys = dataclasses.replace(keys, authority=os.urandom(AUTHORITY_SIZE))
        new = _make_slot(fresh.vault_id, keys, secret, label, slot_id=old.id)
        slots = [new if slot.id == old.id else slot for slot in fresh.config.slots]
        return _replace(fresh, slots, slot_id=new.id, keys=keys, revokes=True)


def remove_slot(unlocked: Unlocked, slot_id: str) -> Unlocked:
    """Remove a slot and replace the volume key; SlotRefused for the last one that a person can type."""
    with _changing(unlocked) as fresh:
        old = fresh.config.slot(slot_id)
        slots = [slot for slot in fresh.config.slots if slot.id != old.id]
        slot_id = fresh.slot_id if fresh.slot_id != old.id else ""
        return _replace(fresh, slots, slot_id=slot_id, revokes=True)


def replace_keyring(unlocked: Unlocked, keyring: Keyring, features: Sequence[str] | None = None) -> Unlocked:
    """Write another keyring. If an epoch is gone from it, `.previous` does not keep it either.

    `features` replace those that the configuration has.
    """
    with _changing(unlocked) as fresh:
        if fresh.keyring != unlocked.keyring:
            raise VaultInUse("The keys of this vault were rotated in the meantime: start again.")
        kept = {epoch.number for epoch in keyring}
        revokes = any(epoch.number not in kept for epoch in fresh.keyring)
        return _replace(
            fresh, fresh.config.slots, keyring=keyring, slot_id=fresh.slot_id, revokes=revokes,
            features=features,
        )  # fmt: skip


def _open_private(vault_id: bytes, slot: Slot, secret: Secret) -> tuple[bytes, bytes] | None:
    """The slot's HPKE private key and the authority key."""
    key = secret.slot_key(slot.kdf, slot.extra)
    try:
        plain = aead.open_sealed(key, slot.private, slot_associated(vault_id, slot))
    except aead.InvalidTag:
        return None
    return plain[: hpke.PRIVATE_SIZE], plain[hpke.PRIVATE_SIZE :]


def _open_with(config: Config, slot: Slot, private: bytes, authority_key: bytes) -> Unlocked:
    try:
        volume_key = hpke.open_sealed(private, slot.volume, volume_info(config.vault_id, slot.id))
        keys = RootKeys(volume_key, authority_key)
        keyring = _authentic_keyring(config.document, keys)
    except (hpke.InvalidTag, KeyringDamaged):
        raise ConfigDamaged(
            f"{config.path / configfile.NAME} was changed by something other than cryptfs, or is damaged: "
            f"the secret is right, but the rest is not authentic{_hint(config.path)}."
        ) from None
    return Unlocked(config, keys, keyring, slot.id)


def _authentic_keyring(document: Document, keys: RootKeys) -> Keyring:
    """The keyring of a document whose MAC is right; KeyringDamaged."""
    if not mac_is_right(document, keys):
        raise KeyringDamaged
    return Keyring.open(keys, document.vault_id, document.keyring)


def _make_slot(vault_id: bytes, keys: RootKeys, secret: Secret, label: str, slot_id: str = "") -> Slot:
    """A slot with a new key pair, opened once more to be sure."""
    if len(label) > MAX_LABEL or not label.isprintable():
        raise UsageError(f"A label has at most {MAX_LABEL} characters, all of them printable.")
    slot_id = slot_id or os.urandom(8).hex()
    private = hpke.generate()
    public = hpke.public_of(private)
    kdf = secret.new_kdf()
    extra = secret.new_extra(kdf)
    volume = hpke.seal(public, keys.volume, volume_info(vault_id, slot_id))
    blank = Slot(slot_id, secret.type, label, now(), kdf, extra, public, b"", volume)
    sealed = aead.seal(
        secret.slot_key(kdf, extra), private + keys.authority, slot_associated(vault_id, blank)
    )
    slot = msgspec.structs.replace(blank, private=sealed)
    again = _open_private(vault_id, slot, secret)
    opened = (hpke.open_sealed(again[0], volume, volume_info(vault_id, slot_id)), again[1]) if again else None
    if opened != (keys.volume, keys.authority):
        raise CryptfsError("The new key slot does not open again: this machine's memory or processor fails.")
    return slot


def _check_slots(slots: Sequence[Slot]) -> None:
    if not any(slot.type in TYPEABLE for slot in slots):
        raise SlotRefused("The last slot that a person can type (passphrase or recovery key) has to stay.")
    if len(slots) > MAX_SLOTS:
        raise SlotRefused(f"A vault has at most {MAX_SLOTS} key slots: remove one first.")


def _seal_document(base: Document, slots: Sequence[Slot], keys: RootKeys, keyring: Keyring) -> Document:
    document = msgspec.structs.replace(
        base,
        generation=base.generation + 1,
        slots=list(slots),
        keyring=keyring.seal(keys, base.vault_id),
    )
    return msgspec.structs.replace(document, mac=compute_mac(document, keys))


@contextlib.contextmanager
def _changing(unlocked: Unlocked) -> Iterator[Unlocked]:
    """With the lock held, what is on the disk now: VaultInUse if our keys no longer open it."""
    path = unlocked.config.path
    with configfile.locked(path):
        config = load(path)
        try:
            keyring = _authentic_keyring(config.document, unlocked.keys)
        except KeyringDamaged:
            raise VaultInUse("The keys of this vault were changed in the meantime: start again.") from None
        if config.vault_id != unlocked.vault_id:
            raise VaultInUse(f"{path} is another vault than the one that was unlocked.")
        yield Unlocked(config, unlocked.keys, keyring, unlocked.slot_id)


def _replace(
    fresh: Unlocked,
    slots: Sequence[Slot],
    *,
    slot_id: str,
    keys: RootKeys | None = None,
    keyring: Keyring | None = None,
    revokes: bool = False,
    features: Sequence[str] | None = None,
) -> Unlocked:
    """Write the configuration with these slots; one that revokes gets a new volume key."""
    _check_slots(slots)
    keyring = keyring or fresh.keyring
    keys = keys or fresh.keys
    if revokes:
        keys = dataclasses.replace(keys, volume=os.urandom(aead.KEY_SIZE))
        slots = [
            msgspec.structs.replace(
                slot, volume=hpke.seal(slot.public, keys.volume, volume_info(fresh.vault_id, slot.id))
            )
            for slot in slots
        ]
    base = fresh.config.document
    if features is not None:
        base = msgspec.structs.replace(base, features=list(features))
    document = _seal_document(base, slots, keys, keyring)
    changed = Unlocked(Config(fresh.config.path, document), keys, keyring, slot_id)
    _write(changed, revokes=revokes)
    return changed


def _write(unlocked: Unlocked, *, mode: int = 0o600, revokes: bool = False) -> None:
    def prove(text: bytes) -> None:
        try:
            again = parse(text)
            if again == unlocked.config.document:
                _authentic_keyring(again, unlocked.keys)
                return
        except (ConfigDamaged, KeyringDamaged):
            pass
        raise CryptfsError("The new configuration could not be read back: nothing was changed.")

    text = format_document(unlocked.config.document)
    configfile.replace(unlocked.config.path, text, prove, mode=mode, revokes=revokes)


def _hint(path: Path) -> str:
    """What to do about a configuration that cannot be used, if its predecessor can."""
    try:
        parse(configfile.read(path / configfile.PREVIOUS))
    except (OSError, CryptfsError):
        return ""
    return (
        f"; {configfile.PREVIOUS} beside it is readable: "
        f"copy it to {configfile.NAME} and try again, or take {configfile.NAME} from a backup"
    )

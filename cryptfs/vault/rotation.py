"""Epochs of a vault in its configuration: a new one, and the end of the old ones (docs/rotation.md).

Who rotates holds a secret and changes `cryptfs.json`; the process that has the vault mounted holds the
keyring only. It learns of the change by reading the file itself, with the key of the sealed keyring that it
is handed (`learn`), and believes it only if the keyring holds an epoch key that it has already: whoever
made it knew the keys of this vault.
"""

from __future__ import annotations

import hmac
from pathlib import Path

from cryptfs.errors import CryptfsError
from cryptfs.vault import config
from cryptfs.vault.config import Unlocked
from cryptfs.vault.document import REENCRYPTION, RootKeys
from cryptfs.vault.keyring import MAX_EPOCHS, Keyring, KeyringDamaged, open_with, sealing_key


class EpochRefused(CryptfsError):
    """What was read is not a keyring that this process may go on with."""


def is_under_way(keyring: Keyring) -> bool:
    """Whether a rotation was begun and has not ended: there are older epochs."""
    return len(keyring) > 1


def reencrypts(unlocked: Unlocked) -> bool:
    """Whether a re-encryption of everything was begun and has not ended."""
    return REENCRYPTION in unlocked.config.document.features


def begin(unlocked: Unlocked) -> Unlocked:
    """Add an epoch and make it the current one, durably. Only the configuration changes.

    VaultInUse if somebody else changed the keys since it was unlocked.
    """
    if len(unlocked.keyring) >= MAX_EPOCHS:
        raise CryptfsError("The keyring is full: finish the rotations that were begun first.")
    return config.replace_keyring(unlocked, unlocked.keyring.with_new_epoch())


def begin_reencryption(unlocked: Unlocked) -> Unlocked:
    """Add an epoch, and say that directories may have two keys from now on, which older programs do not know.

    Durable. Only the configuration changes. VaultInUse as `begin`.
    """
    if len(unlocked.keyring) >= MAX_EPOCHS:
        raise CryptfsError("The keyring is full: finish the rotations that were begun first.")
    features = [*unlocked.config.document.features, REENCRYPTION]
    return config.replace_keyring(unlocked, unlocked.keyring.with_new_epoch(), features)


def destroy_old(unlocked: Unlocked) -> Unlocked:
    """Remove every epoch but the current one, durably, and replace the volume key.

    Nothing opens afterwards that still needs one of them: the caller has made sure that nothing does, nor
    that a directory has two keys.
    """
    features = [name for name in unlocked.config.document.features if name != REENCRYPTION]
    return config.replace_keyring(unlocked, unlocked.keyring.with_current_only(), features)


def handover(keys: RootKeys) -> bytes:
    """What a mounted process needs to read the sealed keyring: 32 bytes, of no other use."""
    return sealing_key(keys)


def learn(path: Path, vault_id: bytes, key: bytes, known: Keyring) -> Keyring:
    """The keyring that stands in `path`/cryptfs.json now, opened with what `handover` gave.

    EpochRefused if it does not open or is another vault's, lacks the epoch now in use while an older one
    is its newest, or has none of the epoch keys in `known`.
    """
    loaded = config.load(path)
    try:
        found = open_with(key, vault_id, loaded.document.keyring)
    except KeyringDamaged:
        raise EpochRefused("The keyring in cryptfs.json does not open with the key that was sent.") from None
    if loaded.vault_id != vault_id:
        raise EpochRefused(f"{path} is another vault than the one that is mounted.")
    current = found.get(known.current.number)
    if current is None or not hmac.compare_digest(current.key, known.current.key):
        raise EpochRefused("The keyring in cryptfs.json does not hold the epoch that the mount works with.")
    for epoch in found:
        ours = known.get(epoch.number)
        if ours is not None and not hmac.compare_digest(ours.key, epoch.key):
            raise EpochRefused("The keyring in cryptfs.json contradicts the one that the mount works with.")
    return found

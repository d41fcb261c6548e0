"""Secrets for tests: as cheap as the format allows."""

from __future__ import annotations

from pathlib import Path

from cryptfs.crypto.kdf import floor
from cryptfs.keyslots import KeyFile, Passphrase, RecoveryKey
from cryptfs.vault import config
from cryptfs.vault.config import Unlocked

PASSPHRASE = "Röntgen im Keller 7"
RECOVERY = RecoveryKey(bytes(range(32)))
KEY_FILE = KeyFile(b"key file" * 8)


def passphrase(text: str = PASSPHRASE) -> Passphrase:
    """A passphrase with the least cost there is (64 MiB, 3 passes)."""
    return Passphrase(text, cost=floor())


def make(path: Path) -> Unlocked:
    """A configuration with a recovery key, a key file and, last because it is slow, a passphrase."""
    path.mkdir(exist_ok=True)
    return config.create(path, [(RECOVERY, "paper"), (KEY_FILE, "stick"), (passphrase(), "desk")])

"""A vault with folders and one file, which opens with the recovery key: quick to make."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from cryptfs.fs import FileSystem
from cryptfs.fs.types import Owner
from cryptfs.vault import Vault, config
from cryptfs.vault.config import Unlocked
from cryptfs.vault.layout import create_tree
from tests.keyslots.material import RECOVERY

CONTENT = b"the image of a patient" * 100


def make(path: Path) -> Unlocked:
    path.mkdir()
    unlocked = config.create(path, [(RECOVERY, "paper")], write=False)
    owner = {"mode": 0o700, "uid": os.getuid(), "gid": os.getgid()}
    create_tree(path, unlocked.vault_id, unlocked.keyring, backup_group=False, **owner)
    config.write_new(unlocked)
    with contextlib.closing(FileSystem(Vault(path, unlocked.vault_id, unlocked.keyring))) as fs:
        folder = fs.mkdir(1, b"CT", 0o700, Owner(os.getuid(), os.getgid()))
        handle, _ = fs.create(folder.ino, b"1.dcm", 0o600, Owner(os.getuid(), os.getgid()), os.O_RDWR)
        fs.write(handle, 0, CONTENT)
        fs.release(handle)
    return unlocked


def content(path: Path, unlocked: Unlocked) -> bytes:
    """What the file holds, read with these keys."""
    vault = Vault(path, unlocked.vault_id, unlocked.keyring, read_only=True)
    with contextlib.closing(FileSystem(vault)) as fs:
        ino = fs.lookup(fs.lookup(1, b"CT").ino, b"1.dcm").ino
        handle = fs.open(ino, os.O_RDONLY)
        try:
            return bytes(fs.read(handle, 0, len(CONTENT) + 1))
        finally:
            fs.release(handle)

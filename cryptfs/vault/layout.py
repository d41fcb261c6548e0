"""The folders of a vault and their permissions (docs/format.md section 2)."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

from cryptfs.vault.diskio import create, fsync_path, make_folder, pwrite_all
from cryptfs.vault.header import DIRECTORY, Header, HeaderCodec, KeyringLike
from cryptfs.vault.names import DIR_HEADER

TREE, DIRS, JOURNAL, XATTR = "tree", "dirs", "journal", "xattr"


class Modes(NamedTuple):
    """Permission bits of ciphertext files and directories."""

    file: int
    directory: int


def modes(backup_group: bool) -> Modes:
    """Only the owner may read the ciphertext, or the group of the backup as well.

    With a backup group the directories are set-group-ID, so that everything below
    belongs to the group of the vault's folder.
    """
    return Modes(0o640, 0o2750) if backup_group else Modes(0o600, 0o700)


def create_tree(
    path: Path, vault_id: bytes, keyring: KeyringLike, *, backup_group: bool, mode: int, uid: int, gid: int
) -> None:
    """Make the folders of a new vault and the header of its root directory, durably.

    `mode`, `uid` and `gid` are those of the plaintext root. OSError if the disk refuses.
    """
    permissions = modes(backup_group)
    os.chmod(path, permissions.directory)
    # In the order in which a copy of a vault in use should be read: some tools go by inode numbers.
    for name in (DIRS, JOURNAL, TREE, XATTR):
        folder = path / name
        make_folder(folder, permissions.directory)
        os.chmod(folder, permissions.directory)
    codec = HeaderCodec(vault_id, keyring)
    now = time.time_ns()
    header = Header(
        DIRECTORY, 0, 0, codec.current_epoch, mode & 0o7777, 1, os.urandom(16), 0, uid, gid, 0,
        now, now, now, now, os.urandom(32),
    )  # fmt: skip
    slot = codec.pack(header)
    root = os.fsencode(path / TREE) + b"/" + DIR_HEADER
    copy = os.fsencode(path / DIRS) + b"/0000000000000000.log"
    for name_, data in ((root, slot), (copy, slot.ljust(256, b"\0"))):
        fd = create(name_, permissions.file)
        try:
            pwrite_all(fd, data, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
    for folder in (path / TREE, path / DIRS, path):
        fsync_path(str(folder))

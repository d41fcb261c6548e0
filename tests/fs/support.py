"""A vault without configuration: the filesystem layer needs only an id and a keyring."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from cryptfs.fs import FileSystem, FsOptions
from cryptfs.fs.types import Owner
from cryptfs.index.place import prepare
from cryptfs.vault import Vault
from cryptfs.vault.layout import create_tree

ME = Owner(os.getuid(), os.getgid())


@dataclass(frozen=True)
class FakeEpoch:
    number: int = 1
    key: bytes = b"e" * 32


class FakeKeyring:
    """One epoch with a fixed key."""

    current = FakeEpoch()

    def get(self, number: int) -> FakeEpoch | None:
        return self.current if number == 1 else None


VAULT_ID = b"v" * 16


def make_vault(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    create_tree(path, VAULT_ID, FakeKeyring(), backup_group=False, mode=0o755, uid=ME.uid, gid=ME.gid)
    return path


def open_fs(
    path: Path,
    *,
    read_only: bool = False,
    xattrs: bool = False,
    state: Path | None = None,
    place: Path | None = None,
) -> FileSystem:
    """With a metadata index below the folder `state`, and nothing compared; or with all in `place`."""
    vault = Vault(path, VAULT_ID, FakeKeyring(), read_only=read_only)
    place = place if state is None else prepare(VAULT_ID, state)
    return FileSystem(vault, FsOptions(xattrs=xattrs, compare=state is None), place=place)


def close_fs(fs: FileSystem) -> None:
    fs.close()


def snapshot(fs: FileSystem, to: Path) -> Path:
    """What a killed process would leave: a copy of the vault, made while nothing works in the background."""
    fs.gate.close()
    try:
        shutil.copytree(fs.vault.path, to, symlinks=True)
    finally:
        fs.gate.open()
    return to


def put(fs: FileSystem, parent: int, name: bytes, data: bytes) -> int:
    """Write a whole file; its inode number."""
    handle, attr = fs.create(parent, name, 0o644, ME, os.O_RDWR)
    fs.write(handle, 0, data)
    fs.flush(handle)
    fs.release(handle)
    return attr.ino


def get(fs: FileSystem, parent: int, name: bytes) -> bytes:
    """Read a whole file."""
    attr = fs.lookup(parent, name)
    handle = fs.open(attr.ino, os.O_RDONLY)
    try:
        return bytes(fs.read(handle, 0, attr.size))
    finally:
        fs.release(handle)
        fs.forget(attr.ino, 1)

"""A vault with one of everything, under a keyring that can be rotated, and what it must show."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import NamedTuple

from cryptfs.fs import FileSystem, FsOptions
from cryptfs.fs.throttle import Stopped, Throttle
from cryptfs.vault import Vault
from cryptfs.vault.keyring import Keyring
from cryptfs.vault.layout import create_tree
from tests.fs.support import ME, VAULT_ID, get, put

OLD = Keyring.new()
BOTH = OLD.with_new_epoch()
NEW = BOTH.with_current_only()


class Cut(Throttle):
    """Stops a job after so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    @property
    def slice_is_over(self) -> bool:
        return True

    def check(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise Stopped


def make_vault(path: Path, keyring: Keyring = OLD) -> Path:
    path.mkdir()
    create_tree(path, VAULT_ID, keyring, backup_group=False, mode=0o755, uid=ME.uid, gid=ME.gid)
    return path


def open_fs(path: Path, keyring: Keyring, *, read_only: bool = False) -> FileSystem:
    return FileSystem(Vault(path, VAULT_ID, keyring, read_only=read_only), FsOptions(xattrs=True))


def fill(fs: FileSystem) -> None:
    """Files of all sizes, a database, links of both kinds, a FIFO, long names, attributes."""
    patient = fs.mkdir(1, b"patient", 0o750, ME).ino
    study = fs.mkdir(patient, b"study " + b"s" * 240, 0o755, ME).ino
    fs.mkdir(1, b"empty", 0o700, ME)
    put(fs, 1, b"nothing", b"")
    put(fs, 1, b"index", os.urandom(9000))
    for number in range(4):
        put(fs, study, b"slice %d" % number, os.urandom(70_000 * number + 10))
    slice_1 = fs.lookup(study, b"slice 1").ino
    fs.link(slice_1, patient, b"the same slice")
    fs.symlink(1, b"latest", b"patient/study", ME)
    fs.mknod(1, b"fifo", stat.S_IFIFO | 0o600, 0, ME)
    fs.setxattr(slice_1, b"user.note", b"checked")
    fs.setxattr(patient, b"user.note", b"recalled")
    handle, _ = fs.create(study, b"synced " + b"n" * 220, 0o600, ME, os.O_RDWR)
    fs.write(handle, 0, b"image")
    fs.fsync(handle)  # on ext4 it carries the directories' headers
    fs.release(handle)


class Entry(NamedTuple):
    """What must be the same before and after."""

    mode: int
    owner: tuple[int, int]
    size: int
    mtime_ns: int
    content: bytes
    attributes: dict[bytes, bytes]


def everything(fs: FileSystem, ino: int = 1, path: bytes = b"") -> dict[bytes, Entry]:
    """The whole tree by path; any damage is a failure."""
    found: dict[bytes, Entry] = {}
    dh = fs.opendir(ino)
    for name, attr, _ in list(fs.readdir(dh, 0)):
        assert attr.nlink, "an entry is damaged"
        here = fs.lookup(ino, name)
        content = b""
        if stat.S_ISREG(attr.mode):
            content = get(fs, ino, name)
        elif stat.S_ISLNK(attr.mode):
            content = fs.readlink(here.ino)
        attributes = {key: fs.getxattr(here.ino, key) for key in fs.listxattr(here.ino)}
        is_dir = stat.S_ISDIR(attr.mode)
        found[path + name] = Entry(
            attr.mode,
            (attr.uid, attr.gid),
            0 if is_dir else attr.size,
            0 if is_dir else attr.mtime_ns,
            content,
            attributes,
        )
        if is_dir:
            found |= everything(fs, here.ino, path + name + b"/")
        fs.forget(here.ino, 1)
    fs.releasedir(dh)
    return found


def shown(path: Path, keyring: Keyring) -> dict[bytes, Entry]:
    """What a vault shows that is opened with a keyring, and closed again."""
    fs = open_fs(path, keyring)
    try:
        return everything(fs)
    finally:
        fs.close()


def copy(path: Path, to: Path) -> Path:
    """What a killed process leaves."""
    return Path(shutil.copytree(path, to, symlinks=True))

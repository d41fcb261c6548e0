#!/usr/bin/env python3
"""Made the golden vaults (README.md beside it). Never to be run over them.

A golden vault is what a released version wrote. It is kept for ever, so that every later version
proves that it reads it. This script is kept to show how they were made, and to begin
the ones of a next format version with: it refuses to write over a file that is there.

    python -m tests.golden.make_golden NAME FOLDER

writes NAME.tar (ciphertext) and NAME.expected.json (plaintext: types, modes, times, SHA-256) to FOLDER.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from cryptfs.crypto.kdf import floor
from cryptfs.fs import FileSystem, FsOptions, renewing
from cryptfs.fs.beginning import Beginner
from cryptfs.fs.reencrypt import Reencrypt
from cryptfs.fs.throttle import Stopped
from cryptfs.fs.types import Owner, SetAttr
from cryptfs.keyslots import KeyFile, Passphrase, RecoveryKey, Tpm2
from cryptfs.vault import Vault, config, rotation
from cryptfs.vault.layout import create_tree
from tests.fs.rotation import Cut

PASSPHRASE = "goldene Röntgenröhre 1895"
RECOVERY = RecoveryKey(hashlib.sha256(b"cryptfs golden vault").digest())
KEY_FILE = b"This is the key file of the golden vaults of cryptfs.\n"
PIN = "1895"
OWNER = Owner(1000, 1001)
TIME = 1_767_323_045  # 2026-01-02T03:04:05Z
LONG = "Befund " + "sehr lang " * 20 + "ü"
ROOT = 1


def content(seed: str, size: int) -> bytes:
    """Bytes that do not compress and are the same every time."""
    return random.Random(seed).randbytes(size)


def database(pages: int) -> bytes:
    return b"SQLite format 3\0" + content("database", pages * 4096 - 16)


class Tree:
    """Paths over a FileSystem, and what a reader has to find at them."""

    def __init__(self, fs: FileSystem) -> None:
        self.fs = fs
        self.expected: dict[str, dict[str, Any]] = {}

    def ino(self, path: str) -> int:
        ino = ROOT
        for name in filter(None, path.split("/")):
            ino = self.fs.lookup(ino, name.encode()).ino
        return ino

    def split(self, path: str) -> tuple[int, bytes]:
        parent, _, name = path.rpartition("/")
        return self.ino(parent), name.encode()

    def write(self, path: str, data: bytes, offset: int = 0, *, sync: bool = True) -> None:
        parent, name = self.split(path)
        try:
            handle = self.fs.open(self.fs.lookup(parent, name).ino, os.O_RDWR)
        except FileNotFoundError:
            handle, _ = self.fs.create(parent, name, 0o640, OWNER, os.O_RDWR)
        self.fs.write(handle, offset, data)
        self.fs.flush(handle)
        if sync:
            self.fs.fsync(handle)
        self.fs.release(handle)

    def truncate(self, path: str, size: int) -> None:
        handle = self.fs.open(self.ino(path), os.O_RDWR)
        self.fs.setattr(self.ino(path), SetAttr(size=size), handle)
        self.fs.fsync(handle)
        self.fs.release(handle)

    def read(self, path: str) -> bytes:
        ino = self.ino(path)
        handle = self.fs.open(ino, os.O_RDONLY)
        try:
            return bytes(self.fs.read(handle, 0, self.fs.getattr(ino).size))
        finally:
            self.fs.release(handle)

    def names(self, path: str) -> list[str]:
        handle = self.fs.opendir(self.ino(path))
        try:
            return sorted(name.decode() for name, _, _ in self.fs.readdir(handle, 0))
        finally:
            self.fs.releasedir(handle)

    def describe(self, path: str = "") -> dict[str, dict[str, Any]]:
        """Everything from `path` on as a reader has to show it."""
        ino = self.ino(path)
        attr = self.fs.getattr(ino)
        found: dict[str, Any] = {"mode": oct(attr.mode), "uid": attr.uid, "gid": attr.gid}
        found |= {"mtime_ns": attr.mtime_ns}
        if not stat.S_ISDIR(attr.mode):
            found["nlink"] = attr.nlink
        if stat.S_ISREG(attr.mode):
            data = self.read(path)
            found |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if stat.S_ISLNK(attr.mode):
            found["target"] = self.fs.readlink(ino).decode()
        if stat.S_ISCHR(attr.mode):
            found["rdev"] = [os.major(attr.rdev), os.minor(attr.rdev)]
        attributes = {name.decode(): self.fs.getxattr(ino, name).hex() for name in self.fs.listxattr(ino)}
        if attributes:
            found["xattrs"] = attributes
        everything = {path or ".": found}
        for name in self.names(path) if stat.S_ISDIR(attr.mode) else []:
            everything |= self.describe(f"{path}/{name}".lstrip("/"))
        return everything

    def set_times(self, path: str = "") -> None:
        """Times that no reader gets by accident; folders whole seconds, they travel in the archive."""
        for name in self.names(path) if path in FOLDERS else []:
            self.set_times(f"{path}/{name}".lstrip("/"))
        ns = (TIME + len(path)) * 10**9 + (0 if path in FOLDERS else 123_456_789)
        self.fs.setattr(self.ino(path), SetAttr(atime_ns=ns, mtime_ns=ns))


FOLDERS = ("", "Müller^Zoë", "Müller^Zoë/CT", "empty folder")


def fill(tree: Tree) -> None:
    """What both golden vaults hold."""
    fs = tree.fs
    for path in FOLDERS[1:]:
        fs.mkdir(*tree.split(path), 0o2750 if path.endswith("CT") else 0o755, OWNER)
    for size in (0, 1, 4096, 65536, 65537, 200_000):
        tree.write(f"Müller^Zoë/CT/{size} bytes.dcm", content(f"image {size}", size))
    tree.write(f"Müller^Zoë/{LONG}", "Befund: unauffällig.\n".encode())
    tree.write("index.db", database(5))
    fs.symlink(*tree.split("link"), "Müller^Zoë/CT".encode(), OWNER)
    fs.mknod(*tree.split("pipe"), stat.S_IFIFO | 0o600, 0, OWNER)
    fs.mknod(*tree.split("null"), stat.S_IFCHR | 0o666, os.makedev(1, 3), OWNER)
    fs.link(tree.ino("index.db"), *tree.split("Müller^Zoë/second name of index.db"))
    fs.setxattr(tree.ino("Müller^Zoë/CT/1 bytes.dcm"), b"user.modality", b"CT\0\xff")
    fs.setxattr(tree.ino("Müller^Zoë/CT"), "user.100% größe".encode(), b"of a folder")
    # Sparse: the end is written, 1.2 MB before it never were.
    tree.write("sparse.db", b"end", 1_200_000)
    fs.sync()
    # Durable by now: these updates go to the other header slot.
    fs.setattr(tree.ino("Müller^Zoë/CT/4096 bytes.dcm"), SetAttr(mode=0o4711))
    tree.write("index.db", b"a second page, overwritten", 4096)


def main(name: str, folder: Path) -> None:
    archive, expected = folder / f"{name}.tar", folder / f"{name}.expected.json"
    for path in (archive, expected):
        if path.exists():
            sys.exit(f"{path} is there: a golden vault is never written again.")
    with tempfile.TemporaryDirectory() as temporary:
        vault, described = MAKERS[name](Path(temporary))
        # Zeros take no room; order and owners do not depend on the machine.
        options = ["--sparse", "--hole-detection=raw", "--format=posix", "--sort=name"]
        options += ["--owner=0", "--group=0", "--numeric-owner"]
        options += ["--pax-option=delete=atime,delete=ctime"]
        subprocess.run(["tar", *options, "-C", vault, "-cf", archive, "."], check=True)
    expected.write_text(json.dumps(described, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


def new_vault(path: Path) -> Callable[[], FileSystem]:
    path.mkdir()
    slots = [
        (Passphrase(PASSPHRASE, cost=floor()), "passphrase"),
        (RECOVERY, "paper"),
        (KeyFile(KEY_FILE), "stick"),
    ]
    unlocked = config.create(path, slots, write=False)
    owner = {"mode": 0o755, "uid": OWNER.uid, "gid": OWNER.gid}
    create_tree(path, unlocked.vault_id, unlocked.keyring, backup_group=False, **owner)
    config.write_new(unlocked)

    def mount() -> FileSystem:
        return FileSystem(Vault(path, unlocked.vault_id, unlocked.keyring), FsOptions(xattrs=True))

    return mount


def clean(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Unmounted properly."""
    mount = new_vault(folder / "vault")
    with contextlib.closing(mount()) as fs:
        tree = Tree(fs)
        fill(tree)
        tree.set_times()
        return folder / "vault", tree.describe()


def unclean(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The power failed: the last overwrites are in the journal alone, two new files lost their ends."""
    mount = new_vault(folder / "vault")
    with contextlib.closing(mount()) as fs:
        tree = Tree(fs)
        for path in FOLDERS[1:]:
            fs.mkdir(*tree.split(path), 0o755, OWNER)
        tree.write("index.db", database(5))
        tree.write("index.log", content("log", 9000))
        fs.link(tree.ino("index.db"), *tree.split("Müller^Zoë/second name of index.db"))
        tree.set_times()
        fs.sync()
    with contextlib.closing(mount()) as fs:
        tree = Tree(fs)
        tree.write("index.db", b"this is in segment 0, which is gone", 4096)
        fs.sync()
        places = {path: lower(folder / "vault", fs, path) for path in ("index.db", "index.log")}
        before = {path: place.read_bytes() for path, place in places.items()}
        tree.write("index.db", b"written over", 8192)
        tree.truncate("index.log", 5000)
        tree.write("index.db", content("longer", 5000), 5 * 4096)
        tree.write("whole.dcm", content("whole", 10_000), sync=False)
        tree.write("cut.dcm", content("cut", 100_000), sync=False)
        tree.write("never.dcm", b"its header never became durable", sync=False)
        for path in ("index.db", "index.log"):
            now = TIME * 10**9 + 987_654_321
            fs.setattr(tree.ino(path), SetAttr(atime_ns=now, mtime_ns=now))
            handle = fs.open(tree.ino(path), os.O_RDONLY)
            fs.fsync(handle)
            fs.release(handle)
        for path in FOLDERS:
            fs.setattr(tree.ino(path), SetAttr(mtime_ns=TIME * 10**9))
        described = tree.describe()
        shutil.copytree(folder / "vault", folder / "copy", copy_function=shutil.copy2)
        cut, never = lower(folder / "vault", fs, "cut.dcm"), lower(folder / "vault", fs, "never.dcm")

    def copy_of(place: Path) -> Path:
        return folder / "copy" / place.relative_to(folder / "vault")

    # What had not been synced in place is lost.
    for path, place in places.items():
        copy_of(place).write_bytes(before[path])
    second = copy_of(lower_of(places["index.db"], folder / "vault"))
    second.unlink()
    second.hardlink_to(copy_of(places["index.db"]))
    os.truncate(copy_of(cut), 8192 + 65536 + 40 + 1000)
    copy_of(never).write_bytes(bytes(4096))
    kept = content("cut", 100_000)[:65536]
    described["cut.dcm"] |= {"size": len(kept), "sha256": hashlib.sha256(kept).hexdigest()}
    del described["never.dcm"]
    for place in (folder / "copy" / "tree").rglob("**"):
        os.utime(place, (TIME, TIME))
    return folder / "copy", described


def with_tpm(folder: Path) -> tuple[Path, dict[str, Any]]:
    """A TPM slot with a PIN; the TPM that sealed it is kept beside the vault (`tpm2-00.permall`)."""
    from tests.tpm.software import SoftwareTpm

    mount = new_vault(folder / "vault")
    with contextlib.closing(mount()) as fs:
        tree = Tree(fs)
        tree.write("image.dcm", content("tpm", 70_000))
        tree.set_times()
        described = tree.describe()
    unlocked = config.unlock(config.load(folder / "vault"), RECOVERY)
    os.environ["CRYPTFS_TEST_TPM"] = "1"
    with contextlib.closing(SoftwareTpm()) as tpm:
        config.add_slot(unlocked, Tpm2(tpm.address, PIN, cost=floor()), "server")
        tpm.stop()
        shutil.copy(tpm.state / "tpm2-00.permall", Path(__file__).with_name("v1-tpm2.permall"))
    return folder / "vault", described


def reencryption(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Killed while everything gets new keys: two epochs, directories with two keys, names under both."""
    mount = new_vault(folder / "vault")
    with contextlib.closing(mount()) as fs:
        tree = Tree(fs)
        fill(tree)
        tree.set_times()
        described = tree.describe()
    path = folder / "vault"
    unlocked = rotation.begin_reencryption(config.unlock(config.load(path), RECOVERY))
    # As if it had been killed before the attributes of a directory were sealed anew.
    with (
        contextlib.closing(
            FileSystem(Vault(path, unlocked.vault_id, unlocked.keyring), FsOptions(xattrs=True))
        ) as fs,
        mock.patch.object(renewing, "BATCH_FILES", 2),
        mock.patch.object(Beginner, "_move_attributes", lambda *_: None),
        contextlib.suppress(Stopped),
    ):
        Reencrypt(fs, Cut(28)).renew()
    return path, described


MAKERS = {"v1": clean, "v1-unclean": unclean, "v1-tpm2": with_tpm, "v1-reencryption": reencryption}


def lower(vault: Path, fs: FileSystem, path: str) -> Path:
    """The object file of a path, by its inode number."""
    ino = Tree(fs).ino(path)
    return next(place for place in sorted((vault / "tree").rglob("*")) if place.stat().st_ino == ino)


def lower_of(place: Path, vault: Path) -> Path:
    """The other name of an object file."""
    found = [other for other in (vault / "tree").rglob("*") if other.is_file() and other.samefile(place)]
    return next(other for other in found if other != place)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

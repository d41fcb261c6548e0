"""A real vault, made by the package, seen from both sides: plaintext through FileSystem, ciphertext as files.

Where an entry lies in the ciphertext is found with the independent reader, so
that a test attacks what the specification says and not what the package does.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from cryptfs.fs.filesystem import FileSystem
from cryptfs.fs.options import FsOptions
from cryptfs.fs.types import Owner
from cryptfs.index import place
from cryptfs.keyslots import RecoveryKey
from cryptfs.vault import config
from cryptfs.vault.layout import create_tree
from cryptfs.vault.vault import Vault
from tests.golden import independent_reader as reader

ROOT = 1
HEADER = 8192


class Mounted:
    """Paths instead of inode numbers over a FileSystem. Errors are its OSErrors."""

    def __init__(self, fs: FileSystem) -> None:
        self.fs = fs
        self.owner = Owner(os.getuid(), os.getgid())

    def ino(self, path: str) -> int:
        ino = ROOT
        for name in path.split("/") if path else []:
            ino = self.fs.lookup(ino, os.fsencode(name)).ino
        return ino

    def _split(self, path: str) -> tuple[int, bytes]:
        parent, _, name = path.rpartition("/")
        return self.ino(parent), os.fsencode(name)

    def write(self, path: str, data: bytes, offset: int = 0) -> None:
        parent, name = self._split(path)
        try:
            handle = self.fs.open(self.fs.lookup(parent, name).ino, os.O_RDWR)
        except FileNotFoundError:
            handle, _ = self.fs.create(parent, name, 0o640, self.owner, os.O_RDWR)
        self.fs.write(handle, offset, data)
        self.fs.flush(handle)
        self.fs.fsync(handle, False)
        self.fs.release(handle)

    def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        ino = self.ino(path)
        size = self.fs.getattr(ino).size - offset if size is None else size
        handle = self.fs.open(ino, os.O_RDONLY)
        try:
            return bytes(self.fs.read(handle, offset, size))
        finally:
            self.fs.release(handle)

    def mkdir(self, path: str) -> None:
        self.fs.mkdir(*self._split(path), 0o750, self.owner)

    def symlink(self, path: str, target: bytes) -> None:
        self.fs.symlink(*self._split(path), target, self.owner)

    def list(self, path: str) -> list[str]:
        handle = self.fs.opendir(self.ino(path))
        try:
            return sorted(os.fsdecode(name) for name, _, _ in self.fs.readdir(handle, 0))
        finally:
            self.fs.releasedir(handle)


class Archive:
    """One vault at `path`, opened by a recovery key: a new one, or a copy already there.

    With `state` mounts remember there what they saw, as on one computer.
    """

    def __init__(self, path: Path, copy_of: Archive | None = None) -> None:
        self.path = path
        self.state: Path | None = None
        self.recovery = copy_of.recovery if copy_of else RecoveryKey.new()
        if copy_of:
            return
        path.mkdir(parents=True)
        unlocked = config.create(path, [(self.recovery, "paper")], write=False)
        create_tree(path, unlocked.vault_id, unlocked.keyring, backup_group=False, mode=0o755, uid=0, gid=0)
        config.write_new(unlocked)

    @classmethod
    def of(cls, path: Path, recovery: RecoveryKey) -> Archive:
        """One that is there, and opens with this key."""
        self = cls.__new__(cls)
        self.path, self.state, self.recovery = path, None, recovery
        return self

    def unlock(self) -> config.Unlocked:
        return config.unlock(config.load(self.path), self.recovery)

    @contextlib.contextmanager
    def mounted(self, *, read_only: bool = False, xattrs: bool = False) -> Iterator[Mounted]:
        unlocked = self.unlock()
        vault = Vault(self.path, unlocked.vault_id, unlocked.keyring, read_only=read_only)
        with contextlib.closing(vault):
            remembered = self.state and place.prepare(unlocked.vault_id, self.state)
            fs = FileSystem(vault, FsOptions(xattrs=xattrs), place=remembered)
            with contextlib.closing(fs):
                yield Mounted(fs)

    def keys(self) -> reader.Vault:
        """What the independent reader makes of cryptfs.json."""
        secret = reader.parse_recovery_key(self.recovery.text)
        return reader.unlock((self.path / "cryptfs.json").read_bytes(), "recovery", secret)

    def lower(self, path: str) -> Path:
        """The ciphertext file or directory of a plaintext path."""
        keys, found = self.keys(), self.path / "tree"
        for name in path.split("/") if path else []:
            header = reader.parse_area((found / "@dir").read_bytes(), keys)
            assert header is not None
            found /= entry_of(found, header, os.fsencode(name))
        return found

    def header(self, path: str) -> reader.Header:
        lower = self.lower(path)
        data = (lower / "@dir" if lower.is_dir() else lower).read_bytes()
        header = reader.parse_area(data[:HEADER], self.keys())
        assert header is not None
        return header

    def stride(self, path: str) -> int:
        """Bytes of one stored chunk of a file."""
        return self.header(path).chunk + 40

    def ciphertext(self) -> Iterator[tuple[str, bytes]]:
        """Every file of the vault with its path."""
        for found in self.path.rglob("*"):
            if found.is_file():
                yield str(found.relative_to(self.path)), found.read_bytes()


def entry_of(directory: Path, header: reader.Header, name: bytes) -> str:
    key = reader.expand(header.key, "cryptfs v1 names", 64)
    for entry in directory.iterdir():
        sidecar = entry.with_name(entry.name + ".name")
        text = sidecar.read_text() if sidecar.exists() else entry.name
        with contextlib.suppress(reader.Damage, ValueError):
            if reader.siv_open(key, reader.unbase64url(text), [header.object_id]) == name:
                return entry.name
    raise AssertionError(f"no entry {name!r} in {directory}")

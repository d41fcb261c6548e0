"""The state machine of model.py on a `FileSystem` in this process, and on trees with known faults."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from hypothesis.stateful import run_state_machine_as_test

from cryptfs.fs import FileSystem, FsOptions
from cryptfs.fs.types import Attr, Owner, SetAttr
from cryptfs.vault import Vault
from cryptfs.vault.keyring import Keyring
from cryptfs.vault.layout import create_tree
from tests.fs.model import TreeMachine, machine_settings
from tests.fs.trees import RENAME_EXCHANGE, RENAME_NOREPLACE, PlainTree, Stat, Tree, scratch

pytestmark = pytest.mark.thorough

ROOT = 1


class FsTree:
    """A `FileSystem` by paths. Walks them as the kernel does, and checks what the kernel checks before
    it asks a filesystem; every reference that a lookup takes is given back."""

    def __init__(self, open_filesystem: Callable[[], FileSystem]):
        self._open_filesystem = open_filesystem
        self.fs = open_filesystem()
        self._open: dict[int, tuple[int, int]] = {}  # our number: (their handle, inode)

    @contextlib.contextmanager
    def _walked(self, path: str, follow: bool = False) -> Iterator[Attr]:
        """The inode of a path. With `follow`, a symbolic link at the end is ENOENT: all of them dangle."""
        taken: list[int] = []
        try:
            attr = self.fs.getattr(ROOT)
            for name in filter(None, path.split("/")):
                if stat.S_ISLNK(attr.mode):
                    raise OSError(errno.ENOENT, "the symbolic link dangles")
                if not stat.S_ISDIR(attr.mode):
                    raise OSError(errno.ENOTDIR, "not a directory")
                attr = self.fs.lookup(attr.ino, os.fsencode(name))
                taken.append(attr.ino)
            if follow and stat.S_ISLNK(attr.mode):
                raise OSError(errno.ENOENT, "the symbolic link dangles")
            yield attr
        finally:
            for ino in taken:
                self.fs.forget(ino, 1)

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[Attr, bytes]]:
        directory, _, name = path.rpartition("/")
        with self._walked(directory) as attr:
            if stat.S_ISLNK(attr.mode):
                raise OSError(errno.ENOENT, "the symbolic link dangles")
            if not stat.S_ISDIR(attr.mode):
                raise OSError(errno.ENOTDIR, "not a directory")
            yield attr, os.fsencode(name)

    @contextlib.contextmanager
    def _entry(self, parent: Attr, name: bytes) -> Iterator[Attr | None]:
        try:
            attr = self.fs.lookup(parent.ino, name)
        except FileNotFoundError:
            yield None
            return
        try:
            yield attr
        finally:
            self.fs.forget(attr.ino, 1)

    @staticmethod
    def _owner(parent: Attr) -> Owner:
        return Owner(0, parent.gid if parent.mode & stat.S_ISGID else 0)

    # -- open files

    def open(self, handle: int, path: str, flags: int, mode: int) -> None:
        if not path:
            if flags & (os.O_RDWR | os.O_CREAT):
                raise OSError(errno.EISDIR, "a directory")
            raise AssertionError("directories are not opened for reading")
        with self._parent(path) as (parent, name), self._entry(parent, name) as there:
            if there is None:
                if not flags & os.O_CREAT:
                    raise FileNotFoundError(errno.ENOENT, "no such file")
                number, attr = self.fs.create(parent.ino, name, mode, self._owner(parent), flags)
                self._open[handle] = (number, attr.ino)
                return
            if flags & os.O_CREAT and flags & os.O_EXCL:
                raise FileExistsError(errno.EEXIST, "there is one")
            if stat.S_ISLNK(there.mode):
                raise OSError(errno.ELOOP, "a symbolic link")
            if stat.S_ISDIR(there.mode):
                raise OSError(errno.EISDIR, "a directory")
            number = self.fs.open(there.ino, flags & ~os.O_CREAT)
            self.fs.remember(there.ino)  # an open file holds its inode
            self._open[handle] = (number, there.ino)

    def close(self, handle: int) -> None:
        number, ino = self._open.pop(handle)
        try:
            self.fs.flush(number)
        finally:
            self.fs.release(number)
            self.fs.forget(ino, 1)

    def read(self, handle: int, offset: int, size: int) -> bytes:
        return bytes(self.fs.read(self._open[handle][0], offset, size))

    def write(self, handle: int, offset: int, data: bytes) -> int:
        return self.fs.write(self._open[handle][0], offset, data)

    def append(self, handle: int, data: bytes) -> int:
        number, ino = self._open[handle]
        return self.fs.write(number, self.fs.getattr(ino).size, data)

    def ftruncate(self, handle: int, size: int) -> None:
        number, ino = self._open[handle]
        self.fs.setattr(ino, SetAttr(size=size, mtime_ns=time.time_ns()), number)

    def flush(self, handle: int) -> None:
        self.fs.flush(self._open[handle][0])

    def fsync(self, handle: int, datasync: bool) -> None:
        self.fs.fsync(self._open[handle][0], datasync)

    def fstat(self, handle: int) -> Stat:
        return self._stat(self.fs.getattr(self._open[handle][1]))

    # -- paths

    @staticmethod
    def _stat(attr: Attr) -> Stat:
        return Stat.make(attr.mode, attr.nlink, attr.uid, attr.gid, attr.size, attr.mtime_ns)

    def stat(self, path: str) -> Stat:
        with self._walked(path) as attr:
            return self._stat(attr)

    def listdir(self, path: str) -> list[str]:
        """Reads the directory in short pieces, as the kernel does when its buffer is full."""
        with self._walked(path) as attr:
            names: list[bytes] = []
            directory = self.fs.opendir(attr.ino)
            try:
                offset, more = 0, True
                while more:
                    more = False
                    for count, (name, child, following) in enumerate(self.fs.readdir(directory, offset)):
                        more = count == 2
                        if more:
                            break
                        names.append(name)
                        self.fs.remember(child.ino)
                        self.fs.forget(child.ino, 1)
                        offset = following
            finally:
                self.fs.releasedir(directory)
            return sorted(map(os.fsdecode, names))

    def truncate(self, path: str, size: int) -> None:
        with self._walked(path, follow=True) as attr:
            if stat.S_ISDIR(attr.mode):
                raise OSError(errno.EISDIR, "a directory")
            if not stat.S_ISREG(attr.mode):
                raise OSError(errno.EINVAL, "not a regular file")
            self.fs.setattr(attr.ino, SetAttr(size=size))

    def chmod(self, path: str, mode: int) -> None:
        with self._walked(path, follow=True) as attr:
            self.fs.setattr(attr.ino, SetAttr(mode=mode))

    def utime(self, path: str, atime_ns: int, mtime_ns: int) -> tuple[int, int]:
        with self._walked(path) as attr:
            changed = self.fs.setattr(attr.ino, SetAttr(atime_ns=atime_ns, mtime_ns=mtime_ns))
            assert self.fs.getattr(attr.ino)[:-2] == changed[:-2], "setattr and getattr disagree"
            return changed.atime_ns, changed.mtime_ns

    def _make(self, path: str, make: Callable[[Attr, bytes], Attr]) -> None:
        with self._parent(path) as (parent, name), self._entry(parent, name) as there:
            if there is not None or not name:
                raise FileExistsError(errno.EEXIST, "there is one")
            self.fs.forget(make(parent, name).ino, 1)

    def mkdir(self, path: str, mode: int) -> None:
        mode &= 0o1777  # mkdir(2) takes no more
        self._make(
            path,
            lambda parent, name: self.fs.mkdir(
                parent.ino, name, mode | parent.mode & stat.S_ISGID, self._owner(parent)
            ),
        )

    def mkfifo(self, path: str, mode: int) -> None:
        self._make(
            path,
            lambda parent, name: self.fs.mknod(parent.ino, name, stat.S_IFIFO | mode, 0, self._owner(parent)),
        )

    def symlink(self, target: str, path: str) -> None:
        self._make(
            path,
            lambda parent, name: self.fs.symlink(parent.ino, name, os.fsencode(target), self._owner(parent)),
        )

    def link(self, old: str, new: str) -> None:
        with (
            self._walked(old) as attr,
            self._parent(new) as (parent, name),
            self._entry(parent, name) as there,
        ):
            if there is not None:
                raise FileExistsError(errno.EEXIST, "there is one")
            if stat.S_ISDIR(attr.mode):
                raise PermissionError(errno.EPERM, "a directory")
            self.fs.forget(self.fs.link(attr.ino, parent.ino, name).ino, 1)

    def readlink(self, path: str) -> str:
        with self._walked(path) as attr:
            return os.fsdecode(self.fs.readlink(attr.ino))

    def unlink(self, path: str) -> None:
        with self._parent(path) as (parent, name), self._entry(parent, name) as there:
            if there is not None and stat.S_ISDIR(there.mode):
                raise IsADirectoryError(errno.EISDIR, "a directory")
            self.fs.unlink(parent.ino, name)

    def rmdir(self, path: str) -> None:
        with self._parent(path) as (parent, name), self._entry(parent, name) as there:
            if there is not None and not stat.S_ISDIR(there.mode):
                raise NotADirectoryError(errno.ENOTDIR, "not a directory")
            self.fs.rmdir(parent.ino, name)

    def rename(self, old: str, new: str, flags: int) -> None:
        with (
            self._parent(old) as (old_parent, old_name),
            self._parent(new) as (new_parent, new_name),
            self._entry(old_parent, old_name) as source,
            self._entry(new_parent, new_name) as target,
        ):
            if source is None:
                raise FileNotFoundError(errno.ENOENT, "no such file")
            if flags & RENAME_NOREPLACE and target is not None:
                raise FileExistsError(errno.EEXIST, "there is one")
            if flags & RENAME_EXCHANGE and target is None:
                raise FileNotFoundError(errno.ENOENT, "nothing to exchange with")
            if new.startswith(f"{old}/") and stat.S_ISDIR(source.mode):
                raise OSError(errno.EINVAL, "into itself")
            if old.startswith(f"{new}/"):
                raise OSError(errno.EINVAL if flags & RENAME_EXCHANGE else errno.ENOTEMPTY, "an ancestor")
            if target is not None and target.ino == source.ino:
                return
            if target is not None and not flags & RENAME_EXCHANGE:
                if stat.S_ISDIR(source.mode) and not stat.S_ISDIR(target.mode):
                    raise NotADirectoryError(errno.ENOTDIR, "not a directory")
                if stat.S_ISDIR(target.mode) and not stat.S_ISDIR(source.mode):
                    raise IsADirectoryError(errno.EISDIR, "a directory")
            self.fs.rename(old_parent.ino, old_name, new_parent.ino, new_name, flags)

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        with self._walked(path, follow=True) as attr:
            self._user_xattrs(attr, errno.EPERM)
            self.fs.setxattr(attr.ino, os.fsencode(name), value, flags)

    def getxattr(self, path: str, name: str) -> bytes:
        with self._walked(path, follow=True) as attr:
            self._user_xattrs(attr, errno.ENODATA)
            return self.fs.getxattr(attr.ino, os.fsencode(name))

    def listxattr(self, path: str) -> list[str]:
        with self._walked(path, follow=True) as attr:
            return sorted(map(os.fsdecode, self.fs.listxattr(attr.ino)))

    def removexattr(self, path: str, name: str) -> None:
        with self._walked(path, follow=True) as attr:
            self._user_xattrs(attr, errno.EPERM)
            self.fs.removexattr(attr.ino, os.fsencode(name))

    @staticmethod
    def _user_xattrs(attr: Attr, number: int) -> None:
        """The kernel has `user.` attributes on regular files and directories only."""
        if not stat.S_ISREG(attr.mode) and not stat.S_ISDIR(attr.mode):
            raise OSError(number, "no user attributes here")

    def fsyncdir(self, path: str) -> None:
        with self._walked(path) as attr:
            self.fs.fsyncdir(attr.ino)

    # -- the whole

    def reopen(self) -> None:
        assert not self._open
        assert self.fs.stats()["open_files"] == 0
        self.fs.close()
        self.fs = self._open_filesystem()

    def destroy(self) -> None:
        for handle in list(self._open):
            self.close(handle)
        self.fs.close()


class FsMachine(TreeMachine):
    """The subject is a new vault."""

    options = FsOptions()
    indexed = False
    state_path: Path | None = None

    def make_subject(self) -> Tree:
        self.vault_path = scratch("cryptfs-vault-")
        vault_id, keyring = os.urandom(16), Keyring.new()
        create_tree(self.vault_path, vault_id, keyring, backup_group=False, mode=0o700, uid=0, gid=0)
        self.state_path = scratch("cryptfs-state-") if self.indexed else None

        def open_filesystem() -> FileSystem:
            vault = Vault(self.vault_path, vault_id, keyring)
            return FileSystem(vault, self.options, place=self.state_path)

        return FsTree(open_filesystem)

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            shutil.rmtree(self.vault_path)
            if self.state_path is not None:
                shutil.rmtree(self.state_path)


@pytest.mark.parametrize(
    ("xattrs", "indexed"), [(True, False), (False, False), (False, True)], ids=["xattrs", "plain", "indexed"]
)
def test_filesystem_behaves_as_a_plain_directory(xattrs: bool, indexed: bool, seed: int) -> None:
    machine = type(
        "Machine",
        (FsMachine,),
        {"xattrs": xattrs, "indexed": indexed, "options": FsOptions(xattrs=xattrs)},
    )
    settings = machine_settings(20 if indexed else 35, 100)
    run_state_machine_as_test(hypothesis.seed(seed)(machine), settings=settings)


# -- the machine itself is tested: it must notice each of these faults


class ForgetsToZero(PlainTree):
    """Leaves old bytes behind when a file shrinks and grows again."""

    def ftruncate(self, handle: int, size: int) -> None:
        before = os.fstat(self._descriptors[handle]).st_size
        super().ftruncate(handle, size)
        if size > before:
            os.pwrite(self._descriptors[handle], b"old", size - 3)


class LosesLastByte(PlainTree):
    """Cuts a write that ends one byte behind a chunk's edge."""

    def write(self, handle: int, offset: int, data: bytes) -> int:
        if (offset + len(data)) % 4096 == 1:
            super().write(handle, offset, data[:-1])
            return len(data)
        return super().write(handle, offset, data)


class ForgetsNames(PlainTree):
    """Does not find a long name again after a new start."""

    def reopen(self) -> None:
        super().reopen()
        for entry in self.root.iterdir():
            if len(entry.name) > 150:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


class IgnoresNoReplace(PlainTree):
    def rename(self, old: str, new: str, flags: int) -> None:
        super().rename(old, new, flags & ~RENAME_NOREPLACE)


class ForgetsTimes(PlainTree):
    """A set time does not survive a change of mode."""

    def chmod(self, path: str, mode: int) -> None:
        super().chmod(path, mode)
        os.utime(f"{self.root}/{path}")


@pytest.mark.parametrize(
    "fault", [ForgetsToZero, LosesLastByte, ForgetsNames, IgnoresNoReplace, ForgetsTimes]
)
def test_machine_notices(fault: type[PlainTree]) -> None:
    class Machine(TreeMachine):
        def make_subject(self) -> Tree:
            return fault(scratch("cryptfs-faulty-"))

    settings = machine_settings(1000, 60, shrink=False)  # ends with the first that notices
    with pytest.raises(AssertionError, match="plain directory"):
        run_state_machine_as_test(hypothesis.seed(1)(Machine), settings=settings)

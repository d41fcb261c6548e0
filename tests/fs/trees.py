"""Trees of files that do one operation after another by path: an interface, and the plain directory."""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import NamedTuple, Protocol

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
# Times that a test sets lie before this one, times that the clock sets after it.
SET_BEFORE_NS = 1_577_836_800 * 10**9  # 2020-01-01
_libc = ctypes.CDLL(None, use_errno=True)


def renameat2(old: str | Path, new: str | Path, flags: int) -> None:
    """rename(2) with flags, which Python does not offer."""
    at_fdcwd = -100
    if _libc.renameat2(at_fdcwd, os.fsencode(old), at_fdcwd, os.fsencode(new), flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2", str(old), None, str(new))


def scratch(prefix: str) -> Path:
    """A new temporary directory, in memory where that is possible: thousands of fsyncs cost nothing there."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix=prefix, dir=memory if os.access(memory, os.W_OK) else None))


class Stat(NamedTuple):
    """What two trees must agree on; size and times are None where they may differ."""

    mode: int
    nlink: int
    uid: int
    gid: int
    size: int | None
    mtime_ns: int | None

    @classmethod
    def make(cls, mode: int, nlink: int, uid: int, gid: int, size: int, mtime_ns: int) -> Stat:
        kept_size = None if stat.S_ISDIR(mode) else size
        return cls(mode, nlink, uid, gid, kept_size, mtime_ns if mtime_ns < SET_BEFORE_NS else None)

    @classmethod
    def of(cls, status: os.stat_result) -> Stat:
        return cls.make(
            status.st_mode,
            status.st_nlink,
            status.st_uid,
            status.st_gid,
            status.st_size,
            status.st_mtime_ns,
        )


class Tree(Protocol):
    """What the machine does to a tree; every method may raise OSError."""

    def open(self, handle: int, path: str, flags: int, mode: int) -> None: ...
    def close(self, handle: int) -> None: ...
    def read(self, handle: int, offset: int, size: int) -> bytes: ...
    def write(self, handle: int, offset: int, data: bytes) -> int: ...
    def append(self, handle: int, data: bytes) -> int: ...
    def ftruncate(self, handle: int, size: int) -> None: ...
    def flush(self, handle: int) -> None: ...
    def fsync(self, handle: int, datasync: bool) -> None: ...
    def fstat(self, handle: int) -> Stat: ...
    def stat(self, path: str) -> Stat: ...
    def listdir(self, path: str) -> list[str]: ...
    def truncate(self, path: str, size: int) -> None: ...
    def chmod(self, path: str, mode: int) -> None: ...
    def utime(self, path: str, atime_ns: int, mtime_ns: int) -> tuple[int, int]: ...
    def mkdir(self, path: str, mode: int) -> None: ...
    def mkfifo(self, path: str, mode: int) -> None: ...
    def rmdir(self, path: str) -> None: ...
    def unlink(self, path: str) -> None: ...
    def rename(self, old: str, new: str, flags: int) -> None: ...
    def link(self, old: str, new: str) -> None: ...
    def symlink(self, target: str, path: str) -> None: ...
    def readlink(self, path: str) -> str: ...
    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None: ...
    def getxattr(self, path: str, name: str) -> bytes: ...
    def listxattr(self, path: str) -> list[str]: ...
    def removexattr(self, path: str, name: str) -> None: ...
    def fsyncdir(self, path: str) -> None: ...
    def reopen(self) -> None: ...
    def destroy(self) -> None: ...


class PlainTree:
    """A tree by ordinary system calls; also what a mount is driven with."""

    def __init__(self, root: Path):
        self.root = root
        self._descriptors: dict[int, int] = {}

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}" if path else str(self.root)

    def open(self, handle: int, path: str, flags: int, mode: int) -> None:
        self._descriptors[handle] = os.open(self._at(path), flags | os.O_NOFOLLOW, mode)

    def close(self, handle: int) -> None:
        os.close(self._descriptors.pop(handle))

    def read(self, handle: int, offset: int, size: int) -> bytes:
        return os.pread(self._descriptors[handle], size, offset)

    def write(self, handle: int, offset: int, data: bytes) -> int:
        return os.pwrite(self._descriptors[handle], data, offset)

    def append(self, handle: int, data: bytes) -> int:
        descriptor = self._descriptors[handle]
        return os.pwrite(descriptor, data, os.fstat(descriptor).st_size)

    def ftruncate(self, handle: int, size: int) -> None:
        os.ftruncate(self._descriptors[handle], size)

    def flush(self, handle: int) -> None:
        os.close(os.dup(self._descriptors[handle]))

    def fsync(self, handle: int, datasync: bool) -> None:
        (os.fdatasync if datasync else os.fsync)(self._descriptors[handle])

    def fstat(self, handle: int) -> Stat:
        return Stat.of(os.fstat(self._descriptors[handle]))

    def stat(self, path: str) -> Stat:
        return Stat.of(os.lstat(self._at(path)))

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(self._at(path)))

    def truncate(self, path: str, size: int) -> None:
        os.truncate(self._at(path), size)

    def chmod(self, path: str, mode: int) -> None:
        Path(self._at(path)).chmod(mode)

    def utime(self, path: str, atime_ns: int, mtime_ns: int) -> tuple[int, int]:
        os.utime(self._at(path), ns=(atime_ns, mtime_ns), follow_symlinks=False)
        status = os.lstat(self._at(path))
        return status.st_atime_ns, status.st_mtime_ns

    def mkdir(self, path: str, mode: int) -> None:
        Path(self._at(path)).mkdir(mode)

    def mkfifo(self, path: str, mode: int) -> None:
        os.mkfifo(self._at(path), mode)

    def rmdir(self, path: str) -> None:
        Path(self._at(path)).rmdir()

    def unlink(self, path: str) -> None:
        Path(self._at(path)).unlink()

    def rename(self, old: str, new: str, flags: int) -> None:
        renameat2(self._at(old), self._at(new), flags)

    def link(self, old: str, new: str) -> None:
        os.link(self._at(old), self._at(new))

    def symlink(self, target: str, path: str) -> None:
        Path(self._at(path)).symlink_to(target)

    def readlink(self, path: str) -> str:
        return os.readlink(self._at(path))

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        os.setxattr(self._at(path), name, value, flags)

    def getxattr(self, path: str, name: str) -> bytes:
        return os.getxattr(self._at(path), name)

    def listxattr(self, path: str) -> list[str]:
        return sorted(name for name in os.listxattr(self._at(path)) if name.startswith("user."))

    def removexattr(self, path: str, name: str) -> None:
        os.removexattr(self._at(path), name)

    def fsyncdir(self, path: str) -> None:
        descriptor = os.open(self._at(path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def reopen(self) -> None:
        assert not self._descriptors

    def destroy(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        shutil.rmtree(self.root)

"""Every call by which the filesystem layer changes (and reads) the files below it, made interceptable.

`Interposer` puts itself in the place of the functions of `os` and of `cryptfs.vault.diskio` that
reach the lower file system, for files below one folder. What they are about to do is described
by a `Call`, which a subclass may record or refuse.
"""

# ruff: noqa: ANN401

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Self
from unittest import mock

from cryptfs.vault import diskio

Key = tuple[int, bytes]
"""A place of a name: the number of its directory, and the name."""

EXCHANGE = 2


class Call(NamedTuple):
    """One call on the lower file system; `file` numbers the object changed, -1 where there is none."""

    kind: str
    file: int
    name: Key | None = None
    other: Key | None = None
    offset: int = 0
    data: bytes = b""
    flags: int = 0


class Interposer:
    """While entered, calls on files below `root` go through `perform`.

    Files have numbers of their own, which are never used again.
    """

    def __init__(self, root: Path) -> None:
        self.root = os.fsencode(root)
        self.lock = threading.RLock()
        self._next = 1
        self._numbers: dict[tuple[int, int], int] = {}
        self._patches: list[Any] = []
        self.top = self._new(os.stat(root))

    # -- for subclasses ------------------------------------------------------------------------------

    def perform(self, call: Call, real: Callable[[], Any]) -> Any:
        """Do one call; a subclass records it or raises OSError instead."""
        return real()

    def reading(self, kind: str) -> None:
        """A call that changes nothing is about to be made; a subclass may raise OSError."""

    def known(self, directory: int, name: bytes, st: os.stat_result) -> int:
        """The number of something that was there before, found as `name`."""
        return self._numbers.get((st.st_dev, st.st_ino)) or self._new(st)

    # -- numbers ---------------------------------------------------------------------------------------

    def _new(self, st: os.stat_result) -> int:
        number = self._numbers[st.st_dev, st.st_ino] = self._next
        self._next += 1
        return number

    def register(self, st: os.stat_result) -> int:
        """A number for a file that is there already."""
        return self._numbers.get((st.st_dev, st.st_ino)) or self._new(st)

    def number(self, fd: int) -> int | None:
        """The number of an open file; None if it is none of ours."""
        st = os.fstat(fd)
        return self._numbers.get((st.st_dev, st.st_ino))

    def place(self, path: Any, dir_fd: int | None) -> Key | None:
        """The place that a path names; None if it is none of ours."""
        text = os.fsencode(path)
        head, name = os.path.split(text)
        if dir_fd is None:
            if not text.startswith(self.root + b"/"):
                return None
            st = os.stat(head)
        else:
            st = os.stat(head, dir_fd=dir_fd) if head else os.fstat(dir_fd)
        number = self._numbers.get((st.st_dev, st.st_ino))
        return None if number is None else (number, name)

    @staticmethod
    def _stat(path: Any, dir_fd: int | None) -> os.stat_result | None:
        try:
            return os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
        except OSError:
            return None

    # -- the functions ---------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        for name in dir(type(self)):
            if name.startswith("os_"):
                self._patch(os, name[3:])
        for name in ("syncfs", "renameat2"):
            real = getattr(diskio, name)
            own = self._bind(f"diskio_{name}", real)
            for module in list(sys.modules.values()):
                if module.__name__.startswith("cryptfs.") and getattr(module, name, None) is real:
                    self._replace(module, name, own)
        return self

    def _bind(self, method: str, real: Any) -> Any:
        own = getattr(self, method)

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.lock:
                return own(real, *args, **kwargs)

        return call

    def _patch(self, module: ModuleType, name: str) -> None:
        self._replace(module, name, self._bind(f"os_{name}", getattr(module, name)))

    def _replace(self, module: ModuleType, name: str, own: Any) -> None:
        patch = mock.patch.object(module, name, own)
        patch.start()
        self._patches.append(patch)

    def __exit__(self, *_: object) -> None:
        while self._patches:
            self._patches.pop().stop()

    def os_open(
        self, real: Any, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None
    ) -> int:
        place = self.place(path, dir_fd)
        if place is None:
            return int(real(path, flags, mode, dir_fd=dir_fd))
        there = self._stat(path, dir_fd)
        if there is not None:
            self.reading("open")
            number = self.known(*place, there)
            if flags & os.O_TRUNC and not flags & os.O_EXCL:
                self.perform(Call("truncate", number), lambda: None)
            return int(real(path, flags, mode, dir_fd=dir_fd))
        if not flags & os.O_CREAT:
            self.reading("open")
            return int(real(path, flags, mode, dir_fd=dir_fd))

        def create() -> int:
            fd = int(real(path, flags, mode, dir_fd=dir_fd))
            self._new(os.fstat(fd))
            return fd

        return int(self.perform(Call("create", self._next, place), create))

    def os_fdopen(self, real: Any, fd: int, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "w" not in mode or self.number(fd) is None:
            return real(fd, mode, *args, **kwargs)
        return io.BufferedWriter(_Raw(fd))

    def os_pwrite(self, real: Any, fd: int, data: Any, offset: int) -> int:
        number = self.number(fd)
        if number is None:
            return int(real(fd, data, offset))
        call = Call("write", number, offset=offset, data=bytes(data))
        return int(self.perform(call, lambda: real(fd, data, offset)))

    def os_write(self, real: Any, fd: int, data: Any) -> int:
        number = self.number(fd)
        if number is None:
            return int(real(fd, data))
        offset = os.lseek(fd, 0, os.SEEK_CUR)
        call = Call("write", number, offset=offset, data=bytes(data))
        return int(self.perform(call, lambda: real(fd, data)))

    def os_ftruncate(self, real: Any, fd: int, length: int) -> None:
        number = self.number(fd)
        if number is None:
            real(fd, length)
        else:
            self.perform(Call("truncate", number, offset=length), lambda: real(fd, length))

    def _sync(self, kind: str, real: Any, fd: int) -> None:
        number = self.number(fd)
        if number is None:
            real(fd)
        else:
            # The effect counts; a real sync of the test's own folder would only cost time.
            self.perform(Call(kind, number), lambda: None)

    def os_fsync(self, real: Any, fd: int) -> None:
        self._sync("fsync", real, fd)

    def os_fdatasync(self, real: Any, fd: int) -> None:
        self._sync("fdatasync", real, fd)

    def diskio_syncfs(self, real: Any, fd: int) -> None:
        if self.number(fd) is None:
            real(fd)
        else:
            self.perform(Call("syncfs", -1), lambda: None)

    def os_fchmod(self, real: Any, fd: int, mode: int) -> None:
        number = self.number(fd)
        if number is None:
            real(fd, mode)
        else:
            self.perform(Call("attributes", number), lambda: real(fd, mode))

    def os_utime(self, real: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        number = self.number(path) if isinstance(path, int) else None
        if number is None:
            real(path, *args, **kwargs)
        else:
            self.perform(Call("attributes", number), lambda: real(path, *args, **kwargs))

    def os_mkdir(self, real: Any, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        place = self.place(path, dir_fd)
        if place is None or self._stat(path, dir_fd) is not None:
            real(path, mode, dir_fd=dir_fd)
            return

        def make() -> None:
            real(path, mode, dir_fd=dir_fd)
            self._new(os.stat(path, dir_fd=dir_fd))

        self.perform(Call("mkdir", self._next, place), make)

    def _remove(self, kind: str, real: Any, path: Any, dir_fd: int | None) -> None:
        place = self.place(path, dir_fd)
        st = None if place is None else self._stat(path, dir_fd)
        if place is None or st is None:
            real(path, dir_fd=dir_fd)
            return
        number = self.known(*place, st)
        self.perform(Call(kind, number, place), lambda: real(path, dir_fd=dir_fd))

    def os_unlink(self, real: Any, path: Any, *, dir_fd: int | None = None) -> None:
        self._remove("unlink", real, path, dir_fd)

    def os_rmdir(self, real: Any, path: Any, *, dir_fd: int | None = None) -> None:
        self._remove("rmdir", real, path, dir_fd)

    def os_link(
        self, real: Any, old: Any, new: Any, *, src_dir_fd: int, dst_dir_fd: int, follow_symlinks: bool
    ) -> None:
        source, target = self.place(old, src_dir_fd), self.place(new, dst_dir_fd)
        st = self._stat(old, src_dir_fd)

        def link() -> None:
            real(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=follow_symlinks)

        if source is None or target is None or st is None or self._stat(new, dst_dir_fd) is not None:
            link()
        else:
            self.perform(Call("link", self.known(*source, st), target), link)

    def os_rename(
        self, real: Any, old: Any, new: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
    ) -> None:
        def rename() -> None:
            real(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

        source, target = self.place(old, src_dir_fd), self.place(new, dst_dir_fd)
        st = self._stat(old, src_dir_fd)
        if source is None or target is None or st is None:
            rename()
        else:
            self.perform(Call("rename", self.known(*source, st), source, target), rename)

    def diskio_renameat2(
        self, real: Any, old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int
    ) -> None:
        source, target = self.place(old, old_fd), self.place(new, new_fd)
        st = self._stat(old, old_fd)

        def rename() -> None:
            real(old_fd, old, new_fd, new, flags)

        if source is None or target is None or st is None:
            rename()
        else:
            self.perform(Call("rename", self.known(*source, st), source, target, flags=flags), rename)

    def os_pread(self, real: Any, fd: int, size: int, offset: int) -> bytes:
        if self.number(fd) is not None:
            self.reading("read")
        return bytes(real(fd, size, offset))

    def os_preadv(self, real: Any, fd: int, buffers: Any, offset: int) -> int:
        if self.number(fd) is not None:
            self.reading("read")
        return int(real(fd, buffers, offset))


class _Raw(io.RawIOBase):
    """A stream whose writes are calls of `os`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def write(self, data: Any) -> int:
        return os.write(self._fd, data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._fd)

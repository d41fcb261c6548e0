"""The few ways in which files below the vault are written.

Every call that changes the lower file system goes through this module or through
`cryptfs.fs`; a short write is an error here, never silently accepted.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat

from cryptfs.vault.names import TEMP_PREFIX

_libc = ctypes.CDLL(None, use_errno=True)


class NotRegular(OSError):
    """Something else lies where an ordinary file must be."""


def open_regular(path: str | bytes | os.PathLike[str]) -> int:
    """A descriptor for reading a file that must be an ordinary one.

    Anything else that somebody put there (a link, a pipe, on which an open would wait for ever) raises
    NotRegular.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotRegular(error.errno, error.strerror) from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotRegular(errno.EINVAL, os.strerror(errno.EINVAL))
    return fd


def pwrite_all(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`; OSError if the disk takes only a part (ENOSPC)."""
    written = os.pwrite(fd, data, offset)
    size = len(data)
    while written < size:
        more = os.pwrite(fd, memoryview(data)[written:], offset + written)
        if more == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written += more


def pread_all(fd: int, size: int, offset: int) -> bytes:
    """Up to `size` bytes from `offset`; fewer only at the end of the file."""
    data = os.pread(fd, size, offset)
    if len(data) == size or not data:
        return data
    parts = [data]
    got = len(data)
    while got < size:
        data = os.pread(fd, size - got, offset + got)
        if not data:
            break
        parts.append(data)
        got += len(data)
    return b"".join(parts)


def pread_into(fd: int, room: memoryview, offset: int) -> int:
    """Fill `room` from `offset`; fewer bytes than it has only at the end of the file."""
    got = os.preadv(fd, [room], offset)
    while 0 < got < len(room):
        more = os.preadv(fd, [room[got:]], offset + got)
        if not more:
            break
        got += more
    return got


def fsync_path(path: str | bytes, dir_fd: int | None = None) -> None:
    """fsync a directory (or file) by name; a pipe or a link planted there is not waited for or followed."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_file(dir_fd: int, name: str, data: bytes, mode: int) -> None:
    """Durably make `name` hold `data`: entirely the old or entirely the new at every instant."""
    temp = TEMP_PREFIX.decode() + os.urandom(8).hex()
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=dir_fd)
    try:
        try:
            pwrite_all(fd, data, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temp, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except BaseException:
        try:
            os.unlink(temp, dir_fd=dir_fd)
        except OSError:
            pass
        raise
    os.fsync(dir_fd)


def syncfs(fd: int) -> None:
    """Make everything on the file system of `fd` durable."""
    if _libc.syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def renameat2(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int) -> None:
    """rename with RENAME_NOREPLACE (1) or RENAME_EXCHANGE (2)."""
    if _libc.renameat2(old_dir, old, new_dir, new, flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def file_system_type(fd: int) -> str:
    """The type of the file system that `fd` is on, as in /proc/mounts; empty if unknown."""
    device = os.fstat(fd).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                fields, _, rest = line.partition(" - ")
                if fields.split()[2] == wanted:
                    return rest.split()[0]
    except (OSError, IndexError):
        pass
    return ""

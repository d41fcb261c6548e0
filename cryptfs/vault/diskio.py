"""The few ways in which files below the vault are written.

Every call that changes the lower file system goes through this module or through
`cryptfs.fs`; a short write is an error here, never silently accepted.

What is made in a vault is made by `create`, `open_regular` and `make_folder`: made by root, it belongs to
whom its folder belongs. So a command that an administrator runs takes nothing away from the service whose
vault it is.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from contextlib import suppress

from cryptfs.vault.names import TEMP_PREFIX

_libc = ctypes.CDLL(None, use_errno=True)


class NotRegular(OSError):
    """Something else lies where an ordinary file must be."""


_NOTHING_TO_OPEN = (errno.ELOOP, errno.ENXIO, errno.EISDIR)
"""What opening a link, a socket or a pipe that nobody reads, or (for writing) a directory ends with."""


def open_regular(
    path: str | bytes | os.PathLike[str],
    flags: int = os.O_RDONLY,
    *,
    mode: int = 0o600,
    dir_fd: int | None = None,
    follow: bool = False,
) -> int:
    """A descriptor for a file that must be an ordinary one, for reading unless `flags` say otherwise.

    Anything else that somebody put there (a link, unless `follow`; a pipe, on which an open would wait for
    ever) raises NotRegular.
    """
    flags |= os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        fd = os.open(path, flags, mode, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in _NOTHING_TO_OPEN:
            raise NotRegular(error.errno, error.strerror) from None
        raise
    try:
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode):
            raise NotRegular(errno.EINVAL, os.strerror(errno.EINVAL))
        if flags & os.O_CREAT and st.st_nlink == 1:  # a link to something of root's must not be given away
            _give(fd, _other_owner(path, dir_fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def create(
    path: str | bytes | os.PathLike[str], mode: int, flags: int = os.O_WRONLY, *, dir_fd: int | None = None
) -> int:
    """A descriptor of a new file, open as `flags` say; FileExistsError if there is something of its name."""
    flags |= os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, mode, dir_fd=dir_fd)
    try:
        _give(fd, _other_owner(path, dir_fd))
    except BaseException:
        os.close(fd)
        os.unlink(path, dir_fd=dir_fd)
        raise
    return fd


def make_folder(
    path: str | bytes | os.PathLike[str], mode: int, *, dir_fd: int | None = None, exist_ok: bool = False
) -> None:
    """A new folder; FileExistsError if there is something of its name, unless that is one and `exist_ok`."""
    try:
        os.mkdir(path, mode, dir_fd=dir_fd)
    except FileExistsError:
        if not exist_ok or not stat.S_ISDIR(os.stat(path, dir_fd=dir_fd).st_mode):
            raise
        return
    try:
        owner = _other_owner(path, dir_fd)
        if owner is not None:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
            try:
                _give(fd, owner)
            finally:
                os.close(fd)
    except BaseException:
        os.rmdir(path, dir_fd=dir_fd)
        raise


def _other_owner(path: str | bytes | os.PathLike[str], dir_fd: int | None) -> tuple[int, int] | None:
    """User and group of the folder of something just made by root, unless it is theirs already."""
    if os.geteuid() != 0:
        return None
    folder = os.stat(os.path.dirname(os.fsencode(path)) or b".", dir_fd=dir_fd)
    owner = folder.st_uid, folder.st_gid
    return None if owner == (0, os.getegid()) else owner


def _give(fd: int, owner: tuple[int, int] | None) -> None:
    if owner is None:
        return
    st = os.fstat(fd)
    if (st.st_uid, st.st_gid) != owner:
        with suppress(PermissionError):  # root of another machine, on a share
            os.fchown(fd, *owner)


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
    fd = create(temp, mode, dir_fd=dir_fd)
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

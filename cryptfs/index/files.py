"""The files of an environment, and who has them open.

`data.mdb` and `lock.mdb` are LMDB's; `lock` is locked by the one writer, `readers` (shared) by those that
only read (`reading`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from cryptfs.index.place import Unavailable

DATA, LOCK, READERS = "data.mdb", "lock", "readers"


def locked(folder: Path) -> int:
    """Become the writer; the descriptor that says so. Unavailable if somebody else is; OSError."""
    fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Unavailable(f"The folder {folder} is in use by another mount.") from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def unlock(fd: int) -> None:
    """Give up what `locked` returned; nothing for a negative one."""
    if fd >= 0:
        os.close(fd)


def empty(folder: Path) -> None:
    """Remove what is in an environment."""
    for name in (DATA, "lock.mdb", "seal"):
        with contextlib.suppress(FileNotFoundError):
            (folder / name).unlink()


def is_read(folder: Path) -> bool:
    """Whether a reader has LMDB's table of readers in use."""
    try:
        fd = os.open(folder / READERS, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def lower(data: Path) -> tuple[int, int, int]:
    """What changes whenever an LMDB file is written to: inode, size, change time (ns)."""
    st = data.stat()
    return st.st_ino, st.st_size, st.st_ctime_ns

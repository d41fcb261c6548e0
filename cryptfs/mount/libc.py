"""The few system calls that the standard library does not offer, with errors as `OSError`.

They are called through ctypes, which releases the interpreter lock: an unmount or a sync of our own
mount makes the kernel ask this very process to write, so it must be able to answer meanwhile.
"""

from __future__ import annotations

import ctypes
import os

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

_PR_SET_DUMPABLE = 4
_PR_SET_IO_FLUSHER = 57
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, path: str | None = None) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def umount(path: str, flags: int) -> None:
    """umount2(2). Raises OSError: EBUSY while anything is open, EINVAL if nothing is mounted there."""
    _check(_libc.umount2(os.fsencode(path), flags), path)


def syncfs(fd: int) -> None:
    """syncfs(2) of the filesystem that `fd` is on."""
    _check(_libc.syncfs(fd))


def forbid_dumps() -> None:
    """No core file and no ptrace or /proc/PID/mem for other processes of this user."""
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))


def set_io_flusher() -> None:
    """Tell the kernel that this process writes out other processes' dirty pages (needs privileges)."""
    _check(_libc.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0))


def keep_freed_memory(size: int) -> None:
    """Have malloc keep up to `size` bytes that are free, and take blocks up to `size` from its heap.

    It would keep as much for each of 8 heaps a processor, one of which each thread takes: two of them are
    enough for threads that share the interpreter. Nothing happens where the C library is not glibc.
    """
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, size)
        mallopt(_M_TRIM_THRESHOLD, size)
        mallopt(_M_ARENA_MAX, 2)

"""What the filesystem layer hands to those above it: attributes and requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from cryptfs.vault.header import bounded_time


class Attr(NamedTuple):
    """The attributes of one inode, as stat(2) shows them.

    `mode` holds type and permission bits; sizes are bytes, `blocks` 512-byte
    units, times nanoseconds since 1970. `generation` tells two lives of a
    reused inode number apart.
    """

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    generation: int = 0


class StatFs(NamedTuple):
    """statvfs(3) of the vault, in the same units."""

    bsize: int
    frsize: int
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    favail: int
    namemax: int


@dataclass(slots=True)
class SetAttr:
    """What to change; None means leave as it is."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None

    def bound_times(self) -> None:
        """A time that no header can hold becomes the nearest one that it can, as every file system has it."""
        if self.atime_ns is not None:
            self.atime_ns = bounded_time(self.atime_ns)
        if self.mtime_ns is not None:
            self.mtime_ns = bounded_time(self.mtime_ns)
        if self.ctime_ns is not None:
            self.ctime_ns = bounded_time(self.ctime_ns)


class Owner(NamedTuple):
    """Who a new object belongs to."""

    uid: int
    gid: int

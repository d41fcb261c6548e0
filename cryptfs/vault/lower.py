"""What there is to know of the file system that a directory lies on."""

from __future__ import annotations

import os
from pathlib import Path

_DEVICES = Path("/sys/dev/block")
_EXT4 = Path("/sys/fs/ext4")
_ORDERED = "xfs"
_ORDERED_WITH_JOURNAL = ("ext3", "ext4")


def file_system_type(fd: int) -> str:
    """The type of the file system that `fd` is on, as in /proc/mounts; empty if unknown."""
    wanted = _device(fd)
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                fields, _, rest = line.partition(" - ")
                if fields.split()[2] == wanted:
                    return rest.split()[0]
    except (OSError, IndexError):
        pass
    return ""


def names_keep_order(fd: int) -> bool:
    """Whether changes of names become durable in the order they were made, as a prefix of all.

    So it is with one journal for all metadata, committed as a whole: XFS, and ext4 if it has its journal
    (`mkfs.ext4 -O ^has_journal` makes it without, for flash memory and virtual machines). False where that
    cannot be found out.
    """
    kind = file_system_type(fd)
    return kind == _ORDERED or (kind in _ORDERED_WITH_JOURNAL and _has_journal(fd))


def _device(fd: int) -> str:
    device = os.fstat(fd).st_dev
    return f"{os.major(device)}:{os.minor(device)}"


def _has_journal(fd: int) -> bool:
    """By the process that writes the journal of a mounted ext4, of which the kernel tells the number."""
    try:
        name = (_DEVICES / _device(fd)).resolve(strict=True).name
        return (_EXT4 / name / "journal_task").read_text().strip().isdecimal()
    except (OSError, ValueError):
        return False

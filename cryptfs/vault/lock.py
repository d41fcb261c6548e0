"""The lock of a vault: whoever may change the ciphertext holds it (docs/format.md section 2)."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from cryptfs.errors import VaultInUse
from cryptfs.vault.diskio import open_regular
from cryptfs.vault.layout import JOURNAL

LOCK_NAME = "lock"


def take_lock(vault: Path, mode: int) -> int:
    """The descriptor that holds the lock; closing it, or the end of the process, gives it up.

    `mode` is that of the lock file, if it is made. Raises VaultInUse, or OSError where there is no
    folder for it or it may not be opened.
    """
    path = vault / JOURNAL / LOCK_NAME
    try:
        fd = open_regular(path, os.O_RDWR | os.O_CREAT, mode=mode)
    except PermissionError:
        # A backup's user may be allowed to read only, which is enough for a lock.
        fd = open_regular(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise VaultInUse(
            f"{vault} is mounted or being changed by another process; unmount it there first"
        ) from None
    return fd

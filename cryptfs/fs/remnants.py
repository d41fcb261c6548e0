"""Directories that a power cut left without a header (docs/format.md section 8).

What was promised to stay has its directories' headers somewhere. So one whose header is nowhere
holds only what was never synced: files without a header, and files begun by a session that
did not end cleanly, in a phase that was not synced. It was never durable, and is taken for absent.
"""

from __future__ import annotations

import logging
import os
import stat
from contextlib import suppress

from cryptfs.vault.diskio import pread_all
from cryptfs.vault.header import READ_SIZE, HeaderInvalid, HeaderMissing
from cryptfs.vault.names import is_entry
from cryptfs.vault.vault import Vault

log = logging.getLogger(__name__)

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def is_remnant(fd: int, vault: Vault) -> bool:
    """Whether a directory without a header, open as `fd`, has nothing in it that was ever durable."""
    if not vault.state.unclean:
        return False
    todo = [b"."]
    try:
        while todo:
            path = todo.pop()
            inner = os.open(path, _OPEN, dir_fd=fd)
            try:
                mode = os.fstat(inner).st_mode
                if stat.S_ISDIR(mode):
                    names = map(os.fsencode, os.listdir(inner))
                    todo += [path + b"/" + name for name in names if is_entry(name)]
                elif not stat.S_ISREG(mode) or not _never_durable(inner, vault):
                    return False
            finally:
                os.close(inner)
    except OSError:
        return False  # whatever cannot be read may have been durable
    return True


def _never_durable(fd: int, vault: Vault) -> bool:
    try:
        header, _ = vault.codec.read(pread_all(fd, READ_SIZE, 0))
    except HeaderMissing:
        return True
    except HeaderInvalid:
        return False
    return vault.state.suspects(header)


def remove_remnant(name: bytes, directory: int) -> None:
    """Remove a directory that `is_remnant`, with all that is in it; nothing if there is none."""
    try:
        fd = os.open(name, _OPEN | os.O_DIRECTORY, dir_fd=directory)
    except (FileNotFoundError, NotADirectoryError):
        return
    log.warning("a directory that was being made when the power failed was never synced and is gone")
    try:
        for entry in map(os.fsencode, os.listdir(fd)):
            if stat.S_ISDIR(os.stat(entry, dir_fd=fd, follow_symlinks=False).st_mode):
                remove_remnant(entry, fd)
            else:
                os.unlink(entry, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=directory)


def remove_own(name: bytes, directory: int) -> None:
    """Remove a file of ours from a directory that is about to go; nothing if it is not there.

    A folder that somebody put in its place goes only if it is empty: else it keeps the directory (ENOTEMPTY).
    """
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        with suppress(OSError):
            os.rmdir(name, dir_fd=directory)

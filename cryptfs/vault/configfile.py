"""Writing cryptfs.json so that at every instant a whole one is on the disk.

The order of a change: lock; write the new text under a temporary name; sync;
read it back and prove that it opens; keep the old text as `.previous`; rename.
The rename is the one commit point: nothing that can fail comes after it but a sync.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptfs.errors import StorageError, UsageError, VaultInUse
from cryptfs.vault.diskio import create, open_regular
from cryptfs.vault.document import MAX_SIZE

NAME = "cryptfs.json"
PREVIOUS = "cryptfs.json.previous"
LOCK = "cryptfs.lock"
_TEMPORARY = "@tmp-config-"


class NotDurable(StorageError):
    """The change was made, but a power cut could still undo it."""


@contextlib.contextmanager
def locked(vault: Path, *, keep_leftovers: bool = False) -> Iterator[None]:
    """Alone in changing the configuration; VaultInUse if somebody else is at it.

    What a killed change left is removed, unless the caller has to do that. The lock file stays: to
    remove it would let two processes lock two different files.
    """
    descriptor = open_regular(vault / LOCK, os.O_RDWR | os.O_CREAT, mode=0o640)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise VaultInUse(
                "Somebody else is changing the keys of this vault: try again when they have finished."
            ) from None
        for leftover in () if keep_leftovers else vault.glob(_TEMPORARY + "*"):
            leftover.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)


def read(file: Path) -> bytes:
    """The file's bytes, one more than allowed at most. NotRegular if something else lies there."""
    with open(open_regular(file, follow=True), "rb") as stream:
        return stream.read(MAX_SIZE + 1)


def replace(
    vault: Path, text: bytes, prove: Callable[[bytes], None], *, mode: int = 0o600, revokes: bool = False
) -> None:
    """Make `text` the configuration.

    `prove` gets what was read back from the disk and raises if it is no good. After any
    exception but NotDurable the configuration is the old one. If the change revokes something, the
    old text is not kept: it would still open with what was revoked, so `.previous` becomes
    a copy of the new one. An existing file's mode and owner are kept, else `mode` applies.
    Call it with the lock held.
    """
    current, previous = vault / NAME, vault / PREVIOUS
    exists = current.exists()
    if exists:
        mode = current.stat().st_mode & 0o7777
    temporary = _write_temporary(vault, text, mode, like=current)
    try:
        prove(read(temporary))
        if exists:
            kept = text if revokes else read(current)
            _rename(_write_temporary(vault, kept, mode, like=current), previous)
        sync_folder(vault)
        temporary.rename(current)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    try:
        sync_folder(vault)
    except OSError:
        raise NotDurable(
            f"{current} was changed, but the disk did not confirm it: keep the old secret and the new one."
        ) from None


def copy_aside(file: Path, target: Path) -> None:
    """Keep a file's bytes under another name in its folder, durably, with its mode and owner."""
    status = file.stat()
    with file.open("rb") as stream:
        text = stream.read()
    _rename(_write_temporary(file.parent, text, status.st_mode & 0o7777, like=file), target)
    sync_folder(file.parent)


def write_new(file: Path, data: bytes) -> None:
    """Make a file for its owner only, durably; UsageError if there is one. A failure leaves nothing of it."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UsageError(f"{file} exists already: name a file that does not.") from None
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        sync_folder(file.resolve().parent)
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def _rename(temporary: Path, target: Path) -> None:
    try:
        temporary.rename(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make the entries of a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_temporary(vault: Path, text: bytes, mode: int, like: Path) -> Path:
    path = vault / (_TEMPORARY + secrets.token_hex(8))
    descriptor = create(path, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            # An administrator's change must not take the file away from the service that reads it.
            with contextlib.suppress(FileNotFoundError, PermissionError):
                status = like.stat()
                os.fchown(stream.fileno(), status.st_uid, status.st_gid)
            os.fchmod(stream.fileno(), mode)
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path

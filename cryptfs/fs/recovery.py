"""After an unclean stop: what the journal holds is put in place (docs/format.md section 10).

The time it takes is proportional to what was in flight. Being cut itself loses nothing:
the segments go only after everything in them was synced in place.
"""

from __future__ import annotations

import logging
import os

from cryptfs.errors import IntegrityError
from cryptfs.vault.diskio import fsync_path, pread_all, syncfs
from cryptfs.vault.header import READ_SIZE, HeaderInvalid, HeaderMissing
from cryptfs.vault.journal import Record, pending_records, segments, superseded
from cryptfs.vault.vault import Vault

log = logging.getLogger(__name__)

_OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def overlays(vault: Vault) -> dict[bytes, list[Record]]:
    """For a vault that must not be changed: the records to read over each object."""
    return _by_object(_pending(vault))


def _by_object(records: list[Record]) -> dict[bytes, list[Record]]:
    found: dict[bytes, list[Record]] = {}
    for record in records:
        found.setdefault(record.object_id, []).append(record)
    return found


def recover(vault: Vault) -> dict[bytes, list[Record]]:
    """Apply what the last session left in the journal; nothing remains to be overlaid.

    Raises IntegrityError if a segment is damaged; nothing was changed then.
    """
    names = segments(vault.journal_path)
    records = _pending(vault)
    if vault.state.found_open or names:
        # What the last session wrote may be in the page cache alone, if only the program died.
        syncfs(vault.tree_fd)
    of_object = _by_object(records)
    applied = sum(_apply(vault, record, of_object[record.object_id]) for record in records)
    if names:
        syncfs(vault.tree_fd)
        for name in names:
            os.unlink(name)
            fsync_path(vault.journal_path)
    if vault.state.found_open:
        log.warning(
            "the last session did not end cleanly: %d of %d pending writes put in place",
            applied,
            len(records),
        )
    vault.dirlog.merge()
    return {}


def _pending(vault: Vault) -> list[Record]:
    try:
        return pending_records(vault.journal_path, vault.codec)
    except HeaderInvalid:
        raise IntegrityError(
            "a segment of the journal is damaged, missing or was tampered with; "
            "restore the folder journal from a backup, or move the segment away to go on without it"
        ) from None


def _apply(vault: Vault, record: Record, of_object: list[Record]) -> bool:
    """Put one of an object's records in place; False if the object is gone, or newer than all of them."""
    try:
        fd = os.open(record.path, _OPEN, dir_fd=vault.tree_fd)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    try:
        try:
            header, _ = vault.codec.read(pread_all(fd, READ_SIZE, 0))
        except (HeaderMissing, HeaderInvalid):
            return False
        if header.object_id != record.object_id or superseded(header, of_object, vault.codec):
            return False
        record.apply(fd)
        return True
    finally:
        os.close(fd)

"""The metadata index of one vault, for a mount that is read-only: what a clean session left, only read."""

from __future__ import annotations

import os
from pathlib import Path

import lmdb

from cryptfs.index import catalog
from cryptfs.index.catalog import PURPOSE, Keys, session_of
from cryptfs.index.files import DATA
from cryptfs.index.place import Unavailable
from cryptfs.index.reading import Reading
from cryptfs.index.seal import CLOSED, SUBJECT_SIZE, Seal, SealInvalid
from cryptfs.index.sealing import ValueDamaged
from cryptfs.vault.vault import Vault


class CatalogView:
    """As `Catalog`, without what changes something. Close it."""

    failed = ""
    found = ""

    def __init__(self, reading: Reading, closed_at: int) -> None:
        self._reading = reading
        self.believed_until = closed_at - catalog.RACY_NS
        """Ciphertext changed later (ns) is not to be recognised by its times."""
        keys = Keys(reading)
        self.shelf, self.key = keys.shelf, keys.key

    @classmethod
    def open(cls, place: Path, vault: Vault) -> CatalogView:
        """The index in a state directory. Unavailable unless it is that of the vault's last session."""
        folder = place / PURPOSE
        keyring = vault.codec.keyring
        try:
            seal = Seal.load(folder, PURPOSE, vault.vault_id, keyring)
            closed_at = (folder / DATA).stat().st_ctime_ns
        except (OSError, SealInvalid):
            raise Unavailable("there is none yet") from None
        # LMDB trusts its file, so this comes first.
        if seal.state != CLOSED or seal.epoch != keyring.current.number:
            raise Unavailable("it is in use, or the last mount did not end cleanly")
        if seal.subject != os.fstat(vault.tree_fd).st_ino.to_bytes(SUBJECT_SIZE, "little"):
            raise Unavailable("it describes another copy of the vault")
        reading = Reading.open(place, PURPOSE, vault.vault_id, keyring, in_use=False)
        if reading is None:
            raise Unavailable("there is none yet")
        try:
            if not reading.closed_in_order:
                raise Unavailable("its file was changed by something else")
            if vault.state.found_open or session_of(reading) != vault.state.last:
                raise Unavailable("the vault was mounted without it since")
        except (ValueDamaged, lmdb.Error):
            reading.close()
            raise Unavailable("it is damaged") from None
        except BaseException:
            reading.close()
            raise
        return cls(reading, closed_at)

    def get(self, key: bytes) -> bytes | None:
        """A record. Raises ValueDamaged, Unavailable."""
        return self._reading.get(key)

    def entries(self, shelf: bytes) -> dict[bytes, bytes]:
        """All records of a directory. Raises ValueDamaged, Unavailable."""
        return dict(self._reading.scan(shelf))

    @property
    def folder(self) -> Path:
        return self._reading.folder

    def size(self) -> int:
        """Bytes on the disk."""
        try:
            return (self.folder / DATA).stat().st_blocks * 512
        except OSError:
            return 0

    def close(self) -> None:
        """Close the files."""
        self._reading.close()

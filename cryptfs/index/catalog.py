"""The metadata index of one vault: records of entries, by directory and ciphertext name.

Keys: `E` ‖ 11 bytes of hash(inode number and object id of the directory) ‖ 10 bytes of hash(ciphertext name),
so that the entries of a directory stand together; `S` holds the session in which the index was last
brought to an end. Values: `records`.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptfs.index.batch import Batch
from cryptfs.index.environment import DATA, Environment, Unavailable, ValueDamaged
from cryptfs.index.reading import Reading
from cryptfs.index.seal import SUBJECT_SIZE
from cryptfs.vault.vault import Vault

__all__ = ["PURPOSE", "RACY_NS", "Catalog", "Keys", "Unavailable", "ValueDamaged", "session_of"]

PURPOSE = "metadata"
_SHELF_SIZE = 12
_SESSION = b"S"
RACY_NS = 2_000_000_000
"""A file changed so shortly before the index was closed might have been changed again at the same time."""


class Keys:
    """The keys of records in an environment, whoever reads it."""

    def __init__(self, environment: Environment | Reading) -> None:
        self._hashed = environment.hashed
        self._entry_hash = environment.hasher(10)

    def shelf(self, ino: int, object_id: bytes) -> bytes:
        """What the keys of a directory's entries begin with."""
        return b"E" + self._hashed(_SHELF_SIZE - 1, ino.to_bytes(8, "little"), object_id)

    def key(self, shelf: bytes, lname: bytes) -> bytes:
        """The key of an entry, by its ciphertext name."""
        return shelf + self._entry_hash(lname)


def session_of(environment: Environment | Reading) -> int | None:
    """The session in which an index was last brought to an end."""
    value = environment.get(_SESSION)
    return int.from_bytes(value, "little") if value else None


class Catalog:
    """Open for one writer. Safe for several threads."""

    def __init__(self, environment: Environment, closed_at: int, last_session: int | None) -> None:
        self._environment = environment
        self._batch = Batch(environment)
        self.found = environment.found
        """Why it began empty although there was one, or nothing."""
        self.believed_until = closed_at - RACY_NS
        """Ciphertext changed later (ns) is not to be recognised by its times."""
        keys = Keys(environment)
        self.shelf, self.key = keys.shelf, keys.key
        session = self._environment.get(_SESSION) if not self.found else None
        if session is not None and session != _number(last_session):
            self.found = "it was begun anew, because the vault was mounted without it since"
            self.clear()

    @classmethod
    def open(cls, place: Path, vault: Vault) -> Catalog:
        """The index of an open vault in a state directory (`place.prepare`). Raises Unavailable."""
        try:
            closed_at = (place / PURPOSE / DATA).stat().st_ctime_ns
        except OSError:
            closed_at = 0
        # Its inode number tells a vault from a copy of it; the device's number may be another after a boot.
        subject = os.fstat(vault.tree_fd).st_ino.to_bytes(SUBJECT_SIZE, "little")
        environment = Environment.open(
            place, PURPOSE, vault.vault_id, vault.codec.keyring, durable=False, subject=subject
        )
        try:
            return cls(environment, closed_at, vault.state.last)
        except BaseException:
            environment.close()
            raise

    def get(self, key: bytes) -> bytes | None:
        """A record. Raises ValueDamaged, Unavailable: then nothing in that directory is to be believed."""
        return self._batch.get(key)

    def put(self, key: bytes, value: bytes | None) -> None:
        """Write a record, or remove it; at once for readers, soon on disk."""
        self._batch.put(key, value)

    def entries(self, shelf: bytes) -> dict[bytes, bytes]:
        """All records of a directory. Raises ValueDamaged, Unavailable."""
        return self._batch.scan(shelf)

    def keys(self, shelf: bytes) -> list[bytes]:
        """The keys of all records of a directory. Raises Unavailable."""
        return self._batch.keys(shelf)

    @property
    def failed(self) -> str:
        """Why nothing is kept any more, or nothing."""
        return self._batch.failed

    def clear(self) -> None:
        """Forget everything."""
        self._batch.clear()

    def flush(self) -> None:
        """Commit what was put so far."""
        self._batch.flush()

    def count(self) -> int:
        """Records in it."""
        return self._environment.count()

    def size(self) -> int:
        """Bytes on the disk."""
        return self._environment.size()

    @property
    def folder(self) -> Path:
        return self._environment.folder

    def close(self, session: int | None) -> None:
        """Commit and close. `session` is the one that has ended in order, None if none has."""
        self._batch.put(_SESSION, None if session is None else _number(session))
        self._batch.close(keep=session is not None)


def _number(session: int | None) -> bytes:
    return b"" if session is None else session.to_bytes(8, "little")

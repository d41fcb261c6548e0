"""An environment of this host, read by a process that is not its writer.

What a mount keeps may be read while the mount goes on writing: each read transaction shows what was
committed at one instant. Nothing is changed: not its seal, not its data. The reader holds a shared lock on
`readers`, so that a mount that begins meanwhile does not take LMDB's table of readers (`lock.mdb`) away
from under it; a mount never waits for a reader.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import lmdb

from cryptfs.index import pages
from cryptfs.index.environment import PREFIX_OF_RUNS
from cryptfs.index.files import DATA, READERS, lower
from cryptfs.index.place import Unavailable
from cryptfs.index.seal import CLOSED, NEW, Seal, SealInvalid
from cryptfs.index.sealing import Sealing
from cryptfs.vault.header import KeyringLike

_RENEW_SECONDS = 2.0
"""So long one read transaction is kept at most: what it may still read cannot be used anew by the writer."""


class Reading:
    """One environment, open for reading. Safe for several threads. Close it.

    `seal` is how it was found; `in_use` whether its writer was at work then, as far as the caller knew.
    """

    def __init__(self, folder: Path, seal: Seal, in_use: bool, readers: int) -> None:
        self.folder = folder
        self.seal = seal
        self.in_use = in_use
        self._readers = readers
        self._lock = threading.Lock()
        self._txn: lmdb.Transaction | None = None
        self._since = 0.0
        self._lmdb = lmdb.open(
            str(folder),
            mode=0o600,
            readonly=True,
            create=False,
            readahead=True,
            max_readers=16,
            max_spare_txns=1,
        )
        self._sealing = Sealing(seal.key, self._prefix)

    @classmethod
    def open(
        cls, place: Path, purpose: str, vault_id: bytes, keyring: KeyringLike, *, in_use: bool
    ) -> Reading | None:
        """Open what this host keeps in `PLACE/PURPOSE`; None if there is nothing in it.

        Raises Unavailable if it cannot be trusted or read. `in_use`: a mount has it open. One that nobody
        has open and that was not closed in order is checked page by page before LMDB trusts it.
        """
        folder = place / purpose
        readers = -1
        try:
            data = folder / DATA
            if not data.exists():
                return None
            readers = os.open(folder / READERS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            fcntl.flock(readers, fcntl.LOCK_SH)
            seal = Seal.load(folder, purpose, vault_id, keyring)
            if seal.state == NEW:
                os.close(readers)
                return None
            if not in_use and (seal.state != CLOSED or lower(data) != seal.lower):
                with data.open("rb") as file:
                    pages.check(file)
            return cls(folder, seal, in_use, readers)
        except SealInvalid as error:
            reason = str(error)
        except pages.PagesDamaged as error:
            reason = f"its file is damaged ({error})"
        except OSError as error:
            reason = error.strerror or type(error).__name__
        except lmdb.Error as error:
            reason = f"LMDB says {type(error).__name__}"
        if readers >= 0:
            os.close(readers)
        raise Unavailable(f"The folder {folder} cannot be read: {reason}.") from None

    @property
    def closed_in_order(self) -> bool:
        """Whether nothing wrote to it since it was closed in order."""
        return self.seal.state == CLOSED and lower(self.folder / DATA) == self.seal.lower

    # -- keys, as in `Environment` -----------------------------------------------------------------

    def hashed(self, size: int, *parts: bytes) -> bytes:
        """A keyed hash of the parts, for keys of records."""
        return self._sealing.hashed(size, *parts)

    def hasher(self, size: int) -> Callable[[bytes], bytes]:
        """The same of one part."""
        return self._sealing.hasher(size)

    # -- records -----------------------------------------------------------------------------------

    def renew(self) -> None:
        """Let the next read show what is committed by then."""
        with self._lock:
            self._let_go()

    def get(self, key: bytes) -> bytes | None:
        """The value of a record, or None. Raises ValueDamaged, Unavailable."""
        sealed = self._raw(key)
        return None if sealed is None else self._sealing.open(key, sealed)

    def scan(self, prefix: bytes, limit: int = 1 << 30, after: bytes = b"") -> list[tuple[bytes, bytes]]:
        """Records whose keys begin with `prefix`, behind `after`. Raises ValueDamaged, Unavailable."""
        found: list[tuple[bytes, bytes]] = []
        with self._lock, self._read().cursor() as cursor:
            there = cursor.set_range(max(prefix, after))
            if there and after and cursor.key() == after:
                there = cursor.next()
            if there:
                for key, sealed in cursor:
                    if not bytes(key).startswith(prefix) or len(found) >= limit:
                        break
                    found.append((bytes(key), bytes(sealed)))
        return self._sealing.open_all(found)

    def _raw(self, key: bytes) -> bytes | None:
        with self._lock:
            value = self._read().get(key)
            return None if value is None else bytes(value)

    def _prefix(self, run: int) -> bytes | None:
        return self._raw(PREFIX_OF_RUNS + run.to_bytes(4, "big"))

    def _read(self) -> lmdb.Transaction:
        now = time.monotonic()
        if self._txn is not None and now - self._since > _RENEW_SECONDS:
            self._let_go()
        if self._txn is None:
            try:
                self._txn = self._begin()
            except lmdb.Error as error:
                raise Unavailable(f"LMDB says {type(error).__name__}.") from None
            self._since = now
        return self._txn

    def _begin(self) -> lmdb.Transaction:
        try:
            return self._lmdb.begin()
        except lmdb.MapResizedError:
            self._lmdb.set_mapsize(0)  # the writer's map grew: take its size
            return self._lmdb.begin()

    def _let_go(self) -> None:
        if self._txn is not None:
            self._txn.abort()
            self._txn = None

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            self._let_go()
            self._lmdb.close()
            with contextlib.suppress(OSError):
                os.close(self._readers)

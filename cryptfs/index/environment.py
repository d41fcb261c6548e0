"""One LMDB environment for one purpose of one vault on this host.

Every value is sealed and every key a keyed hash (`sealing`), so that the files show no name, size or id.
A read takes a transaction that is kept and renewed; a write is one transaction, and grows the map when it
is full. `batch` collects writes off the request path.

What may be believed after an unclean stop depends on what it is for:

* what can be rebuilt (`durable=False`) is committed without a sync, and emptied when the last writer did
  not close it or anybody wrote to the file since;
* what must be kept (`durable=True`) is synced with every commit; after an unclean stop all pages are
  checked before LMDB trusts them.

On disk, in `PLACE/PURPOSE/`: the files of `files`, and `seal`. In the database, key `00 ‖ u32 run` holds the
nonce prefix of a run (12 bytes, not secret).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import cast

import lmdb

from cryptfs.index import pages
from cryptfs.index.files import DATA, empty, is_read, locked, lower, unlock
from cryptfs.index.place import Unavailable, tag_as_cache
from cryptfs.index.seal import CLOSED, NEW, OPEN, Seal, SealInvalid
from cryptfs.index.sealing import Sealing, ValueDamaged
from cryptfs.vault.header import KeyringLike

__all__ = ["DATA", "Damaged", "Environment", "Unavailable", "ValueDamaged", "discard"]

log = logging.getLogger(__name__)

Item = tuple[bytes, bytes | None]
"""A record to write; None removes it."""

MAP_START = 64 << 20
"""Bytes of address space to begin with; doubled whenever they are full."""
PREFIX_OF_RUNS = b"\0"
"""What the keys of the writers' nonce prefixes begin with."""
_SUBJECT = bytes(16)


class Damaged(Unavailable):
    """An environment that must be kept cannot be trusted; `discard` begins a new one."""


class Environment:
    """An open environment. Safe for several threads; one process at a time may have it open.

    `found` says, in a sentence, why it begins empty although there was one, or is empty itself.
    """

    def __init__(
        self, folder: Path, purpose: str, vault_id: bytes, keyring: KeyringLike, durable: bool, subject: bytes
    ) -> None:
        self.folder = folder
        self.durable = durable
        self.found = ""
        self._purpose = purpose
        self._vault_id = vault_id
        self._keyring = keyring
        self._gate = threading.Lock()
        self._writing = threading.Lock()
        self._failed = ""
        self._open(subject)
        self._reader: lmdb.Transaction | None = None
        self._sealing = Sealing(self._seal.key, self._prefix)
        try:
            self._begin_run()
            if self._seal.state != OPEN:
                self._seal.state = OPEN
                self._seal.save(folder, purpose, vault_id, keyring)
        except BaseException:
            self._let_go()
            self._lmdb.close()
            raise

    @classmethod
    def open(
        cls,
        place: Path,
        purpose: str,
        vault_id: bytes,
        keyring: KeyringLike,
        *,
        durable: bool,
        subject: bytes = _SUBJECT,
    ) -> Environment:
        """Open for writing, made if it is not there. `place` is what `place.prepare` returned.

        `subject` are 16 bytes that tell this ciphertext from another copy of the vault. Raises
        Unavailable where there can be none now (in use, disk full or read-only), Damaged for a durable
        one that is not to be trusted.
        """
        folder = place / purpose
        lock = -1
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            if folder.lstat().st_uid != os.geteuid():
                raise Unavailable(f"The folder {folder} belongs to another user.")
            lock = locked(folder)
            if not durable:
                tag_as_cache(folder)
            self = cls(folder, purpose, vault_id, keyring, durable, subject)
            self._lock_fd = lock
            return self
        except (OSError, lmdb.Error) as error:
            unlock(lock)
            raise Unavailable(f"The folder {folder} cannot be used: {_reason(error)}.") from None
        except BaseException:
            unlock(lock)
            raise

    _lock_fd = -1

    # -- opening ---------------------------------------------------------------------------------

    def _open(self, subject: bytes) -> None:
        """Decide what to believe, mark it as open durably, and have LMDB open it."""
        data = self.folder / DATA
        known = data.exists()
        try:
            self._seal = Seal.load(self.folder, self._purpose, self._vault_id, self._keyring)
            self._believe(data, subject)
        except SealInvalid as error:
            if known and self.durable:
                raise Damaged(f"{self.folder} cannot be trusted: {error}.") from None
            if known:
                self.found = f"it was begun anew, because {error}"
                empty(self.folder)
            self._seal = Seal.new(subject)
        if not is_read(self.folder):
            with contextlib.suppress(FileNotFoundError):
                (self.folder / "lock.mdb").unlink()  # nobody else has it open: see `lock`
        if self._seal.state != NEW:
            self._seal.state = OPEN
        self._seal.lower, self._seal.subject = (0, 0, 0), subject
        self._seal.save(self.folder, self._purpose, self._vault_id, self._keyring)
        size = data.stat().st_size if data.exists() else 0
        self._map_size = max(MAP_START, 1 << (size * 2 - 1).bit_length() if size else 0)
        # Read-ahead: a walk of a cold archive else waits for the disk at every eighth entry. Cleared memory:
        # LMDB would write what was in it before, and that may be anything.
        self._lmdb = lmdb.open(
            str(self.folder), map_size=self._map_size, mode=0o600, sync=self.durable, metasync=self.durable,
            readahead=True, meminit=True, max_readers=16, max_spare_txns=2, subdir=True, create=True,
        )  # fmt: skip

    def _believe(self, data: Path, subject: bytes) -> None:
        """Raise SealInvalid unless the LMDB file may be opened and its content be used."""
        seal = self._seal
        if seal.state == NEW:
            empty(self.folder)  # whoever made it got no further
            return
        if not self.durable:
            if seal.epoch != self._keyring.current.number:
                raise SealInvalid("it is of another epoch, as after a rotation of the keys")
            if seal.subject != subject:
                raise SealInvalid("it describes another copy of the vault")
            if seal.state != CLOSED:
                raise SealInvalid("the last mount did not end cleanly")
            if not data.exists() or lower(data) != seal.lower:
                raise SealInvalid("its file was changed by something else")
        elif seal.state != CLOSED or not data.exists() or lower(data) != seal.lower:
            try:
                with open(data, "rb") as file:
                    pages.check(file)
            except FileNotFoundError:
                raise SealInvalid("its file is missing") from None
            except pages.PagesDamaged as error:
                raise SealInvalid(f"its file is damaged ({error})") from None

    def _prefix(self, run: int) -> bytes | None:
        return self._raw(PREFIX_OF_RUNS + run.to_bytes(4, "big"))

    def _begin_run(self) -> None:
        with self._lmdb.begin() as txn, txn.cursor() as cursor:
            last = 0
            found = cursor.prev() if cursor.set_range(PREFIX_OF_RUNS + b"\xff" * 5) else cursor.last()
            if found and cursor.key()[:1] == PREFIX_OF_RUNS:
                last = int.from_bytes(cursor.key()[1:], "big")
        run = last + 1
        self._run = PREFIX_OF_RUNS + run.to_bytes(4, "big"), self._sealing.begin(run)
        self._write([self._run])

    # -- keys ------------------------------------------------------------------------------------

    def hashed(self, size: int, *parts: bytes) -> bytes:
        """A keyed hash of `size` (1 to 64) bytes of the parts, for keys of records.

        The first byte of a record's key must not be 0.
        """
        return self._sealing.hashed(size, *parts)

    def hasher(self, size: int) -> Callable[[bytes], bytes]:
        """`hashed` of one part that no other function hashes, for where it is done often (1 µs)."""
        return self._sealing.hasher(size)

    # -- reading ---------------------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        """The value of a record, or None. Raises ValueDamaged, Unavailable."""
        sealed = self._raw(key)
        return None if sealed is None else self._sealing.open(key, sealed)

    def _raw(self, key: bytes) -> bytes | None:
        with self._gate:
            found = self._read().get(key)
        return None if found is None else bytes(found)

    def _read(self) -> lmdb.Transaction:
        """The read transaction, renewed after a commit made it old. The caller holds the gate."""
        if self._failed:
            raise Unavailable(self._failed)
        if self._reader is None:
            self._reader = self._lmdb.begin()
        return self._reader

    def scan(self, prefix: bytes, limit: int = 1 << 30, after: bytes = b"") -> list[tuple[bytes, bytes]]:
        """Records whose keys begin with `prefix`, in the order of keys, at most `limit`.

        They begin behind the key `after`. Raises ValueDamaged if one of them is, and Unavailable.
        """
        return self._sealing.open_all(self._range(prefix, limit, after))

    def keys(self, prefix: bytes) -> list[bytes]:
        """The keys that begin with `prefix`. Raises Unavailable."""
        return [key for key, _ in self._range(prefix, 1 << 30, b"")]

    def _range(self, prefix: bytes, limit: int, after: bytes) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        size = len(prefix)
        with self._gate, self._read().cursor() as cursor:
            there = cursor.set_range(max(prefix, after))
            if there and after and cursor.key() == after:
                there = cursor.next()
            if there:
                for item in cast("Iterator[tuple[bytes, bytes]]", cursor):
                    if item[0][:size] != prefix or len(found) >= limit:
                        break
                    found.append(item)
        return found

    # -- writing ---------------------------------------------------------------------------------

    def write(self, items: Iterable[Item]) -> None:
        """Write and remove records in one transaction, durably if the environment is; of one key, the last.

        Raises Unavailable if the disk refuses (and from then on for everything).
        """
        changed: list[tuple[bytes, bytes]] = []
        removed: list[bytes] = []
        for key, value in sorted(dict(items).items()):
            if value is None:
                removed.append(key)
            else:
                changed.append((key, value))
        self._write(self._sealing.seal_all(changed), removed)

    def _write(self, sealed: list[tuple[bytes, bytes]], removed: Iterable[bytes] = ()) -> None:
        with self._writing:
            while True:
                if self._failed:
                    raise Unavailable(self._failed)
                try:
                    with self._lmdb.begin(write=True) as txn, txn.cursor() as cursor:
                        for key in removed:
                            txn.delete(key)
                        cursor.putmulti(sealed)
                    break
                except lmdb.MapFullError:
                    self._grow()
                except (lmdb.Error, OSError) as error:
                    raise self._fail(error) from None
            self._retire()

    def _retire(self) -> None:
        """The read transaction shows what was before this commit: let go of it.

        The module keeps it as a spare one, and `begin` renews that: no slot and no memory is taken anew.
        """
        with self._gate:
            self._let_go()

    def _let_go(self) -> None:
        if self._reader is not None:
            self._reader.abort()
            self._reader = None

    def _grow(self) -> None:
        """Double the map. Nobody may be reading or writing meanwhile."""
        with self._gate:
            self._let_go()
            try:
                self._lmdb.set_mapsize(self._map_size * 2)
            except lmdb.Error as error:
                raise self._fail(error) from None
            self._map_size *= 2

    def _fail(self, error: Exception) -> Unavailable:
        """From now on there is no environment; the seal stays open, so nobody believes it later."""
        self._failed = f"The folder {self.folder} cannot be used: {_reason(error)}."
        return Unavailable(self._failed)

    def clear(self) -> None:
        """Remove every record."""
        with self._writing:
            try:
                with self._lmdb.begin(write=True) as txn:
                    txn.drop(self._lmdb.open_db(txn=txn), delete=False)
                    txn.put(*self._run)
            except (lmdb.Error, OSError) as error:
                raise self._fail(error) from None
            self._retire()

    # -- the whole -------------------------------------------------------------------------------

    @property
    def failed(self) -> str:
        """Why it cannot be used any more, or nothing."""
        return self._failed

    def count(self) -> int:
        """How many records there are, those of its own included."""
        return int(self._lmdb.stat()["entries"])

    def size(self) -> int:
        """Bytes on the disk."""
        try:
            return (self.folder / DATA).stat().st_blocks * 512
        except OSError:
            return 0

    def use_keyring(self, keyring: KeyringLike) -> None:
        """Seal it under the current epoch of another keyring, durably. Raises Unavailable."""
        with self._writing:
            if self._failed:
                raise Unavailable(self._failed)
            self._keyring = keyring
            try:
                self._seal.save(self.folder, self._purpose, self._vault_id, keyring)
            except OSError as error:
                raise self._fail(error) from None

    def close(self, keep: bool = True) -> None:
        """Sync, close, and seal it as closed in order, unless it failed or is not to be kept."""
        if self._lock_fd < 0:
            return
        try:
            with self._writing, self._gate:
                self._let_go()
                try:
                    if keep and not self._failed:
                        self._lmdb.sync(True)
                except (lmdb.Error, OSError) as error:
                    self._fail(error)
                self._lmdb.close()
                reason, self._failed = self._failed, self._failed or "It is closed."
            if keep and not reason:
                self._seal.state, self._seal.lower = CLOSED, lower(self.folder / DATA)
                self._seal.save(self.folder, self._purpose, self._vault_id, self._keyring)
        except OSError as error:
            # Without its seal it is begun anew, or checked, by the next mount.
            log.warning("%s cannot be sealed: %s", self.folder, error.strerror)
        finally:
            unlock(self._lock_fd)
            self._lock_fd = -1


def discard(place: Path, purpose: str) -> bool:
    """Remove an environment that nobody has open; whether there was one. Unavailable if it is in use."""
    folder = place / purpose
    try:
        lock = locked(folder)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise Unavailable(f"The folder {folder} cannot be used: {_reason(error)}.") from None
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise Unavailable(f"The folder {folder} cannot be removed: {_reason(error)}.") from None
    finally:
        unlock(lock)
    return True


def reseal(place: Path, purpose: str, vault_id: bytes, keyring: KeyringLike) -> None:
    """Seal one that nobody has open under the current epoch of a keyring that has its own one, too.

    Does nothing where there is none, or none that opens. Raises Unavailable.
    """
    folder = place / purpose
    try:
        lock = locked(folder)
        try:
            Seal.load(folder, purpose, vault_id, keyring).save(folder, purpose, vault_id, keyring)
        finally:
            unlock(lock)
    except (FileNotFoundError, SealInvalid):
        pass
    except OSError as error:
        raise Unavailable(f"The folder {folder} cannot be used: {_reason(error)}.") from None


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, lmdb.DiskError):
        return os.strerror(errno.ENOSPC)
    return f"LMDB says {type(error).__name__}"

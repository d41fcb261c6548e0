"""What differs from what this computer remembers of a vault, and accepting it after a restore.

`survey` looks at every header below the root and compares it with the rollback witness. What it found is
kept in a temporary file beside the witness, so that `accept` records exactly what was shown, whatever the
size of the vault. Nothing in the vault is changed.
"""

from __future__ import annotations

import os
import stat
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from cryptfs.errors import CryptfsError
from cryptfs.fs.directory import Directory, DirectoryCache
from cryptfs.fs.objects import Ghost, Objects
from cryptfs.fs.verdicts import ROOT_PLACE, Verdict, record_of
from cryptfs.fs.witnessing import Witness
from cryptfs.index.environment import Unavailable
from cryptfs.index.witness import Held, WitnessStore
from cryptfs.vault.diskio import syncfs
from cryptfs.vault.header import Header
from cryptfs.vault.names import NameInvalid
from cryptfs.vault.vault import Vault

LISTED_MAX = 10_000
"""So many differences of each kind are told by their paths; the rest is counted."""
_BATCH = 4096
_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_ITEM = struct.Struct("<25s?16sQ?H")
_UNKNOWN = b"(a name that is not known any more)"


@dataclass
class Summary:
    """What a survey found. Paths are plaintext, from the root, without a leading slash."""

    looked_at: int = 0
    new: int = 0
    newer: int = 0
    unreadable: int = 0
    vault: list[str] = field(default_factory=list)
    """What is wrong with the vault as a whole: sentences."""
    replaced: list[str] = field(default_factory=list)
    older: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: {"replaced": 0, "older": 0, "missing": 0})
    missing_below: int = 0
    """Names in directories that are missing."""

    @property
    def differs(self) -> bool:
        """Whether there is anything that only a restore, or an attack, explains."""
        return bool(self.vault) or any(self.counts.values())

    def add(self, kind: str, path: bytes) -> None:
        self.counts[kind] += 1
        listed: list[str] = getattr(self, kind)
        if len(listed) < LISTED_MAX:
            listed.append(path.decode("utf-8", "backslashreplace"))

    def as_dict(self) -> dict[str, Any]:
        """For programs: docs/restore.md."""
        return {
            "vault": self.vault,
            "replaced": self.replaced,
            "older": self.older,
            "missing": self.missing,
            "counts": {**self.counts, "missing_below": self.missing_below},
            "new": self.new,
            "newer": self.newer,
            "looked_at": self.looked_at,
            "unreadable": self.unreadable,
            "differs": self.differs,
        }


class Survey:
    """One look at a whole vault. Close it: it holds a temporary file."""

    def __init__(
        self,
        vault: Vault,
        witness: Witness,
        objects: Objects,
        directories: DirectoryCache,
        namespace: threading.RLock,
    ) -> None:
        """Raises CryptfsError if there is no witness to compare with."""
        store = witness.store
        if store is None:
            raise CryptfsError(f"There is no rollback witness to compare with: {witness.why or 'it is off'}")
        self.summary = Summary(vault=list(witness.told))
        self._store: WitnessStore = store
        self._vault = vault
        self._witness = witness
        self._objects = objects
        self._directories = directories
        self._namespace = namespace
        self._spool: IO[bytes] = tempfile.TemporaryFile()
        self._seen_directories: set[bytes] = set()
        self._missing_directories: list[bytes] = []

    def run(self, progress: Callable[[int], None] = lambda looked_at: None) -> Summary:
        """Look at everything; `progress` is told how many objects so far. Raises Unavailable, OSError."""
        todo: list[tuple[tuple[bytes, ...], bytes, bytes | None]] = [((), b"", None)]
        while todo:
            place, path, parent_id = todo.pop()
            fd = self._open(place)
            if fd < 0:
                continue  # removed or renamed meanwhile
            try:
                directory = self._directory(fd, place, parent_id)
                if directory is None:
                    continue
                for lname in self._entries(directory, path):
                    todo.append(((*place, lname), _join(path, directory, lname), directory.header.object_id))
            finally:
                os.close(fd)
            progress(self.summary.looked_at)
        for object_id in self._missing_directories:
            self._forget_below(object_id)
        return self.summary

    def _open(self, place: tuple[bytes, ...]) -> int:
        fd = os.dup(self._vault.tree_fd)
        for lname in place:
            try:
                inner = os.open(lname, _OPEN_DIR, dir_fd=fd)
            except (FileNotFoundError, NotADirectoryError):
                inner = -1
            finally:
                os.close(fd)
            if inner < 0:
                return -1
            fd = inner
        return fd

    def _directory(self, fd: int, place: tuple[bytes, ...], parent_id: bytes | None) -> Directory | None:
        try:
            with self._namespace:
                directory = self._directories.enter(fd, parent_id)
        except OSError:
            self.summary.unreadable += 1
            return None
        if not place:
            self._compare(*ROOT_PLACE, directory.header, b"(the root directory)")
        self._seen_directories.add(directory.header.object_id)
        return directory

    def _entries(self, directory: Directory, path: bytes) -> Iterator[bytes]:
        """Compare what is in a directory; yields the directories in it."""
        directory_id = directory.header.object_id
        there: set[bytes] = set()
        for lname in directory.entries():
            there.add(self._store.key(directory_id, lname))
            with self._namespace:
                try:
                    header = self._header(directory, lname)
                except (FileNotFoundError, Ghost):
                    there.discard(self._store.key(directory_id, lname))
                    continue
                except OSError:
                    self.summary.unreadable += 1
                    continue
                self._compare(directory_id, lname, header, _join(path, directory, lname))
            if stat.S_ISDIR(header.st_mode):
                yield lname
        for key, record in self._store.below(directory_id):
            if key not in there and not self._witness.is_waiting(key):
                if not self._store.expects_the_unexpected(key, record):
                    self.summary.add("missing", _join(path, directory, record.lname))
                    if record.is_directory:
                        self._missing_directories.append(record.object_id)
                self._keep(key, None)

    def _header(self, directory: Directory, lname: bytes) -> Header:
        fd = os.open(lname, _OPEN_FILE, dir_fd=directory.fd)
        try:
            st = os.fstat(fd)
            if stat.S_ISDIR(st.st_mode):
                return self._directories.read_header(fd, directory.header.object_id)[0]
            return self._objects.header_of(fd, st)
        finally:
            os.close(fd)

    def _compare(self, directory_id: bytes, lname: bytes, header: Header, path: bytes) -> None:
        self.summary.looked_at += 1
        key = self._store.key(directory_id, lname)
        if self._witness.is_waiting(key):
            return
        record = self._store.get(key)
        verdict = Verdict.of(record, header)
        if verdict is Verdict.SAME or record is None:
            self.summary.new += record is None
        elif verdict is Verdict.NEWER or (
            verdict is Verdict.OTHER and self._store.expects_the_unexpected(key, record)
        ):
            self.summary.newer += 1
        else:
            self.summary.add("older" if verdict is Verdict.OLDER else "replaced", path)
        if verdict is not Verdict.SAME or (record and self._store.expects_the_unexpected(key, record)):
            self._keep(key, record_of(header, lname))

    def _forget_below(self, object_id: bytes) -> None:
        """What was in a directory that is missing, and is not found elsewhere."""
        todo = [object_id]
        while todo:
            directory_id = todo.pop()
            if directory_id in self._seen_directories:
                continue
            for key, record in self._store.below(directory_id):
                self.summary.missing_below += 1
                self._keep(key, None)
                if record.is_directory:
                    todo.append(record.object_id)

    # -- what is to be recorded --------------------------------------------------------------------

    def _keep(self, key: bytes, record: Held | None) -> None:
        if record is None:
            self._spool.write(_ITEM.pack(key, False, bytes(16), 0, False, 0))
        else:
            self._spool.write(
                _ITEM.pack(
                    key, True, record.object_id, record.generation, record.is_directory, len(record.lname)
                )
                + record.lname
            )

    def _kept(self) -> Iterator[tuple[bytes, Held | None]]:
        self._spool.seek(0)
        while len(head := self._spool.read(_ITEM.size)) == _ITEM.size:
            key, there, object_id, generation, is_directory, size = _ITEM.unpack(head)
            lname = self._spool.read(size)
            yield key, Held(object_id, generation, is_directory, lname) if there else None

    def accept(self, vault: Vault, witness: Witness, namespace: threading.RLock) -> None:
        """Record what was found as right, durably: in the same session, or in a later one of the vault.

        Names that the session changed since are left to it. Raises CryptfsError, Unavailable, OSError.
        """
        store = witness.store
        if store is None:
            raise CryptfsError(f"There is no rollback witness to record it in: {witness.why or 'it is off'}")
        syncfs(vault.tree_fd)
        batch: dict[bytes, Held | None] = {}
        for key, record in self._kept():
            batch[key] = record
            if len(batch) >= _BATCH:
                _commit(store, witness, namespace, batch)
        _commit(store, witness, namespace, batch)
        if not self.summary.unreadable:
            store.forget_doubts()
        with namespace:
            witness.accepted()

    def close(self) -> None:
        """Remove the temporary file."""
        self._spool.close()


def _commit(
    store: WitnessStore, witness: Witness, namespace: threading.RLock, batch: dict[bytes, Held | None]
) -> None:
    with namespace:
        items = [(key, record) for key, record in batch.items() if not witness.is_waiting(key)]
        store.commit(items)
    batch.clear()


def _join(path: bytes, directory: Directory, lname: bytes) -> bytes:
    try:
        name = directory.plain_name(lname)
    except (NameInvalid, OSError):
        name = _UNKNOWN
    return path + b"/" + name if path else name


__all__ = ["Summary", "Survey", "Unavailable"]

"""The records of the study index, and the batch in which changes to them wait to be committed.

A key is one letter and keyed hashes of 8 bytes; a value is msgpack, sealed by the environment:

| key | what | value |
|---|---|---|
| `p` directory, name | an entry of a directory | `Entry` |
| `d` directory | where a directory lies | `Place` |
| `f` file | a file | `FileRow` |
| `t` file | to be read | nothing |
| `r` directory | to be listed | whether all below it, too |
| `s` series | a series | `SeriesRow` |
| `l` series, file | the files of a series | nothing |
| `u` study | a study | `StudyRow` |
| `k` study, series | the series of a study | nothing |
| `n` patient, study | the studies of a patient | nothing |
| `q` patient | a patient | `PatientRow` |
| `i` instance UID, series, file | the files of an instance | nothing |
| `x` term, study | the studies with a term: `text.fold`ed identifier, date, modality | nothing |
| `y` term, patient | the patients with a word in their name, or an identifier | nothing |
| `m` | | `Totals` |

A file is known by its object id, a directory by its own: so they keep their keys when they are renamed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TypeVar

import msgspec

from cryptfs.index.environment import Environment
from cryptfs.index.tags import Kind, Tags

HASH = 8
NOTHING = b""
# How many bytes of a key, by its letter, those have in common that are asked for together.
_GROUPS = {b"i": 1 + 2 * HASH, b"p": 1 + HASH}

Row = TypeVar("Row", bound=msgspec.Struct)


class Entry(msgspec.Struct, array_like=True):
    """A name in a directory; `child` is the hash of a file or a directory."""

    is_dir: bool
    child: bytes
    name: bytes


class Place(msgspec.Struct, array_like=True, frozen=True):
    """A place in a directory: the key of its `Entry`, without the letter."""

    directory: bytes
    name: bytes  # hashed


class FileRow(msgspec.Struct, array_like=True):
    """`kind` is None until the file was read; sizes in bytes, times in nanoseconds, as they were then."""

    places: list[Place]
    kind: Kind | None = None
    size: int = 0
    mtime: int = 0
    ctime: int = 0
    series: bytes = b""
    instance: str = ""
    transfer_syntax: str = ""


class SeriesRow(msgspec.Struct, array_like=True):
    study: bytes
    uid: str
    modality: str
    files: int = 0
    instances: int = 0
    """Instances that differ: an archive may hold one twice."""


class StudyRow(msgspec.Struct, array_like=True):
    """`modalities`: name to [series, instances, files, bytes]; `syntaxes`: UID to [files, bytes]."""

    patient: bytes
    uid: str
    patient_id: str
    patient_name: str
    date: str
    accession: str
    modalities: dict[str, list[int]] = {}
    syntaxes: dict[str, list[int]] = {}
    terms: list[bytes] = []
    """The keys of its terms, to be removed with it."""


class PatientRow(msgspec.Struct, array_like=True):
    """A patient is known by the identifier, as archives do; `names` are all that came with it."""

    patient_id: str
    names: list[str]
    studies: int = 0
    terms: list[bytes] = []


class Totals(msgspec.Struct):
    """Counts of the whole; `session` is the vault's session that the index was last closed with."""

    files: int = 0
    unread: int = 0
    unlisted: int = 0
    patients: int = 0
    studies: int = 0
    series: int = 0
    instances: int = 0
    kinds: dict[str, int] = {}
    session: str = ""
    format: int = 1


class StudyBatch:
    """Changes that wait for a commit, and reading through them. Safe for several threads."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.lock = threading.RLock()
        self._changes: dict[bytes, bytes | None] = {}
        # Structs that were read or changed, not packed yet: a study is changed by each of its images.
        self._rows: dict[bytes, msgspec.Struct] = {}
        # Changed keys of `i` and `p`, by what they are asked for together: instance and series, directory.
        self._groups: dict[bytes, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self._changes) + len(self._rows)

    def key(self, letter: bytes, *hashes: bytes) -> bytes:
        return letter + b"".join(hashes)

    def hashed(self, *parts: bytes) -> bytes:
        return self.environment.hashed(HASH, *parts)

    def get(self, key: bytes) -> bytes | None:
        if key in self._changes:
            return self._changes[key]
        return self.environment.get(key)

    def has(self, key: bytes) -> bool:
        return key in self._rows or self.get(key) is not None

    def put(self, key: bytes, value: bytes = NOTHING) -> None:
        self._change(key, value)

    def delete(self, key: bytes) -> None:
        self._rows.pop(key, None)
        self._change(key, None)

    def _change(self, key: bytes, value: bytes | None) -> None:
        self._changes[key] = value
        self._note(key)

    def _note(self, key: bytes) -> None:
        size = _GROUPS.get(key[:1])
        if size:
            self._groups.setdefault(key[:size], set()).add(key)

    def any_file(self, group: bytes) -> bool:
        """Whether there is a record of `i` for this instance UID and series."""
        changed = self._groups.get(group, ())
        if any(self._changes.get(key) is not None for key in changed):
            return True
        committed = self.environment.scan(group, len(changed) + 1)
        return any(key not in changed for key, _ in committed)

    def entries(self, group: bytes) -> list[bytes]:
        """The keys of `p` in this directory, changes included."""
        changed = self._groups.get(group, set())
        committed = [key for key, _ in self.environment.scan(group) if key not in changed]
        return committed + [key for key in changed if self.has(key)]

    def pick(self, letter: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Some records of `t` or `r`, changes included; none only if there is none."""
        with self.lock:
            changed = [key for key in self._changes if key[:1] == letter]
            committed = self.environment.scan(letter, limit + len(changed))
            found = [(key, data) for key, data in committed if key not in self._changes]
            for key in changed:
                data = self._changes[key]
                if data is not None:
                    found.append((key, data))
            return found[:limit]

    def row(self, key: bytes, kind: type[Row]) -> Row | None:
        """A record as a struct. After changing it, give it to `save`."""
        known = self._rows.get(key)
        if known is not None:
            assert isinstance(known, kind)
            return known
        data = self.get(key)
        return None if data is None else msgspec.msgpack.decode(data, type=kind)

    def save(self, key: bytes, row: msgspec.Struct) -> None:
        self._rows[key] = row
        self._note(key)

    def flush(self) -> None:
        """Commit, durably if the environment is. Raises Unavailable."""
        with self.lock:
            if not self._changes and not self._rows:
                return
            for key, row in self._rows.items():
                self._changes[key] = msgspec.msgpack.encode(row)
            # Forgotten only once they are committed; what fails leaves the index as it was.
            self.environment.write(self._changes.items())
            self._changes.clear()
            self._rows.clear()
            self._groups.clear()

    def drop(self) -> None:
        """Forget the changes."""
        self._changes.clear()
        self._rows.clear()
        self._groups.clear()

    def keys(self, prefix: bytes, after: bytes = b"", page: int = 4096) -> Iterator[bytes]:
        """What follows a prefix in its committed keys, behind `after`; in pages, so that nobody waits."""
        after = prefix + after if after else b""
        while True:
            found = self.environment.scan(prefix, page, after)
            for key, _ in found:
                yield key[len(prefix) :]
            if len(found) < page:
                return
            after = found[-1][0]


__all__ = [
    "HASH",
    "NOTHING",
    "Entry",
    "FileRow",
    "Kind",
    "PatientRow",
    "Place",
    "SeriesRow",
    "StudyBatch",
    "StudyRow",
    "Tags",
    "Totals",
]

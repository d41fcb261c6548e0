"""Which epochs the ciphertext still needs: an independent reading of everything (docs/rotation.md).

Nothing of the filesystem layer is used here, and nothing is believed: every place that can hold a wrapped
key is read from the disk as it is, and each header is opened with the current epoch alone. What opens under
an older epoch, in either slot, is a *need*: it must be rewrapped before that epoch's key is destroyed. An
object that the current epoch does not open, nor any other, is damage.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptfs.vault.dirlog import CARRIED_AT, CARRIED_MAX, RECORD_SIZE
from cryptfs.vault.diskio import NotRegular, open_regular, pread_all
from cryptfs.vault.header import (
    READ_SIZE,
    SLOT_OFFSETS,
    SLOT_SIZE,
    HeaderCodec,
    HeaderInvalid,
    epoch_of,
)
from cryptfs.vault.journal import Record, pending_records, segments
from cryptfs.vault.keyring import Keyring
from cryptfs.vault.layout import DIRS, JOURNAL, TREE
from cryptfs.vault.names import DIR_HEADER, OLD_HEADER, is_entry
from cryptfs.vault.session import STATE_NAME

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CARRIED = range(CARRIED_AT, CARRIED_AT + CARRIED_MAX * RECORD_SIZE, RECORD_SIZE)


@dataclass(slots=True)
class Finding:
    """What one ciphertext file needs; `path` is relative to the vault, in ciphertext names.

    `epoch` is that of its header, None where there is no valid one; `older` are the epochs before the current
    one under which something in it opens. `gone` are epochs that headers in it name and the keyring does
    not hold: whoever kept such a key might open them.
    """

    path: bytes
    epoch: int | None
    older: frozenset[int] = frozenset()
    damaged: bool = False
    gone: frozenset[int] = frozenset()


@dataclass
class Summary:
    """A whole reading: how many headers of each epoch, what needs an older one, what is damaged."""

    current: int
    objects: int = 0
    by_epoch: Counter[int] = field(default_factory=Counter)
    needs: list[Finding] = field(default_factory=list)
    gone: list[Finding] = field(default_factory=list)
    damaged: list[Finding] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        self.objects += 1
        if finding.epoch is not None:
            self.by_epoch[finding.epoch] += 1
        if finding.older:
            self.needs.append(finding)
        if finding.gone:
            self.gone.append(finding)
        if finding.damaged:
            self.damaged.append(finding)

    @property
    def only_current(self) -> bool:
        """Whether nothing that opens needs an older epoch."""
        return not self.needs

    @property
    def proved(self) -> bool:
        """Whether no header anywhere is under another epoch than the current one, open or not."""
        return not self.needs and not self.gone


class EpochReader:
    """Reads one vault. While it is mounted, what changes under the reading is read once more."""

    def __init__(self, path: str | os.PathLike[str], vault_id: bytes, keyring: Keyring) -> None:
        self.path = Path(path)
        self.current = keyring.current.number
        self._now = HeaderCodec(vault_id, keyring.with_current_only())
        self._all = HeaderCodec(vault_id, keyring)
        self._numbers = {epoch.number for epoch in keyring}

    def summary(self) -> Summary:
        """Read everything. OSError if the disk refuses."""
        result = Summary(self.current)
        for finding in self.read():
            result.add(finding)
        return result

    def read(self) -> Iterator[Finding]:
        """One finding for each file that holds wrapped keys: objects, directories, copies, journal."""
        yield from self.read_tree()
        yield from self._copies()
        yield from self._journal()

    def read_tree(self) -> Iterator[Finding]:
        """The objects and directories below `tree/`."""
        root = os.open(self.path / TREE, _OPEN_DIR)
        # Each open directory with its path and what is left to read in it: no recursion, trees may be deep.
        stack = [(root, os.fsencode(TREE), [DIR_HEADER, *_entries(root)])]
        try:
            while stack:
                fd, path, names = stack[-1]
                if not names:
                    os.close(fd)
                    stack.pop()
                    continue
                name = names.pop()
                below = path + b"/" + name
                try:
                    inner = _open(name, fd)
                except OSError:  # a symbolic link, or the disk fails there
                    yield Finding(below, None, damaged=True)
                    continue
                if inner is None:
                    continue
                if stat.S_ISDIR(os.fstat(inner).st_mode):
                    stack.append((inner, below, [DIR_HEADER, *_entries(inner)]))
                    continue
                try:
                    yield self._object(inner, below, name not in (DIR_HEADER, OLD_HEADER))
                finally:
                    os.close(inner)
        finally:
            for fd, _, _ in stack:
                os.close(fd)

    def _object(self, fd: int, path: bytes, carries: bool) -> Finding:
        finding = self._area(pread_all(fd, READ_SIZE, 0), path, carries)
        if finding.damaged or finding.older or finding.gone:  # perhaps in the middle of being written
            finding = self._area(pread_all(fd, READ_SIZE, 0), path, carries)
        return finding

    def _area(self, area: bytes, path: bytes, carries: bool) -> Finding:
        slots = [area[at : at + SLOT_SIZE] for at in SLOT_OFFSETS]
        older: set[int] = set()
        gone: set[int] = set()
        best, epoch = 0, None
        for slot in slots:
            generation = self._opens(slot, older, gone)
            if generation > best:
                best, epoch = generation, epoch_of(slot)
        if carries:
            for at in _CARRIED:
                record = area[at : at + SLOT_SIZE]
                if not self._opens(record, older, gone):
                    break
        damaged = not best and any(map(any, slots))
        return Finding(path, epoch, frozenset(older), damaged, frozenset(gone))

    def _opens(self, slot: bytes, older: set[int], gone: set[int]) -> int:
        """The generation of a header that opens, else 0; an older epoch that it needs goes to `older`."""
        number = epoch_of(slot)
        if number is None:
            return 0
        if number not in self._numbers:
            gone.add(number)
            return 0
        try:
            if number == self.current:
                return self._now.unpack(slot).generation
            generation = self._all.unpack(slot).generation
        except HeaderInvalid:
            return 0
        older.add(number)
        return generation

    def _copies(self) -> Iterator[Finding]:
        folder = self.path / DIRS
        for name in _listed(folder, ".log"):
            try:
                with open(open_regular(folder / name), "rb") as log:
                    older: set[int] = set()
                    gone: set[int] = set()
                    while len(record := log.read(RECORD_SIZE)) == RECORD_SIZE:
                        self._opens(record[:SLOT_SIZE], older, gone)
            except (FileNotFoundError, NotRegular):
                continue  # brought together with others: that file is read, too, or is all new
            yield Finding(os.fsencode(f"{DIRS}/{name}"), None, frozenset(older), gone=frozenset(gone))

    def _journal(self) -> Iterator[Finding]:
        folder = str(self.path / JOURNAL)
        try:
            with open(open_regular(f"{folder}/{STATE_NAME}"), "rb") as file:
                number = int.from_bytes(file.read(8)[4:], "little")
        except (FileNotFoundError, NotRegular):
            pass
        else:
            old = {number} & (self._numbers - {self.current})
            lost = {number} - self._numbers
            yield Finding(
                os.fsencode(f"{JOURNAL}/{STATE_NAME}"), number, frozenset(old), bool(lost), frozenset(lost)
            )
        for name in segments(folder):
            fd = _open(os.fsencode(name), None)
            if fd is None:
                continue
            try:
                yield self._object(fd, os.fsencode(f"{JOURNAL}/{os.path.basename(name)}"), False)
            finally:
                os.close(fd)
        yield from self._records(folder)

    def _records(self, folder: str) -> Iterator[Finding]:
        """Headers that recovery would write out of the journal."""
        try:
            records: list[Record] = pending_records(folder, self._all)
        except (HeaderInvalid, FileNotFoundError):
            return  # damaged, which reading the segments told; or emptied at this moment
        for record in records:
            older: set[int] = set()
            gone: set[int] = set()
            for offset, data in record.extents:
                if offset in SLOT_OFFSETS and len(data) == SLOT_SIZE:
                    self._opens(bytes(data), older, gone)
            if older or gone:
                path = os.fsencode(TREE) + b"/" + record.path
                yield Finding(path, None, frozenset(older), gone=frozenset(gone))


def _entries(fd: int) -> list[bytes]:
    return [name for name in map(os.fsencode, os.listdir(fd)) if is_entry(name) or name == OLD_HEADER]


def _listed(folder: Path, suffix: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if name.endswith(suffix))
    except FileNotFoundError:
        return []


def _open(name: bytes, dir_fd: int | None) -> int | None:
    """The file, or None if it has just gone (a directory's header may be missing, too)."""
    try:
        return os.open(name, _OPEN, dir_fd=dir_fd)
    except FileNotFoundError:
        return None

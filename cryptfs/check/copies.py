"""The copies of directory headers in `dirs/` (docs/format.md section 8), read without trust.

Unlike `vault.dirlog`, which skips what it cannot use, this says what is wrong with it. A log may be
anything somebody put there: holes of any size are passed over, other kinds of files are not opened.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from cryptfs.check.finding import Finding, Kind
from cryptfs.check.headers import is_stale
from cryptfs.vault.dirlog import CARRIED_AT, CARRIED_MAX, RECORD_SIZE
from cryptfs.vault.diskio import pread_all
from cryptfs.vault.header import DIRECTORY, SLOT_SIZE, Header, HeaderCodec, HeaderInvalid, KeyringLike
from cryptfs.vault.layout import DIRS

_RUN = 4096 * RECORD_SIZE
_ZERO = bytes(RECORD_SIZE)
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
SUFFIX = ".log"


class Copies:
    """All valid records of a vault, the newest of each directory, and what is wrong with the others."""

    def __init__(self, vault: Path, codec: HeaderCodec, keyring: KeyringLike) -> None:
        self._codec = codec
        self._keyring = keyring
        self._latest: dict[bytes, tuple[Header, bytes]] = {}
        self.findings: list[Finding] = []
        self.records = 0
        folder = vault / DIRS
        try:
            names = sorted(name for name in os.listdir(folder) if name.endswith(SUFFIX))
        except FileNotFoundError:
            return
        for name in names:
            self._read(folder, name)

    def _read(self, folder: Path, name: str) -> None:
        place = os.fsencode(f"{DIRS}/{name}")
        try:
            if not stat.S_ISREG(os.lstat(folder / name).st_mode):
                self.findings.append(Finding(Kind.WRONG_KIND, place))
                return
            fd = os.open(folder / name, _OPEN)
        except FileNotFoundError:
            return  # merged meanwhile
        bad = 0
        try:
            for record in _records(fd):
                self.records += 1
                bad += not self._take(record)
        except OSError as problem:
            self.findings.append(Finding.of_error(place, problem))
        finally:
            os.close(fd)
        if bad:
            self.findings.append(Finding(Kind.COPIES, place, detail=f"{bad} damaged records"))

    def _take(self, record: bytes) -> bool:
        """Whether a record is what a writer made."""
        if not is_good(record, self._codec, self._keyring):
            return False
        try:
            header = self._codec.unpack(record[:SLOT_SIZE])
        except HeaderInvalid:
            return True  # of an epoch that is gone
        known = self._latest.get(header.object_id)
        if known is None or known[0].generation <= header.generation:
            self._latest[header.object_id] = header, record[SLOT_SIZE : SLOT_SIZE + 16]
        return True

    @staticmethod
    def records_of(vault: Path, name: str) -> Iterator[bytes]:
        """The records of one log that are not zero."""
        fd = os.open(vault / DIRS / name, _OPEN)
        try:
            yield from _records(fd)
        finally:
            os.close(fd)

    def candidates(self, parent_id: bytes | None) -> Iterator[Header]:
        """The headers a lost `@dir` may have had: those recorded below `parent_id` first."""
        for header, _ in sorted(self._latest.values(), key=lambda item: item[1] != parent_id):
            yield header

    def parent_of(self, object_id: bytes) -> bytes:
        """Where a directory was when it was recorded; zeros if that is not known."""
        known = self._latest.get(object_id)
        return known[1] if known else bytes(16)


def is_good(record: bytes, codec: HeaderCodec, keyring: KeyringLike) -> bool:
    """Whether a writer made this record, now or under an epoch that is gone."""
    try:
        header = codec.unpack(record[:SLOT_SIZE])
    except HeaderInvalid:
        return is_stale(record[:SLOT_SIZE], keyring)
    return header.kind == DIRECTORY and not any(record[SLOT_SIZE + 16 :])


def _records(fd: int) -> Iterator[bytes]:
    """The whole records that are not zero."""
    offset = 0
    while True:
        try:
            offset = os.lseek(fd, offset, os.SEEK_DATA) // RECORD_SIZE * RECORD_SIZE
        except OSError:  # nothing but a hole follows
            return
        run = pread_all(fd, _RUN, offset)
        for at in range(0, len(run) - RECORD_SIZE + 1, RECORD_SIZE):
            record = run[at : at + RECORD_SIZE]
            if record != _ZERO:
                yield record
        if len(run) < _RUN:
            return
        offset += _RUN


def carried_headers(fd: int, codec: HeaderCodec) -> Iterator[Header]:
    """The directory headers that an object file carries in its header area."""
    area = pread_all(fd, CARRIED_MAX * RECORD_SIZE, CARRIED_AT)
    for at in range(0, len(area), RECORD_SIZE):
        try:
            header = codec.unpack(area[at : at + SLOT_SIZE])
        except HeaderInvalid:
            return
        if header.kind == DIRECTORY:
            yield header

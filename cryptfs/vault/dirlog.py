"""Copies of directory headers in `dirs/` (docs/format.md section 8).

Two purposes in one append: a directory whose `@dir` was lost is opened from its
copy, and one fdatasync of the log makes the headers of all directories made since
durable, however many there are.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator

from cryptfs.vault.diskio import NotRegular, open_regular, pwrite_all, replace_file
from cryptfs.vault.header import DIRECTORY, MAGIC, SLOT_SIZE, Header, HeaderCodec, HeaderInvalid

RECORD_SIZE = 256
_MERGE_AT = 16
_NO_FOLDER = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""What listing `dirs/` ends with where it is lost, or where something else is in its place."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

CARRIED_AT = 256
"""Where a file's header area has room for headers of directories above it (format section 4)."""
CARRIED_MAX = 15
"""How many records have room there."""


def carried(record: bytes) -> bytes:
    """A record (packed header and parent's object id) as it stands in a file's header area."""
    return record.ljust(RECORD_SIZE, b"\0")


class DirLog:
    """The log of one vault; appends go to a file of this session's own."""

    def __init__(self, path: str, session: int, codec: HeaderCodec, file_mode: int) -> None:
        self._path = path
        self._name = f"{session:016x}.log"
        self._codec = codec
        self._mode = file_mode
        self._fd = -1
        self._end = 0
        self._lock = threading.Lock()
        self._new = False
        self._appended = 0
        self._sync_lock = threading.Lock()
        self._failed: OSError | None = None
        self.synced = 0
        """Records up to this position are durable."""

    def append(self, slot: bytes, parent_id: bytes) -> int:
        """Record a directory's packed header; its position. Durable when `synced` has reached it."""
        with self._lock:
            if self._fd < 0:
                name = f"{self._path}/{self._name}"
                self._fd = open_regular(name, os.O_WRONLY | os.O_CREAT, mode=self._mode)
                self._new = True
            pwrite_all(self._fd, carried(slot + parent_id), self._end)
            self._end += RECORD_SIZE
            self._appended += 1
            return self._appended

    def sync(self) -> None:
        """Make every record appended so far durable; nothing to do if there is none.

        Once that failed it fails for good, as with the journal. Where no file can be opened nothing was
        synced yet, and the next call tries again.
        """
        with self._sync_lock:
            with self._lock:
                target, fd = self._appended, self._fd
            if self.synced < target:
                if self._failed is not None:
                    raise OSError(self._failed.errno, self._failed.strerror)
                folder = os.open(self._path, _FOLDER) if self._new else -1
                try:
                    os.fdatasync(fd)
                    if folder >= 0:
                        os.fsync(folder)
                        self._new = False
                except OSError as error:
                    self._failed = error
                    raise
                finally:
                    if folder >= 0:
                        os.close(folder)
                self.synced = target

    def candidates(self, parent_id: bytes | None = None) -> Iterator[Header]:
        """Valid recorded headers, the last of each object, those below `parent_id` first."""
        latest = self._latest()
        for header, _ in sorted(latest.values(), key=lambda item: item[1] != parent_id):
            yield header

    def _latest(self, pause: Callable[[], None] = lambda: None) -> dict[bytes, tuple[Header, bytes]]:
        """The valid header with the highest generation of each directory, and its parent's object id."""
        latest: dict[bytes, tuple[Header, bytes]] = {}
        for slot, parent in self._records():
            try:
                header = self._codec.unpack(slot)
            except HeaderInvalid:
                continue
            known = latest.get(header.object_id)
            if header.kind == DIRECTORY and (known is None or known[0].generation <= header.generation):
                latest[header.object_id] = header, parent
            pause()
        return latest

    def _records(self, again: int = 8) -> Iterator[tuple[bytes, bytes]]:
        """Every whole record: packed header and parent's object id.

        Begins `again` so many times when a log goes while it is read: then it has been brought together
        with others in a new one.
        """
        try:
            names = sorted(name for name in os.listdir(self._path) if name.endswith(".log"))
        except OSError as error:
            if error.errno in _NO_FOLDER:
                return
            raise
        for name in names:
            try:
                log = open(open_regular(f"{self._path}/{name}"), "rb")
            except FileNotFoundError:
                if not again:
                    continue
                yield from self._records(again - 1)
                return
            except NotRegular:
                continue
            with log:
                while len(record := log.read(RECORD_SIZE)) == RECORD_SIZE:
                    yield record[:SLOT_SIZE], record[SLOT_SIZE : SLOT_SIZE + 16]

    def merge(self) -> None:
        """Bring many sessions' logs together in one, so that their number stays small.

        On disk: the new log is complete and synced before the first old one goes, and a
        record that stands in both is the same record.
        """
        names = [name for name in os.listdir(self._path) if name.endswith(".log")]
        if len(names) < _MERGE_AT:
            return
        records = {slot: parent for slot, parent in self._records() if slot[:4] == MAGIC}
        directory = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            merged = b"".join((slot + parent).ljust(RECORD_SIZE, b"\0") for slot, parent in records.items())
            replace_file(directory, f"{os.urandom(8).hex()}.log", merged, self._mode)
            for name in names:
                os.unlink(name, dir_fd=directory)
        finally:
            os.close(directory)

    def rewrap(self, pause: Callable[[], None] = lambda: None) -> None:
        """Seal every record anew under the current epoch, durably; for directories that are gone, too.

        On disk: this session's records are synced and a new log is begun for those to come; a log with
        all records, rewrapped, is written and synced; then the old ones are removed. Cut in between,
        records stand there twice, under both epochs, which is the same as once. A record that no
        epoch opens says nothing and is left out. `pause` is called now and then, without a lock held.
        """
        with self._sync_lock, self._lock:
            if self._fd >= 0:
                os.fdatasync(self._fd)
                os.close(self._fd)
                self._fd, self._end = -1, 0
                self._name = f"{os.urandom(8).hex()}.log"
                self.synced = self._appended
            names = [name for name in os.listdir(self._path) if name.endswith(".log")]
        latest = self._latest(pause)
        records = []
        for header, parent in latest.values():
            header.epoch = self._codec.current_epoch
            records.append(carried(self._codec.pack(header) + parent))
            pause()
        directory = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            replace_file(directory, f"{os.urandom(8).hex()}.log", b"".join(records), self._mode)
            for name in names:
                os.unlink(name, dir_fd=directory)
            os.fsync(directory)
        finally:
            os.close(directory)

    def close(self) -> None:
        """Close the file; does not sync."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

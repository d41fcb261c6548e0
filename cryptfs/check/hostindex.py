"""The metadata index of this host (docs/index.md), compared with what a check sees of the vault.

What is wrong is a record that would be believed and is not what the header says. A record that the next
listing would find out of date, because inode, change time or length differ, is not: nobody would believe it.
An index that the next mount would begin anew is not compared at all.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cryptfs.errors import CryptfsError
from cryptfs.fs.comparison import record_of
from cryptfs.fs.nodes import NodeTable
from cryptfs.fs.objects import plain_size_of
from cryptfs.index import records
from cryptfs.index.catalog import PURPOSE, RACY_NS, Keys, session_of
from cryptfs.index.place import Unavailable
from cryptfs.index.reading import Reading
from cryptfs.index.seal import SUBJECT_SIZE
from cryptfs.index.sealing import ValueDamaged

if TYPE_CHECKING:
    from cryptfs.check.context import Context
    from cryptfs.check.objects import ObjectLook


class HostIndex:
    """The index of one vault on one host, read beside the mount that may be writing it. Close it."""

    def __init__(self, reading: Reading | None, why_not: str, root_ino: int) -> None:
        self.why_not = why_not
        self.compared = 0
        """Records that would be believed."""
        self._reading = reading
        self._number = NodeTable(root_ino).number
        self._lock = threading.Lock()
        if reading is not None:
            self._keys = Keys(reading)

    @classmethod
    def open(cls, context: Context, place: Path, *, in_use: bool) -> HostIndex:
        """What is below `place` (`cryptfs.index.place.of_vault`). `in_use`: a mount here writes it."""
        root = os.fstat(context.tree_fd).st_ino
        try:
            reading = Reading.open(place, PURPOSE, context.vault_id, context.keyring, in_use=in_use)
        except Unavailable as error:
            return cls(None, str(error).rstrip("."), root)
        if reading is None:
            return cls(None, "there is none", root)
        try:
            why_not = _not_believed(context, reading, root)
        except (Unavailable, ValueDamaged) as error:
            why_not = str(error) or "a record is damaged"
        if why_not:
            reading.close()
            return cls(None, why_not, root)
        return cls(reading, "", root)

    @property
    def status(self) -> str:
        """For reports: whether it was compared, or why not."""
        return "compared" if self._reading is not None else f"not compared: {self.why_not}"

    def wrong(
        self, folder: os.stat_result, directory_id: bytes, lname: bytes, look: ObjectLook, name: bytes
    ) -> bytes:
        """The record of a file, if it would be believed and is wrong; else nothing.

        `folder` is the ciphertext directory, `look` what was seen of the file, `name` its plaintext name.
        """
        with self._lock:
            reading, st, header = self._reading, look.status, look.header
            if reading is None or st is None or header is None:
                return b""
            try:
                shelf = self._keys.shelf(self._number(folder.st_ino), directory_id)
                value = reading.get(self._keys.key(shelf, lname))
            except ValueDamaged:
                return b"damaged"
            except CryptfsError as error:
                self.why_not = str(error).rstrip(".")
                self._close()
                return b""
            if value is None or records.kind_of(value) != records.FILE:
                return b""
            record = records.file_of(value)
            size = plain_size_of(record.mode, record.chunk_log2, st.st_size)
            if (
                (record.changed, record.ino, record.size) != (st.st_ctime_ns, self._number(st.st_ino), size)
                or st.st_nlink != 1
                or not stat.S_ISREG(st.st_mode)
                or record.changed > self._believed_until(reading)
            ):
                return b""
            self.compared += 1
            true = record_of(record.ino, header, st, record.size, name)
            if records.kind_of(true) == records.FILE:
                seen = records.file_of(true)._replace(blocks=record.blocks)
                if seen == record and records.name_of(value) == name:
                    return b""
            return value

    @staticmethod
    def _believed_until(reading: Reading) -> int:
        return time.time_ns() - RACY_NS if reading.in_use else reading.seal.lower[2] - RACY_NS

    def renew(self) -> None:
        """Let the next comparison see what is recorded by then."""
        with self._lock:
            if self._reading is not None:
                self._reading.renew()

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._reading is not None:
            self._reading.close()
            self._reading = None


def _not_believed(context: Context, reading: Reading, root: int) -> str:
    """Why the next mount would begin the index anew, or nothing."""
    seal = reading.seal
    if seal.epoch != context.keyring.current.number:
        return "it is of another epoch"
    if seal.subject != root.to_bytes(SUBJECT_SIZE, "little"):
        return "it describes another copy of the vault"
    if reading.in_use:
        return ""
    if not reading.closed_in_order:
        return "it was not closed in order, and is made anew by the next mount"
    if session_of(reading) != context.snapshot.last:
        return "the vault was mounted without it since, and it is made anew by the next mount"
    return ""

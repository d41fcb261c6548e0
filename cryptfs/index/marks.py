"""Where names are being changed: told durably before a change, so that a power cut raises no false alarm.

`marks` is one sector of 512 bytes, written in place: u16 count, as many marks (a
directory's hash (10) ‖ u32 session number), zeros, and in the last 32 bytes a keyed BLAKE2b of the rest. Ten
zero bytes stand for the whole vault. A sector is old or new after a power cut, and writing it in place takes
no space from a full disk.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
import threading
from pathlib import Path

from cryptfs.vault.diskio import fsync_path, pwrite_all

PREFIX_SIZE = 10
EVERYWHERE = bytes(PREFIX_SIZE)
"""The mark of the whole vault."""
MOST = 16
"""With more directories than this, the whole vault is marked."""

_SIZE, _TAG = 512, 32
_COUNT = struct.Struct("<H")
_ENTRY = struct.Struct(f"<{PREFIX_SIZE}sI")


class Marks:
    """The marks of one witness: directory's hash to the number of the session that changes names there.

    Raises OSError where the disk refuses.
    """

    def __init__(self, path: Path, key: bytes) -> None:
        self._key = key
        self._path = path
        fresh = not path.exists()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self.damaged = False
        """Whether what was found is not what was written: nobody knows then what was being changed."""
        self.found: dict[bytes, int] = {}
        """What earlier sessions left."""
        data = os.pread(self._fd, _SIZE, 0)
        if data:
            try:
                self.found = _decode(data, key)
            except ValueError:
                self.damaged = True
        self.now: dict[bytes, int] = {}
        """What this session marked, durably."""
        self._needed: dict[bytes, int] = {}
        self._lock = threading.Lock()
        if fresh:
            self._write({})
            fsync_path(str(path.parent))

    def _write(self, marks: dict[bytes, int], *, durably: bool = True) -> None:
        body = _COUNT.pack(len(marks)) + b"".join(_ENTRY.pack(*item) for item in marks.items())
        body = body.ljust(_SIZE - _TAG, b"\0")
        pwrite_all(self._fd, body + _tag(body, self._key), 0)
        if durably:
            os.fdatasync(self._fd)

    def add(self, prefix: bytes, number: int, batch: int) -> None:
        """Mark a directory, durably when it returns; the whole vault where there are too many already.

        The mark stays until `remove` is called with this number of a batch, or a higher one.
        """
        with self._lock:
            if prefix not in self.now and EVERYWHERE not in self.now:
                if len(self.now) >= MOST:
                    prefix = EVERYWHERE
                self._write({**self.now, prefix: number})
                self.now[prefix] = number
            for mark in (prefix, EVERYWHERE):
                if mark in self.now:
                    self._needed[mark] = batch

    def remove(self, batch: int) -> None:
        """Take away the marks that nothing later than a batch needs: what it changed is recorded durably."""
        with self._lock:
            left = {prefix: number for prefix, number in self.now.items() if self._needed[prefix] > batch}
            if left != self.now:
                # Without a sync: a mark that comes back is no harm.
                self._write(left, durably=False)
                self.now = left

    def adopted(self) -> None:
        """What was found is recorded elsewhere: begin with none."""
        if self.found or self.damaged:
            self._write({})
        self.found, self.damaged = {}, False

    def close(self) -> None:
        """Close the file; from now on everything else raises OSError."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


def read_marks(path: Path, key: bytes) -> dict[bytes, int] | None:
    """The marks in a file, beside whoever writes them; None if they are damaged."""
    try:
        with path.open("rb") as file:
            data = file.read(_SIZE)
        return _decode(data, key) if data else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        return None


def _decode(data: bytes, key: bytes) -> dict[bytes, int]:
    if len(data) != _SIZE or not hmac.compare_digest(_tag(data[:-_TAG], key), data[-_TAG:]):
        raise ValueError
    (count,) = _COUNT.unpack_from(data)
    entries = (_ENTRY.unpack_from(data, _COUNT.size + i * _ENTRY.size) for i in range(count))
    return dict(entries)


def _tag(data: bytes, key: bytes) -> bytes:
    return hashlib.blake2b(data, key=key, digest_size=_TAG).digest()

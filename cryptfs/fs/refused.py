"""Closed files that a full disk did not take all of: kept open, and given to it again.

Whoever wrote was told. But in place there may be a file without an end, which could be neither read nor
written over; and the kernel has in its cache, and shows, what the disk has not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptfs.fs.file import File

REFUSED_MAX = 64 << 20
"""Bytes of them in all; beyond, what a full disk refuses is dropped."""


class Refused:
    """The files of one mounted vault. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[bytes, File] = {}

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, file: File) -> bool:
        return file.header.object_id in self._files

    def add(self, file: File) -> None:
        """A file's last handle is gone."""
        with self._lock:
            self._files[file.header.object_id] = file

    def forget(self, object_id: bytes) -> None:
        """An object is gone, or was taken."""
        with self._lock:
            self._files.pop(object_id, None)

    def may_grow(self) -> bool:
        """Whether there is memory for more."""
        with self._lock:
            return sum(file.dirty_bytes() for file in self._files.values()) < REFUSED_MAX

    def give_again(self, hold: Callable[[File], bool], let_go: Callable[[File], None]) -> None:
        """Give them to the disk, and close those that it takes; `hold` and `let_go` are the committer's."""
        with self._lock:
            files = dict(self._files)
        for object_id, file in files.items():
            held = hold(file)
            try:
                if held:
                    file.flush()
                self.forget(object_id)  # also one that was replaced or closed meanwhile
            except OSError:
                pass  # another time
            finally:
                if held:
                    let_go(file)

"""What a full disk refused: how much of it is kept, and how closed files are given to it again.

Whoever wrote was told. But in place there may be a file without an end, which could be neither read nor
written over; and the kernel has in its cache, and shows, what the disk has not.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptfs.fs.file import File

KEPT_MAX = 4 << 20
"""Bytes of one file that a full disk refused, kept to be given to it again."""
REFUSED_MAX = 64 << 20
"""Bytes of all files; beyond either, what a full disk refuses is dropped."""


class Refused:
    """The files of one mounted vault. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[bytes, File] = {}
        self._keeping: weakref.WeakSet[File] = weakref.WeakSet()

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

    def keeps(self, file: File) -> bool:
        """Whether there is memory for what the disk refused of this file, which is then counted."""
        size = file.dirty_bytes()
        with self._lock:
            others = {*self._files.values(), *self._keeping} - {file}
            kept = {other: other.dirty_bytes() for other in others}
            self._keeping = weakref.WeakSet(other for other, left in kept.items() if left)
            if size > KEPT_MAX or sum(kept.values()) + size > REFUSED_MAX:
                return False
            self._keeping.add(file)
            return True

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

"""A batch of copies on its way to the disk and back: synced, read, compared (fs.renewing).

All this is done by a thread of its own while the next batch is copied. It changes no name and no content, so
of all that a power cut may meet it has only the sync, which comes at any time between the last write to
the batch and the moment when somebody has waited for it: nothing of the batch is put in place before that.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from cryptfs.fs.recopying import Copy, Room
from cryptfs.fs.throttle import Throttle
from cryptfs.vault.diskio import syncfs


class Proof:
    """Of one batch. `start` may be left out: then `wait` does the work."""

    def __init__(
        self, folder: int, batch: list[Copy], replaced: list[int], former: list[bytes], room: Room
    ) -> None:
        """`folder` is an open directory of the file system on which the copies are.

        `replaced` are the open descriptors of files in whose place others stand: they are closed, which
        frees their blocks. `former` are object ids whose attributes are of no use once this has ended.
        """
        self.batch = batch
        self.former = former
        self._folder = folder
        self._replaced = replaced
        self._room = room
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, throttle: Throttle) -> None:
        """Begin, in a thread of its own."""
        self._thread = threading.Thread(
            target=self._run, args=(throttle,), name="cryptfs-reencrypt-proof", daemon=True
        )
        self._thread.start()

    def wait(self, throttle: Throttle) -> None:
        """Returns when the batch is durable and was read back. OSError, CopyDiffers, Stopped."""
        with throttle.waiting():
            if self._thread is None:
                self._run(throttle)
            else:
                self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self, throttle: Throttle) -> None:
        try:
            with throttle.companion() as pause:
                self._prove(pause)
        except BaseException as error:  # it is for whoever waits
            self._error = error

    def _prove(self, pause: Callable[[], None]) -> None:
        close_all(self._replaced)
        if len(self.batch) == 1 and not self.former:
            os.fsync(self.batch[0].fd)
        else:
            syncfs(self._folder)
        for copy in self.batch:
            copy.leave_cache()
        for copy in self.batch:
            copy.verify(room=self._room, pause=pause)


def close_all(descriptors: list[int]) -> None:
    """Close them, and empty the list."""
    while descriptors:
        os.close(descriptors.pop())

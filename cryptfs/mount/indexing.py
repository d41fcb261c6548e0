"""The control command "index": what `cryptfs index` asks of a mount."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from cryptfs.errors import CryptfsError
from cryptfs.fs import FileSystem, upkeep

if TYPE_CHECKING:
    from cryptfs.mount.backend import Filesystem
    from cryptfs.mount.control import Request

JOBS = {"rebuild": upkeep.rebuild, "verify": upkeep.verify}


class IndexCommand:
    """Status, and one long job at a time, beside the requests."""

    def __init__(self, fs: Filesystem) -> None:
        self._fs = fs
        self._job = ""
        self._done = 0

    async def command(self, request: Request) -> dict[str, Any]:
        """`action` is status, drop, or one of JOBS. Raises CryptfsError where there is no index."""
        fs = self._fs
        if not isinstance(fs, FileSystem):
            raise CryptfsError("This mount has no metadata index.")
        if request.action == "status":
            return fs.knowledge.numbers() | {"job": self._job, "job_entries": self._done}
        if request.action == "drop":
            with upkeep.index_of(fs).lock:
                upkeep.index_of(fs).forget_everything()
            return {}
        job = JOBS.get(request.action)
        if job is None:
            raise CryptfsError("The daemon does not know this request: is it of another version?")
        if self._job:
            raise CryptfsError(f"The index is busy: a {self._job} is going on.")
        self._job, self._done = request.action, 0
        try:
            outcome = await trio.to_thread.run_sync(partial(job, fs, self._progress))
        finally:
            self._job = ""
        return outcome.as_json()

    def _progress(self, done: int) -> None:
        self._done = done

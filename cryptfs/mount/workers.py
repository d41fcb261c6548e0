"""Running what may take long in threads, beside the event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import trio

from cryptfs.mount.poll import Baton

P = ParamSpec("P")
T = TypeVar("T")

# The kernel keeps at most 12 requests in the background (read-ahead, write-back); the rest of the
# threads is for callers that wait for an fsync.
MAX_THREADS = 24


class Workers:
    """Worker threads for blocking filesystem calls.

    While a task waits for its thread, another one takes over waiting for FUSE requests.
    """

    def __init__(self, baton: Baton) -> None:
        self._baton = baton
        self._limiter = trio.CapacityLimiter(MAX_THREADS)

    async def run(self, call: Callable[..., T], *args: object) -> T:
        """Returns `call(*args)` from a thread, or raises what it raises. A cancellation waits for it."""
        self._baton.busy_workers += 1
        self._baton.pass_on()
        try:
            return await trio.to_thread.run_sync(call, *args, limiter=self._limiter)
        finally:
            self._baton.busy_workers -= 1

"""Where a request is served: in the event loop, or in a worker thread beside it.

The way to a thread and back takes 50 to 100 microseconds, as much as deriving a key and decrypting a
64 KiB chunk. It pays

* for what may wait for the disk by its nature (fsync): always, but where there is no disk (tmpfs);
* for what lately did wait for the disk (`Pace`): then other callers are served meanwhile;

It does not pay for large requests as such, though encryption and system calls run without the interpreter's
lock: on 2 processors one of them belongs to the program that reads or writes. Measured there, writing 400
MiB in sequence: 850 to 950 MB/s in the event loop, 530 to 750 MB/s in threads; reading files of 526 KB:
0.44 ms each in the event loop, 1.27 ms in threads.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import TypeVar

import trio

from cryptfs.mount.poll import SessionTrio

T = TypeVar("T")

# The kernel keeps at most 12 requests in the background (read-ahead, write-back); the rest of the
# threads is for callers that wait for an fsync.
MAX_THREADS = 24
# A request that takes longer than this, and than its bytes cost, was waiting for the disk.
SLOW_SECONDS = 1e-3
SECONDS_PER_BYTE = 2e-9
INSTANT_SECONDS = 100e-6


class Pace:
    """How long one kind of request took lately, beyond what its bytes cost."""

    __slots__ = ("_average",)

    def __init__(self, assumed: float = 0.0) -> None:
        self._average = assumed

    def note(self, seconds: float, size: int = 0) -> None:
        self._average += (seconds - size * SECONDS_PER_BYTE - self._average) / 8

    @property
    def is_slow(self) -> bool:
        return self._average > SLOW_SECONDS

    @property
    def is_instant(self) -> bool:
        """Whether it takes less time than the way to a thread and back."""
        return self._average < INSTANT_SECONDS


class Workers:
    """Worker threads for blocking filesystem calls.

    While a task waits for its thread, another one takes over waiting for FUSE requests.
    """

    def __init__(self, session: SessionTrio) -> None:
        self._baton = session.baton
        self._limiter = trio.CapacityLimiter(MAX_THREADS)

    async def run(self, call: Callable[..., T], *args: object, pace: Pace | None = None, size: int = 0) -> T:
        """Returns `call(*args)` from a thread, or raises what it raises. A cancellation waits for it."""
        self._baton.busy_workers += 1
        self._baton.pass_on()
        try:
            if pace is None:
                return await trio.to_thread.run_sync(call, *args, limiter=self._limiter)
            return await trio.to_thread.run_sync(_timed, pace, size, call, args, limiter=self._limiter)
        finally:
            self._baton.busy_workers -= 1


def _timed(pace: Pace, size: int, call: Callable[..., T], args: tuple[object, ...]) -> T:
    started = perf_counter()
    result = call(*args)
    pace.note(perf_counter() - started, size)
    return result

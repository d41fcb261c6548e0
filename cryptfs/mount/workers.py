"""Where a request is served: in the event loop, or in a worker thread beside it.

The way to a thread and back takes 50 to 100 microseconds, as much as deriving a key and decrypting a
64 KiB chunk. It pays

* for what waits for the disk by its nature (fsync), unless that takes no time (tmpfs) or nobody else is
  there to be served meanwhile (`Syncs`);
* for what lately did wait for the disk (`Pace`): then other callers are served meanwhile. What only had to
  share the processor with other programs is no faster in a thread;

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
# What a caller may have to wait at most because the event loop itself syncs for another one.
BRIEF_SECONDS = 3e-3
# So many syncs go to threads after one in the event loop that kept another request waiting.
COMPANY = 64


class Pace:
    """How long one kind of request took lately, beyond what its bytes cost.

    `has_waited` tells whether the event loop's thread waited for anything lately (`PollingWait.has_waited`).
    """

    __slots__ = ("_average", "_has_waited")

    def __init__(self, has_waited: Callable[[], bool] = lambda: True, assumed: float = 0.0) -> None:
        self._average = assumed
        self._has_waited = has_waited

    def note(self, seconds: float, size: int = 0) -> None:
        """One was served in the event loop."""
        seconds -= size * SECONDS_PER_BYTE
        if seconds < SLOW_SECONDS or self._has_waited():
            self._average += (seconds - self._average) / 8

    def note_in_thread(self, seconds: float, size: int = 0) -> None:
        """One was served in a thread."""
        self._average += (seconds - size * SECONDS_PER_BYTE - self._average) / 8

    @property
    def is_slow(self) -> bool:
        return self._average > SLOW_SECONDS

    @property
    def is_instant(self) -> bool:
        """Whether it takes less time than the way to a thread and back."""
        return self._average < INSTANT_SECONDS


class Syncs(Pace):
    """How long syncs take, and whether anybody else would have to wait for one in the event loop.

    A program that syncs after each image or transaction is mostly alone with its mount, and the way to
    a thread and back costs it as much as the sync on a fast disk. So syncs stay in the event loop while
    they are brief, until one of them ends with another request waiting. Forgets do not count: nobody waits
    for one, and a database that removes its journal after each transaction brings one each time.
    """

    __slots__ = ("_company", "_somebody_waited")

    def __init__(self) -> None:
        # Nothing is known yet: the first ones go to threads and are measured there.
        super().__init__(assumed=2 * BRIEF_SECONDS)
        self._company = 0
        self._somebody_waited = False

    def may_stay(self) -> bool:
        """Whether the next sync should be done in the event loop."""
        if self.is_instant:
            return True
        if self._somebody_waited:
            self._somebody_waited = False
            self._company = COMPANY
        if self._company:
            self._company -= 1
            return False
        return self._average < BRIEF_SECONDS

    def stayed(self, seconds: float, *, somebody_waits: bool) -> None:
        """One was done in the event loop, after which another request was waiting, or none."""
        self.note(seconds)
        self._somebody_waited = somebody_waits and not self.is_instant

    def it_was_a_forget(self) -> None:
        """What was waiting after the last sync, if anything was, is a request that has no answer."""
        self._somebody_waited = False


class Workers:
    """Worker threads for blocking filesystem calls.

    While a task waits for its thread, another one takes over waiting for FUSE requests.
    """

    def __init__(self, session: SessionTrio) -> None:
        self.somebody_waits = session.somebody_waits
        self.has_waited = session.has_waited
        self._baton = session.baton
        self._limiter = trio.CapacityLimiter(MAX_THREADS)

    def pass_on(self) -> None:
        """Before a task waits for something else than a thread: another one waits for requests now."""
        self._baton.pass_on()

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
    pace.note_in_thread(perf_counter() - started, size)
    return result

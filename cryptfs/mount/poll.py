"""Waiting for the next FUSE request without falling asleep between two of them.

A FUSE request costs little work and two wake-ups. The dear one is ours: a processor that went idle
takes tens of microseconds to come back, more than a lookup takes to answer. A program that works
through an archive sends its next request within a few microseconds of the last answer, so this module
looks at the descriptor for up to `SPIN_SECONDS` before it lets the process sleep. Measured on a 2-core
virtual machine, a request that does nothing went from 171 to 50 microseconds. The first `NAP_SECONDS` of
sleep are a single poll(2), without the scheduler's preparations for sleep, which cost as much processor time
as a request: a database or a network client pauses that long between two requests.

pyfuse3 waits through three names of its module global `trio`; `install()` replaces that global with a
stand-in which supplies them and passes everything else on:

* `lowlevel.wait_readable`: the polling wait;
* `Lock`: `Baton`. One task at a time, the leader, waits for requests. pyfuse3 takes this lock around
  each wait; a trio lock would hand every request to another task, by way of the scheduler. The baton
  stays with its task, without a pass through the scheduler, until that task has to wait for something
  else and calls `pass_on()`;
* `open_nursery`: passes the baton on when a task ends, so that it is never lost.

Bounds on the processor time this takes: after a request at most `SPIN_SECONDS` are spun, and none once
spinning has kept failing (`_score`), none while a worker thread is busy (it needs the processor, and
will have to wake the loop), none on a machine with one processor. The scheduler gets its turn every
`TURN_SECONDS`, for signals, the control socket and tasks that became ready.
"""

from __future__ import annotations

import os
import resource
import select
from collections import deque
from collections.abc import Awaitable, Callable
from time import perf_counter
from types import TracebackType
from typing import Any, cast

import pyfuse3
import trio

SPIN_SECONDS = 50e-6
TURN_SECONDS = 2e-3
NAP_SECONDS = 2e-3
# A sleep this short says that the next request came while, or just after, one could have spun.
SHORT_SLEEP_SECONDS = 150e-6
BEST_SCORE = 32


def voluntary_switches() -> int:
    """How often this thread gave its processor away by itself: it slept, or waited for a disk or a lock."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


class Baton:
    """A lock for one leader among pyfuse3's session tasks; see the module's text.

    All methods are for the event loop's thread. `async with` does not pass a trio checkpoint when the
    baton is free.
    """

    def __init__(self) -> None:
        self._held = False
        self._followers: deque[trio.lowlevel.Task] = deque()
        self.busy_workers = 0

    async def __aenter__(self) -> None:
        while self._held:
            task = trio.lowlevel.current_task()
            self._followers.append(task)

            def abort(_raise_cancel: object, task: trio.lowlevel.Task = task) -> trio.lowlevel.Abort:
                self._followers.remove(task)
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
        self._held = True

    async def __aexit__(self, *_exc: object) -> None:
        self._held = False

    def pass_on(self) -> None:
        """Let another task lead: the caller is about to wait, or to end."""
        if not self._held and self._followers:
            trio.lowlevel.reschedule(self._followers.popleft())


class PollingWait:
    """`wait_readable` for one descriptor that is polled before it is slept upon.

    Raises trio.ClosedResourceError when the connection to the kernel is gone (the mount was removed),
    which ends pyfuse3's session task.
    """

    def __init__(self, baton: Baton, *, may_spin: bool | None = None) -> None:
        self._baton = baton
        self._may_spin = len(os.sched_getaffinity(0)) > 1 if may_spin is None else may_spin
        self._score = 1 if self._may_spin else 0
        self._poll = select.poll()
        self._fd = -1
        self._next_turn = 0.0
        self._switches = voluntary_switches()

    async def __call__(self, fd: int) -> None:
        if fd != self._fd:
            self._watch(fd)
        if self._baton.busy_workers:
            # A worker needs the processor now and the scheduler soon: sleep until it or a request is there.
            ready = await self._sleep(fd)
        else:
            now = perf_counter()
            if now >= self._next_turn:
                await trio.lowlevel.checkpoint()
                now = perf_counter()
                self._next_turn = now + TURN_SECONDS
            ready = self._spin(now) or self._nap() or await self._sleep(fd)
        if ready and ready[0][1] & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
            raise trio.ClosedResourceError

    def _spin(self, now: float) -> list[tuple[int, int]]:
        poll = self._poll.poll
        if self._score <= 0:
            return poll(0)
        deadline = now + SPIN_SECONDS
        while not (ready := poll(0)):
            if perf_counter() > deadline:
                self._score -= 1
                return ready
        if self._score < BEST_SCORE:
            self._score += 1
        return ready

    def _nap(self) -> list[tuple[int, int]]:
        """Sleep for a moment that nothing else in this thread minds."""
        started = perf_counter()
        ready = self._poll.poll(NAP_SECONDS * 1e3)
        self._slept(perf_counter() - started)
        return ready

    async def _sleep(self, fd: int) -> list[tuple[int, int]]:
        started = perf_counter()
        await trio.lowlevel.wait_readable(fd)
        now = perf_counter()
        self._next_turn = now + TURN_SECONDS
        self._slept(now - started)
        return self._poll.poll(0)

    def _slept(self, seconds: float) -> None:
        if self._may_spin and seconds < SHORT_SLEEP_SECONDS and self._score < BEST_SCORE:
            self._score += 2
        self._switches = voluntary_switches()

    def has_waited(self) -> bool:
        """Whether this thread waited for anything (a disk, a lock) since it last asked, or had nothing to do.

        A request that took long without that was only kept from the processor by other programs.
        """
        before, self._switches = self._switches, voluntary_switches()
        return self._switches > before

    def somebody_waits(self) -> bool:
        """Whether a request is there, unread."""
        return self._fd >= 0 and bool(self._poll.poll(0))

    def _watch(self, fd: int) -> None:
        if self._fd >= 0:
            self._poll.unregister(self._fd)
        self._poll.register(fd, select.POLLIN)
        self._fd = fd


class _SessionNursery:
    """A trio nursery whose tasks pass the baton on when they end."""

    def __init__(self, baton: Baton) -> None:
        self._baton = baton
        self._manager = trio.open_nursery()
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> _SessionNursery:
        self._nursery = await self._manager.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return await self._manager.__aexit__(kind, error, traceback)

    def start_soon(self, task: Callable[..., Awaitable[None]], *args: object, name: object = None) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(self._run, task, args, name=name)

    async def _run(self, task: Callable[..., Awaitable[None]], args: tuple[object, ...]) -> None:
        try:
            # pyfuse3 starts further tasks through the nursery that it is given back as an argument.
            await task(*args)
        finally:
            self._baton.pass_on()


class _Lowlevel:
    def __init__(self, wait_readable: PollingWait) -> None:
        self.wait_readable = wait_readable

    def __getattr__(self, name: str) -> object:
        return getattr(trio.lowlevel, name)


class SessionTrio:
    """What pyfuse3 sees instead of the trio module."""

    def __init__(self, *, may_spin: bool | None = None) -> None:
        self.baton = Baton()
        self.wait = PollingWait(self.baton, may_spin=may_spin)
        self.lowlevel = _Lowlevel(self.wait)
        self.somebody_waits = self.wait.somebody_waits
        self.has_waited = self.wait.has_waited

    def Lock(self) -> Baton:
        return self.baton

    def open_nursery(self) -> _SessionNursery:
        return _SessionNursery(self.baton)

    def __getattr__(self, name: str) -> object:
        return getattr(trio, name)


def install() -> SessionTrio:
    """Make pyfuse3 wait through this module; what was installed is for `Workers`."""
    stand_in = SessionTrio()
    cast(Any, pyfuse3).trio = stand_in
    return stand_in

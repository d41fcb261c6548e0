"""How a long job gives way to the requests of a mount, is limited, told to stop, and watched."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from cryptfs.fs.gate import Gate

SLICE_SECONDS = 0.002
"""A job holds locks and the interpreter for no longer than about this at a time."""
BUSY_SLICE_SECONDS = 0.0005
"""The same while requests come: none of them waits longer for a lock that the job holds."""
QUIET_SECONDS = 0.05
"""So long after the last request a job still gives way."""
SHARE = 8
"""While requests come, a job works one part of its time in so many."""
LATE_SHARE = 2
"""The same once it has met more objects than there were: images may come faster than it would go on."""
_WINDOW_SECONDS = 10.0
_FROZEN_SECONDS = 0.1


class Stopped(Exception):
    """The job was told to stop."""


@dataclass
class Progress:
    """Where a job is; `done` and `total` count objects. Times in seconds, of the monotonic clock."""

    phase: str = "starting"
    done: int = 0
    total: int = 0
    changed: int = 0
    damaged: int = 0
    bytes_done: int = 0
    bytes_total: int = 0

    def begin(self, phase: str) -> None:
        """The next time over the tree, which has as many objects as were found by now."""
        self.phase = phase
        self.total, self.bytes_total = max(self.total, self.done), max(self.bytes_total, self.bytes_done)
        self.done = self.bytes_done = 0

    @property
    def is_late(self) -> bool:
        """Whether more was made since the job began than it has got through."""
        return 0 < self.total < self.done

    def snapshot(self) -> dict[str, Any]:
        return dict(vars(self))


class Throttle:
    """One job's pace. `pause` is for the job's thread, everything else for any other.

    `limit` is in objects a second, 0 for none. `activity` counts the requests of the mount: while it
    grows, the job works an eighth of the time at most, or half of it when its `progress` is late.
    """

    def __init__(self, limit: float = 0.0, activity: Callable[[], int] | None = None) -> None:
        self.limit = limit
        self.progress = Progress()
        self._gate: Gate | None = None
        self._passed: AbstractContextManager[bool] | None = None
        self._activity = activity
        self._stop = threading.Event()
        self._go = threading.Event()
        self._go.set()
        self._seen = activity() if activity else 0
        self._busy_until = 0.0
        self._slice = self._begun = time.monotonic()
        self._counted = 0
        self._before = (self._begun, 0)
        self._workers = 1
        self._counting = threading.Lock()

    def stop(self) -> None:
        """Have the job end at its next pause."""
        self._stop.set()
        self._go.set()

    def hold(self) -> None:
        """Have the job wait at its next pause, until `go`."""
        self._go.clear()

    def go(self) -> None:
        self._go.set()

    @property
    def held(self) -> bool:
        return not self._go.is_set()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def count(self, number: int = 1) -> None:
        """So many objects more were done: for the limit."""
        self._counted += number

    @property
    def slice_is_over(self) -> bool:
        """Whether it is time to let go of locks and call `pause`."""
        return self._is_over(self._slice)

    def _is_over(self, begun: float) -> bool:
        now = time.monotonic()
        return now - begun > (BUSY_SLICE_SECONDS if now < self._busy_until else SLICE_SECONDS)

    @contextmanager
    def working(self, gate: Gate) -> Iterator[None]:
        """Around all of a job's work: between its pauses the vault is not frozen."""
        self._gate = gate
        try:
            self._enter()
            yield
        finally:
            self._leave()
            self._gate = None

    def _enter(self) -> None:
        while self._gate is not None and self._passed is None:
            attempt = self._gate.try_change()
            if attempt.__enter__():
                self._passed = attempt
                return
            attempt.__exit__(None, None, None)
            if self._stop.wait(_FROZEN_SECONDS):
                raise Stopped

    def _leave(self) -> None:
        if self._passed is not None:
            self._passed.__exit__(None, None, None)
            self._passed = None

    def pause(self) -> None:
        """Between two slices of work, with no lock held. Stopped if the job is to end."""
        self._leave()
        self._rest(self._slice, self.limit)
        self._enter()
        self._slice = time.monotonic()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While the job's thread only waits, for a companion or a disk: the vault may be frozen meanwhile."""
        self._leave()
        with self._with_workers(-1):
            yield
        self._enter()
        self._slice = time.monotonic()

    @contextmanager
    def clearing_up(self) -> Iterator[bool]:
        """Around what a job that ends early takes away: False, and nothing may be changed, while frozen."""
        if self._gate is None or self._passed is not None:
            yield True
        else:
            with self._gate.try_change() as may_change:
                yield may_change

    @contextmanager
    def companion(self) -> Iterator[Callable[[], None]]:
        """For one more thread of the job, which changes nothing in the vault: its `check`.

        It gives way as the job's own thread does, and both together take no more than one would.
        """
        begun = time.monotonic()

        def check() -> None:
            nonlocal begun
            if self._is_over(begun):
                self._rest(begun, 0.0)
                begun = time.monotonic()

        with self._with_workers(1):
            yield check

    @contextmanager
    def _with_workers(self, more: int) -> Iterator[None]:
        with self._counting:
            self._workers += more
        try:
            yield
        finally:
            with self._counting:
                self._workers -= more

    def _rest(self, since: float, limit: float) -> None:
        """Give way for work since a time; Stopped."""
        now = time.monotonic()
        worked = now - since
        if self._activity is not None:
            seen = self._activity()
            if seen != self._seen:
                self._seen, self._busy_until = seen, now + QUIET_SECONDS
        share = (LATE_SHARE if self.progress.is_late else SHARE) * self._workers
        wait = worked * (share - 1) if now < self._busy_until else 0.0
        if limit > 0:
            begun, counted = self._before
            wait = max(wait, begun + (self._counted - counted) / limit - now)
            if now - begun > _WINDOW_SECONDS:  # what was not used long ago is not made up for
                self._before = (now, self._counted)
        if wait > 0:
            self._stop.wait(wait)
        else:
            time.sleep(0)  # whoever waits for the interpreter gets it
        if not self._go.is_set():
            self._go.wait()
        if self._stop.is_set():
            raise Stopped

    def check(self) -> None:
        """`pause`, if the slice is over."""
        if self.slice_is_over:
            self.pause()

"""A bound on how many bytes a second are read, for all threads together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Throttle:
    """Lets `take` through at `rate` bytes a second on the average; None is without bound."""

    def __init__(
        self,
        rate: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at = clock()

    def take(self, size: int) -> None:
        """Account for `size` bytes that were read; waits until the next may be."""
        if self._rate is None:
            return
        with self._lock:
            now = self._clock()
            # What was not used up to now is lost: no burst after a pause.
            self._free_at = max(self._free_at, now) + size / self._rate
            wait = self._free_at - now
        if wait > 0:
            self._sleep(wait)

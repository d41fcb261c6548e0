"""Waiting for what is certain to come, and for the next tick of a file system's clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

HANG = 300.0
"""Seconds after which nobody waits any more. It bounds a hang; nothing is expected to take so long."""


def wait_until(condition: Callable[[], object], what: str = "it is so", seconds: float = HANG) -> None:
    """Returns as soon as the condition holds; AssertionError naming `what` if it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain until {what}"
        time.sleep(0.02)


def wait_for_another_time(folder: Path) -> None:
    """Until what is changed from now on has another change time than what was changed before.

    Where a file system's clock has ticks of some milliseconds, two changes may have the same time.
    """
    probe = folder / "probe of the clock"
    probe.write_bytes(b"")
    begun = probe.stat().st_ctime_ns
    while probe.stat().st_ctime_ns <= begun:
        time.sleep(0.001)
        probe.write_bytes(b"x")
    probe.unlink()

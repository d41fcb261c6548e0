"""The bound on bytes a second."""

from __future__ import annotations

from cryptfs.check.throttle import Throttle


class Clock:
    """Time that passes only while somebody sleeps, or when it is said to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_the_average_is_kept_and_nothing_is_saved_up() -> None:
    clock = Clock()
    throttle = Throttle(1000.0, clock, clock.sleep)
    for _ in range(50):
        throttle.take(300)
    assert abs(clock.now - 100 - 15) < 1e-6
    clock.now += 3600
    begin = clock.now
    throttle.take(1000)
    throttle.take(1000)
    assert abs(clock.now - begin - 2) < 1e-6


def test_without_a_bound_nobody_waits() -> None:
    clock = Clock()
    Throttle(None, clock, clock.sleep).take(1 << 40)
    assert clock.now == 100.0

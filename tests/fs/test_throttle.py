"""How a long job shares the time with requests, and what it tells of its progress, on a clock of its own."""

from __future__ import annotations

import itertools

import pytest

from cryptfs.fs import jobs, throttle
from cryptfs.fs.gate import Gate
from cryptfs.fs.jobs import Job
from cryptfs.fs.throttle import Progress, Stopped, Throttle


class Clock:
    """Stands for the module `time` and for an event that is waited for in vain."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waited: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, _seconds: float) -> None:
        self.waited.append(0.0)

    def wait(self, seconds: float) -> bool:
        self.waited.append(seconds)
        self.now += seconds
        return False

    def is_set(self) -> bool:
        return False


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throttle, "time", clock)
    monkeypatch.setattr(jobs, "time", clock)
    return clock


def work(paced: Throttle, clock: Clock, seconds: float) -> float:
    """How long it rests after so many seconds of work."""
    clock.now += seconds
    paced.pause()
    return clock.waited[-1]


@pytest.mark.parametrize(
    ("busy", "done", "rest"),
    [(True, 10, 7.0), (True, 11, 1.0), (False, 10, 0.0), (False, 11, 0.0)],
    ids=["in time", "late", "alone", "late and alone"],
)
def test_it_gives_way_while_requests_come_but_not_for_ever(
    clock: Clock, busy: bool, done: int, rest: float
) -> None:
    requests = itertools.count()
    paced = Throttle(activity=lambda: next(requests) if busy else 0)
    paced._stop = clock  # type: ignore[assignment]
    paced.progress = Progress(total=10, done=done)
    work(paced, clock, 0.001)
    assert work(paced, clock, 0.001) == pytest.approx(rest * 0.001)


def test_two_threads_of_a_job_take_together_what_one_would(clock: Clock) -> None:
    requests = itertools.count()
    paced = Throttle(activity=lambda: next(requests))
    paced._stop = clock  # type: ignore[assignment]
    with paced.companion() as check:
        check()
        assert not clock.waited, "a companion rests when its slice is over"
        work(paced, clock, 0.001)
        assert work(paced, clock, 0.001) == pytest.approx(0.015)
        check()  # on this clock it worked while the other thread rested
        clock.now += 0.003
        check()
        assert clock.waited[-1] == pytest.approx(0.003 * 15)
        with paced.waiting():
            clock.now += 0.003
            check()
            assert clock.waited[-1] == pytest.approx(0.003 * 7)
    assert work(paced, clock, 0.001) == pytest.approx(0.007)


def test_a_companion_is_stopped_with_its_job(clock: Clock) -> None:
    paced = Throttle()
    with paced.companion() as check:
        clock.now += 1
        check()
        paced.stop()
        check()
        clock.now += 1
        with pytest.raises(Stopped):
            check()


def test_a_job_that_waits_for_its_companion_can_be_frozen() -> None:
    gate, paced = Gate(), Throttle()
    with paced.working(gate):
        assert gate._inside == 1
        with paced.waiting():
            gate.close()
            gate.open()
        assert gate._inside == 1
    assert gate._inside == 0


def test_a_job_is_not_late_before_it_has_counted(clock: Clock) -> None:
    requests = itertools.count()
    paced = Throttle(activity=lambda: next(requests))
    paced._stop = clock  # type: ignore[assignment]
    paced.progress = Progress(total=0, done=5)
    assert work(paced, clock, 0.001) == pytest.approx(0.007)


def test_the_next_time_over_a_tree_expects_what_the_last_one_found() -> None:
    progress = Progress(total=10, done=25, bytes_total=100, bytes_done=90)
    progress.begin("checking")
    assert (progress.phase, progress.done, progress.total) == ("checking", 0, 25)
    assert (progress.bytes_done, progress.bytes_total) == (0, 100)
    assert not progress.is_late


def test_a_rate_is_of_one_time_over_the_tree(clock: Clock) -> None:
    progress = Progress("rewrapping", total=100)
    job = Job("rewrap", dict, progress, Throttle())
    job.snapshot()
    for done, rate in ((50, 50.0), (90, 45.0)):
        clock.now += 1
        progress.done = done
        assert job.snapshot()["rate"] == rate
    progress.begin("rewrapping")
    clock.now += 1
    assert job.snapshot()["rate"] == 0.0
    clock.now += 2
    progress.done = 40
    found = job.snapshot()
    assert (found["rate"], found["seconds_left"]) == (20.0, 3)

"""The polling wait and the baton, on a pipe in place of the FUSE descriptor."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from cryptfs.mount import poll
from cryptfs.mount.poll import Baton, PollingWait, SessionTrio
from tests.waiting import HANG


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:
            pass


def score(wait: PollingWait) -> int:
    return wait._score


def test_returns_at_once_when_a_request_is_there(pipe: tuple[int, int]) -> None:
    async def main() -> None:
        wait = PollingWait(Baton(), may_spin=True)
        os.write(pipe[1], b"x")
        with trio.fail_after(HANG):
            await wait(pipe[0])

    trio.run(main)


@pytest.mark.parametrize("may_spin", [True, False])
def test_sleeps_until_a_request_comes(pipe: tuple[int, int], may_spin: bool) -> None:
    async def main() -> None:
        wait = PollingWait(Baton(), may_spin=may_spin)
        came = []

        async def waiter() -> None:
            await wait(pipe[0])
            came.append("request")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiter)
            await trio.testing.wait_all_tasks_blocked()
            assert came == []
            os.write(pipe[1], b"x")
        assert came == ["request"]

    trio.run(main)


def test_other_tasks_get_their_turn_while_requests_keep_coming(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        wait = PollingWait(Baton(), may_spin=True)
        os.write(pipe[1], b"x")
        turns = 0
        ended = False

        async def other() -> None:
            nonlocal turns
            while not ended:
                turns += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            while turns < 10:
                await wait(pipe[0])
            ended = True

    with_limit(main)


def with_limit(main: object) -> None:
    async def limited() -> None:
        with trio.fail_after(HANG):
            await main()  # type: ignore[operator]

    trio.run(limited)


def test_spinning_in_vain_stops_and_quick_requests_start_it_again(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poll, "SHORT_SLEEP_SECONDS", 1000.0)

    async def main() -> None:
        wait = PollingWait(Baton(), may_spin=True)

        async def request_after_a_sleep() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, pipe[0])
                await trio.testing.wait_all_tasks_blocked()
                os.write(pipe[1], b"x")
            os.read(pipe[0], 1)

        await request_after_a_sleep()
        encouraged = score(wait)
        assert encouraged > 0
        monkeypatch.setattr(poll, "SHORT_SLEEP_SECONDS", 0.0)
        for _ in range(encouraged + 3):
            await request_after_a_sleep()
        assert score(wait) == 0
        monkeypatch.setattr(poll, "SHORT_SLEEP_SECONDS", 1000.0)
        await request_after_a_sleep()
        assert score(wait) > 0

    with_limit(main)


def test_success_of_spinning_is_remembered_to_a_bound(pipe: tuple[int, int]) -> None:
    async def main() -> None:
        wait = PollingWait(Baton(), may_spin=True)
        os.write(pipe[1], b"x")
        for _ in range(3 * poll.BEST_SCORE):
            await wait(pipe[0])
        assert score(wait) == poll.BEST_SCORE

    with_limit(main)


def test_never_spins_where_it_may_not(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poll, "SHORT_SLEEP_SECONDS", 1000.0)

    async def main() -> None:
        wait = PollingWait(Baton(), may_spin=False)
        for _ in range(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, pipe[0])
                await trio.testing.wait_all_tasks_blocked()
                os.write(pipe[1], b"x")
            os.read(pipe[0], 1)
        assert score(wait) == 0

    with_limit(main)


def test_a_short_pause_is_slept_without_the_scheduler(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        wait = PollingWait(Baton(), may_spin=False)
        os.write(pipe[1], b"x")
        await wait(pipe[0])
        os.read(pipe[0], 1)
        monkeypatch.setattr(poll, "NAP_SECONDS", 60.0)
        monkeypatch.setattr(wait, "_sleep", None)  # would be a TypeError
        writer = threading.Thread(target=os.write, args=(pipe[1], b"x"))
        writer.start()
        await wait(pipe[0])
        writer.join()

    with_limit(main)


def test_waiting_for_something_is_told_from_using_the_processor(pipe: tuple[int, int]) -> None:
    wait = PollingWait(Baton(), may_spin=False)

    def waited_while_computing() -> bool:
        wait.has_waited()
        until = time.thread_time() + 1e-3
        while time.thread_time() < until:
            pass
        return wait.has_waited()

    # Something else in this process may always be in the way, once or twice.
    assert not all(waited_while_computing() for _ in range(100))
    wait.has_waited()
    time.sleep(1e-3)
    assert wait.has_waited()


def test_a_closed_connection_ends_the_wait(pipe: tuple[int, int]) -> None:
    async def main() -> None:
        wait = PollingWait(Baton(), may_spin=True)
        os.close(pipe[1])
        with pytest.raises(trio.ClosedResourceError):
            await wait(pipe[0])

    with_limit(main)


def test_notify_closing_ends_a_sleep(pipe: tuple[int, int]) -> None:
    async def main() -> None:
        stand_in = SessionTrio(may_spin=True)
        ended = []

        async def waiter() -> None:
            try:
                await stand_in.lowlevel.wait_readable(pipe[0])
            except trio.ClosedResourceError:
                ended.append(True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiter)
            await trio.testing.wait_all_tasks_blocked()
            trio.lowlevel.notify_closing(pipe[0])
        assert ended == [True]

    with_limit(main)


def test_the_leader_keeps_the_baton_until_it_passes_it_on() -> None:
    async def main() -> None:
        baton = Baton()
        led: list[str] = []

        async def follower() -> None:
            async with baton:
                led.append("follower")

        async with trio.open_nursery() as nursery:
            async with baton:
                nursery.start_soon(follower)
                await trio.testing.wait_all_tasks_blocked()
            for _ in range(3):
                async with baton:
                    led.append("leader")
            await trio.testing.wait_all_tasks_blocked()
            assert led == ["leader"] * 3
            baton.pass_on()
        assert led == ["leader"] * 3 + ["follower"]

    with_limit(main)


def test_passing_on_a_held_baton_disturbs_nobody() -> None:
    async def main() -> None:
        baton = Baton()
        led: list[str] = []

        async def follower() -> None:
            async with baton:
                led.append("follower")

        async with trio.open_nursery() as nursery:
            async with baton:
                nursery.start_soon(follower)
                await trio.testing.wait_all_tasks_blocked()
                baton.pass_on()
                await trio.testing.wait_all_tasks_blocked()
                assert led == []
            baton.pass_on()
        assert led == ["follower"]

    with_limit(main)


def test_a_cancelled_follower_leaves_the_queue() -> None:
    async def main() -> None:
        baton = Baton()
        led: list[str] = []

        async def follower(name: str) -> None:
            async with baton:
                led.append(name)

        async with trio.open_nursery() as nursery:
            async with baton:
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as cancelled:
                        cancelled.start_soon(follower, "cancelled")
                        await trio.testing.wait_all_tasks_blocked()
                        scope.cancel()
                nursery.start_soon(follower, "patient")
                await trio.testing.wait_all_tasks_blocked()
            baton.pass_on()
        assert led == ["patient"]

    with_limit(main)


def test_a_task_that_ends_passes_the_baton_on() -> None:
    async def main() -> None:
        stand_in = SessionTrio(may_spin=False)
        led: list[int] = []

        async def lead(number: int) -> None:
            async with stand_in.Lock():
                led.append(number)
                await trio.testing.wait_all_tasks_blocked()

        async with stand_in.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(lead, number)
        assert sorted(led) == [0, 1, 2]

    with_limit(main)


def test_the_stand_in_offers_the_rest_of_trio() -> None:
    stand_in = SessionTrio(may_spin=False)
    assert stand_in.ClosedResourceError is trio.ClosedResourceError
    assert stand_in.lowlevel.current_task is trio.lowlevel.current_task  # type: ignore[attr-defined]

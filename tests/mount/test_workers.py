"""Where requests run: event loop or thread, and what a busy inode does."""

from __future__ import annotations

import errno
import os
import threading
import weakref
from pathlib import Path
from typing import Any, cast

import pyfuse3
import pytest
import trio

from cryptfs.mount import handlers, operations, workers
from cryptfs.mount.operations import Operations
from cryptfs.mount.poll import SessionTrio
from cryptfs.mount.workers import BRIEF_SECONDS, COMPANY, SLOW_SECONDS, Pace, Syncs, Workers
from tests.mount.passthrough_fs import ROOT, PassthroughFs
from tests.waiting import HANG

SIZE = 1 << 20


@pytest.fixture(autouse=True)
def nothing_takes_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long things took is what the tests say."""
    for module in (workers, operations, handlers):
        monkeypatch.setattr(module, "perf_counter", lambda: 0.0)


class Watching(PassthroughFs):
    """Notes the thread of each read and getattr, and can hold an fsync up."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.threads: list[str] = []
        self.syncing, self.go_on = threading.Event(), threading.Event()

    def note(self, what: str) -> None:
        main = threading.current_thread() is threading.main_thread()
        self.threads.append(f"{what} in {'loop' if main else 'worker'}")

    def read(self, handle: int, offset: int, size: int) -> bytes:
        self.note("read")
        return super().read(handle, offset, size)

    def getattr(self, ino: int) -> Any:  # noqa: ANN401
        self.note("getattr")
        return super().getattr(ino)

    def fsync(self, handle: int, datasync: bool) -> None:
        self.note("fsync")
        self.syncing.set()
        assert self.go_on.wait(HANG)


class Setup:
    def __init__(self, folder: Path) -> None:
        (folder / "file").write_bytes(os.urandom(2 * SIZE))
        self.fs = Watching(str(folder))
        session = SessionTrio(may_spin=False)
        self.operations = cast(Any, Operations(self.fs, Workers(session)))
        self.context = cast(Any, None)

    async def open(self) -> tuple[int, int]:
        entry = await self.operations.lookup(ROOT, b"file", self.context)
        info = await self.operations.open(entry.st_ino, os.O_RDONLY, self.context)
        return entry.st_ino, info.fh


def run(main: Any) -> None:  # noqa: ANN401
    async def limited() -> None:
        with trio.fail_after(HANG):
            await main()

    trio.run(limited)


def test_a_lone_request_is_served_in_the_loop_whatever_its_size(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        _, fh = await setup.open()
        assert len(await setup.operations.read(fh, 0, SIZE)) == SIZE
        assert setup.fs.threads == ["read in loop"]

    run(main)


def test_a_request_goes_to_a_thread_while_its_kind_waits_for_the_disk(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        _, fh = await setup.open()
        for _ in range(20):
            setup.operations._read_pace.note_in_thread(5 * SLOW_SECONDS)
        await setup.operations.read(fh, 0, 1)
        for _ in range(40):
            setup.operations._read_pace.note(0.0)
        await setup.operations.read(fh, 0, 1)
        assert setup.fs.threads == ["read in worker", "read in loop"]

    run(main)


def test_a_busy_inode_is_left_to_the_workers(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        ino, fh = await setup.open()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(setup.operations.fsync, fh, False)
            await trio.to_thread.run_sync(setup.fs.syncing.wait, HANG)
            await setup.operations.getattr(ino, setup.context)
            await setup.operations.getattr(ROOT, setup.context)
            setup.fs.go_on.set()
        await setup.operations.getattr(ino, setup.context)
        assert setup.fs.threads == [
            "fsync in worker",
            "getattr in worker",
            "getattr in loop",
            "getattr in loop",
        ]
        assert setup.operations.busy == {}

    run(main)


def test_pace_forgets_a_single_slow_request_and_notices_many() -> None:
    pace = Pace()
    pace.note_in_thread(5 * SLOW_SECONDS)
    assert not pace.is_slow
    for _ in range(20):
        pace.note_in_thread(5 * SLOW_SECONDS)
    assert pace.is_slow
    for _ in range(40):
        pace.note(0.0)
    assert not pace.is_slow


def test_pace_does_not_count_what_other_programs_took() -> None:
    pace = Pace(has_waited=lambda: False)
    for _ in range(50):
        pace.note(5 * SLOW_SECONDS)
    assert not pace.is_slow
    pace = Pace(has_waited=lambda: True)
    for _ in range(50):
        pace.note(5 * SLOW_SECONDS)
    assert pace.is_slow


def test_pace_allows_for_the_bytes() -> None:
    pace = Pace()
    for _ in range(50):
        pace.note_in_thread(1.5 * SLOW_SECONDS, 1 << 20)
    assert not pace.is_slow


def test_what_waits_for_the_disk_goes_to_threads(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        _, fh = await setup.open()
        for pace in [*setup.operations.paces.values(), setup.operations._read_pace]:
            for _ in range(50):
                pace.note_in_thread(5 * SLOW_SECONDS)
        await setup.operations.read(fh, 0, 10)
        assert setup.fs.threads == ["read in worker"]

    run(main)


class Broken(PassthroughFs):
    def getattr(self, ino: int) -> Any:  # noqa: ANN401
        raise ValueError("Muster^Erika")

    def readlink(self, ino: int) -> bytes:
        raise OSError(errno.ENOSPC, "full")


def test_an_unexpected_exception_is_eio_and_one_line_without_its_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        operations = cast(Any, Operations(Broken(str(tmp_path)), Workers(SessionTrio(may_spin=False))))
        for _ in range(3):
            with pytest.raises(pyfuse3.FUSEError) as refused:
                await operations.getattr(ROOT, None)
            assert refused.value.errno == errno.EIO
        with pytest.raises(pyfuse3.FUSEError) as refused:
            await operations.readlink(ROOT, None)
        assert refused.value.errno == errno.ENOSPC

    run(main)
    assert len(caplog.records) == 1
    assert "ValueError" in caplog.text and "getattr" in caplog.text
    assert "Muster" not in caplog.text


class Full(PassthroughFs):
    """Refuses what it is given; `held` tells what of that is still in memory."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.held: list[weakref.ref[Sealed]] = []

    def write(self, handle: int, offset: int, data: bytes) -> int:
        sealed = Sealed(data)
        self.held.append(weakref.ref(sealed))
        raise OSError(errno.ENOSPC, "full")


class Sealed:
    def __init__(self, data: bytes) -> None:
        self.data = data


@pytest.mark.parametrize("busy", [False, True], ids=["in the loop", "in a worker"])
def test_what_was_refused_does_not_stay_with_the_error(tmp_path: Path, busy: bool) -> None:
    (tmp_path / "file").write_bytes(b"")
    fs = Full(str(tmp_path))

    async def main() -> None:
        operations = cast(Any, Operations(fs, Workers(SessionTrio(may_spin=False))))
        ino = (await operations.lookup(ROOT, b"file", None)).st_ino
        fh = (await operations.open(ino, os.O_RDWR, None)).fh
        if busy:
            operations.busy[ino] = 1
        with pytest.raises(pyfuse3.FUSEError) as refused:
            await operations.write(fh, 0, b"content")
        assert refused.value.errno == errno.ENOSPC
        assert [ref() for ref in fs.held] == [None]

    run(main)


async def brief_syncs(tmp_path: Path) -> tuple[Setup, int, Syncs]:
    """A mount with an open file, synced once in a worker, whose syncs were brief since."""
    setup = Setup(tmp_path)
    setup.fs.go_on.set()
    _, fh = await setup.open()
    await setup.operations.fsync(fh, False)
    syncs = setup.operations._syncs
    for _ in range(100):
        syncs.note(BRIEF_SECONDS / 2)
    return setup, fh, syncs


def test_brief_syncs_stay_in_the_loop_until_somebody_waits(tmp_path: Path) -> None:
    async def main() -> None:
        setup, fh, syncs = await brief_syncs(tmp_path)
        await setup.operations.fsync(fh, False)
        setup.operations._workers.somebody_waits = lambda: True
        await setup.operations.fsync(fh, False)
        for _ in range(100):
            syncs.note(BRIEF_SECONDS / 2)
        await setup.operations.fsync(fh, False)
        assert setup.fs.threads == ["fsync in worker", "fsync in loop", "fsync in loop", "fsync in worker"]

    run(main)


def test_a_forget_that_was_waiting_is_no_company(tmp_path: Path) -> None:
    async def main() -> None:
        setup, fh, syncs = await brief_syncs(tmp_path)
        setup.operations._workers.somebody_waits = lambda: True
        for _ in range(3):
            await setup.operations.fsync(fh, False)
            syncs.note(BRIEF_SECONDS / 2)
            await setup.operations.forget([])
        assert setup.fs.threads == ["fsync in worker", *["fsync in loop"] * 3]

    run(main)


def test_company_is_forgotten_and_long_syncs_never_stay() -> None:
    syncs = Syncs()
    assert not syncs.may_stay()
    for _ in range(100):
        syncs.note(BRIEF_SECONDS / 2)
    syncs.stayed(BRIEF_SECONDS / 2, somebody_waits=True)
    assert [syncs.may_stay() for _ in range(COMPANY + 1)] == [False] * COMPANY + [True]
    for _ in range(100):
        syncs.note(2 * BRIEF_SECONDS)
    assert not syncs.may_stay()

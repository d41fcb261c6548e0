"""Where requests run: event loop or thread, and what a busy inode does."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any, cast

import pyfuse3
import pytest
import trio

from cryptfs.mount.operations import Operations
from cryptfs.mount.poll import SessionTrio
from cryptfs.mount.workers import BRIEF_SECONDS, COMPANY, SLOW_SECONDS, Pace, Syncs, Workers
from tests.mount.passthrough_fs import ROOT, PassthroughFs

SIZE = 1 << 20


class Watching(PassthroughFs):
    """Notes the thread of each read and getattr, and can hold an fsync up."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.threads: list[str] = []
        self.go_on = threading.Event()

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
        assert self.go_on.wait(20)


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
        with trio.fail_after(20):
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
            setup.operations._read_pace.note(5 * SLOW_SECONDS)
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
            await trio.testing.wait_all_tasks_blocked()
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
    pace.note(5 * SLOW_SECONDS)
    assert not pace.is_slow
    for _ in range(20):
        pace.note(5 * SLOW_SECONDS)
    assert pace.is_slow
    for _ in range(40):
        pace.note(0.0)
    assert not pace.is_slow


def test_pace_allows_for_the_bytes() -> None:
    pace = Pace()
    for _ in range(50):
        pace.note(1.5 * SLOW_SECONDS, 1 << 20)
    assert not pace.is_slow


def test_what_waits_for_the_disk_goes_to_threads(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        _, fh = await setup.open()
        for pace in [*setup.operations.paces.values(), setup.operations._read_pace]:
            for _ in range(50):
                pace.note(5 * SLOW_SECONDS)
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


def test_brief_syncs_stay_in_the_loop_until_somebody_waits(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        setup.fs.go_on.set()
        _, fh = await setup.open()
        await setup.operations.fsync(fh, False)
        syncs = setup.operations._syncs
        for _ in range(100):
            syncs.note(BRIEF_SECONDS / 2)
        await setup.operations.fsync(fh, False)
        setup.operations._workers.somebody_waits = lambda: True
        await setup.operations.fsync(fh, False)
        for _ in range(100):
            syncs.note(BRIEF_SECONDS / 2)
        await setup.operations.fsync(fh, False)
        assert setup.fs.threads == ["fsync in worker", "fsync in loop", "fsync in loop", "fsync in worker"]

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

"""Reading tags in a process beside this one; it is started when first needed and again when it died."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from threading import Event
from typing import IO

import msgspec

from cryptfs.practice.tags import START, Kind, Reading
from cryptfs.practice.worker import FRAME, LENGTH, Outcome

log = logging.getLogger(__name__)

_ANSWER_MAX = 64 << 10
_IDLE_SECONDS = 60.0
"""After so long without a file the process is ended: it takes some 60 MiB."""


class Stopped(Exception):
    """The reading was called off."""


class Reader:
    """Asks the process. For one thread; `stop` may be set by any to call off what is under way."""

    def __init__(self, stop: Event, *, idle: bool) -> None:
        """`idle`: only when the processors have nothing else to do."""
        self._stop = stop
        self._idle = idle
        self._process: subprocess.Popen[bytes] | None = None
        self._used = 0.0

    def read(self, start: bytes, whole: bool) -> Reading:
        """As `tags.read_tags`. Stopped if called off, OSError if no process can be started."""
        fresh = self._process is None
        for _ in range(2):
            process = self._started()
            try:
                return self._exchange(process, start, whole)
            except (BrokenPipeError, EOFError, msgspec.DecodeError):
                self.close()
                if fresh:
                    break
                fresh = True  # it may have been dead for long; once more with a new one
        log.warning("the process that reads DICOM headers died of a file, which counts as damaged")
        return Reading(Kind.DAMAGED)

    def rest(self) -> None:
        """End the process if it has not been used for a while."""
        if self._process is not None and time.monotonic() - self._used > _IDLE_SECONDS:
            self.close()

    def close(self) -> None:
        """End the process; a later `read` starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            process.wait()

    def _started(self) -> subprocess.Popen[bytes]:
        self._used = time.monotonic()
        if self._process is None:
            package = Path(__file__).parents[1]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cryptfs.practice.worker", *["--idle"] * self._idle],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/", bufsize=0,
                env={"PYTHONPATH": str(package.parent), "PATH": os.defpath, "LANG": "C.UTF-8"},
            )  # fmt: skip
            assert self._process.stdin is not None
            os.set_blocking(self._process.stdin.fileno(), False)
            with contextlib.suppress(OSError):  # the beginning of a file in one piece
                fcntl.fcntl(self._process.stdin, fcntl.F_SETPIPE_SZ, 2 * START)
        return self._process

    def _exchange(self, process: subprocess.Popen[bytes], start: bytes, whole: bool) -> Reading:
        assert process.stdin is not None and process.stdout is not None
        self._send(process.stdin, FRAME.pack(len(start), whole) + start)
        size = LENGTH.unpack(self._receive(process.stdout, LENGTH.size))[0]
        if size > _ANSWER_MAX:
            raise EOFError
        answer = msgspec.msgpack.decode(self._receive(process.stdout, size), type=Outcome)
        return Reading(answer.kind, answer.tags)

    def _send(self, stream: IO[bytes], data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(stream.fileno(), view) :]
            except BlockingIOError:
                self._wait(stream, select.POLLOUT)

    def _receive(self, stream: IO[bytes], size: int) -> bytes:
        data = b""
        while len(data) < size:
            self._wait(stream, select.POLLIN)
            more = os.read(stream.fileno(), size - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def _wait(self, stream: IO[bytes], event: int) -> None:
        """Until the pipe is ready, however long a process that only gets idle time takes."""
        poll = select.poll()
        poll.register(stream, event)
        while not poll.poll(200):
            if self._stop.is_set():
                self.close()
                raise Stopped

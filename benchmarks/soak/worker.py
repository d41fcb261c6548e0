"""What all workers of the soak have in common: a folder of their own, a model of it, and how a round ends.

A worker changes only what is in its folder, so its model knows every state that the folder may be in. A
round ends when the driver says so, or when a system call fails because the mount's process was killed.
"""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class Mismatch(Exception):
    """The mount showed something that no model allows: the soak has found a defect."""


class Weather:
    """What the driver does to the mount at the moment, as the workers have to know it."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        """The round is over."""
        self.killed = False
        """The mount's process was, or is about to be, killed in this round."""
        self.full = False
        """The disk below is, or was in this round, full."""

    def clear(self) -> None:
        """A new round begins."""
        self.stop.clear()
        self.killed = self.full = False


class Worker:
    """One kind of load. Subclasses implement `step` and `check`."""

    pause = 0.01
    """Seconds between two steps: the soak is to run for long, not to be fast."""

    def __init__(self, root: Path, weather: Weather, seed: int) -> None:
        self.name = type(self).__name__.lower()
        self.folder = root / self.name
        self.weather = weather
        self.random = random.Random(f"{self.name} {seed}")
        self.steps = 0
        self.refused = 0
        """How many steps met a full disk."""
        self.failure: BaseException | None = None

    def prepare(self) -> None:
        """Make the folder, once."""
        self.folder.mkdir()

    def step(self) -> None:
        """One change, or a few that belong together. OSError passes through."""
        raise NotImplementedError

    def check(self) -> None:
        """Compare everything with the model, on a fresh mount; Mismatch if they differ.

        The model then knows exactly what is there.
        """
        raise NotImplementedError

    def refusal(self) -> None:
        """A step has met a full disk: whatever it left half done, the model must allow."""

    def run(self) -> None:
        """Steps until the round is over. What went wrong is in `failure`."""
        try:
            while not self.weather.stop.wait(self.random.random() * 2 * self.pause):
                try:
                    self.step()
                    self.steps += 1
                except OSError as error:
                    if self.weather.killed:
                        return
                    if error.errno != errno.ENOSPC or not self.weather.full:
                        raise
                    self.refused += 1
                    self._clear_up()
        except OSError as error:
            if not self.weather.killed:
                self.failure = error
        except BaseException as error:
            self.failure = error

    def _clear_up(self) -> None:
        """`refusal`, again and again until there is room for it."""
        while True:
            try:
                self.refusal()
                return
            except OSError as error:
                if error.errno != errno.ENOSPC or not self.weather.full:
                    raise
                time.sleep(self.pause)

    def expect(self, condition: bool, what: Callable[[], str] | str) -> None:
        """Mismatch with a sentence unless the condition holds."""
        if not condition:
            raise Mismatch(f"{self.name}: {what if isinstance(what, str) else what()}")


def content(seed: object, size: int) -> bytes:
    """`size` bytes that only this seed gives."""
    return random.Random(repr(seed)).randbytes(size)


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor; an error of close(2) is an error."""
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        yield descriptor
    except BaseException:
        try:
            os.close(descriptor)
        except OSError:
            pass  # the first error is the one that counts
        raise
    os.close(descriptor)


def write_all(descriptor: int, data: bytes, piece: int, offset: int | None = None) -> None:
    """Write everything, in pieces; at an offset, or where the file is."""
    for at in range(0, len(data), piece):
        part = data[at : at + piece]
        written = os.write(descriptor, part) if offset is None else os.pwrite(descriptor, part, offset + at)
        if written != len(part):
            raise OSError(errno.ENOSPC, "a short write")

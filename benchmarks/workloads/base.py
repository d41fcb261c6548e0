"""What a workload is, and the place it works in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.data import RandomData
from benchmarks.errors import BenchmarkError
from benchmarks.figures import Figure
from benchmarks.measure import Meter


@dataclass(frozen=True)
class Place:
    """A mounted system, ready to be worked on.

    `scale` multiplies the sizes and counts of the documented full workload. `verify` asks for the contents
    to be compared after writing. `make_cold` empties the caches (outside any timing).
    """

    root: Path
    data: RandomData
    meter: Meter
    scale: float
    verify: bool
    make_cold: Callable[[], None]

    def scaled(self, amount: int, at_least: int = 1) -> int:
        """`amount` of the full workload at this run's scale."""
        return max(at_least, round(amount * self.scale))

    @contextmanager
    def folder(self, name: str) -> Iterator[Path]:
        """A new folder in the mount, removed afterwards (after a failure the whole volume goes)."""
        path = self.root / name
        path.mkdir()
        yield path
        shutil.rmtree(path)

    def check(self, path: str, pieces: Iterable[memoryview]) -> None:
        """Compare a file's content; raises BenchmarkError if anything differs."""
        with Path(path).open("rb", buffering=0) as file:
            for piece in pieces:
                if read_exactly(file.fileno(), len(piece)) != piece:
                    raise BenchmarkError(f"{path} does not contain what was written to it.")
            if file.read(1):
                raise BenchmarkError(f"{path} is longer than what was written to it.")


@dataclass(frozen=True)
class Workload:
    """A function that takes samples, with the figures that it yields."""

    name: str
    figures: tuple[Figure, ...]
    run: Callable[[Place], None]

    @property
    def peak_memory(self) -> Figure:
        """The figure of the daemon's memory, which every workload yields."""
        meaning = "the daemon's largest resident size (VmHWM)"
        return Figure(f"peak-{self.name}", "MiB", meaning, higher_is_better=False)


def workload(name: str, *figures: Figure) -> Callable[[Callable[[Place], None]], Workload]:
    """Make the decorated function the workload called `name`."""
    return lambda run: Workload(name, figures, run)


def read_exactly(descriptor: int, size: int) -> bytes:
    """Read `size` bytes, or fewer at the end of the file."""
    parts = []
    while size and (part := os.read(descriptor, size)):
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def write_all(descriptor: int, piece: memoryview) -> None:
    """Write all of `piece`, in one request unless the kernel takes less."""
    written = os.write(descriptor, piece)
    while written < len(piece):
        written += os.write(descriptor, piece[written:])


def expect(what: str, found: int, wanted: int) -> None:
    """Raise BenchmarkError unless the two counts are equal."""
    if found != wanted:
        raise BenchmarkError(f"{what}: {found} instead of {wanted}.")

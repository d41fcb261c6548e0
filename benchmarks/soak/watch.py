"""The daemon's memory and open files over time, and whether they grow."""

from __future__ import annotations

import statistics
import threading
import time
from pathlib import Path
from typing import NamedTuple

PERIOD = 1.0
MEMORY_SLACK = 24.0
"""MiB by which the median may be larger at the end: what malloc and the tables of inodes breathe."""
FILES_SLACK = 64
"""The same in open files: directories in use, files with live journal records."""
SHORTEST_LIFE = 60
"""Samples; a life of fewer says nothing about growth."""


class Sample(NamedTuple):
    at: float
    life: int
    memory: float  # MiB, RssAnon: the pages of mapped files are the kernel's cache
    files: int


class Watch:
    """Samples one process after the other: each is a life."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self._pid = 0
        self._life = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._began = time.monotonic()
        self._thread.start()

    def follow(self, pid: int) -> None:
        """A new life begins."""
        self._life += 1
        self._pid = pid

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(PERIOD):
            process = Path(f"/proc/{self._pid}")
            try:
                status = (process / "status").read_text()
                files = len(list((process / "fd").iterdir()))
                memory = next(int(line.split()[1]) for line in status.splitlines() if line[:8] == "RssAnon:")
            except (OSError, StopIteration):
                continue  # killed just now
            self.samples.append(Sample(time.monotonic() - self._began, self._life, memory / 1024, files))

    def lives(self) -> list[list[Sample]]:
        """The samples of each life that was long enough."""
        found: dict[int, list[Sample]] = {}
        for sample in self.samples:
            found.setdefault(sample.life, []).append(sample)
        return [life for life in found.values() if len(life) >= SHORTEST_LIFE]

    def growth(self) -> list[str]:
        """A sentence for each long life in which memory or open files grew."""
        return [sentence for life in self.lives() for sentence in grown(life)]

    def summary(self) -> str:
        """What the longest life used."""
        life = max(self.lives(), key=len, default=self.samples)
        if not life:
            return "no samples"
        quarters = [life[len(life) * q // 4 : len(life) * (q + 1) // 4] or life for q in range(4)]
        memory = ", ".join(f"{statistics.median(s.memory for s in q):.1f}" for q in quarters)
        files = ", ".join(f"{statistics.median(s.files for s in q):.0f}" for q in quarters)
        seconds = life[-1].at - life[0].at
        return (
            f"longest life {seconds:.0f} s; medians of its quarters: {memory} MiB, {files} open files; "
            f"largest {max(s.memory for s in life):.1f} MiB, {max(s.files for s in life)} files"
        )


def grown(life: list[Sample]) -> list[str]:
    """Compares the second quarter of a life (the first is warming up) with its last."""
    early = life[len(life) // 4 : len(life) // 2]
    late = life[len(life) * 3 // 4 :]
    found = []
    before, after = (statistics.median(s.memory for s in part) for part in (early, late))
    if after > before * 1.15 + MEMORY_SLACK:
        found.append(f"memory grew from {before:.1f} to {after:.1f} MiB")
    before, after = (statistics.median(s.files for s in part) for part in (early, late))
    if after > before + FILES_SLACK:
        found.append(f"open files grew from {before:.0f} to {after:.0f}")
    return found

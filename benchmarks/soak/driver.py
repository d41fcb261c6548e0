"""The rounds of the soak: load, a fault, an end, a fresh mount, and everything compared with the models."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.soak.contents import Blocks, Database4K, Ingest, Log
from benchmarks.soak.database import Database
from benchmarks.soak.names import Move, Replace, Walk
from benchmarks.soak.vault import SoakVault
from benchmarks.soak.watch import Watch
from benchmarks.soak.worker import Mismatch, Weather, Worker

WORKERS: tuple[type[Worker], ...] = (Ingest, Blocks, Database4K, Log, Replace, Move, Database, Walk)
ROUND_SECONDS = 20, 45
FULL_SECONDS = 3, 8
_LONGEST_STEP = 120.0
"""Seconds that a worker may take to end its last step."""


class Totals(NamedTuple):
    """What a soak did."""

    seconds: float
    rounds: int
    kills: int
    fillings: int
    steps: dict[str, int]
    refused: dict[str, int]


class Driver:
    """Runs rounds for `seconds`: kills in the first half, one long life of the daemon in the second."""

    def __init__(
        self, vault: SoakVault, watch: Watch, seed: int, fill_chance: float, say: Callable[[str], None]
    ) -> None:
        self._fill_chance = fill_chance
        self._vault = vault
        self._watch = watch
        self._random = random.Random(seed)
        self._say = say
        self._weather = Weather()
        self._workers = [kind(vault.root, self._weather, seed) for kind in WORKERS]
        self._rounds = self._kills = self._fillings = 0

    def run(self, seconds: float) -> Totals:
        """Mismatch or an error of the system if the mount does not do what it should."""
        began = time.monotonic()
        self._mount()
        for worker in self._workers:
            worker.prepare()
        while (gone := time.monotonic() - began) < seconds:
            self._round(may_kill=gone < seconds / 2, left=seconds - gone)
        self._vault.unmount()
        return Totals(
            time.monotonic() - began, self._rounds, self._kills, self._fillings,
            {worker.name: worker.steps for worker in self._workers},
            {worker.name: worker.refused for worker in self._workers},
        )  # fmt: skip

    def _mount(self) -> None:
        self._vault.mount()
        self._watch.follow(self._vault.pid)

    def _round(self, *, may_kill: bool, left: float) -> None:
        self._rounds += 1
        self._weather.clear()
        threads = [threading.Thread(target=worker.run, name=worker.name) for worker in self._workers]
        for thread in threads:
            thread.start()
        seconds = min(self._random.uniform(*ROUND_SECONDS), max(left, 5.0))
        fill = self._random.random() < self._fill_chance
        end = self._random.choice(["kill", "kill", "kill", "unmount"]) if may_kill else "go on"
        killed_full = fill and end == "kill" and self._random.random() < 0.3
        self._wait(seconds)
        if fill:
            self._fillings += 1
            self._weather.full = True
            self._vault.fill()
            self._wait(self._random.uniform(*FULL_SECONDS))
            if not killed_full:
                self._vault.free()
                self._wait(self._random.uniform(*FULL_SECONDS))
        if end == "kill":
            self._kills += 1
            self._weather.killed = True
            self._vault.kill()
        self._weather.stop.set()
        for thread in threads:
            thread.join(_LONGEST_STEP)
            if thread.is_alive():
                raise Mismatch(f"{thread.name} hangs in a system call")
        self._vault.free()
        for worker in self._workers:
            if worker.failure is not None:
                raise Mismatch(f"{worker.name} failed: {worker.failure!r}") from worker.failure
        if end == "unmount":
            self._vault.unmount()
        if end != "go on":
            self._mount()
        for worker in self._workers:
            try:
                worker.check()
            except OSError as error:
                raise Mismatch(f"{worker.name} cannot read what it wrote: {error}") from error
        self._say(
            f"round {self._rounds}: {seconds:.0f} s of load{', disk full' if fill else ''}, {end}; "
            f"{sum(worker.steps for worker in self._workers)} steps so far, all as the models say"
        )

    def _wait(self, seconds: float) -> None:
        """Wait, but not for a worker that has failed."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not any(worker.failure for worker in self._workers):
            time.sleep(0.1)

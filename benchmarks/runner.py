"""Running the workloads on the systems in interleaved rounds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.data import MIB, RandomData
from benchmarks.figures import Figure, Sample
from benchmarks.measure import Meter, drop_caches, peak_memory, settle, touch_memory
from benchmarks.systems import Plain
from benchmarks.workloads import Place, Workload

MOUNT = Figure("mount", "s", "the mount command until the mount is there", higher_is_better=False)
FOOTPRINT = 3072 * MIB  # memory that a full-size workload fills: its files in the mount's cache and below


@dataclass(frozen=True)
class Plan:
    """What to run: how many rounds at what scale, and whether a cold cache includes a fresh mount."""

    workloads: list[Workload]
    rounds: int
    scale: float
    remount: bool


def figures(workloads: list[Workload]) -> list[Figure]:
    """All figures that these workloads yield, in the order of the report."""
    yielded = [figure for workload in workloads for figure in workload.figures]
    return [*yielded, MOUNT, *(workload.peak_memory for workload in workloads)]


def rotated(items: list[Plain], by: int) -> list[Plain]:
    """The items beginning with another one, so that none is always first or always after the same."""
    by %= len(items)
    return items[by:] + items[:by]


def run(plan: Plan, systems: list[Plain], say: Callable[[str], None]) -> list[Sample]:
    """Create each system's volume, then take all rounds; whatever happens, nothing stays mounted.

    In each round every workload runs on all systems, one directly after the other, each freshly mounted
    and alone: what disturbs the machine for a while disturbs all of them alike.
    """
    data = RandomData()
    samples: list[Sample] = []
    for system in systems:
        system.create()
    for round_number in range(plan.rounds):
        for position, workload in enumerate(plan.workloads):
            say(f"round {round_number + 1} of {plan.rounds}: {workload.name}")
            for system in rotated(systems, round_number + position):
                samples += _measure(plan, workload, system, round_number, data)
    return samples


def _measure(
    plan: Plan, workload: Workload, system: Plain, round_number: int, data: RandomData
) -> list[Sample]:
    meter = Meter(system.name, round_number, system.daemon_pids)
    peaks: list[float] = []

    def mount() -> None:
        start = time.perf_counter()
        system.mount()
        seconds = time.perf_counter() - start
        if system.daemon_pids():
            meter.add(MOUNT, seconds, seconds)

    def unmount() -> None:
        if system.daemon_pids():
            peaks.append(peak_memory(system.daemon_pids()))
        system.unmount()

    def make_cold() -> None:
        if plan.remount:
            unmount()
            mount()
        drop_caches()
        settle(system.daemon_pids())

    place = Place(
        root=Path(system.root),
        data=data,
        meter=meter,
        scale=plan.scale,
        verify=round_number == 0,
        make_cold=make_cold,
    )
    touch_memory(round(FOOTPRINT * plan.scale))
    try:
        mount()
        workload.run(place)
        unmount()
    except BaseException:
        system.abandon()
        raise
    if peaks:
        meter.add(workload.peak_memory, max(peaks))
    return meter.samples

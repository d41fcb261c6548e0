"""The figures that are measured, and medians, spreads and ratios of their samples."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

SUBJECT = "cryptfs"
PEERS = ("gocryptfs", "securefs")


@dataclass(frozen=True)
class Figure:
    """One number that a workload yields."""

    name: str
    unit: str
    meaning: str
    higher_is_better: bool = True


@dataclass(frozen=True)
class Sample:
    """One measurement of one figure.

    `value` is in the figure's unit, `seconds` is the wall time it was taken over, `cpu_seconds` what the
    system's daemon spent in that time (None where there is no daemon), `others_seconds` what all processes
    but the daemon and this program spent: noise, if the machine should be quiet.
    """

    figure: str
    system: str
    round: int
    value: float
    seconds: float
    cpu_seconds: float | None
    others_seconds: float | None = None


@dataclass(frozen=True)
class Summary:
    """All samples of one figure: medians by system, and the subject's ratios to the others."""

    figure: Figure
    medians: dict[str, float]
    cpu_medians: dict[str, float]
    others: float | None  # median of the share of one core that other processes took
    spread: float
    ratios: dict[str, float]


def spread(values: list[float]) -> float:
    """How far apart repeated values lie: (largest - smallest) / median; 0 for a single one."""
    middle = statistics.median(values)
    return (max(values) - min(values)) / middle if middle else 0.0


def advantage(subject: float, other: float, higher_is_better: bool) -> float:
    """How many times better `subject` is than `other`: above 1 is better, whichever way the figure counts."""
    better, worse = (subject, other) if higher_is_better else (other, subject)
    return better / worse if worse else float("inf")


def summarise(figure: Figure, samples: Iterable[Sample]) -> Summary | None:
    """Condense the samples of `figure`; None if there are none.

    Ratios are ratios of medians, keyed by the other system's name, and by "best" for the better of the
    peers; they exist only for systems that were measured. The spread is the largest among the systems.
    """
    others: list[float] = []
    values: dict[str, list[float]] = defaultdict(list)
    cpu: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        if sample.figure != figure.name:
            continue
        values[sample.system].append(sample.value)
        if sample.cpu_seconds is not None:
            cpu[sample.system].append(sample.cpu_seconds)
        if sample.others_seconds is not None and sample.seconds:
            others.append(sample.others_seconds / sample.seconds)
    if not values:
        return None
    medians = {system: statistics.median(found) for system, found in values.items()}
    return Summary(
        figure=figure,
        medians=medians,
        cpu_medians={system: statistics.median(found) for system, found in cpu.items()},
        others=statistics.median(others) if others else None,
        spread=max(spread(found) for found in values.values()),
        ratios=_ratios(medians, figure.higher_is_better),
    )


def _ratios(medians: dict[str, float], higher_is_better: bool) -> dict[str, float]:
    if SUBJECT not in medians:
        return {}
    ratios = {
        system: advantage(medians[SUBJECT], value, higher_is_better)
        for system, value in medians.items()
        if system != SUBJECT
    }
    measured_peers = [ratios[peer] for peer in PEERS if peer in ratios]
    if measured_peers:
        ratios["best"] = min(measured_peers)
    return ratios

"""The report: a table for people, a JSON document for everything else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.figures import SUBJECT, Figure, Sample, Summary, summarise

RATIO_TITLES = {"gocryptfs": "/gocrypt", "securefs": "/secure", "best": "/best", "plain": "/plain"}


def summaries(figures: Iterable[Figure], samples: Sequence[Sample]) -> list[Summary]:
    """One summary per figure that was measured, in the order of the figures."""
    return [summary for figure in figures if (summary := summarise(figure, samples))]


def text_report(found: Sequence[Summary], systems: Sequence[str]) -> str:
    """Two tables: medians with ratios, and the daemons' processor time."""
    return "\n".join(
        [
            "Medians; the ratios say how many times better cryptfs is (above 1.00 it is ahead).",
            "",
            _figures_table(found, systems),
            "",
            "Processor time of the daemon in that workload, seconds (lower is better).",
            "",
            _cpu_table(found, systems),
        ]
    )


def json_report(
    samples: Sequence[Sample], found: Sequence[Summary], about: dict[str, object]
) -> dict[str, object]:
    """Everything that was measured, with `about` (date, command, versions, machine) beside it."""
    return {
        **about,
        "figures": [
            {
                **asdict(summary.figure),
                "medians": summary.medians,
                "cpu_medians": summary.cpu_medians,
                "spread": summary.spread,
                "ratios": summary.ratios,
            }
            for summary in found
        ],
        "samples": [asdict(sample) for sample in samples],
    }


def write_json(path: Path, document: dict[str, object]) -> None:
    """Write the document, indented, with a final line end."""
    path.write_text(json.dumps(document, indent=1) + "\n")


def number(value: float) -> str:
    """Three significant digits without an exponent: 0.123, 12.3, 1,234."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it reads well in a terminal; the first column is left-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    lines = []
    for row in [rows[0], rule, *rows[1:]]:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[0] = row[0].ljust(widths[0])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _figures_table(found: Sequence[Summary], systems: Sequence[str]) -> str:
    ratios = [key for key in RATIO_TITLES if any(key in summary.ratios for summary in found)]
    rows = [["figure", "unit", *systems, *(RATIO_TITLES[key] for key in ratios), "spread"]]
    for summary in found:
        figure = summary.figure
        rows.append(
            [
                figure.name + ("" if figure.higher_is_better else " (lower)"),
                figure.unit,
                *(_cell(summary.medians.get(system)) for system in systems),
                *(f"{summary.ratios[key]:.2f}" if key in summary.ratios else "" for key in ratios),
                f"{summary.spread:.0%}",
            ]
        )
    return table(rows)


def _cpu_table(found: Sequence[Summary], systems: Sequence[str]) -> str:
    mounted = [system for system in systems if any(system in summary.cpu_medians for summary in found)]
    rows = [["figure", *mounted, "others"]]
    for summary in found:
        if summary.cpu_medians:
            cells = [_cell(summary.cpu_medians.get(system)) for system in mounted]
            others = "" if summary.others is None else f"{summary.others:.0%}"
            rows.append([summary.figure.name, *cells, others])
    return table(rows) if mounted else f"No daemon was measured; {SUBJECT} and its peers have one."


def _cell(value: float | None) -> str:
    return "" if value is None else number(value)

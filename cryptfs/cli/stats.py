"""`cryptfs stats`: how many people, studies and images are in a vault."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cryptfs.cli.asking import answers_of, state_dir_option, warn_if_incomplete
from cryptfs.cli.main import printable, size_text
from cryptfs.cli.secrets import SecretSource, secret_options

if TYPE_CHECKING:
    from cryptfs.index.studysearch import Summary
    from cryptfs.practice.service import StatsAnswer

_MODALITY_COUNTS = ("studies", "series", "instances", "files", "bytes")
_YEAR_COUNTS = ("studies", "instances", "files", "bytes")
_SYNTAX_COUNTS = ("files", "bytes")


@click.command()
@click.argument("place", metavar="VAULT|MOUNTPOINT", type=click.Path(path_type=Path, readable=False))
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@state_dir_option
@secret_options
def command(place: Path, as_json: bool, state_dir: Path | None, source: SecretSource) -> None:
    """Count the people, studies, series and images in a vault.

    By modality, by year of the study, and by transfer syntax, which says how the images are compressed.
    People are counted by the patient identifier, as archives do: two who share one (or have none) count as
    one. An image that lies in the vault twice is one instance and two files.

    Of a mounted vault the mount is asked; a vault that is not mounted is unlocked and read.
    """
    with answers_of(place, source, state_dir) as answers:
        answer = answers.stats()
    if as_json:
        click.echo(json.dumps(_document(answer), indent=2))
    else:
        warn_if_incomplete(answer.left)
        _print(answer.summary)


def _document(answer: StatsAnswer) -> dict[str, object]:
    from cryptfs.practice.syntaxes import syntax

    summary, left = answer.summary, answer.left
    return {
        "complete": left.is_complete,
        "to_read": left.files,
        "to_list": left.folders,
        "patients": summary.patients,
        "studies": summary.studies,
        "series": summary.series,
        "instances": summary.instances,
        "files": summary.files,
        "bytes": summary.size,
        "all_files": summary.all_files,
        "studies_without_patient_id": summary.without_patient_id,
        "kinds": summary.kinds,
        "modalities": _named(summary.modalities, _MODALITY_COUNTS),
        "years": _named(summary.years, _YEAR_COUNTS),
        "transfer_syntaxes": {
            uid: {
                "name": syntax(uid).name,
                "compression": syntax(uid).compression,
                **dict(zip(_SYNTAX_COUNTS, counts, strict=True)),
            }
            for uid, counts in sorted(summary.syntaxes.items())
        },
    }


def _named(rows: dict[str, list[int]], names: Sequence[str]) -> dict[str, dict[str, int]]:
    return {key: dict(zip(names, counts, strict=True)) for key, counts in sorted(rows.items())}


def _print(summary: Summary) -> None:
    from rich.console import Console

    from cryptfs.practice.syntaxes import syntax

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    rows = [
        ("people (patient identifiers)", f"{summary.patients:,}"),
        ("studies", f"{summary.studies:,}"),
        ("series", f"{summary.series:,}"),
        ("images and other instances", f"{summary.instances:,}"),
        ("in files", f"{summary.files:,}"),
        ("size", size_text(summary.size)),
        ("other files", f"{summary.all_files - summary.files:,}"),
    ]
    if summary.without_patient_id:
        rows.append(("studies without a patient identifier", f"{summary.without_patient_id:,}"))
    if damaged := summary.kinds.get("damaged"):
        rows.append(("damaged DICOM files", f"{damaged:,}"))
    console.print(_table("", (), rows))
    console.print(
        _table(
            "modality", _MODALITY_COUNTS, _rows((name or "none", c) for name, c in summary.modalities.items())
        )
    )
    console.print(
        _table("year", _YEAR_COUNTS, _rows((year or "none", c) for year, c in sorted(summary.years.items())))
    )
    compression = [
        (syntax(uid).name, syntax(uid).compression, f"{counts[0]:,}", size_text(counts[1]), _mean(counts))
        for uid, counts in sorted(summary.syntaxes.items(), key=lambda item: -item[1][1])
    ]
    console.print(_table("transfer syntax", ("compression", "files", "size", "each"), compression))


def _rows(counted: Iterable[tuple[str, list[int]]]) -> list[tuple[str, ...]]:
    return [
        (name, *(f"{count:,}" for count in counts[:-1]), size_text(counts[-1])) for name, counts in counted
    ]


def _table(first: str, names: Sequence[str], rows: Iterable[Sequence[str]]) -> object:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD if names else None, show_header=bool(names))
    table.add_column(first)
    for name in names or ("",):
        justify = "left" if name == "compression" else "right"
        table.add_column(name.replace("bytes", "size"), justify="left" if justify == "left" else "right")
    for row in rows:
        table.add_row(*(Text(printable(text)) for text in row))
    return table


def _mean(counts: list[int]) -> str:
    return size_text(counts[1] // counts[0]) if counts[0] else ""

"""`cryptfs find`: where the images of a patient or a study are."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cryptfs.cli.asking import answers_of, state_dir_option, warn_if_incomplete
from cryptfs.cli.main import printable
from cryptfs.cli.secrets import SecretSource, secret_options

if TYPE_CHECKING:
    from cryptfs.cli.asking import Answers
    from cryptfs.index.studysearch import FoundStudy, Query
    from cryptfs.practice.service import FindAnswer

Range = tuple[str, str]

_DAY = re.compile(r"(\d{4})(?:-?(\d{2})(?:-?(\d{2}))?)?")


class DateRange(click.ParamType[Range]):
    """A day, month or year, or two of them with `..` between; becomes first and last day, YYYYMMDD."""

    name = "date"

    def convert(self, value: str | Range, param: click.Parameter | None, ctx: click.Context | None) -> Range:
        if isinstance(value, tuple):
            return value
        first, dots, last = value.partition("..")
        begin, end = self._bound(first, "0101"), self._bound(last if dots else first, "1231")
        if begin is None or end is None or not (first or last) or (begin and end and begin > end):
            self.fail(
                f"{value!r} is no date: write 2024, 2024-05, 2024-05-31, or two of them as 2024-05..2024-07.",
                param,
                ctx,
            )
        return begin, end

    @staticmethod
    def _bound(text: str, rest: str) -> str | None:
        """A day as YYYYMMDD, completed with `rest`; "" for an open end, None for nonsense."""
        if not text:
            return ""
        match = _DAY.fullmatch(text)
        if match is None:
            return None
        year, month, day = match.groups()
        if not 1 <= int(month or 1) <= 12 or not 1 <= int(day or 1) <= 31:
            return None
        return year + (month or rest[:2]) + (day or rest[2:])


@click.command()
@click.argument("place", metavar="VAULT|MOUNTPOINT", type=click.Path(path_type=Path, readable=False))
@click.option("--patient", "-p", default="", metavar="TEXT", help="Identifier, or words of the name.")
@click.option(
    "--date", "-d", type=DateRange(), metavar="DATE[..DATE]", help="Day, month or year of the study."
)
@click.option("--modality", "-m", default="", metavar="CODE", help="CT, MR, DX, US, IO, … of the series.")
@click.option("--accession", "-a", default="", metavar="TEXT", help="Accession number of the study.")
@click.option("--study", default="", metavar="UID", help="Study instance UID.")
@click.option("--series", default="", metavar="UID", help="Series instance UID.")
@click.option("--instance", default="", metavar="UID", help="SOP instance UID.")
@click.option("--studies", "as_studies", is_flag=True, help="Show a table of the studies instead of paths.")
@click.option("--null", "-0", "null", is_flag=True, help="End each path with a zero byte, for xargs -0.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@state_dir_option
@secret_options
def command(
    place: Path,
    patient: str,
    date: Range | None,
    modality: str,
    accession: str,
    study: str,
    series: str,
    instance: str,
    as_studies: bool,
    null: bool,
    as_json: bool,
    state_dir: Path | None,
    source: SecretSource,
) -> None:
    """Print the paths of the DICOM files that fit all that is given.

    \b
      cryptfs find /var/lib/orthanc/db --patient "Müller Hans"
      cryptfs find /srv/images.vault --patient 'm*er' --date 2024-05..2024-07
      cryptfs find /mnt/images --modality MR --date 2023 --studies
      cryptfs find /mnt/images -p 4711 -0 | xargs -0 cp -t /media/usb

    Case and accents make no difference, and an asterisk stands for any characters. A name fits if each
    word given is one of its words, in any order.

    Of a mounted vault the mount is asked: by the user who mounted it, or root. A vault that is not
    mounted is unlocked; what of it was not read yet is read first, and paths are printed as they lie in
    it. While the index is not complete a line on standard error says how much is still to be read. Exits
    with 0 whether something was found or not.
    """
    from cryptfs.errors import UsageError
    from cryptfs.index.studysearch import Query

    if null and (as_studies or as_json):
        raise UsageError("--null is for paths: it goes with neither --studies nor --json.")
    first, last = date or ("", "")
    query = Query(patient, study, series, instance, accession, modality, first, last)
    with answers_of(place, source, state_dir) as answers:
        pages = _pages(answers, query, as_studies)
        if as_json:
            _print_json(pages, answers.prefix)
        elif as_studies:
            _print_studies(pages)
        else:
            _print_paths(pages, answers.prefix, b"\0" if null else b"\n")


def _pages(answers: Answers, query: Query, studies: bool) -> Iterator[FindAnswer]:
    after = b""
    while True:
        answer = answers.find(query, studies=studies, after=after)
        yield answer
        after = answer.after
        if not after:
            return


def _print_paths(pages: Iterator[FindAnswer], prefix: bytes, end: bytes) -> None:
    raw = end == b"\0" or not sys.stdout.isatty()
    for number, page in enumerate(pages):
        if number == 0:
            warn_if_incomplete(page.left)
        for path in sorted(prefix + file.path for file in page.files):
            if raw:
                click.echo(path + end, nl=False)
            else:
                click.echo(printable(os.fsdecode(path)))


def _print_json(pages: Iterator[FindAnswer], prefix: bytes) -> None:
    """One document, written as it comes: there may be millions."""
    for number, page in enumerate(pages):
        found: list[dict[str, Any]] = [
            {**_fields(file), "path": os.fsdecode(prefix + file.path)} for file in page.files
        ] + [_fields(study) for study in page.studies]
        if number == 0:
            left = page.left
            head = {"complete": left.is_complete, "to_read": left.files, "to_list": left.folders}
            click.echo(json.dumps(head)[:-1] + ', "found": [', nl=False)
            separator = "\n  "
        for item in found:
            click.echo(separator + json.dumps(item), nl=False)
            separator = ",\n  "
    click.echo("\n]}")


def _fields(found: Any) -> dict[str, Any]:  # noqa: ANN401
    return {name: getattr(found, name) for name in found.__struct_fields__}


def _print_studies(pages: Iterator[FindAnswer]) -> None:
    from rich.console import Console

    studies: list[FoundStudy] = []
    for number, page in enumerate(pages):
        if number == 0:
            warn_if_incomplete(page.left)
        studies += page.studies
    studies.sort(key=lambda study: (study.patient_name.casefold(), study.patient_id, study.date, study.study))
    if not studies:
        click.echo("No study fits.")
        return
    # What is no terminal is as wide as need be.
    console = Console(width=None if sys.stdout.isatty() else 300)
    console.print(_table(studies, with_uid=console.width >= 140))


def _table(studies: list[FoundStudy], *, with_uid: bool) -> Any:  # noqa: ANN401
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("patient", "identifier", "date", "modality", "accession"):
        table.add_column(name, no_wrap=name == "date", overflow="fold")
    for name in ("series", "images", "MiB"):
        table.add_column(name, justify="right")
    if with_uid:
        table.add_column("study", overflow="fold")
    for study in studies:
        texts = (
            study.patient_name.replace("^", " "),
            study.patient_id,
            f"{study.date[:4]}-{study.date[4:6]}-{study.date[6:]}" if study.date else "",
            " ".join(study.modalities),
            study.accession,
            f"{study.series:,}",
            f"{study.instances:,}",
            f"{study.size / (1 << 20):,.1f}",
            *([study.study] if with_uid else []),
        )
        # Text, not markup: what is in a patient's name is no colour.
        table.add_row(*(Text(printable(text)) for text in texts))
    return table

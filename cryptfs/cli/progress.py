"""A bar for what takes longer than two seconds, on a terminal only."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from cryptfs.cli.main import printable


class Show(Protocol):
    """How a running command tells how far it is."""

    def done(self, count: int) -> None:
        """So many bytes are done."""

    def say(self, line: str) -> None:
        """A line of the result, above the bar if there is one."""


class Silent:
    """Lines only."""

    def done(self, count: int) -> None:
        pass

    def say(self, line: str) -> None:
        print(printable(line), flush=True)


class Bar:
    """A bar on standard error; lines go to standard output."""

    def __init__(self, progress: Progress, text: str) -> None:
        self._progress = progress
        self._task = progress.add_task(text, total=None)

    def done(self, count: int) -> None:
        self._progress.update(self._task, completed=count)

    def total(self, count: int) -> None:
        self._progress.update(self._task, total=count)

    def say(self, line: str) -> None:
        if sys.stdout.isatty():
            self._progress.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
        else:
            print(printable(line), flush=True)


@contextlib.contextmanager
def bytes_of(folder: Path, text: str) -> Iterator[Show]:
    """Progress through the files below a folder; their size is found out meanwhile."""
    if not sys.stderr.isatty():
        yield Silent()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    stop = threading.Event()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = Bar(progress, text)
        counting = threading.Thread(target=_count, args=(folder, bar, stop), daemon=True)
        counting.start()
        try:
            yield bar
        finally:
            stop.set()
            counting.join()


@contextlib.contextmanager
def entries(text: str) -> Iterator[Show]:
    """How many entries are done; nobody knows how many there are."""
    if not sys.stderr.isatty():
        yield Silent()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.completed:,.0f} entries"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Bar(progress, text)


def _count(folder: Path, bar: Bar, stop: threading.Event) -> None:
    """Add up the sizes of all files; the bar has no end until that is known."""
    total, folders = 0, [os.fspath(folder)]
    while folders and not stop.is_set():
        # What cannot be listed, or lies too deep for a path, is missing in an estimate: no more.
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    with contextlib.suppress(OSError):
                        total += entry.stat(follow_symlinks=False).st_size
    if not stop.is_set():
        bar.total(total)

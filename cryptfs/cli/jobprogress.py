"""A bar for people, or one JSON object a line for programs, while something long goes on."""

from __future__ import annotations

import json
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

JSON_SECONDS = 1.0


class Report:
    """Shows the snapshots of a job. On a terminal a bar, on anything else nothing but the JSON asked for."""

    def __init__(self, *, as_json: bool, unit: str) -> None:
        self.as_json = as_json
        self._unit = unit
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Report:
        if not self.as_json and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f} " + self._unit),
                TextColumn("{task.fields[rate]}"),
                TextColumn("{task.fields[left]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("starting", total=0, rate="", left="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, snapshot: dict[str, Any]) -> None:
        """One snapshot of `cryptfs.fs.jobs.Job`."""
        if self.as_json:
            emit({"event": "progress", **{key: snapshot[key] for key in snapshot if key != "result"}})
        if self._bar is None or self._task is None:
            return
        by_size = bool(snapshot["bytes_total"])
        scale = 1 << 20 if by_size else 1
        done, total = ("bytes_done", "bytes_total") if by_size else ("done", "total")
        left = snapshot["seconds_left"]
        phase = "paused" if snapshot["state"] == "paused" else snapshot["phase"]
        self._bar.update(
            self._task,
            description=phase,
            completed=min(snapshot[done], snapshot[total] or snapshot[done]) / scale,
            total=snapshot[total] / scale,
            rate=f"{snapshot['rate'] / scale:,.0f} {self._unit}/s",
            left="" if left is None else duration(left) + " left",
        )


def emit(value: dict[str, Any]) -> None:
    """One line of JSON, at once."""
    click.echo(json.dumps(value))
    sys.stdout.flush()


def duration(seconds: int) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

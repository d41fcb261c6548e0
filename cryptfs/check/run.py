"""One check from its beginning to its end."""

from __future__ import annotations

import datetime
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cryptfs import __version__
from cryptfs.check import checkpoint as checkpoints
from cryptfs.check import names, surroundings, whole
from cryptfs.check.batch import Batch
from cryptfs.check.checkpoint import Checkpoint
from cryptfs.check.context import Context
from cryptfs.check.engine import Engine
from cryptfs.check.finding import Finding
from cryptfs.check.report import Report
from cryptfs.check.tally import Tally
from cryptfs.check.walk import Visit

CHECKPOINT_SECONDS = 30.0
_CHECKPOINT_SHARE = 50
"""Writing checkpoints takes at most one part in so many of the time."""


class Check:
    """A check of the whole vault, or of the `parts` of it that `names.find` gives.

    `content`, if given, are the only places whose content is read.
    """

    def __init__(
        self,
        context: Context,
        *,
        parts: Sequence[names.Part] = (),
        scope: dict[str, Any] | None = None,
        checkpoint: Path | None = None,
        content: frozenset[bytes] | None = None,
        on_finding: Callable[[Finding], None] = lambda finding: None,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        self._context = context
        self._parts = parts
        self._scope = scope or {}
        self._file = checkpoint
        self._on_finding = on_finding
        self._on_progress = on_progress
        self._engine = Engine(context, on_finding=on_finding, on_pause=self._pause, content=content)
        self._begin = time.monotonic()
        self._started = _now()
        self._earlier_seconds = 0.0
        self._earlier_bytes = 0
        self._saved_at = self._begin
        self._interval = CHECKPOINT_SECONDS

    @property
    def engine(self) -> Engine:
        return self._engine

    def resume(self, found: Checkpoint) -> None:
        """Go on where an earlier check of the same request was stopped."""
        self._engine.resume(found.tally, found.reached)
        self._started = found.started
        self._earlier_seconds = found.seconds
        self._earlier_bytes = found.tally.counts["bytes"]
        for finding in found.tally.findings:
            self._on_finding(finding)

    def run(self) -> Report:
        """Check; KeyboardInterrupt ends it with what is known up to then in the checkpoint."""
        engine, context = self._engine, self._context
        first = engine.reached is None
        # Whoever goes on with a check asks this, too: it says how far the records are to be believed.
        older = [] if context.host is None else list(context.host.whole(context))
        if first:
            self._add(older)
            for check in (surroundings.configuration, surroundings.journal_and_state):
                self._add(check(context))
            if not self._parts:
                self._add(surroundings.header_copies(context))
        try:
            finished = engine.run(self._items() if self._parts else None)
        except KeyboardInterrupt:
            self._save()
            raise
        if finished and not self._parts:
            objects = engine.tally.objects
            self._add(whole.links_and_doubles(context, objects))
            self._add(whole.orphaned_attributes(context, objects))
            self._add(whole.strangers(context))
            finished = not context.stop.is_set()
        if not finished:
            self._save()
        elif self._file is not None:
            self._file.unlink(missing_ok=True)
        return self._report(finished)

    def _items(self) -> Iterator[Batch | Visit]:
        for part in self._parts:
            yield from part.items(self._context)

    def _add(self, findings: Iterable[Finding]) -> None:
        for finding in self._engine.tally.add(findings):
            self._on_finding(finding)

    def _seconds(self) -> float:
        return self._earlier_seconds + time.monotonic() - self._begin

    def _pause(self) -> None:
        self._on_progress(self._earlier_bytes + self._engine.bytes_read)
        if self._file is not None and time.monotonic() - self._saved_at > self._interval:
            begin = time.monotonic()
            self._save()
            self._saved_at = time.monotonic()
            self._interval = max(CHECKPOINT_SECONDS, _CHECKPOINT_SHARE * (self._saved_at - begin))

    def _save(self) -> None:
        if self._file is None or self._parts:
            return
        with self._engine.still() as (tally, reached):
            if reached is not None:
                found = Checkpoint(self._scope, self._started, self._seconds(), reached, tally)
                checkpoints.save(self._file, self._context.vault_id, found)

    def _report(self, finished: bool) -> Report:
        return Report(
            vault=str(self._context.path),
            vault_id=self._context.vault_id,
            version=__version__,
            host=platform.node(),
            started=self._started,
            ended=_now(),
            seconds=self._seconds(),
            scope=self._scope,
            tally=self._engine.tally,
            finished=finished,
            bytes_read=self._earlier_bytes + self._engine.bytes_read,
            remembered=self._context.remembered(),
        )


def check_vault(context: Context) -> Tally:
    """The findings of a whole check: for repairs and tests."""
    return Check(context).run().tally


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

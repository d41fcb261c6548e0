"""Checking the tree: one thread walks, several look at objects, and the results are put in order."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from cryptfs.check import batch as batches
from cryptfs.check.batch import Batch
from cryptfs.check.content import ContentChecker
from cryptfs.check.context import Context
from cryptfs.check.directory import look_at
from cryptfs.check.finding import Finding
from cryptfs.check.host import Doubt, Undecided
from cryptfs.check.objects import Reader
from cryptfs.check.tally import Tally
from cryptfs.check.walk import Position, Visit, Walk
from cryptfs.vault.header import Header

_WAIT = 0.2


class Engine:
    """One check of a tree, or of parts of it.

    `tally` and `reached` always belong together: `tally` holds everything up to `reached` and nothing
    behind it, however the threads overtake each other. `on_finding` is called for each finding as soon
    as it is certain; `on_pause` now and then, in the calling thread. `content`, if given, are the places
    whose content is read.
    """

    def __init__(
        self,
        context: Context,
        *,
        on_finding: Callable[[Finding], None] = lambda finding: None,
        on_pause: Callable[[], None] = lambda: None,
        content: frozenset[bytes] | None = None,
    ) -> None:
        self.context = context
        self.tally = Tally()
        self.reached: Position | None = None
        self._after: Position | None = None
        self._on_finding = on_finding
        self._on_pause = on_pause
        self._content = content
        self._jobs = context.options.jobs or max(2, min(8, os.cpu_count() or 2))
        self._queue: queue.Queue[Batch | None] = queue.Queue(maxsize=2 * self._jobs)
        self._lock = threading.Lock()
        self._order: deque[Batch] = deque()
        self._failure: BaseException | None = None
        self._readers: list[ContentChecker] = []

    @property
    def bytes_read(self) -> int:
        """Ciphertext bytes read so far."""
        return sum(content.bytes_read for content in list(self._readers))

    def resume(self, tally: Tally, reached: Position) -> None:
        """Go on behind `reached`, with what was found up to there."""
        self.tally, self.reached, self._after = tally, reached, reached

    def run(self, parts: Iterable[Batch | Visit] | None = None) -> bool:
        """Check everything, or the parts. False if it was stopped before the end."""
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self._jobs)]
        for thread in threads:
            thread.start()
        try:
            for item in self._whole() if parts is None else parts:
                for batch in [item] if isinstance(item, Batch) else self._batches(item):
                    self._put(batch)
                if self.context.stop.is_set() or self._failure is not None:
                    break
        except BaseException:
            self.context.stop.set()
            raise
        finally:
            self._end(threads)
        if self._failure is not None:
            raise self._failure
        return not self.context.stop.is_set()

    @contextlib.contextmanager
    def still(self) -> Iterator[tuple[Tally, Position | None]]:
        """`tally` and `reached`, which nobody changes meanwhile."""
        with self._lock:
            yield self.tally, self.reached

    # -- what there is to do ------------------------------------------------------------------------

    def _whole(self) -> Iterator[Visit]:
        walk = Walk(self.context, self._after)
        yield from walk
        with self._lock:
            self._keep(self.tally.add(walk.findings))

    def _batches(self, visit: Visit) -> Iterator[Batch]:
        """The entries of a directory, in order; its own findings go with the first."""
        look, place = visit.look, visit.place
        files, directories, tally = look.files, look.directories, Tally()
        own = None if look.header is None else look.header.object_id
        if self._after is not None and (here := place.components()) == self._after[0][: len(here)]:
            # An earlier check was done with the directory itself, and with some or all of its files.
            whole = len(here) < len(self._after[0])
            files = [] if whole else [lname for lname in files if lname > self._after[1]]
            directories = []
            if not files:
                return
        else:
            tally.counts["directories"] += 1
            tally.epochs.update(look.epochs)
            tally.add(look.findings)
            tally.add(self._compare(visit))
            if look.header is not None:
                number = int.from_bytes(look.header.object_id[:8], "little")
                tally.objects.extend((number, os.fstat(visit.fd).st_ino, 1))
        for at in range(0, max(1, len(files)), batches.SIZE):
            yield Batch(
                place, os.dup(visit.fd), visit.parent_id, look.names, files[at : at + batches.SIZE],
                directories if at == 0 else [], self._content, own, tally,
            )  # fmt: skip
            tally = Tally()

    def _compare(self, visit: Visit) -> Iterator[Finding]:
        """The directory itself, and what is missing in it, with what this host remembers."""
        context, header, host = self.context, visit.look.header, self.context.host
        if host is None or header is None:
            return

        def again() -> Header | None:
            seen = look_at(context, visit.place, visit.fd, visit.parent_id).header
            if seen is None:
                raise Undecided
            return seen

        doubts = host.missing(visit)
        if visit.place.parent is None:
            doubts += host.root(header, again)
        elif visit.parent_id is not None and host.differs(visit.parent_id, visit.place.lname, header):
            doubts.append(Doubt(visit.parent_id, visit.place.lname, visit.place.path(), header, again))
        yield from host.believed(context, doubts)

    def _put(self, batch: Batch) -> None:
        with self._lock:
            self._order.append(batch)
        while self._failure is None and not self.context.stop.is_set():
            self._on_pause()
            try:
                self._queue.put(batch, timeout=_WAIT)
                return
            except queue.Full:
                continue
        batch.close()

    # -- doing it -----------------------------------------------------------------------------------

    def _work(self) -> None:
        reader = Reader(self.context)
        self._readers.append(reader.content)
        while (batch := self._queue.get()) is not None:
            try:
                if self._failure is None and not self.context.stop.is_set():
                    batch.check(reader)
                    if not self.context.stop.is_set():
                        self._done(batch)
            except BaseException as failure:
                self._failure = failure
            finally:
                batch.close()

    def _done(self, batch: Batch) -> None:
        """Merge every batch that is done and has none before it that is not."""
        with self._lock:
            batch.done = True
            while self._order and self._order[0].done:
                first = self._order.popleft()
                kept = self.tally.merge(first.tally)
                self.reached = first.position
                self._keep(kept)

    def _keep(self, findings: list[Finding]) -> None:
        for finding in findings:
            self._on_finding(finding)

    def _end(self, threads: list[threading.Thread]) -> None:
        """Wait for all threads. Ctrl-C meanwhile makes them stop, and is raised when they have."""
        left = len(threads)
        while left or any(thread.is_alive() for thread in threads):
            try:
                self._on_pause()
                if left:
                    self._queue.put(None, timeout=_WAIT)
                    left -= 1
                else:
                    next(thread for thread in threads if thread.is_alive()).join(_WAIT)
            except (queue.Full, StopIteration):
                continue
            except KeyboardInterrupt as interrupt:
                self.context.stop.set()
                self._failure = interrupt

"""Writes collected and committed off the request path.

What was put is seen at once by everybody who reads through the batch, and is in the environment after the
next commit: every second, or as soon as many have come together. Whoever puts something never waits
for a commit, unless commits cannot keep up and memory would grow.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from cryptfs.index.environment import Environment, Item, Unavailable

log = logging.getLogger(__name__)

INTERVAL = 1.0
"""Seconds after which what was put is committed."""
FULL = 2000
"""Records after which it is committed at once."""
OVERFULL = 50_000
"""Records at which whoever puts another one waits for a commit."""


class Batch:
    """An environment seen through the writes that are still to come. Safe for several threads.

    After a failure (disk full) it drops what is put and finds nothing; `on_failure` is told why, once.
    """

    def __init__(self, environment: Environment, on_failure: Callable[[str], None] = log.error) -> None:
        self.environment = environment
        self._on_failure = on_failure
        self._pending: dict[bytes, bytes | None] = {}
        self._committing: dict[bytes, bytes | None] = {}
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(
            target=self._run, name=f"cryptfs-{environment.folder.name}", daemon=True
        )
        self._thread.start()

    @property
    def failed(self) -> str:
        """Why nothing is found or kept any more, or nothing."""
        return self.environment.failed

    def put(self, key: bytes, value: bytes | None) -> None:
        """Write a record, or remove it with None, at the next commit."""
        with self._lock:
            self._pending[key] = value
            count = len(self._pending)
        if count >= FULL:
            self._wake.set()
            if count >= OVERFULL:
                self.flush()

    def get(self, key: bytes) -> bytes | None:
        """The value of a record, or None. Raises ValueDamaged, Unavailable."""
        with self._lock:
            for layer in (self._pending, self._committing):
                if key in layer:
                    return layer[key]
        return self.environment.get(key)

    def scan(self, prefix: bytes) -> dict[bytes, bytes]:
        """All records whose keys begin with `prefix`. Raises ValueDamaged, Unavailable."""
        layered = self._layered(prefix)
        found = dict(self.environment.scan(prefix))
        for key, value in layered:
            if value is None:
                found.pop(key, None)
            else:
                found[key] = value
        return found

    def keys(self, prefix: bytes) -> list[bytes]:
        """The keys of all records that begin with `prefix`. Raises Unavailable."""
        layered = self._layered(prefix)
        found = dict.fromkeys(self.environment.keys(prefix))
        for key, value in layered:
            if value is None:
                found.pop(key, None)
            else:
                found[key] = None
        return list(found)

    def _layered(self, prefix: bytes) -> list[Item]:
        """What is not committed yet, the older first.

        To be taken before the environment is read: what is committed meanwhile is then in both.
        """
        with self._lock:
            return [
                item
                for layer in (self._committing, self._pending)
                for item in (layer.items() if layer else ())
                if item[0].startswith(prefix)
            ]

    def flush(self) -> None:
        """Commit what was put so far."""
        with self._turn:
            with self._lock:
                items: list[Item] = list(self._pending.items())
                self._pending, self._committing = {}, self._pending
            if items and not self.environment.failed:
                try:
                    self.environment.write(items)
                except Unavailable as error:
                    self._on_failure(str(error))
            with self._lock:
                self._committing = {}

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(INTERVAL)
            self._wake.clear()
            try:
                if self._pending:
                    self.flush()
            except Exception as error:  # this thread must live as long as the mount
                log.error("committing to %s failed with %s", self.environment.folder, type(error).__name__)

    def clear(self) -> None:
        """Remove every record, those not committed yet, too."""
        with self._turn:
            with self._lock:
                self._pending = {}
            try:
                self.environment.clear()
            except Unavailable as error:
                self._on_failure(str(error))

    def close(self, keep: bool = True) -> None:
        """Commit what is left, and close the environment: in order, or for nobody to believe it."""
        self._stopping = True
        self._wake.set()
        self._thread.join()
        if keep:
            self.flush()
        self.environment.close(keep=keep)

"""A long job in a thread of its own: started, watched, stopped."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from cryptfs.errors import CryptfsError, StorageError
from cryptfs.fs.throttle import Progress, Stopped, Throttle

log = logging.getLogger(__name__)

_WINDOW = 15.0
_INTERNAL = 70


class Job:
    """Runs `work` once. Its end is one of the states "done", "stopped", "failed"."""

    def __init__(
        self, kind: str, work: Callable[[], dict[str, Any]], progress: Progress, throttle: Throttle
    ) -> None:
        self.kind = kind
        self.throttle = throttle
        self.state = "running"
        self.message = ""
        self.exit_code = 0
        self.result: dict[str, Any] = {}
        self._work = work
        self._progress = progress
        self._thread = threading.Thread(target=self._run, name=f"cryptfs-{kind}", daemon=True)
        self._marks: list[tuple[float, int, str]] = []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Have it end; what it did stays done. Returns when it has ended."""
        self.throttle.stop()
        self._thread.join()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within so many seconds."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self.result = self._work()
            self.state = "done"
        except Stopped:
            self.state = "stopped"
        except OSError as error:
            self._failed(
                f"The disk refused: {error.strerror}. What was done stays done: start it again.",
                StorageError.exit_code,
            )
        except CryptfsError as error:
            self._failed(str(error), error.exit_code)
        except Exception as error:  # the mount must live on
            self._failed(f"Internal error ({type(error).__name__}): this is a defect of cryptfs.", _INTERNAL)

    def _failed(self, message: str, exit_code: int) -> None:
        self.message = message
        self.exit_code = exit_code
        self.state = "failed"
        log.error("%s: %s", self.kind, message)

    def snapshot(self) -> dict[str, Any]:
        """What a person or a program wants to know; rates per second, of the last seconds."""
        found = self._progress.snapshot()
        done = found["bytes_done"] if found["bytes_total"] else found["done"]
        total = found["bytes_total"] or found["total"]
        now = time.monotonic()
        if self._marks and (self._marks[-1][2] != found["phase"] or self._marks[-1][1] > done):
            self._marks.clear()  # it began anew
        self._marks = [mark for mark in self._marks if now - mark[0] < _WINDOW]
        self._marks.append((now, done, found["phase"]))
        since, before, _ = self._marks[0]
        rate = (done - before) / (now - since) if now > since else 0.0
        left = (total - done) / rate if rate > 0 and total >= done else None
        return {
            "job": self.kind,
            "state": "paused" if self.state == "running" and self.throttle.held else self.state,
            "message": self.message,
            "exit_code": self.exit_code,
            **found,
            "rate": round(rate, 1),
            "seconds_left": None if left is None else round(left),
            "result": self.result,
        }

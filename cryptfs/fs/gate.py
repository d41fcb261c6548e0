"""The gate that everything passes which changes the ciphertext, so that it can be held still for a copy."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """Open but while the vault is frozen. Safe to use from several threads.

    Requests of a mount are held before they come here (a waiting thread each would be too many); this
    gate is for work in the background of its own: settling, rotation, repair.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._inside = 0
        self._closed = False

    @contextmanager
    def change(self) -> Iterator[None]:
        """Around a change; waits while the gate is closed. Not to be nested."""
        with self._condition:
            self._condition.wait_for(lambda: not self._closed)
            self._inside += 1
        try:
            yield
        finally:
            self._left()

    @contextmanager
    def try_change(self) -> Iterator[bool]:
        """The same without waiting: False, and nothing may be changed, while the gate is closed."""
        with self._condition:
            passed = not self._closed
            self._inside += passed
        try:
            yield passed
        finally:
            if passed:
                self._left()

    def _left(self) -> None:
        with self._condition:
            self._inside -= 1
            self._condition.notify_all()

    def close(self) -> None:
        """Let nobody in; returns when nobody is inside any more."""
        with self._condition:
            self._closed = True
            self._condition.wait_for(lambda: not self._inside)

    def open(self) -> None:
        """Let everybody in."""
        with self._condition:
            self._closed = False
            self._condition.notify_all()

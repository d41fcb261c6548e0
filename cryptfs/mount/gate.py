"""Where requests that change the vault wait while its ciphertext is held still for a copy.

They wait in the event loop and cost a task each, no thread. A process that waits for such a request can be
killed; what it asked for is done after the thaw all the same, as for any request that the kernel has sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio


class Gate:
    """Open but while the vault is frozen. Belongs to the event loop's thread."""

    def __init__(self, let_others_read: Callable[[], None]) -> None:
        """`let_others_read` is called by who is about to wait: another task takes over from it."""
        self.closed = False
        self.waiting = 0
        """How many requests wait."""
        self._let_others_read = let_others_read
        self._opened = trio.Event()
        self._inside = 0
        self._emptied = trio.Event()

    async def passage(self) -> None:
        """Returns when the gate is open."""
        self.waiting += 1
        try:
            while self.closed:
                self._let_others_read()
                await self._opened.wait()
        finally:
            self.waiting -= 1

    @contextmanager
    def change(self) -> Iterator[None]:
        """Around a change that does not end before the event loop runs again."""
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._emptied.set()

    async def close(self) -> None:
        """Let nobody in; returns when every change that had begun is done."""
        self.closed = True
        while self._inside:
            self._emptied = trio.Event()
            await self._emptied.wait()

    def open(self) -> None:
        """Let everybody in."""
        self.closed = False
        self._opened.set()
        self._opened = trio.Event()

"""How the bodies of `operations` become pyfuse3's handlers: where each runs, and what waits in a freeze."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryptfs.mount.operations import Operations

Body = Callable[..., Any]
Handler = Callable[..., Awaitable[Any]]


def inline(body: Body) -> Handler:
    """A request about the inode that is its first argument, answered at once while that is fast."""

    async def handler(self: Operations, ino: int, *args: Any) -> Any:  # noqa: ANN401
        self.requests += 1
        try:
            pace = self.paces[body]
            if ino in self.busy or pace.is_slow:
                return await self.in_worker(ino, pace, 0, body, self, ino, *args)
            started = perf_counter()
            result = body(self, ino, *args)
            pace.note(perf_counter() - started)
            return result
        except Exception as error:
            self.refuse(error)

    return handler


def changing(body: Body, only_if: Callable[..., bool] | None = None) -> Handler:
    """Like `inline`, for a request that changes the vault, or does so if `only_if` its arguments say so."""

    async def handler(self: Operations, ino: int, *args: Any) -> Any:  # noqa: ANN401
        self.requests += 1
        try:
            if self.gate.closed and (only_if is None or only_if(*args)):
                await self.gate.passage()
            pace = self.paces[body]
            if ino in self.busy or pace.is_slow:
                with self.gate.change():
                    return await self.in_worker(ino, pace, 0, body, self, ino, *args)
            started = perf_counter()
            result = body(self, ino, *args)
            pace.note(perf_counter() - started)
            return result
        except Exception as error:
            self.refuse(error)

    return handler


def inline_file(body: Body) -> Handler:
    """Like `inline`, for a request about an open file."""

    async def handler(self: Operations, fh: int, *args: Any) -> Any:  # noqa: ANN401
        self.requests += 1
        try:
            pace = self.paces[body]
            ino = self.files[fh]
            if ino in self.busy or pace.is_slow:
                return await self.in_worker(ino, pace, 0, body, self, fh, *args)
            started = perf_counter()
            result = body(self, fh, *args)
            pace.note(perf_counter() - started)
            return result
        except Exception as error:
            self.refuse(error)

    return handler

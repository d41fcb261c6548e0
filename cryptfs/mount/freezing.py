"""`freeze`: hold the ciphertext of a live mount still while somebody makes a copy of it.

The order: the kernel hands over what it holds dirty; requests that change something wait at the gate;
those that had begun end; the filesystem syncs everything and stands as after an unmount. Reading goes on.
A freeze ends when the asker says so or is gone, at its time limit, or when the mount ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trio

from cryptfs.errors import StorageError, VaultInUse
from cryptfs.mount import control, libc
from cryptfs.mount.backend import Filesystem
from cryptfs.mount.gate import Gate

log = logging.getLogger(__name__)

# As many requests in the background as the kernel may send while the gate is closed: what it writes back
# then waits, and reading ahead must not wait behind it.
BACKGROUND_REQUESTS = 1024
_CONNECTIONS = Path("/sys/fs/fuse/connections")


class Freezing:
    """The freezes of one mount, one at a time. Belongs to the event loop's thread."""

    def __init__(self, fs: Filesystem, gate: Gate, mountpoint: str) -> None:
        self._fs = fs
        self._gate = gate
        self._mountpoint = mountpoint
        self._begun = False
        self._ends_at = 0.0
        self._over = trio.Event()

    async def command(
        self, request: control.Request, begun: control.Begun, ended: control.Ended
    ) -> dict[str, Any]:
        """Freezes for at most `request.timeout` seconds; answers whether it lasted until it was ended.

        Raises VaultInUse if it is frozen already, StorageError if not everything could be synced.
        """
        if self._begun:
            raise VaultInUse("The vault is frozen already: wait until that backup is done.")
        self._begun = True
        self._over = trio.Event()
        try:
            # In a thread: what asks the mount for anything must not be what answers it.
            device = await trio.to_thread.run_sync(sync_mount, self._mountpoint)
            # The bulk of it while nobody waits; what is written meanwhile is little.
            await trio.to_thread.run_sync(self._fs.sync)
            with _more_background(device):
                return await self._hold(request.timeout, begun, ended)
        except OSError as error:
            raise StorageError(
                f"Not everything could be written, so nothing was frozen: {error.strerror}."
            ) from None
        finally:
            self._begun = False

    async def _hold(self, seconds: float, begun: control.Begun, ended: control.Ended) -> dict[str, Any]:
        try:
            with trio.move_on_after(seconds) as limit:
                self._ends_at = limit.deadline
                await self._gate.close()
                await trio.to_thread.run_sync(self._fs.freeze)
                log.info("frozen for a copy, for %g seconds at most", seconds)
                await begun({"seconds": seconds})
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._until_broken_off, nursery.cancel_scope)
                    await ended()
                    nursery.cancel_scope.cancel()
            lasted = not limit.cancelled_caught and not self._over.is_set()
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._fs.thaw)
            waited = self._gate.waiting
            self._gate.open()
        log.info("thawed%s; %d requests go on", "" if lasted else " before the copy was done", waited)
        return {"lasted": lasted}

    async def _until_broken_off(self, scope: trio.CancelScope) -> None:
        await self._over.wait()
        scope.cancel()

    @property
    def is_frozen(self) -> bool:
        return self._gate.closed

    def break_off(self) -> None:
        """The mount is about to end: what waits must go on."""
        self._over.set()

    def status(self) -> dict[str, Any]:
        """What `cryptfs status` says of it."""
        if not self._gate.closed:
            return {"frozen": False}
        left = max(0.0, self._ends_at - trio.current_time())
        return {"frozen": True, "frozen_seconds_left": round(left), "requests_held": self._gate.waiting}


@contextlib.contextmanager
def _more_background(device: int) -> Iterator[None]:
    """Where permitted (root), keep reading ahead apart from the writing that waits."""
    setting = _CONNECTIONS / str(os.minor(device)) / "max_background"
    try:
        before = setting.read_text()
        setting.write_text(str(BACKGROUND_REQUESTS))
    except OSError:
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            setting.write_text(before)


def sync_mount(path: str) -> int:
    """Have the kernel hand us what it holds dirty for the files of the mount; the mount's device number."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        libc.syncfs(fd)
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)

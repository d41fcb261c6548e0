"""One mount from its beginning to its end: session, event loop, control commands, unmounting."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import pyfuse3
import trio

from cryptfs.errors import CryptfsError, FuseUnavailable, MountpointUnusable, StorageError
from cryptfs.fs import FileSystem
from cryptfs.fs.types import Owner
from cryptfs.mount import control, daemon, mountpoint, poll, runtime, tuning
from cryptfs.mount.backend import Filesystem
from cryptfs.mount.freezing import Freezing, sync_mount
from cryptfs.mount.indexing import IndexCommand
from cryptfs.mount.operations import Operations
from cryptfs.mount.restores import Restores
from cryptfs.mount.rotation import RotationControl
from cryptfs.mount.workers import MAX_THREADS, Workers

log = logging.getLogger(__name__)

# How many requests may be waiting for something other than the event loop.
MAX_TASKS = MAX_THREADS + 8
# How many more may be waiting for the end of a freeze, while others read.
MAX_HELD = 1000
_RETRY_SECONDS = 0.1
_PULSE_SECONDS = 5.0
# How long a daemon that was told to end goes on serving files that are still open.
_GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class MountOptions:
    """What to mount and how; `mountpoint` as `mountpoint.prepare` returned it."""

    vault: str
    mountpoint: str
    vault_id: str = ""
    cipher: str = ""
    slot: str = ""
    read_only: bool = False
    allow_other: bool = False
    owner: Owner | None = None
    xattrs: bool = False
    idle_seconds: float | None = None
    flags: tuple[str, ...] = ()  # of mount(8): noexec, noatime, …

    def for_fuse(self) -> set[str]:
        """The options of libfuse."""
        options = {"subtype=cryptfs", *self.flags}
        if self.allow_other or self.owner is not None or os.geteuid() != 0:
            # Where root alone can enter, no permission would be refused, and the kernel need not
            # ask for a directory's attributes again after each change in it.
            options.add("default_permissions")
        # fstab's first field and the mount's source should be the same, where libfuse can carry it.
        plain = self.vault.isascii() and self.vault.isprintable() and not set(self.vault) & set(",\\")
        options.add("fsname=" + (self.vault if plain else "cryptfs"))
        if self.read_only:
            options.add("ro")
        if self.allow_other:
            options.add("allow_other")
        return options


class Service(Protocol):
    """What works beside a mount: it answers control commands of its own."""

    @property
    def commands(self) -> Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        """By name; they get the request's arguments, run in a thread, and may raise CryptfsError."""

    def start(self, requests: Callable[[], int]) -> None:
        """The mount answers; `requests` counts what it was asked so far."""

    def status(self) -> dict[str, Any]:
        """Its part of what `cryptfs status` shows, at once: called in the event loop."""


def serve(
    fs: Filesystem, options: MountOptions, ready: Callable[[], None], services: Sequence[Service] = ()
) -> None:
    """Mount, call `ready` once the mount answers, serve until it is unmounted, close `fs`.

    Raises FuseUnavailable if it cannot be mounted, StorageError if not everything could be written at
    the end, and what `ready` raises, after unmounting.
    """
    try:
        runtime_socket = runtime.socket_path(options.mountpoint)
        tuning.process()
        operations = Operations(fs, Workers(poll.install()), owner=options.owner, xattrs=options.xattrs)
        _mount(operations, options)
    except BaseException:
        fs.close()
        raise
    session = Session(fs, options, operations, ready, services)
    try:
        runtime.write(session.record())
        commands: dict[str, control.Command] = {
            "status": session.status,
            "unmount": session.unmount_command,
            "restore-survey": session.restores.survey,
            "restore-accept": session.restores.accept,
            "index": IndexCommand(getattr(fs, "unwatched", fs)).command,
            **session.of_services(),
        }
        if session.rotation is not None:
            commands |= session.rotation.commands()
        server = control.ControlServer(runtime_socket, commands, {"freeze": session.freezing.command})
        trio.run(session.main, server)
    finally:
        # Removes the mount if it is still there (an exception), frees what libfuse holds.
        pyfuse3.close(unmount=True)
        session.close_filesystem()
        runtime.remove(options.mountpoint)
    if session.failure is not None:
        raise session.failure


def _mount(operations: Operations, options: MountOptions) -> None:
    with _captured_stderr() as said:
        try:
            pyfuse3.init(operations, options.mountpoint, options.for_fuse())
        except RuntimeError:
            reason = said().strip().replace("\n", "; ") or "libfuse gives no reason"
            raise FuseUnavailable(f"The kernel refused the mount ({reason}).") from None


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Callable[[], str]]:
    """libfuse and fusermount3 tell their reasons on descriptor 2 and nowhere else."""
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:

        def said() -> str:
            file.seek(0)
            return file.read(2000).decode("utf-8", "replace")

        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(saved, 2)
            os.close(saved)


class Session:
    """The tasks of a live mount. Everything here runs in the event loop."""

    def __init__(
        self,
        fs: Filesystem,
        options: MountOptions,
        operations: Operations,
        ready: Callable[[], None],
        services: Sequence[Service] = (),
    ) -> None:
        self.failure: Exception | None = None
        self._fs = fs
        self._options = options
        self._operations = operations
        self._ready = ready
        self._services = services
        self._since = datetime.now(UTC)
        self._fs_closed = False
        self._ended = trio.Event()
        self._announced = False
        self._rates = (0.0, 0.0)
        self.freezing = Freezing(fs, operations.gate, options.mountpoint)
        self.rotation: RotationControl | None = None
        inner = getattr(fs, "unwatched", fs)
        if isinstance(inner, FileSystem):
            self.rotation = RotationControl(inner, lambda: operations.requests)
        self.restores = Restores(fs)

    def record(self) -> runtime.Record:
        options = self._options
        return runtime.Record(
            mountpoint=options.mountpoint,
            vault=options.vault,
            vault_id=options.vault_id,
            pid=os.getpid(),
            pid_started=runtime.process_started(os.getpid()) or 0,
            since=self._since.strftime("%Y-%m-%dT%H:%M:%SZ"),
            read_only=options.read_only,
            cipher=options.cipher,
            slot=options.slot,
        )

    def of_services(self) -> dict[str, control.Command]:
        """The control commands of the services."""

        def in_thread(call: Callable[[dict[str, Any]], dict[str, Any]]) -> control.Command:
            async def run(request: control.Request) -> dict[str, Any]:
                return await trio.to_thread.run_sync(call, request.arguments)

            return run

        return {
            name: in_thread(call) for service in self._services for name, call in service.commands.items()
        }

    async def main(self, server: control.ControlServer) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._heed_signals)
            nursery.start_soon(server.serve)
            nursery.start_soon(self._announce)
            nursery.start_soon(self._measure)
            if self._options.idle_seconds is not None:
                nursery.start_soon(self._unmount_when_idle, self._options.idle_seconds)
            try:
                # Returns when the mount was removed, by us or by umount(8).
                await pyfuse3.main(MAX_TASKS, MAX_TASKS + MAX_HELD)
                self.freezing.break_off()
                daemon.notify("STOPPING=1")
                log.info("unmounted from %s", self._options.mountpoint)
                await trio.to_thread.run_sync(self.close_filesystem)
            finally:
                # Control commands wait for this, and the nursery for their answers.
                self._ended.set()
                nursery.cancel_scope.cancel()

    def close_filesystem(self) -> None:
        """Everything to the disk; what fails is kept in `failure`."""
        if self._fs_closed:
            return
        self._fs_closed = True
        if self.rotation is not None:
            self.rotation.close()
        self._operations.release_all()
        try:
            self._fs.close()
        except OSError as error:
            reason = error.strerror or "unknown error"
            self.failure = StorageError(
                f"The vault was unmounted, but not everything could be written: {reason}."
            )
            log.error("%s", self.failure)
        except CryptfsError as error:
            self.failure = error
            log.error("%s", error)

    # --- the beginning --------------------------------------------------------------------------

    async def _announce(self) -> None:
        """Tell that the mount is there, once a stat through the kernel says so."""
        path = self._options.mountpoint
        try:
            try:
                found = await trio.to_thread.run_sync(os.stat, path)
            except OSError as error:
                raise FuseUnavailable(f"The mount does not answer: {error.strerror}.") from None
            if found.st_ino != pyfuse3.ROOT_INODE or not stat.S_ISDIR(found.st_mode):
                raise MountpointUnusable(f"Something else was mounted over {path} at the same time.")
            await trio.to_thread.run_sync(tuning.kernel, path)
            self._ready()
        except Exception as error:
            self.failure = error
            log.error("the mount at %s did not come up", path)
            with contextlib.suppress(OSError):
                await self._detach(lazy=True)
            pyfuse3.terminate()
            return
        self._announced = True
        for service in self._services:
            service.start(lambda: self._operations.requests)
        log.info("mounted %s at %s", self._options.vault, path)

    # --- the end --------------------------------------------------------------------------------

    async def unmount_command(self, request: control.Request) -> dict[str, Any]:
        """Unmount; answers when the vault is closed, or at once when it lives on lazily.

        Raises MountpointUnusable while it is in use, StorageError as `serve`.
        """
        if self.freezing.is_frozen:
            raise MountpointUnusable(
                f"{self._options.mountpoint} is frozen for a backup: wait until that is done."
            )
        deadline = trio.current_time() + request.timeout
        while not self._ended.is_set():
            try:
                await self._detach(lazy=request.lazy)
                break
            except OSError as error:
                if self._ended.is_set():
                    break  # somebody else was faster
                if error.errno != errno.EBUSY:
                    raise MountpointUnusable(
                        f"{self._options.mountpoint} cannot be unmounted: {error.strerror}."
                    ) from None
                if trio.current_time() >= deadline:
                    raise MountpointUnusable(await self._busy()) from None
            await trio.sleep(_RETRY_SECONDS)
        with trio.move_on_after(1.0 if request.lazy else float("inf")):
            await self._ended.wait()
        if self.failure is not None:
            raise self.failure
        return {"closed": self._ended.is_set()}

    async def _busy(self) -> str:
        path = self._options.mountpoint
        holders = await trio.to_thread.run_sync(mountpoint.holders, path)
        if not holders:
            return f"{path} is in use, by a process that this user may not look at: end it, or use --lazy."
        return f"{path} is in use by {', '.join(holders)}: end that first, or use --lazy."

    async def _detach(self, *, lazy: bool) -> None:
        # In a thread: the kernel may make us write dirty pages before it returns.
        path = self._options.mountpoint
        await trio.to_thread.run_sync(lambda: mountpoint.unmount(path, lazy=lazy))

    async def _heed_signals(self) -> None:
        """SIGTERM and SIGINT unmount; files still open are served for a while, then no longer."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for number in signals:
                if number == signal.SIGHUP:
                    continue
                log.info("%s: unmounting", signal.Signals(number).name)
                self.freezing.break_off()
                daemon.notify("STOPPING=1")
                break
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._leave)
                async for number in signals:
                    if number != signal.SIGHUP:
                        pyfuse3.terminate()

    async def _leave(self) -> None:
        path = self._options.mountpoint
        try:
            try:
                await self._detach(lazy=False)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                log.warning("%s", await self._busy())
                await trio.to_thread.run_sync(sync_mount, path)
                await self._detach(lazy=True)
        except OSError as error:
            log.error("%s cannot be unmounted: %s", path, error.strerror)
        await trio.sleep(_GRACE_SECONDS)
        log.warning("files are still open after %d seconds: ending all the same", _GRACE_SECONDS)
        pyfuse3.terminate()

    async def _unmount_when_idle(self, limit: float) -> None:
        operations = self._operations
        seen, since = operations.requests, trio.current_time()
        while True:
            await trio.sleep(min(max(limit / 4, 0.05), _PULSE_SECONDS))
            now = trio.current_time()
            used = operations.files or operations.directories or self.freezing.is_frozen
            if operations.requests != seen or used:
                seen, since = operations.requests, now
            elif now - since >= limit:
                try:
                    await self._detach(lazy=False)
                    log.info("idle for %g seconds: unmounted", limit)
                    return
                except OSError:
                    # Somebody's working directory, say.
                    since = now

    # --- status ---------------------------------------------------------------------------------

    async def _measure(self) -> None:
        """Keep the throughput of the last seconds."""
        before = self._fs.stats()
        at = trio.current_time()
        while True:
            await trio.sleep(_PULSE_SECONDS)
            stats, now = self._fs.stats(), trio.current_time()
            self._rates = (
                (stats["bytes_read"] - before["bytes_read"]) / (now - at),
                (stats["bytes_written"] - before["bytes_written"]) / (now - at),
            )
            before, at = stats, now

    async def status(self, request: control.Request) -> dict[str, Any]:
        """What the mount does at the moment."""
        stats = self._fs.stats()
        return {
            **stats,
            **self.freezing.status(),
            "requests": self._operations.requests,
            "memory_bytes": tuning.own_memory(),
            "open_files": len(self._operations.files),
            "read_bytes_per_second": round(self._rates[0]),
            "written_bytes_per_second": round(self._rates[1]),
            "index": stats.get("index", "none"),
            **{name: value for service in self._services for name, value in service.status().items()},
        }

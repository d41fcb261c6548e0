"""Going to the background, and telling whoever waits there how it went.

The process that was started stays in the foreground until the daemon reports, through a pipe, that the
mount answers, or why it does not; its exit code is the command's.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import socket
import traceback
from collections.abc import Callable

import msgspec

from cryptfs.errors import CryptfsError, Interrupted
from cryptfs.mount import libc
from cryptfs.mount.logs import Beginning

log = logging.getLogger(__name__)

INTERNAL_ERROR = 70


class _Report(msgspec.Struct):
    exit_code: int = 0
    message: str = ""
    errno: int = 0  # of an OSError, whose sentence the command line words
    filename: str | None = None
    warnings: list[str] = []


class _Failed(CryptfsError):
    """What the daemon reported; carries the daemon's exit code."""

    def __init__(self, report: _Report) -> None:
        super().__init__(report.message)
        self.exit_code = report.exit_code


class Gone(Exception):
    """Nobody waits for the daemon's report any more."""


def in_foreground(serve: Callable[[Callable[[], None]], None]) -> None:
    """Run `serve(ready)` here; systemd, if it waits, is told when the mount answers."""
    forbid_dumps()
    serve(lambda: notify("READY=1"))


def in_background(serve: Callable[[Callable[[], None]], None]) -> list[str]:
    """Run `serve(ready)` in a daemon; returns when it has called `ready`, with what it logged as warnings.

    The daemon inherits no open file. Raises the daemon's error, if it ended before.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _become_daemon(writer, serve)
    os.close(writer)
    os.waitpid(child, 0)
    try:
        with os.fdopen(reader, "rb") as stream:
            answer = stream.read()
    except KeyboardInterrupt:
        # The pipe is closed now: the daemon sees it when it wants to report, and unmounts.
        raise Interrupted("Interrupted: the vault is not mounted.") from None
    report = msgspec.json.decode(answer, type=_Report) if answer else _unexpected_end()
    if report.errno:
        raise OSError(report.errno, report.message, report.filename)
    if report.exit_code:
        raise _Failed(report)
    return report.warnings


def _unexpected_end() -> _Report:
    return _Report(INTERNAL_ERROR, "The mount's process ended before the mount was ready: see its log.")


def _report(error: Exception) -> _Report:
    """What the foreground has to know. The text of an unknown exception might quote a secret."""
    if isinstance(error, CryptfsError):
        return _Report(error.exit_code, str(error))
    if isinstance(error, OSError):
        filename = error.filename if isinstance(error.filename, str) else None
        return _Report(1, error.strerror or type(error).__name__, error.errno or errno.EIO, filename)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {frames[-1].name}, {os.path.basename(frames[-1].filename)} line {frames[-1].lineno}"
    return _Report(
        INTERNAL_ERROR, f"Internal error ({type(error).__name__}{place}): this is a defect of cryptfs."
    )


def _become_daemon(writer: int, serve: Callable[[Callable[[], None]], None]) -> None:
    """Never returns. A second fork gives up the session's lead, so that no terminal comes back."""
    code = INTERNAL_ERROR
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.chdir("/")
        forbid_dumps()
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        # Whoever started us must not wait for the end of a pipe, or the release of a lock, that we hold.
        os.closerange(3, writer)
        os.closerange(writer + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])

        beginning = Beginning()
        logging.getLogger().addHandler(beginning)

        def ready() -> None:
            logging.getLogger().removeHandler(beginning)
            try:
                _send(writer, _Report(warnings=beginning.warnings))
            except BrokenPipeError:
                raise Gone from None

        try:
            serve(ready)
            code = 0
        except Gone:
            code = Interrupted.exit_code
        except Exception as error:
            report = _report(error)
            code = report.exit_code
            log.error("%s", report.message)
            with contextlib.suppress(OSError):
                _send(writer, report)
    finally:
        os._exit(code)


def _send(writer: int, report: _Report) -> None:
    os.write(writer, msgspec.json.encode(report))
    os.close(writer)


def forbid_dumps() -> None:
    """Keys must not get into core files, nor be read by other processes of the same user."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        libc.forbid_dumps()


def notify(message: str) -> None:
    """sd_notify(3), if systemd asked for it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address or address[0] not in "/@":
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel, contextlib.suppress(OSError):
        channel.sendto(message.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)

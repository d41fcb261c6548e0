"""Where the daemon's log goes: standard error, a file, syslog or the journal."""

from __future__ import annotations

import io
import logging
import logging.handlers
import os
import socket
import struct
from pathlib import Path

from cryptfs.errors import UsageError

_JOURNAL = "/run/systemd/journal/socket"
_SYSLOG = "/dev/log"
_NAME = "cryptfs"
_PRIORITY = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}


class JournalHandler(logging.Handler):
    """Sends records to systemd's journal by its native protocol: one datagram of fields per record."""

    def __init__(self, path: str = _JOURNAL) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.connect(path)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._socket.send(
                _journal_field("MESSAGE", self.format(record))
                + _journal_field("PRIORITY", str(_PRIORITY.get(record.levelno, 6)))
                + _journal_field("SYSLOG_IDENTIFIER", _NAME)
            )
        except OSError:
            self.handleError(record)


class PrivateFileHandler(logging.handlers.WatchedFileHandler):
    """A log file for its owner only, made anew when logrotate has moved it away."""

    def _open(self) -> io.TextIOWrapper:
        fd = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        return os.fdopen(fd, "a", encoding="utf-8")


class Beginning(logging.Handler):
    """Keeps the warnings of a mount that begins, for whoever started it. `configure` leaves it alone."""

    _MAX = 20

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.warnings) < self._MAX:
            self.warnings.append(record.getMessage()[:1000])


def _journal_field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "replace")
    if b"\n" in data:
        return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
    return name.encode() + b"=" + data + b"\n"


def configure(target: str | None, *, foreground: bool, verbose: bool) -> None:
    """Send all log records to `target`: a file's path, "syslog" or "journal".

    Without one: standard error in the foreground, else the journal or syslog, whichever is there.
    Raises UsageError if the target cannot be opened.
    """
    handler = _handler(target, foreground)
    root = logging.getLogger()
    for old in root.handlers[:]:
        if not isinstance(old, Beginning):
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    # pyfuse3 tells of every task it starts.
    logging.getLogger("pyfuse3").setLevel(logging.INFO)
    # A log that cannot be written must not fill standard error with tracebacks.
    logging.raiseExceptions = False


def _handler(target: str | None, foreground: bool) -> logging.Handler:
    if target is None:
        if foreground:
            target = "stderr"
        elif Path(_JOURNAL).exists():
            target = "journal"
        else:
            target = "syslog" if Path(_SYSLOG).exists() else "none"
    try:
        handler, style = _open(target)
    except OSError as error:
        raise UsageError(f"The log {target} cannot be opened: {error.strerror}.") from None
    handler.setFormatter(logging.Formatter(style))
    return handler


def _open(target: str) -> tuple[logging.Handler, str]:
    if target == "stderr":
        return logging.StreamHandler(), "cryptfs: %(levelname)s: %(message)s"
    if target == "none":
        return logging.NullHandler(), "%(message)s"
    if target == "journal":
        return JournalHandler(), "%(message)s"
    if target == "syslog":
        if not Path(_SYSLOG).exists():
            raise FileNotFoundError(2, "there is no /dev/log")
        return logging.handlers.SysLogHandler(_SYSLOG, "daemon"), _NAME + "[%(process)d]: %(message)s"
    style = "%(asctime)s [%(process)d] %(levelname)s: %(message)s"
    return PrivateFileHandler(Path(target).absolute()), style

"""A `cryptfs` process on a terminal of its own, as a person meets it."""

from __future__ import annotations

import os
import pty
import select
import sys
from pathlib import Path

from tests.waiting import HANG, wait_until

# Argon2 at its least cost, so that tests are quick.
PROGRAM = (
    "import cryptfs.keyslots.passphrase as p; from cryptfs.crypto.kdf import floor; p.calibrate = floor; "
    "from cryptfs.cli.main import main; main()"
)


class Terminal:
    """Start `cryptfs ARGUMENTS`; everything it shows is in `shown`."""

    def __init__(self, *arguments: str) -> None:
        self.shown = ""
        self._read = 0
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execv(sys.executable, [sys.executable, "-c", PROGRAM, *arguments])

    def expect(self, text: str) -> str:
        """Wait until this is shown; what was shown before it, since the last time."""
        while (found := self.shown.find(text, self._read)) < 0:
            assert self._more(), f"ended without showing {text!r}: {self.shown}"
        before = self.shown[self._read : found]
        self._read = found + len(text)
        return before

    def type(self, line: str) -> None:
        os.write(self._fd, line.encode() + b"\n")

    def interrupt(self) -> None:
        """Ctrl-C, once the process waits for the keyboard.

        Python takes note of a signal that comes a moment before the wait only when the wait is over.
        """
        wait_until(self._sleeps, "the process waits for the keyboard")
        os.write(self._fd, b"\x03")

    def end(self) -> int:
        """Wait for the end; the exit code."""
        while self._more():
            pass
        os.close(self._fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _sleeps(self) -> bool:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"

    def _more(self) -> bool:
        ready, _, _ = select.select([self._fd], [], [], HANG)
        assert ready, f"nothing more was shown: {self.shown}"
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # EIO: the other side is closed
            return False
        self.shown += data.decode("utf-8", "replace").replace("\r\n", "\n")
        return bool(data)

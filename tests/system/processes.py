"""Work done in other processes: as another user, or several at once."""

from __future__ import annotations

import ctypes
import os
import pickle
import select
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

NOBODY = 65534
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class Child:
    """A forked process that computes one function; `result` waits and raises what it raised.

    It ends with the tests, whatever it does.
    """

    def __init__(self, function: Callable[[], object], uid: int | None = None, gid: int | None = None):
        self._reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reader)
            outcome: tuple[bool, object]
            try:
                if gid is not None:
                    os.setgroups([])
                    os.setresgid(gid, gid, gid)
                if uid is not None:
                    os.setresuid(uid, uid, uid)
                _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # forgotten when the user changes
                outcome = (True, function())
            except BaseException as error:  # whatever it is, the parent is to see it
                outcome = (False, error)
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(pickle.dumps(outcome))
            os._exit(0)
        os.close(writer)

    def result(self, seconds: float | None = None) -> Any:  # noqa: ANN401  whatever the function returns
        """What the function returned; AssertionError if it does not within so many seconds."""
        if not select.select([self._reader], [], [], seconds)[0]:
            self.kill()
            raise AssertionError(f"no answer in {seconds} seconds")
        with os.fdopen(self._reader, "rb") as pipe:
            data = pipe.read()
        os.waitpid(self.pid, 0)
        assert data, "the process died without an answer"
        succeeded, value = pickle.loads(data)
        if not succeeded:
            raise value
        return value

    def kill(self) -> None:
        """Ends the process, whatever it does."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._reader)


def in_session(leader: int) -> list[int]:
    """The living processes of the session that a process began."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == leader and fields[0] not in "ZX":
                found.append(int(entry.name))
    return found


def as_user(function: Callable[[], object], uid: int = NOBODY, gid: int = NOBODY) -> Any:  # noqa: ANN401
    """Calls a function as another user, without supplementary groups."""
    return Child(function, uid, gid).result()


def in_parallel(*functions: Callable[[], object]) -> list[Any]:
    """Calls each function in a process of its own, all at once."""
    children = [Child(function) for function in functions]
    return [child.result() for child in children]


def run(*argv: str | Path, cwd: Path | None = None, allowed: tuple[int, ...] = (0,)) -> str:
    """Runs a program to its end and returns what it printed; AssertionError at any other exit code."""
    result = subprocess.run([*map(str, argv)], cwd=cwd, capture_output=True, text=True, errors="replace")
    assert result.returncode in allowed, (
        f"{argv}: {result.returncode}\n{result.stdout[-3000:]}{result.stderr[-3000:]}"
    )
    return result.stdout

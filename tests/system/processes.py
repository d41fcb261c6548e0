"""Work done in other processes: as another user, or several at once."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

NOBODY = 65534


class Child:
    """A forked process that computes one function; `result` waits and raises what it raised."""

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
                outcome = (True, function())
            except BaseException as error:  # whatever it is, the parent is to see it
                outcome = (False, error)
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(pickle.dumps(outcome))
            os._exit(0)
        os.close(writer)

    def result(self) -> Any:  # noqa: ANN401  whatever the function returns
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


def as_user(function: Callable[[], object], uid: int = NOBODY, gid: int = NOBODY) -> Any:  # noqa: ANN401
    """Calls a function as another user, without supplementary groups."""
    return Child(function, uid, gid).result()


def in_parallel(*functions: Callable[[], object]) -> list[Any]:
    """Calls each function in a process of its own, all at once."""
    children = [Child(function) for function in functions]
    return [child.result() for child in children]


def run(*argv: str | Path, cwd: Path | None = None) -> str:
    """Runs a program to its end and returns what it printed; AssertionError if it fails."""
    result = subprocess.run([*map(str, argv)], cwd=cwd, capture_output=True, text=True, errors="replace")
    assert result.returncode == 0, (
        f"{argv}: {result.returncode}\n{result.stdout[-3000:]}{result.stderr[-3000:]}"
    )
    return result.stdout

"""Real imaging servers, each in a network namespace of its own, and the DCMTK clients beside them."""

from __future__ import annotations

import ctypes
import http.client
import itertools
import json
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from tests.waiting import HANG, wait_until

from .processes import in_session

T = TypeVar("T")
_numbers = itertools.count(1)
# Without it Nagle's algorithm holds small messages back for 40 ms, twice a store.
_ENVIRONMENT = os.environ | {"TCP_NODELAY": "1"}


def _enter_network(path: str) -> None:
    """Moves the calling thread, and it alone, into a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(path).open() as handle:
        clone_newnet = 0x40000000
        if libc.setns(handle.fileno(), clone_newnet) != 0:
            raise OSError(ctypes.get_errno(), "setns", path)


class Namespace:
    """A network namespace with loopback; owns the processes started in it."""

    def __init__(self, logs: Path):
        self.name = f"cryptfs-test-{os.getpid()}-{next(_numbers)}"
        self.path = f"/run/netns/{self.name}"
        self._logs = logs
        self._processes: list[subprocess.Popen[bytes]] = []
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        subprocess.run(["ip", "-n", self.name, "link", "set", "lo", "up"], check=True)
        self._thread = ThreadPoolExecutor(1, initializer=_enter_network, initargs=(self.path,))

    def _argv(self, argv: tuple[str | Path, ...], user: str | None) -> list[str]:
        # Both helpers exec the next, so that the pid we get is the server's own.
        prefix = ["nsenter", f"--net={self.path}"]
        if user is not None:
            prefix += ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"]
        return prefix + [str(argument) for argument in argv]

    def start(self, *argv: str | Path, user: str | None = None) -> subprocess.Popen[bytes]:
        """Starts a server; its output goes to a file beside the test."""
        with (self._logs / f"{Path(argv[0]).name}-{next(_numbers)}.log").open("wb") as log:
            process = subprocess.Popen(
                self._argv(argv, user),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_ENVIRONMENT,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> int:
        """SIGTERM and its exit code; SIGKILL and an error when it does not obey."""
        process.terminate()
        try:
            code = process.wait(HANG)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        # Some serve each client in a process of its own, which may have a file open yet.
        wait_until(lambda: not in_session(process.pid), "all of the server's processes have ended")
        return code

    def run(self, *argv: str | Path, user: str | None = None, check: bool = True) -> str:
        """Runs a client to its end and returns all it printed; AssertionError if it fails."""
        result = subprocess.run(
            self._argv(argv, user),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=600,
            env=_ENVIRONMENT,
        )
        output = result.stdout + result.stderr
        assert result.returncode == 0 or not check, (
            f"{' '.join(map(str, argv))[:500]}: {result.returncode}\n{output[-4000:]}"
        )
        return output

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Calls a function in a thread that lives in this network."""
        return self._thread.submit(function, *arguments).result()

    def listening(self, port: int) -> bool:
        """Whether a server accepts connections; asks the kernel, so that the server sees no connection."""
        table = self.run("cat", "/proc/self/net/tcp") + self.run("cat", "/proc/self/net/tcp6")
        listen = "0A"
        return any(
            fields[1].endswith(f":{port:04X}") and fields[3] == listen
            for fields in map(str.split, table.splitlines())
        )

    def close(self) -> None:
        try:
            for process in self._processes:
                if process.poll() is None:
                    self.stop(process)
        finally:
            self._thread.shutdown()
            subprocess.run(["ip", "netns", "del", self.name], check=True)


class Orthanc:
    """An Orthanc whose files and index are in one folder, reachable by DICOM and REST."""

    def __init__(self, namespace: Namespace, storage: Path, workspace: Path, user: str | None = None):
        self.namespace = namespace
        self.storage = storage
        self._user = user
        self._config = workspace / "orthanc.json"
        temporary = workspace / "orthanc-tmp"
        temporary.mkdir()
        temporary.chmod(0o1777)
        self._config.write_text(
            json.dumps(
                {
                    "Name": "test",
                    "StorageDirectory": str(storage),
                    "IndexDirectory": str(storage),
                    "TemporaryDirectory": str(temporary),
                    "HttpPort": 8042,
                    "RemoteAccessAllowed": False,
                    "AuthenticationEnabled": False,
                    "DicomAet": "ORTHANC",
                    "DicomPort": 4242,
                    "DicomAlwaysAllowFind": True,
                    "DicomAlwaysAllowGet": True,
                    "DicomAlwaysAllowMove": True,
                    "DicomModalities": {"RECEIVER": ["RECEIVER", "127.0.0.1", 11112]},
                    "UnknownSopClassAccepted": True,
                    "Plugins": [],
                }
            )
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        process = self.namespace.start("Orthanc", self._config, user=self._user)
        self._process = process

        def ready() -> bool:
            assert process.poll() is None, f"Orthanc ended at its start with {process.returncode}"
            return self.namespace.listening(8042) and self.namespace.listening(4242)

        wait_until(ready, "Orthanc listens")

    def stop(self) -> None:
        assert self._process is not None
        assert self.namespace.stop(self._process) == 0

    def kill(self) -> None:
        """SIGKILL: nothing is tidied up."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def rest(self, method: str, path: str) -> tuple[int, bytes]:
        """One REST request: its status and body."""
        return self.namespace.call(self._request, method, path)

    @staticmethod
    def _request(method: str, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", 8042, timeout=HANG)
        try:
            connection.request(method, path, body=b"" if method == "POST" else None)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def get(self, path: str) -> Any:  # noqa: ANN401  JSON of many shapes
        status, body = self.rest("GET", path)
        assert status == 200, f"GET {path}: {status}"
        return json.loads(body)

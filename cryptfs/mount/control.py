"""The control socket of a mount: one JSON request per connection, one JSON answer, then it is closed.

Only the daemon's user and root may ask. A request is `{"command": …, …}`; the answer has `exit_code`
(0, or that of the error), `message` for people, and `data`. It may take as long as the command does.

A *held* command (freeze) has two answers, a line each: that it begins, and how it ended. In between it
lasts until the asker sends a line or is gone, whichever is first, or until it ends by itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import trio

from cryptfs.errors import CryptfsError, NotMounted

log = logging.getLogger(__name__)

_LONGEST = 64 * 1024
_REQUEST_SECONDS = 5.0


class Request(msgspec.Struct):
    """What is asked. `lazy` belongs to "unmount"; `timeout` in seconds is how long that waits for open
    files, or how long "freeze" lasts at most. `action` says what "index" is to do.
    `token` belongs to "restore-accept". The rest belongs to the rotation of keys
    (`cryptfs.mount.rotation`); `key` is a secret.
    """

    command: str
    lazy: bool = False
    timeout: float = 0.0
    token: str = ""
    action: str = ""
    limit: float = 0.0
    despite_damage: bool = False
    key: bytes = b""
    arguments: dict[str, Any] = {}  # of commands that the mount layer does not know

    def __repr__(self) -> str:
        return f"<Request {self.command}>"


class Answer(msgspec.Struct):
    exit_code: int = 0
    message: str = ""
    data: dict[str, Any] = {}


class ControlError(CryptfsError):
    """The daemon's refusal, with its exit code."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.message)
        self.exit_code = answer.exit_code


Command = Callable[[Request], Awaitable[dict[str, Any]]]
Ended = Callable[[], Awaitable[None]]
"""Returns when the asker of a held command wants it to end, or is gone."""
Begun = Callable[[dict[str, Any]], Awaitable[None]]
"""Sends the first answer of a held command."""
HeldCommand = Callable[[Request, Begun, Ended], Awaitable[dict[str, Any]]]
"""Calls `Begun` once, waits for `Ended` or for an end of its own, and returns the second answer."""


class ControlServer:
    """Answers at a socket path. The commands run in the event loop and may raise CryptfsError."""

    def __init__(
        self, path: Path, commands: Mapping[str, Command], held: Mapping[str, HeldCommand] | None = None
    ) -> None:
        self._commands = commands
        self._held = held or {}
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(16)
        listener.setblocking(False)
        self._listener = trio.socket.from_stdlib_socket(listener)

    async def serve(self) -> None:
        """Accept connections until cancelled; commands that run then still finish and are answered."""
        async with trio.open_nursery() as answers:
            try:
                while True:
                    connection, _ = await self._listener.accept()
                    answers.start_soon(self._answer, connection)
            finally:
                self._listener.close()

    async def _answer(self, connection: trio.socket.SocketType) -> None:
        with connection, trio.CancelScope(shield=True):
            try:
                answer = await self._run(connection)
                with trio.move_on_after(_REQUEST_SECONDS):
                    # The line's end tells that all is there: a reader need not wait for the connection's
                    # own, which is a reset if its last words crossed ours.
                    await _send_all(connection, msgspec.json.encode(answer) + b"\n")
            except (OSError, trio.BrokenResourceError):
                log.debug("a control connection was lost")

    async def _run(self, connection: trio.socket.SocketType) -> Answer:
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        _, uid, _ = struct.unpack("3i", peer)
        if uid not in (0, os.geteuid()):
            return Answer(1, "Only the user who mounted the vault, and root, may control it.")
        try:
            with trio.fail_after(_REQUEST_SECONDS):
                request = msgspec.json.decode(await _receive_line(connection), type=Request)
            held = self._held.get(request.command)
            command = None if held else self._commands[request.command]
        except (trio.TooSlowError, msgspec.DecodeError, KeyError, ValueError, RecursionError):
            return Answer(2, "The daemon does not know this request: is it of another version?")
        try:
            if command is not None:
                return Answer(data=await command(request))
            assert held is not None
            return Answer(data=await held(request, _begin(connection), _end(connection)))
        except CryptfsError as error:
            return Answer(error.exit_code, str(error))
        except Exception as error:
            log.error("the control command %s failed with %s", request.command, type(error).__name__)
            return Answer(70, "The daemon failed to answer: see its log.")


def _begin(connection: trio.socket.SocketType) -> Begun:
    async def begin(data: dict[str, Any]) -> None:
        with trio.fail_after(_REQUEST_SECONDS):
            await _send_all(connection, msgspec.json.encode(Answer(data=data)) + b"\n")

    return begin


def _end(connection: trio.socket.SocketType) -> Ended:
    async def end() -> None:
        with contextlib.suppress(OSError, trio.BrokenResourceError):
            await connection.recv(4096)

    return end


async def _send_all(connection: trio.socket.SocketType, data: bytes) -> None:
    while data:
        data = data[await connection.send(data) :]


async def _receive_line(connection: trio.socket.SocketType) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) < _LONGEST:
        received = await connection.recv(4096)
        if not received:
            break
        line += received
    return line


def ask(path: Path, request: Request, *, timeout: float | None = None) -> dict[str, Any]:
    """Ask the daemon at a socket; returns the answer's data.

    Raises NotMounted if nobody listens there, ControlError with the daemon's own refusal.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(timeout)
        try:
            channel.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotMounted("The mount's daemon is gone.") from None
        try:
            channel.sendall(msgspec.json.encode(request) + b"\n")
            with channel.makefile("rb") as stream:
                received = stream.read()
        except TimeoutError:
            raise CryptfsError("The mount's daemon does not answer: its disk may be slow.") from None
        except ConnectionError:
            received = b""
    return _answered(received)


def _answered(received: bytes) -> dict[str, Any]:
    try:
        answer = msgspec.json.decode(received, type=Answer)
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise CryptfsError("The mount's daemon ended without an answer: see its log.") from None
    if answer.exit_code:
        raise ControlError(answer)
    return answer.data


class Held:
    """A held command, seen by who asked for it; the connection is its lifeline.

    Raises as `ask` does. Readable (`fileno`) when the command ended by itself.
    """

    def __init__(self, path: Path, request: Request) -> None:
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._channel.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            self._channel.close()
            raise NotMounted("The mount's daemon is gone.") from None
        try:
            self._channel.sendall(msgspec.json.encode(request) + b"\n")
            self._stream = self._channel.makefile("rb")
            self.data = _answered(self._stream.readline())
        except BaseException:
            self._channel.close()
            raise

    def fileno(self) -> int:
        return self._channel.fileno()

    def end(self) -> dict[str, Any]:
        """End it, if it has not ended; its second answer."""
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionError):
                self._channel.sendall(b"\n")
            try:
                received = self._stream.readline()
            except ConnectionError:
                received = b""
            return _answered(received)
        finally:
            self._stream.close()
            self._channel.close()

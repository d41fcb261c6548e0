"""`cryptfs freeze`: run a command while the ciphertext of a vault stands still."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cryptfs.cli.arguments import vault_argument
from cryptfs.cli.mount import Duration
from cryptfs.errors import FreezeEnded, NotAVault, UsageError, VaultInUse

if TYPE_CHECKING:
    from cryptfs.mount.control import Held

_PR_SET_PDEATHSIG = 1
_PASSED_ON = (signal.SIGTERM, signal.SIGHUP)


@click.command()
@vault_argument
@click.argument(
    "command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND [ARGUMENT]..."
)
@click.option(
    "--timeout",
    type=Duration(),
    default="60s",
    show_default=True,
    metavar="DURATION",
    help="Let a mounted vault go on after that long, whether COMMAND is done or not.",
)
@click.pass_context
def command(ctx: click.Context, vault: Path, command: tuple[str, ...], timeout: float) -> None:
    """Run COMMAND while nothing changes the ciphertext in VAULT: to take a snapshot, or to copy it.

    A copy made by COMMAND is that of a vault that was unmounted cleanly, with everything in it that
    programs had written when this was called. A mounted vault can be read meanwhile; whoever writes
    waits until COMMAND is done, for the time limit at most. A vault that is not mounted is kept from
    being mounted, without a limit.

    \b
      cryptfs freeze /srv/vault -- btrfs subvolume snapshot -r /srv /srv/.snapshots/today
      cryptfs freeze /srv/vault --timeout 2h -- rsync -a --delete /srv/vault/ nas:vault/

    Exits with COMMAND's exit code (128 + n if signal n ended it), or with 25 if the time limit came
    first or the mount ended: COMMAND is sent SIGTERM then, and its copy is not consistent. COMMAND must
    not write into the mount: it would wait for itself.
    """
    from cryptfs.vault.config import load

    if shutil.which(command[0]) is None:
        raise UsageError(f"There is no program {command[0]}.")
    load(vault)
    vault = vault.resolve()
    held = _ask_daemon(vault, timeout)
    if held is None:
        with _locked(vault):
            code, _ = _run(command, None)
    else:
        code, cut_short = _run(command, held)
        if not held.end()["lasted"] or cut_short:
            raise FreezeEnded(
                f"The freeze ended before {command[0]} was done: its copy is not consistent; "
                "repeat it with a longer --timeout."
            )
    ctx.exit(code)


def _ask_daemon(vault: Path, timeout: float) -> Held | None:
    """The freeze of the mount of this vault; None if it is not mounted, or only to be read."""
    from cryptfs.mount import control, runtime

    for record in runtime.records():
        if record.vault == str(vault) and not record.read_only and runtime.is_alive(record):
            request = control.Request("freeze", timeout=timeout)
            held = control.Held(runtime.socket_path(record.mountpoint), request)
            if "lasted" in held.data:  # the disk was so slow that the time limit came first
                raise FreezeEnded(
                    "The time limit came before everything was written: repeat it with a longer --timeout."
                )
            return held
    return None


@contextlib.contextmanager
def _locked(vault: Path) -> Iterator[None]:
    from cryptfs.vault.lock import take_lock

    try:
        lock = take_lock(vault, 0o600)
    except FileNotFoundError:
        raise NotAVault(f"{vault} has no folder journal: it is not a vault, or a part is missing.") from None
    except VaultInUse:
        raise VaultInUse(
            f"{vault} is mounted by another user, or being changed: call this as the user who mounted it."
        ) from None
    try:
        yield
    finally:
        os.close(lock)


def _run(command: tuple[str, ...], held: Held | None) -> tuple[int, bool]:
    """The command's exit code, and whether the freeze ended before it.

    Signals that are meant to end us are passed on; our own death, too.
    """
    # A signal that comes before it can be passed on has to wait until then.
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    try:
        child = subprocess.Popen(command, preexec_fn=_in_child)
    except BaseException:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        raise
    exits = os.pidfd_open(child.pid)
    with _passing_on(child):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        waiting = [exits] if held is None else [exits, held.fileno()]
        ready, _, _ = select.select(waiting, [], [])
        cut_short = exits not in ready
        if cut_short:
            child.terminate()
        code = child.wait()
    os.close(exits)
    return (code if code >= 0 else 128 - code), cut_short


def _in_child() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


@contextlib.contextmanager
def _passing_on(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """SIGTERM and SIGHUP go to the child; Ctrl-C reaches it by itself, and its end decides."""
    wanted = {
        signal.SIGTERM: lambda number, frame: child.send_signal(number),
        signal.SIGHUP: lambda number, frame: child.send_signal(number),
        signal.SIGINT: lambda number, frame: None,
    }
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

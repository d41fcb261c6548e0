"""`cryptfs unmount`: end a mount, with everything written."""

from __future__ import annotations

import os
import select
from pathlib import Path

import click

from cryptfs.cli.mount import Duration
from cryptfs.errors import CryptfsError, NotMounted


@click.command()
@click.argument("mountpoint", type=click.Path(path_type=Path, readable=False))
@click.option("--lazy", is_flag=True, help="Detach now, and end when the last file is closed.")
@click.option(
    "--timeout",
    type=Duration(),
    default="0.5s",
    show_default=True,
    metavar="DURATION",
    help="Wait that long for open files to be closed.",
)
def command(mountpoint: Path, lazy: bool, timeout: float) -> None:
    """Unmount what `cryptfs mount` mounted at MOUNTPOINT, and lock the vault.

    Returns when everything is on the disk and the mount's process has ended. What a killed
    process left behind is removed.
    """
    from cryptfs.mount import control, runtime

    place = os.path.realpath(mountpoint)
    record = runtime.find(place)
    if record is None or not runtime.is_alive(record):
        _without_daemon(place, lazy)
        runtime.remove(place)
        return
    process = _pidfd(record.pid)
    request = control.Request("unmount", lazy=lazy, timeout=timeout)
    done = control.ask(runtime.socket_path(place), request)
    if not done["closed"]:
        click.echo(f"{place} is detached; the vault is locked when the last open file is closed.")
    elif process is not None:
        select.select([process], [], [])
        os.close(process)


def _without_daemon(place: str, lazy: bool) -> None:
    from cryptfs.mount import mountpoint as places

    mount = places.mounted_at(place)
    if mount is None or mount.fstype != places.FSTYPE:
        raise NotMounted(f"No vault is mounted at {place}.")
    if places.is_dead(place):
        places.remove_dead(place)
        click.echo(f"The mount's process was gone already: removed the dead mount at {place}.", err=True)
        return
    # Alive, but of another user or runtime directory: its daemon ends by itself once it is unmounted.
    try:
        places.unmount(place, lazy=lazy)
    except OSError as error:
        raise CryptfsError(
            f"{place} was mounted by another user and cannot be unmounted: {error.strerror}."
        ) from None


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None

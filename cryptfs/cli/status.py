"""`cryptfs status`: what is mounted, and what it does."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cryptfs.cli.main import printable, size_text
from cryptfs.errors import CryptfsError, NotMounted

if TYPE_CHECKING:
    from cryptfs.mount.runtime import Record

_ANSWER_SECONDS = 5.0


@click.command()
@click.argument("mountpoint", type=click.Path(path_type=Path, readable=False), required=False)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def command(mountpoint: Path | None, as_json: bool) -> None:
    """Show the mounted vaults of this user, or the one at MOUNTPOINT.

    Exits with 17 if MOUNTPOINT is named and no vault is mounted there.
    """
    place = None if mountpoint is None else os.path.realpath(mountpoint)
    mounts = [mount for mount in _mounts() if place is None or mount["mountpoint"] == place]
    if place is not None and not mounts:
        raise NotMounted(f"No vault is mounted at {place}.")
    if as_json:
        click.echo(json.dumps({"mounts": mounts}, indent=2))
    elif not mounts:
        click.echo("No vault is mounted.")
    else:
        click.echo("\n\n".join(_describe(mount) for mount in mounts))


def _mounts() -> list[dict[str, Any]]:
    """The recorded mounts, then those of other users that only the kernel tells of."""
    from cryptfs.mount import mountpoint as places
    from cryptfs.mount import runtime

    found = []
    for record in runtime.records():
        mount = _ask(record)
        if mount["state"] == "gone":
            runtime.remove(record.mountpoint)
        else:
            found.append(mount)
    known = {mount["mountpoint"] for mount in found}
    for other in places.mounts():
        if other.fstype == places.FSTYPE and other.mountpoint not in known:
            state = "dead" if places.is_dead(other.mountpoint) else "mounted by another user"
            found.append({"mountpoint": other.mountpoint, "vault": other.source, "state": state})
    return found


def _ask(record: Record) -> dict[str, Any]:
    from cryptfs.mount import control, runtime
    from cryptfs.mount import mountpoint as places

    mount: dict[str, Any] = {
        "mountpoint": record.mountpoint,
        "vault": record.vault,
        "state": "mounted",
        "vault_id": record.vault_id,
        "pid": record.pid,
        "since": record.since,
        "read_only": record.read_only,
        "cipher": record.cipher,
        "unlocked_with": record.slot,
    }
    if not runtime.is_alive(record):
        mount["state"] = "dead" if places.is_dead(record.mountpoint) else "gone"
        return mount
    try:
        socket = runtime.socket_path(record.mountpoint)
        mount |= control.ask(socket, control.Request("status"), timeout=_ANSWER_SECONDS)
    except CryptfsError as error:
        mount["state"] = "not answering"
        mount["problem"] = str(error)
    return mount


def _describe(mount: dict[str, Any]) -> str:
    state = mount["state"]
    if state == "dead":
        state = "dead: its process was killed; unmount it, or mount again"
    if mount.get("frozen"):
        state += (
            f", frozen for a backup: {mount['requests_held']} requests wait, "
            f"for {mount['frozen_seconds_left']} seconds at most"
        )
    lines = [("vault", mount["vault"]), ("state", state + (", read-only" if mount.get("read_only") else ""))]
    if "pid" in mount:
        lines += [
            ("since", f"{mount['since']}, process {mount['pid']}"),
            ("cipher", mount["cipher"]),
            ("unlocked with", mount["unlocked_with"]),
        ]
    if "open_files" in mount:
        lines += [
            ("open files", str(mount["open_files"])),
            ("read", _traffic(mount["bytes_read"], mount["read_bytes_per_second"])),
            ("written", _traffic(mount["bytes_written"], mount["written_bytes_per_second"])),
            ("index", mount["index"]),
            ("memory", f"{mount['memory_bytes'] / (1 << 20):.0f} MiB"),
        ]
    if "studies" in mount:
        lines.append(("study index", _studies(mount["studies"])))
    if sum(mount.get("witness", {}).get(kind, 0) for kind in ("refused", "missing", "vault")):
        witness = mount["witness"]
        lines.append(
            (
                "restored?",
                f"{witness['refused']} refused, {witness['missing']} missing: cryptfs accept-restore",
            )
        )
    if "problem" in mount:
        lines.append(("problem", mount["problem"]))
    return "\n".join(
        [printable(mount["mountpoint"])] + [f"  {name + ':':<15}{printable(value)}" for name, value in lines]
    )


def _studies(studies: dict[str, Any]) -> str:
    """The state of the index of whose images are in the vault, in words."""
    if studies["state"] == "none":
        return f"none ({studies['reason']})" if studies["reason"] else "none"
    if studies["state"] == "complete":
        return "complete"
    left = [
        f"{count} {name if count == 1 else name + 's'}"
        for count, name in ((studies["to_read"], "file"), (studies["to_list"], "folder"))
        if count
    ]
    return f"{' and '.join(left)} still to be read"


def _traffic(total: int, rate: int) -> str:
    return f"{size_text(total)} ({size_text(rate)}/s)"

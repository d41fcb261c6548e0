"""`cryptfs index`: look at this computer's metadata index of a vault, and take care of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cryptfs.cli import progress
from cryptfs.cli.arguments import vault_argument
from cryptfs.cli.secrets import SecretSource, secret_options
from cryptfs.errors import CryptfsError

if TYPE_CHECKING:
    from cryptfs.mount.runtime import Record

_POLL_SECONDS = 0.5
_VERBS = {"rebuild": "reading", "verify": "comparing"}

_json = click.option("--json", "as_json", is_flag=True, help="For programs.")
_state_dir = click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False, readable=False),
    metavar="FOLDER",
    help="As given to `cryptfs mount`; not needed for a mounted vault.",
)


@click.group()
def command() -> None:
    """The metadata index that this computer keeps of a vault.

    It holds names and attributes, sealed, so that listing a vault need not touch its disk. It is made by
    itself, never backed up, and can be dropped at any time: nothing is lost but speed.
    """


@command.command()
@vault_argument
@_state_dir
@_json
def status(vault: Path, state_dir: Path | None, as_json: bool) -> None:
    """Show where the index of VAULT is, and how large."""
    from cryptfs.index import place
    from cryptfs.index.catalog import PURPOSE

    vault_id, path = _identify(vault)
    mount = _mount_of(path)
    folder = place.of_vault(vault_id, state_dir) / PURPOSE
    if mount is not None:
        found = _ask(mount, "status")
    else:
        data = folder / "data.mdb"
        size = data.stat().st_blocks * 512 if data.exists() else 0
        found = {"state": "kept" if size else "none", "folder": str(folder), "bytes": size}
    found = {"mounted": mount is not None} | found
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        if value != "":
            click.echo(f"{name.replace('_', ' ') + ':':<16}{value}")


@command.command()
@vault_argument
@_state_dir
@_json
@secret_options
def rebuild(vault: Path, state_dir: Path | None, as_json: bool, source: SecretSource) -> None:
    """Forget the index of VAULT and read the whole tree into a new one.

    A vault that is not mounted is unlocked for it, and cannot be mounted meanwhile.
    """
    _report(_job("rebuild", vault, state_dir, source), as_json)


@command.command()
@vault_argument
@_state_dir
@_json
@secret_options
def verify(vault: Path, state_dir: Path | None, as_json: bool, source: SecretSource) -> None:
    """Compare every record of the index of VAULT with the vault; what is not right is read anew.

    Records that are out of date because the vault was changed while it was not mounted are counted, and no
    fault: a mount finds them. Exits with 1 if a record was wrong that a mount would have believed.
    """
    outcome = _job("verify", vault, state_dir, source)
    _report(outcome, as_json)
    if outcome["wrong"]:
        raise CryptfsError(f"{outcome['wrong']} records were wrong: a defect of cryptfs.")


@command.command()
@vault_argument
@_state_dir
@_json
def drop(vault: Path, state_dir: Path | None, as_json: bool) -> None:
    """Remove the index of VAULT. A mounted vault begins a new one at once."""
    from cryptfs.index import place
    from cryptfs.index.catalog import PURPOSE
    from cryptfs.index.environment import discard

    vault_id, path = _identify(vault)
    mount = _mount_of(path)
    if mount is not None:
        _ask(mount, "drop")
        dropped = True
    else:
        dropped = discard(place.of_vault(vault_id, state_dir), PURPOSE)
    if as_json:
        click.echo(json.dumps({"dropped": dropped}))
    else:
        click.echo("The index was dropped." if dropped else "There was no index.")


def _identify(vault: Path) -> tuple[bytes, Path]:
    from cryptfs.vault.config import load

    return load(vault).vault_id, vault.resolve()


def _mount_of(vault: Path) -> Record | None:
    """The mount of a vault that writes to it."""
    from cryptfs.mount import runtime

    for record in runtime.records():
        if record.vault == str(vault) and not record.read_only and runtime.is_alive(record):
            return record
    return None


def _ask(mount: Record, action: str) -> dict[str, Any]:
    from cryptfs.mount import control, runtime

    return control.ask(runtime.socket_path(mount.mountpoint), control.Request("index", action=action))


def _job(name: str, vault: Path, state_dir: Path | None, source: SecretSource) -> dict[str, Any]:
    vault_id, path = _identify(vault)
    mount = _mount_of(path)
    if mount is not None:
        with progress.entries(_VERBS[name]) as show:
            return _remote(mount, name, show.done)
    return _local(name, path, vault_id, state_dir, source)


def _remote(mount: Record, name: str, done: Callable[[int], None]) -> dict[str, Any]:
    """Have the mount do it, and ask it how far it is."""
    finished = threading.Event()

    def follow() -> None:
        while not finished.wait(_POLL_SECONDS):
            try:
                done(_ask(mount, "status")["job_entries"])
            except (CryptfsError, OSError):
                return

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        return _ask(mount, name)
    finally:
        finished.set()
        follower.join()


def _local(
    name: str, path: Path, vault_id: bytes, state_dir: Path | None, source: SecretSource
) -> dict[str, Any]:
    """Open the vault as a mount would, and do it here."""
    from cryptfs.fs import FileSystem, upkeep
    from cryptfs.index import place
    from cryptfs.vault import Vault
    from cryptfs.vault.config import load

    remembered = place.prepare(vault_id, state_dir, outside=[path])
    unlocked = source.unlock(load(path))
    opened = Vault.of(path, unlocked)
    fs = FileSystem(opened, place=remembered)
    try:
        with progress.entries(_VERBS[name]) as show:
            job = upkeep.rebuild if name == "rebuild" else upkeep.verify
            return job(fs, show.done).as_json()
    finally:
        fs.close()


def _report(outcome: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(outcome, indent=2))
        return
    click.echo(f"{outcome['entries']} entries in {outcome['directories']} directories:")
    for name, text in (
        ("recorded", "recorded"),
        ("unrecorded", "to be looked up each time (hard links, devices) or not recorded yet"),
        ("outdated", "recorded, but changed since"),
        ("wrong", "wrong"),
        ("damaged", "damaged themselves: see cryptfs verify"),
    ):
        if outcome[name]:
            click.echo(f"{outcome[name]:>10}  {text}")

"""`cryptfs accept-restore`: what differs from what this computer remembers of a vault, and accepting it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cryptfs.cli import terminal
from cryptfs.cli.arguments import vault_argument
from cryptfs.cli.main import printable
from cryptfs.cli.mount import remembered_at
from cryptfs.cli.secrets import SecretSource, secret_options
from cryptfs.errors import IntegrityError, Interrupted, StorageError, UsageError

if TYPE_CHECKING:
    from cryptfs.fs.restoring import Survey
    from cryptfs.vault.config import Unlocked

_SHOWN = 20
_KINDS = {
    "replaced": ("is another file or folder than before", "are other files or folders than before"),
    "older": ("is older than before", "are older than before"),
    "missing": ("is missing", "are missing"),
}


@click.command()
@vault_argument
@click.option(
    "--dry-run", is_flag=True, help="Show what differs, change nothing. Exits with 18 if anything does."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--json", "as_json", is_flag=True, help="For programs: docs/restore.md. Needs --dry-run or --yes."
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False, readable=False),
    metavar="FOLDER",
    help="As for `cryptfs mount`.",
)
@secret_options
def command(
    vault: Path, dry_run: bool, yes: bool, as_json: bool, state_dir: Path | None, source: SecretSource
) -> None:
    """Accept that VAULT, or files in it, were restored from a backup.

    This computer remembers which object, in which version, it last saw under each name. A file that is
    another one, or older, is refused (Input/output error), and one that is gone is reported in the log:
    it could have been exchanged by somebody. After a real restore, this command shows what differs, asks,
    and takes what is there now for right. Nothing in the vault is changed.

    VAULT may be mounted; then the mount's process does it, and no secret is asked for.
    """
    if as_json and not (dry_run or yes):
        raise UsageError("With --json, say --dry-run or --yes: nobody can be asked.")
    mounted = _mounted(vault)
    if mounted is not None:
        _through_mount(mounted, dry_run, yes, as_json)
    else:
        _directly(vault, dry_run, yes, as_json, state_dir, source)


def _mounted(vault: Path) -> Path | None:
    """The control socket of the process that has the vault mounted."""
    from cryptfs.mount import runtime

    path = os.path.realpath(vault)
    for record in runtime.records():
        if record.vault == path and not record.read_only and runtime.is_alive(record):
            return runtime.socket_path(record.mountpoint)
    return None


def _through_mount(socket: Path, dry_run: bool, yes: bool, as_json: bool) -> None:
    from cryptfs.mount import control

    with _spinner() as show:
        show(0)
        found = control.ask(socket, control.Request("restore-survey"))
    if _decide(found, dry_run, yes, as_json):
        control.ask(socket, control.Request("restore-accept", token=found["token"]))
    _tell(found, dry_run, as_json)


def _directly(
    vault: Path, dry_run: bool, yes: bool, as_json: bool, state_dir: Path | None, source: SecretSource
) -> None:
    from cryptfs.fs import FileSystem, FsOptions
    from cryptfs.index import witness
    from cryptfs.vault import Vault
    from cryptfs.vault.config import load

    config = load(vault)
    unlocked = source.unlock(config)
    vault = vault.resolve()
    place, why_not = remembered_at(unlocked.vault_id, state_dir, (vault,))
    if place is None:
        raise StorageError(why_not)

    def opened(*, read_only: bool) -> FileSystem:
        lower = Vault.of(vault, unlocked, read_only=read_only)
        return FileSystem(lower, FsOptions(compare=False, index=False), place=place)

    if _begin_anew_needed(place, vault, unlocked):
        found: dict[str, Any] = {"vault": [_OLD_KEYS], "differs": True, "counts": {}}
        if _decide(found, dry_run, yes, as_json):
            witness.begin_anew(place, vault)
        _tell(found, dry_run, as_json)
        return
    with contextlib.ExitStack() as stack:
        with contextlib.closing(opened(read_only=True)) as fs:
            survey = stack.enter_context(contextlib.closing(fs.survey()))
            found = _run(survey)
        if _decide(found, dry_run, yes, as_json):
            with contextlib.closing(opened(read_only=False)) as fs:
                fs.accept(survey)
        _tell(found, dry_run, as_json)


_OLD_KEYS = (
    "cryptfs.json is older than this computer last saw it: keys that came later are not in it, "
    "and what was remembered cannot be opened with those that are"
)


def _begin_anew_needed(place: Path, vault: Path, unlocked: Unlocked) -> bool:
    from cryptfs.index.witness import KeysTooOld, WitnessStore

    try:
        WitnessStore.open(place, vault, unlocked.vault_id, unlocked.keyring).close()
    except KeysTooOld:
        return True
    return False


def _run(survey: Survey) -> dict[str, Any]:
    with _spinner() as show:
        return survey.run(show).as_dict()


@contextlib.contextmanager
def _spinner() -> Iterator[Callable[[int], None]]:
    """Says on standard error how many files were compared, where somebody is looking."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda looked_at: None
        return
    with console.status("comparing") as status:
        yield lambda looked_at: status.update(f"comparing: {looked_at} files and folders")


def _decide(found: dict[str, Any], dry_run: bool, yes: bool, as_json: bool) -> bool:
    """Show what was found; whether it is to be accepted."""
    if not as_json:
        click.echo("\n".join(_describe(found)))
    if dry_run:
        found["accepted"] = False
        return False
    if found["differs"] and not yes:
        if not terminal.available():
            raise UsageError("Nobody can be asked here: look with --dry-run, then accept with --yes.")
        if terminal.ask("Accept this as right? [y/N] ").lower() not in ("y", "yes"):
            raise Interrupted("Nothing was accepted.")
    found["accepted"] = True
    return True


def _describe(found: dict[str, Any]) -> Iterator[str]:
    if not found["differs"]:
        yield "Nothing differs from what this computer last saw."
    for sentence in found["vault"]:
        yield printable(sentence[0].upper() + sentence[1:] + ".")
    for kind, (one, many) in _KINDS.items():
        count = found["counts"].get(kind, 0)
        if not count:
            continue
        yield f"1 {one}:" if count == 1 else f"{count} {many}:"
        for path in found[kind][:_SHOWN]:
            yield f"    {printable(path)}"
        if count > _SHOWN:
            yield f"    … and {count - _SHOWN} more (--json shows them)"
    if below := found["counts"].get("missing_below"):
        yield f"In folders that are missing there were {below} more files and folders."
    if found.get("new"):
        yield f"{found['new']} are there that this computer had not seen yet."
    if found.get("unreadable"):
        yield f"{found['unreadable']} cannot be read: cryptfs verify says more."


def _tell(found: dict[str, Any], dry_run: bool, as_json: bool) -> None:
    found.pop("token", None)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif found["accepted"] and found["differs"]:
        click.echo("Accepted: this is what the computer remembers from now on.")
    if dry_run and found["differs"]:
        raise IntegrityError("The vault differs from what this computer last saw.")

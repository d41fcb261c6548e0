"""`cryptfs key backup`, `restore`, `recover`, `destroy`: when keys are lost, or are to be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cryptfs.cli import secrets, terminal
from cryptfs.cli.arguments import vault_argument
from cryptfs.cli.main import printable
from cryptfs.cli.secrets import SecretSource, secret_options
from cryptfs.errors import ConfigDamaged, CryptfsError, Interrupted, UsageError

if TYPE_CHECKING:
    from cryptfs.vault.config import Config

_FILE = click.Path(dir_okay=False, readable=False, path_type=Path)


@click.command("backup")
@vault_argument
@click.argument("file", type=click.Path(readable=False, path_type=Path))
def backup(vault: Path, file: Path) -> None:
    """Copy the configuration of VAULT (cryptfs.json: all key slots) to the new FILE.

    Without cryptfs.json nothing opens the vault, and it is small: keep a copy where the recovery key
    is. FILE opens with the secrets of today, also with those that are removed later: make a new
    copy after each change, and destroy the old. Needs no secret, and gives none away.
    """
    from cryptfs.vault import config, configfile, emergency

    loaded = config.load(vault)
    if file.resolve().is_relative_to(vault.resolve()):
        raise UsageError("A copy inside the vault is lost with it: name a file elsewhere.")
    text = configfile.read(vault / configfile.NAME)
    emergency.write_copy(file, text)
    click.echo(
        f"{file} holds the {len(loaded.slots)} key slots of {vault} (change {loaded.document.generation})."
    )


@click.command("restore")
@vault_argument
@click.argument("file", type=_FILE)
@click.option("--yes", is_flag=True, help="Do not ask when slots that were removed come back.")
@secret_options
def restore(vault: Path, file: Path, yes: bool, source: SecretSource) -> None:
    """Make FILE, a copy from `key backup` or cryptfs.json.previous, the configuration of VAULT.

    The copy is unlocked first, and its keys must open the vault's files: a copy of another vault, or one
    made before the keys were rotated, is refused. What it replaces is kept as cryptfs.json.replaced.
    Slots that were removed since the copy was made are there again, and so are their secrets.
    """
    from cryptfs.vault import config, configfile, emergency

    copy = emergency.read_backup(vault, file)
    text = configfile.read(file)
    current = _current(vault)
    if current is not None and current.vault_id != copy.vault_id:
        raise ConfigDamaged(f"{file} is of another vault ({copy.vault_id.hex()}): nothing was changed.")
    unlocked = source.unlock(copy)
    if current is not None:
        now = {slot.id for slot in current.slots}
        back = [slot for slot in copy.slots if slot.id not in now]
        if back:
            names = ", ".join(f"{slot.type} {slot.id} {printable(slot.label)}".rstrip() for slot in back)
            _confirm(yes, f"The copy brings back slots that are not there now: {names}. Restore it?")
    kept = emergency.restore(vault, text, unlocked)
    config.load(vault)
    click.echo(f"The configuration of {vault} is that of {file}." + (f" Before: {kept}." if kept else ""))


@click.command("recover")
@vault_argument
@click.option(
    "--from",
    "file",
    type=_FILE,
    metavar="FILE",
    help="Begin with this copy of cryptfs.json, if the vault's own is lost: from `key backup`, or "
    "cryptfs.json.previous.",
)
@click.option("--label", default=None, help="A note on the new passphrase slot.")
@click.option("--recovery-key-file", type=_FILE, metavar="FILE", help="Read the recovery key from FILE.")
@click.option("--new-passphrase-file", type=_FILE, metavar="FILE", help="Read the new passphrase from FILE.")
@click.option("--new-passphrase-fd", type=click.IntRange(min=0), help="Read it from descriptor N.")
def recover(
    vault: Path,
    file: Path | None,
    label: str | None,
    recovery_key_file: Path | None,
    new_passphrase_file: Path | None,
    new_passphrase_fd: int | None,
) -> None:
    """Open VAULT with nothing but the recovery key, and give it a new passphrase.

    For the day on which the passphrase is lost, or the machine with the TPM. Asks for the recovery key,
    then for a new passphrase. If the vault has one passphrase slot, that one gets it and the old passphrase
    opens nothing any more; else a slot is added, and `key remove` takes away the others. What copies of the
    old cryptfs.json still allow: see `key change --help`. The recovery key stays as it is.
    """
    from cryptfs.vault import belongs, config, configfile, emergency

    secrets.at_most_one(
        {
            "--new-passphrase-file": new_passphrase_file is not None,
            "--new-passphrase-fd": new_passphrase_fd is not None,
        }
    )
    asks = recovery_key_file is None
    source = SecretSource(recovery_key=asks, recovery_key_file=recovery_key_file)
    loaded = _found(vault) if file is None else emergency.read_backup(vault, file)
    unlocked = source.unlock(loaded)
    belongs.check(vault, unlocked)
    passphrase = secrets.new_passphrase(new_passphrase_file, new_passphrase_fd)
    if file is not None:
        current = _current(vault)
        if current is not None and current.vault_id != loaded.vault_id:
            raise ConfigDamaged(f"{file} is of another vault ({loaded.vault_id.hex()}): nothing was changed.")
        kept = emergency.restore(vault, configfile.read(file), unlocked)
        if kept:
            click.echo(f"What was there as cryptfs.json is kept as {kept}.")
    old = [slot for slot in loaded.slots if slot.type == "passphrase"]
    if len(old) == 1:
        config.change_slot(unlocked, old[0].id, passphrase, label)
        click.echo(
            f"The passphrase slot {old[0].id} has the new passphrase; the old one opens nothing any more."
        )
        return
    added = config.add_slot(unlocked, passphrase, label or "")
    click.echo(f"Added the passphrase slot {added.config.slots[-1].id}.")
    if old:
        click.echo(
            f"The {len(old)} other passphrases go on opening the vault: `cryptfs key list`, `key remove`."
        )


@click.command("destroy")
@vault_argument
@click.option("--confirm", metavar="NAME", help="The name of the vault's folder, instead of asking for it.")
@click.option("--slots-only", is_flag=True, help="Leave the headers of the files: seconds instead of a walk.")
def destroy(vault: Path, confirm: str | None, slots_only: bool) -> None:
    """Make VAULT unreadable for ever: overwrite every key slot, then the wrapped key of every file.

    For a disk that is given away. Asks for the name of the vault's folder; refuses while the vault is
    mounted. Needs no secret: whoever may write there could delete it all the same.

    After the first second nothing opens the vault any more but a copy of cryptfs.json (from `key backup`,
    or in a backup of the vault) with a secret of its time; once the headers are overwritten too, not
    even that opens the files here. Interrupted, it can be called again.

    What it cannot reach: backups and snapshots of the whole vault stay readable with their own
    cryptfs.json, and an SSD, a copy-on-write file system or a NAS may keep old blocks. Destroy these
    as well.
    """
    from cryptfs.cli import lockout_note, slot_use
    from cryptfs.vault import config

    name = vault.resolve().name
    if confirm is None:
        if not terminal.available():
            raise UsageError("There is no terminal to ask on: confirm with --confirm NAME.")
        terminal.say(f"Everything in {vault} becomes unreadable for ever; there is no way back.")
        confirm = terminal.ask(f"Type the name of the vault's folder ({name}): ")
    if confirm != name:
        raise Interrupted(f"{confirm!r} is not the name of the vault's folder: nothing was changed.")
    vault_id = None
    try:
        vault_id = config.load(vault).vault_id
    except CryptfsError:
        pass  # destroyed already, as far as that goes, or damaged
    slots, objects = _destroy_with_progress(vault, not slots_only)
    if vault_id is not None:
        slot_use.forget(vault_id)
        lockout_note.forget(vault_id)
    click.echo(
        f"Overwritten: {slots} copies of the key slots and the headers of {objects} files. Still readable:"
    )
    click.echo(
        "- backups and snapshots of the whole vault, with their own cryptfs.json and a secret of their time;"
    )
    if slots_only:
        click.echo("- this vault, with a copy of cryptfs.json (key backup) and a secret of its time;")
    click.echo(
        "- old blocks that an SSD, a copy-on-write file system or a NAS keeps: encrypt or shred the device."
    )


def _destroy_with_progress(vault: Path, headers: bool) -> tuple[int, int]:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from cryptfs.vault import emergency

    columns = (TextColumn("overwriting headers"), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        return emergency.destroy(
            vault, headers=headers, progress=lambda done: bar.update(task, completed=done)
        )


def _current(vault: Path) -> Config | None:
    """The configuration that is there, if it can be read."""
    from cryptfs.vault import config

    try:
        return config.load(vault)
    except CryptfsError:
        return None


def _found(vault: Path) -> Config:
    """The vault's own configuration, or a sentence that says which copy to try."""
    from cryptfs.vault import config, configfile

    try:
        return config.load(vault)
    except ConfigDamaged as error:
        previous = vault / configfile.PREVIOUS
        instead = f"--from {previous}" if previous.exists() else "--from FILE, a copy from `key backup`"
        raise ConfigDamaged(f"{str(error).rstrip('.')}. Try: cryptfs key recover {vault} {instead}") from None


def _confirm(yes: bool, question: str) -> None:
    if yes:
        return
    if not terminal.available():
        raise UsageError(f"{question} There is no terminal to ask on: confirm with --yes.")
    if terminal.ask(f"{question} [y/N] ").lower() not in ("y", "yes"):
        raise Interrupted("Nothing was changed.")

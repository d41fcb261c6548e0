"""`cryptfs init`: a new vault, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from cryptfs.cli import key_sheet, secret_io, secrets
from cryptfs.errors import Interrupted, UsageError, VaultInUse

if TYPE_CHECKING:
    from cryptfs.keyslots import Secret
    from cryptfs.vault.config import Unlocked

# What may be in a "new" folder: a disk of its own has it from the start.
_HARMLESS = {"lost+found"}


@click.command()
@click.argument("vault", type=click.Path(readable=False, path_type=Path))
@click.option("--label", default="", help="A note on the passphrase slot, shown by `key list`.")
@click.option(
    "--backup-group", is_flag=True, help="Let the folder's group read the ciphertext (for the backup)."
)
@click.option(
    "--recovery-key-file",
    type=click.Path(readable=False, path_type=Path),
    metavar="FILE",
    help="Write the recovery key to this new file instead of showing it.",
)
@click.option(
    "--recovery-sheet",
    type=click.Path(readable=False, path_type=Path),
    metavar="FILE",
    help="Write the sheet for the safe, with the recovery key, to this new file (.html or .txt).",
)
@click.option(
    "--passphrase-file",
    type=click.Path(dir_okay=False, readable=False, path_type=Path),
    metavar="FILE",
    help="Read the passphrase from FILE (one line) instead of asking.",
)
@click.option("--passphrase-fd", type=click.IntRange(min=0), help="Read the passphrase from descriptor N.")
@click.option(
    "--key-file",
    "key_files",
    type=click.Path(dir_okay=False, readable=False, path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Let this key file unlock the vault too (may be repeated).",
)
@click.option("--no-passphrase", is_flag=True, help="Only the recovery key and the key files unlock it.")
def command(
    vault: Path,
    label: str,
    backup_group: bool,
    recovery_key_file: Path | None,
    recovery_sheet: Path | None,
    passphrase_file: Path | None,
    passphrase_fd: int | None,
    key_files: tuple[Path, ...],
    no_passphrase: bool,
) -> None:
    """Make a new vault in the new or empty folder VAULT.

    Asks for a passphrase and shows the recovery key, which opens the vault when the
    passphrase is lost. Only ciphertext is ever stored in VAULT; mount it to use it.
    """
    secrets.at_most_one(
        {
            "--passphrase-file": passphrase_file is not None,
            "--passphrase-fd": passphrase_fd is not None,
            "--no-passphrase": no_passphrase,
        }
    )
    _check_folder(vault)
    for file in (recovery_key_file, recovery_sheet):
        if file and file.resolve().is_relative_to(vault.resolve()):
            raise UsageError("The recovery key must not be stored in the vault that it opens.")
    if recovery_sheet:
        key_sheet.check_name(recovery_sheet)

    from cryptfs.keyslots import RecoveryKey

    key_secrets: list[tuple[Secret, str]] = [(secret_io.read_key_file(f), f.name) for f in key_files]
    chosen: list[tuple[Secret, str]] = []
    if not no_passphrase:
        chosen.append((secrets.new_passphrase(passphrase_file, passphrase_fd), label))
    with _interruptible(), contextlib.ExitStack() as undo:
        # On the sheet is where it will be read: then it need not be shown on the screen as well.
        on_sheet_only = recovery_sheet is not None and recovery_key_file is None
        recovery = RecoveryKey.new() if on_sheet_only else secrets.new_recovery_key(recovery_key_file)
        if recovery_key_file:
            undo.callback(recovery_key_file.unlink, missing_ok=True)
        unlocked = _make(vault, [*chosen, (recovery, "recovery key"), *key_secrets], backup_group, undo)
        if recovery_sheet:
            key_sheet.write(recovery_sheet, vault, unlocked.config, recovery.text)
        undo.pop_all()
    click.echo(f"The vault {vault} is ready. Mount it with: cryptfs mount {vault} MOUNTPOINT")
    if recovery_key_file:
        click.echo(f"The recovery key is in {recovery_key_file}: move it away from this computer.")
    if recovery_sheet:
        click.echo(f"Print {recovery_sheet}, put the paper into the safe, then delete the file.")


def _make(
    vault: Path, chosen: list[tuple[Secret, str]], backup_group: bool, undo: contextlib.ExitStack
) -> Unlocked:
    """Folders, root directory, and cryptfs.json last: what has one is a whole vault."""
    from cryptfs.vault import config, configfile
    from cryptfs.vault.layout import create_tree

    if any(secret.type == "passphrase" for secret, _ in chosen):
        click.echo("Measuring this machine, so that guessing the passphrase stays slow …", err=True)
    unlocked = config.create(vault, chosen, backup_group=backup_group, write=False)
    try:
        vault.mkdir(mode=0o700)
        undo.callback(shutil.rmtree, vault, ignore_errors=True)
    except FileExistsError:
        _check_folder(vault)
        mode = vault.stat().st_mode & 0o7777
        undo.callback(_empty, vault, mode)
    owner = vault.stat()
    create_tree(
        vault,
        unlocked.vault_id,
        unlocked.keyring,
        backup_group=backup_group,
        mode=0o700,
        uid=owner.st_uid,
        gid=owner.st_gid,
    )
    config.write_new(unlocked)
    config.load(vault)
    configfile.sync_folder(vault.resolve().parent)
    return unlocked


def _check_folder(vault: Path) -> None:
    """UsageError unless it does not exist or is empty."""
    if not vault.exists():
        if vault.is_symlink():
            raise UsageError(f"{vault} is a symbolic link to nothing.")
        if not vault.resolve().parent.is_dir():
            raise UsageError(f"There is no folder {vault.resolve().parent} to make the vault in.")
        return
    if not vault.is_dir():
        raise UsageError(f"{vault} is not a folder.")
    names = set(os.listdir(vault))
    if "cryptfs.json" in names:
        raise VaultInUse(f"{vault} is a vault already.")
    if names - _HARMLESS:
        raise UsageError(f"{vault} is not empty: a vault is made in a new or empty folder.")


def _empty(vault: Path, mode: int) -> None:
    """Back to the empty folder that it was."""
    for entry in vault.iterdir():
        if entry.name in _HARMLESS:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    vault.chmod(mode)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Being told to stop, or losing the terminal, undoes everything as Ctrl-C does."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Interrupted("Interrupted: no vault was made.")

    old = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)

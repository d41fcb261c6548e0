"""`cryptfs mount`: unlock a vault and serve it at a folder."""

from __future__ import annotations

import grp
import logging
import os
import pwd
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cryptfs.cli.arguments import vault_argument
from cryptfs.cli.secrets import SecretSource, secret_options
from cryptfs.errors import CryptfsError, UsageError

if TYPE_CHECKING:
    from cryptfs.fs import FileSystem
    from cryptfs.fs.types import Owner
    from cryptfs.practice.service import NoStudies, StudyService
    from cryptfs.vault.config import Unlocked
    from cryptfs.vault.header import KeyringLike

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# The generic options of mount(8) that make sense for this mount, given with -o.
_FLAGS = {"exec", "noexec", "suid", "nosuid", "dev", "nodev", "atime", "noatime", "sync", "dirsync"}


class Duration(click.ParamType[float]):
    """A number with a unit: 90s, 15m, 2h, 1d. Becomes seconds."""

    name = "duration"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", str(value))
        if match is None or float(match[1]) == 0:
            self.fail(f"{value!r} is not a duration: write 90s, 15m, 2h or 1d.", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


@click.command()
@vault_argument
@click.argument("mountpoint", type=click.Path(path_type=Path, readable=False))
@click.option("--foreground", "-f", is_flag=True, help="Stay in the foreground (for service managers).")
@click.option("--read-only", is_flag=True, help="Nothing in the vault can be changed.")
@click.option("--allow-other", is_flag=True, help="Let other users in, as the permissions say.")
@click.option(
    "--owner",
    metavar="USER[:GROUP]",
    help="Show everything as USER's, and let USER in.",
)
@click.option("--xattrs", is_flag=True, help="Extended attributes and access control lists (slower writes).")
@click.option(
    "--idle-timeout",
    type=Duration(),
    metavar="DURATION",
    help="Unmount when nothing was open or asked for that long: 30m, 8h.",
)
@click.option(
    "--log",
    "log_target",
    metavar="FILE|syslog|journal",
    help="Where the log goes. Default: the journal or syslog; standard error with --foreground.",
)
@click.option(
    "--option",
    "-o",
    "flags",
    multiple=True,
    type=click.Choice(sorted(_FLAGS)),
    metavar="FLAG",
    help="A flag of mount(8): noexec, noatime, … (may be repeated).",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False, readable=False),
    metavar="FOLDER",
    help="Where this computer remembers what is in its vaults, on a local disk. "
    "Default: CRYPTFS_STATE_DIR, or /var/lib/cryptfs for root, ~/.local/state/cryptfs for others.",
)
@click.option("--no-index", is_flag=True, help="Read names and attributes from the vault each time.")
@click.option("--no-studies", is_flag=True, help="Keep no index of whose images they are (`cryptfs find`).")
@click.option("--verbose", "-v", is_flag=True, help="Log more.")
@click.option(
    "--or-ask", is_flag=True, help="With --tpm: if the TPM does not unlock, ask for the passphrase."
)
@click.option(
    "--ask-with",
    metavar="PROGRAM",
    help="Ask through PROGRAM, which gets the question as its last argument and prints the answer "
    "(systemd-ask-password).",
)
@secret_options
def command(
    vault: Path,
    mountpoint: Path,
    foreground: bool,
    read_only: bool,
    allow_other: bool,
    owner: str | None,
    xattrs: bool,
    idle_timeout: float | None,
    log_target: str | None,
    flags: tuple[str, ...],
    state_dir: Path | None,
    no_index: bool,
    no_studies: bool,
    verbose: bool,
    or_ask: bool,
    ask_with: str | None,
    source: SecretSource,
) -> None:
    """Unlock VAULT and mount it at the empty folder MOUNTPOINT.

    Returns when the mount is there and answers; a process in the background serves it
    until `cryptfs unmount MOUNTPOINT`. Programs then see ordinary files at MOUNTPOINT.
    """
    from cryptfs.mount import daemon, logs
    from cryptfs.mount import mountpoint as places
    from cryptfs.mount.server import MountOptions, serve
    from cryptfs.vault.config import load

    shown_owner = parse_owner(owner) if owner is not None else None
    let_in = allow_other or (shown_owner is not None and shown_owner.uid != os.geteuid())
    places.check_fuse(allow_other=let_in)
    config = load(vault)
    vault = vault.resolve()
    # Before a secret is asked for, and again by nobody: the daemon begins right after.
    place = places.prepare(mountpoint, vault)
    if or_ask and source.tpm is None:
        raise UsageError("--or-ask needs --tpm beside it.")
    unlocked = replace(source, or_ask=or_ask, ask_with=ask_with).unlock(config)
    slot = unlocked.config.slot(unlocked.slot_id)
    options = MountOptions(
        vault=str(vault),
        mountpoint=place,
        vault_id=unlocked.vault_id.hex(),
        cipher="XAES-256-GCM",
        slot=f"{slot.type} {slot.id}" + (f" ({slot.label})" if slot.label else ""),
        read_only=read_only,
        allow_other=let_in,
        owner=shown_owner,
        xattrs=xattrs,
        idle_seconds=idle_timeout,
        flags=flags,
    )
    if log_target not in (None, "syslog", "journal"):
        log_target = os.path.abspath(str(log_target))
    state_dir = None if state_dir is None else state_dir.absolute()

    def run(ready: Callable[[], None]) -> None:
        # In the daemon: locks, threads and memory maps do not survive a fork.
        logs.configure(log_target, foreground=foreground, verbose=verbose)
        from cryptfs.fs import FileSystem, FsOptions
        from cryptfs.vault import Vault

        opened = Vault.of(vault, unlocked, read_only=read_only)
        remembered, why_not = remembered_at(unlocked.vault_id, state_dir, (vault, Path(place)))
        fs_options = FsOptions(xattrs=xattrs, index=not no_index)
        fs = FileSystem(opened, fs_options, place=remembered, why_not=why_not)
        if no_studies:
            remembered, why_not = None, "the vault was mounted with --no-studies"
        studies = study_service(fs, unlocked.keyring, remembered, why_not)
        serve(studies.fs, options, ready, [studies])

    _mention_changed_tpm_slots(unlocked)
    if foreground:
        daemon.in_foreground(run)
    else:
        for warning in daemon.in_background(run):
            click.echo(f"cryptfs: warning: {warning}", err=True)


def remembered_at(
    vault_id: bytes, state_dir: Path | None, outside: tuple[Path, ...]
) -> tuple[Path | None, str]:
    """Where this computer keeps what it remembers of a vault; None and the reason if it cannot."""
    from cryptfs.index import place

    try:
        return place.prepare(vault_id, state_dir, outside=outside), ""
    except place.Unavailable as error:
        logging.getLogger(__name__).warning("without a memory of what was in the vault: %s", error)
        return None, str(error)


def _mention_changed_tpm_slots(unlocked: Unlocked) -> None:
    """After an unlock by another slot: say which TPM slots of this machine no longer open, and what to do."""
    slots = unlocked.config.slots
    used = next((slot.type for slot in slots if slot.id == unlocked.slot_id), "")
    if used == "tpm2" or all(slot.type != "tpm2" for slot in slots):
        return
    from cryptfs.cli.tpm import where_changed

    for slot, reason in where_changed(unlocked.config):
        click.echo(
            f"cryptfs: warning: the TPM slot {slot.id} would not open: {reason} To seal it anew: "
            f"cryptfs key reseal {unlocked.config.path} {slot.id}",
            err=True,
        )


def study_service(
    fs: FileSystem, keyring: KeyringLike, place: Path | None, why_not: str
) -> StudyService | NoStudies:
    """The study index of a vault that is about to be mounted; the mount goes on where there can be none."""
    from cryptfs.practice.service import NoStudies, StudyService

    if place is None:
        return NoStudies(fs, why_not)
    try:
        return StudyService(fs, place, keyring)
    except (CryptfsError, OSError) as error:
        logging.getLogger(__name__).warning("without an index of studies: %s", error)
        return NoStudies(fs, str(error))


def parse_owner(text: str) -> Owner:
    """USER[:GROUP], each a name or a number; USER's own group without GROUP. Raises UsageError."""
    from cryptfs.fs.types import Owner

    user, _, group = text.partition(":")
    try:
        known = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
        uid, gid = known.pw_uid, known.pw_gid
    except KeyError:
        if not (user.isdecimal() and group):
            raise UsageError(f"There is no user {user} on this machine.") from None
        uid, gid = int(user), 0
    if group:
        try:
            gid = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
        except KeyError:
            raise UsageError(f"There is no group {group} on this machine.") from None
    return Owner(uid, gid)

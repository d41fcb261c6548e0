"""`cryptfs verify`: check a vault for damage."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cryptfs.cli.arguments import vault_argument
from cryptfs.cli.secrets import SecretSource, secret_options
from cryptfs.errors import (
    CheckIncomplete,
    ConfigDamaged,
    CryptfsError,
    IntegrityError,
    Interrupted,
    UsageError,
)

if TYPE_CHECKING:
    from cryptfs.check.context import CheckOptions, Context
    from cryptfs.check.finding import Finding
    from cryptfs.check.report import Report
    from cryptfs.check.run import Check
    from cryptfs.vault.config import Unlocked
    from cryptfs.vault.keyring import Keyring

CHECKPOINT = "verify.checkpoint"
_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_AGES = {"h": 3600, "d": 86400, "w": 7 * 86400}


class Rate(click.ParamType[float]):
    """Bytes a second: 50M, 800K, 1.5G. Becomes a number of bytes."""

    name = "rate"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)(?:i?B)?(?:/s)?", str(value))
        if match is None or float(match[1]) == 0:
            self.fail(f"{value!r} is not a rate: write 800K, 50M or 1.5G (bytes a second).", param, ctx)
        return float(match[1]) * _SIZES[match[2]]


class Since(click.ParamType[float]):
    """A date, a time or an age. Becomes seconds since 1970."""

    name = "when"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        if match := re.fullmatch(r"(\d+)([hdw])", str(value)):
            return datetime.datetime.now().timestamp() - int(match[1]) * _AGES[match[2]]
        try:
            return datetime.datetime.fromisoformat(str(value)).timestamp()
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is neither a date (2026-11-30) nor an age (7d, 2w, 36h).", param, ctx)


@click.command()
@vault_argument
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--ciphertext", is_flag=True, help="The PATHs are ciphertext paths (tree/…), as in a report.")
@click.option(
    "--since", type=Since(), metavar="WHEN", help="Content only of files changed since a date, or 7d."
)
@click.option(
    "--sample",
    type=click.FloatRange(0, 100, min_open=True),
    metavar="PERCENT",
    help="Content only of so many files, chosen at random.",
)
@click.option("--limit", type=Rate(), metavar="RATE", help="Read at most so many bytes a second: 50M.")
@click.option(
    "--jobs", type=click.IntRange(1, 64), metavar="N", help="Threads. Default: the processors, 2 to 8."
)
@click.option("--from-disk", is_flag=True, help="Read from the disk even what is in memory.")
@click.option("--resume", is_flag=True, help="Go on with a check that was stopped.")
@click.option("--epochs", is_flag=True, help="Only prove which epoch keys the vault needs: see below.")
@click.option("--names", is_flag=True, help="Show plaintext names of what is damaged, in the report as well.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option(
    "--report",
    type=click.Path(dir_okay=False, writable=False, readable=False, path_type=Path),
    metavar="FILE",
    help="Write a summary for the files: JSON if FILE ends in .json, else text.",
)
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where this host keeps how far a check has come.",
)
@click.option("--repair", is_flag=True, help="Repair what can be repaired. The vault must not be mounted.")
@click.option("--dry-run", is_flag=True, help="With --repair: only show what would be done.")
@click.option("--yes", is_flag=True, help="With --repair: do not ask.")
@secret_options
def command(
    vault: Path,
    paths: tuple[str, ...],
    ciphertext: bool,
    since: float | None,
    sample: float | None,
    limit: float | None,
    jobs: int | None,
    from_disk: bool,
    resume: bool,
    epochs: bool,
    names: bool,
    as_json: bool,
    report: Path | None,
    state_dir: Path | None,
    repair: bool,
    dry_run: bool,
    yes: bool,
    source: SecretSource,
) -> None:
    """Check VAULT, or the files and folders at PATHs in it, for damage.

    Everything is read and authenticated: configuration, headers and their copies, names, every chunk
    of every file, links, extended attributes, the journal. Nothing is changed. The vault may be mounted
    and in use; what is being written is never taken for damage.

    With --since or --sample everything but the content is checked of all files, and the content of
    some. A PATH is what a program sees below the mountpoint: `patients/1234`; then only the
    configuration, the journal and what is at the PATHs is checked.

    What is found is named by ciphertext path and object id, because reports leave the house;
    --names adds the plaintext names. docs/verify.md explains each finding and what to do.

    A check that was stopped (Ctrl-C, SIGTERM, a restart) goes on with --resume and the same options.

    With --epochs only headers are read, all of them and their copies: it says how many are under which
    epoch key, and exits with 0 if all are under the current one and nothing on the disk is left under
    another, as after `cryptfs rotate`; else with 26.

    --repair checks first, shows what it would do, and asks. Lost headers are put back from their
    copies, what lost its name goes to lost+found, files that lost their end are marked so that what is
    left can be read and the rest is an error. What it replaces is kept in a folder in VAULT. Nothing is
    made up: damaged parts of files stay errors, until the file is restored from a backup.

    What this computer remembers of the vault is compared as well: objects that are others or older than it
    last saw them, or missing (the rollback witness), and the records of its metadata index.

    Exits with 0 if there is no damage (after a repair: no more), 18 if there is, or if the vault is not what
    this computer last saw, 1 if only its index is wrong, 24 if nothing is but not all could be checked.
    Leftovers of an unclean stop and files of other programs are shown and are no damage.
    """
    from cryptfs.check import names as places
    from cryptfs.check.context import Context
    from cryptfs.check.repair.run import alone
    from cryptfs.check.run import Check
    from cryptfs.cli import progress, repairing
    from cryptfs.vault import config

    if ciphertext and not paths:
        raise UsageError("--ciphertext says what the PATHs are: name at least one.")
    if epochs and (paths or repair or resume or since or sample or report):
        raise UsageError("--epochs is a reading of its own, of all headers: only --json goes with it.")
    if resume and paths:
        raise UsageError("--resume goes on with a check of the whole vault: leave the PATHs out.")
    if (dry_run or yes) and not repair:
        raise UsageError("--dry-run and --yes belong to --repair.")
    if repair and (resume or since is not None or sample is not None):
        raise UsageError("--repair needs a whole check: leave out --resume, --since and --sample.")
    try:
        _refuse_strange_files(vault)
        unlocked = source.unlock(config.load(vault))
    except (ConfigDamaged, IntegrityError) as damage:
        if not repair:
            raise
        unlocked = repairing.configuration(vault, source, damage, dry_run=dry_run, yes=yes)
    vault = vault.resolve()
    if epochs:
        from cryptfs.cli import epochs as reading

        reading.show(unlocked, as_json=as_json)
        return
    options = _options(since, sample, limit, jobs, from_disk)
    live = _is_mounted(vault)
    scope = _scope(len(paths), since, sample, from_disk, live)
    checkpoint = None if paths or repair else _checkpoint_file(unlocked, state_dir, vault, required=resume)
    context = Context(
        vault,
        unlocked.vault_id,
        unlocked.keyring,
        options,
        unlocked.config.backup_group,
        live,
        lambda: _reload(unlocked),
        lambda text: config.is_authentic(unlocked, text),
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(context))
        repairing.remember(context, state_dir, in_use=live)
        stack.enter_context(_stopped_by_signals())
        lock = stack.enter_context(contextlib.ExitStack())
        if repair and not dry_run:
            lock.enter_context(alone(context))
            context.live = False
        parts = [places.find(context, os.fsencode(path), ciphertext=ciphertext) for path in paths]
        with progress.bytes_of(vault / "tree", "checking") as show:

            def on_finding(finding: Finding) -> None:
                if not as_json:
                    show.say(_line(context, finding, names))

            check = Check(
                context,
                parts=parts,
                scope=scope,
                checkpoint=checkpoint,
                on_finding=on_finding,
                on_progress=show.done,
            )
            if resume:
                _resume(check, context, checkpoint, scope)
            try:
                result = check.run()
            except KeyboardInterrupt:
                hint = " What was done is kept: --resume goes on." if checkpoint else ""
                raise Interrupted(f"The check was stopped.{hint}") from None
        if repair:
            found = [places.find(context, os.fsencode(path), ciphertext=ciphertext) for path in paths]
            result = repairing.repair(
                context,
                result,
                found,
                dry_run=dry_run,
                yes=yes,
                quiet=as_json,
                state_dir=state_dir,
                unlock=lock.close,
            )
        if names:
            result.names = {
                finding.place: name
                for finding in result.tally.findings
                if (name := places.plain_path(context, finding.place)) is not None
            }
    _tell(result, as_json, report)


def _options(
    since: float | None, sample: float | None, limit: float | None, jobs: int | None, from_disk: bool
) -> CheckOptions:
    from cryptfs.check.context import CheckOptions

    return CheckOptions(
        since_ns=None if since is None else int(since * 1e9),
        sample=None if sample is None else sample / 100,
        seed=secrets.token_bytes(16),
        from_disk=from_disk,
        rate=limit,
        jobs=jobs or 0,
    )


def _scope(
    parts: int, since: float | None, sample: float | None, from_disk: bool, live: bool
) -> dict[str, Any]:
    """What was asked for, as it goes into the report; the PATHs are plaintext and do not."""
    moment = since and datetime.datetime.fromtimestamp(since, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "parts": parts or "whole vault",
        "content_since": moment,
        "content_sample_percent": sample,
        "from_disk": from_disk,
        "mounted_meanwhile": live,
    }


def _refuse_strange_files(vault: Path) -> None:
    """Opening a pipe would wait for ever."""
    for name in ("cryptfs.json", "cryptfs.json.previous"):
        file = vault / name
        if file.exists() and not file.is_file():
            raise IntegrityError(f"{file} is not a file: somebody put something else in its place.")


def _is_mounted(vault: Path) -> bool:
    """Whether this user has it mounted here."""
    from cryptfs.mount import runtime

    with contextlib.suppress(CryptfsError, OSError):
        return any(
            record.vault == str(vault) and not record.read_only and runtime.is_alive(record)
            for record in runtime.records()
        )
    return False


def _reload(unlocked: Unlocked) -> Keyring | None:
    """The keyring as it is now: keys may be rotated while a check runs."""
    from cryptfs.vault import config

    with contextlib.suppress(CryptfsError, OSError):
        return config.reload(unlocked).keyring
    return None


def _checkpoint_file(unlocked: Unlocked, chosen: Path | None, vault: Path, *, required: bool) -> Path | None:
    """Where this host keeps how far it is; without such a place a check cannot be resumed."""
    from cryptfs.index import place

    try:
        return place.prepare(unlocked.vault_id, chosen, outside=[vault]) / CHECKPOINT
    except CryptfsError:
        if required or chosen is not None:
            raise
        return None


def _resume(check: Check, context: Context, file: Path | None, scope: dict[str, Any]) -> None:
    from cryptfs.check import checkpoint

    found = None if file is None else checkpoint.load(file, context.vault_id)
    if found is None:
        raise UsageError("There is no check of this vault to go on with: leave out --resume.")
    ignored = {"mounted_meanwhile", "content_since"}
    if any(found.request.get(name) != value for name, value in scope.items() if name not in ignored):
        raise UsageError(
            "The check that was stopped had other options (--sample, --from-disk): use the same."
        )
    check.resume(found)


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """SIGTERM, which a service manager sends, stops like Ctrl-C: with the checkpoint written."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _line(context: Context, finding: Finding, names: bool) -> str:
    from cryptfs.check import names as places
    from cryptfs.check.report import describe

    name = places.plain_path(context, finding.place) if names else None
    return f"{finding.severity.value}: {describe(finding, name)}"


def _tell(result: Report, as_json: bool, file: Path | None) -> None:
    """Print and file the result; the exit code is the verdict's."""
    from cryptfs.check.finding import Severity

    text = json.dumps(result.as_json(), indent=2, ensure_ascii=True) + "\n"
    if file is not None:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text if file.suffix == ".json" else result.as_text())
    tally = result.tally
    if as_json:
        click.echo(text, nl=False)
    else:
        counts = tally.counts
        click.echo(
            f"Checked {counts['directories']} directories and {counts['objects']} objects, "
            f"{result.bytes_read} bytes read in {result.seconds:.1f} s: "
            f"{tally.number(Severity.DAMAGE)} damaged, {tally.number(Severity.ROLLBACK)} not what this "
            f"computer last saw, {tally.number(Severity.UNCHECKED)} not checked, "
            f"{tally.number(Severity.NOTICE)} notices."
        )
        click.echo(f"Rollback witness: {result.remembered['witness']}; index: {result.remembered['index']}.")
    if result.verdict == "damaged":
        raise IntegrityError(
            "The vault is damaged: docs/verify.md says what each finding means and what can be repaired."
        )
    if result.verdict == "rolled-back":
        raise IntegrityError(
            "The vault is not what this computer last saw: if it was restored on purpose, "
            "cryptfs accept-restore accepts it; else find out who exchanged or removed files."
        )
    if result.verdict == "index-wrong":
        raise CryptfsError(
            "The metadata index of this computer is wrong, the vault is not: cryptfs index rebuild makes it "
            "anew; then report it, it is a defect of cryptfs."
        )
    if result.verdict == "incomplete":
        raise CheckIncomplete("No damage was found, but not all could be checked.")

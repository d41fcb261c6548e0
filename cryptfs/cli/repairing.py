"""What `cryptfs verify --repair` adds to a check: showing what would be done, asking, doing it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cryptfs.check.finding import Finding, printable_place
from cryptfs.cli import terminal
from cryptfs.cli.main import printable
from cryptfs.cli.secrets import SecretSource
from cryptfs.errors import ConfigDamaged, CryptfsError, Interrupted, UsageError

if TYPE_CHECKING:
    from cryptfs.check.context import Context
    from cryptfs.check.host import Difference
    from cryptfs.check.names import Part
    from cryptfs.check.repair.run import Outcome
    from cryptfs.check.repair.workshop import Step
    from cryptfs.check.report import Report
    from cryptfs.vault.config import Unlocked


def confirm(question: str, yes: bool) -> None:
    """Ask, unless --yes was given; Interrupted if the answer is no."""
    if yes:
        return
    if not terminal.available():
        raise UsageError("There is no terminal to ask on: confirm with --yes, or look with --dry-run.")
    if terminal.ask(f"{question} [y/N] ").lower() not in ("y", "yes"):
        raise Interrupted("Nothing was changed.")


def configuration(
    vault: Path, source: SecretSource, damage: CryptfsError, *, dry_run: bool, yes: bool
) -> Unlocked:
    """cryptfs.json is lost or damaged: unlock with `.previous`, and make that the current one.

    Raises `damage` if there is no other that opens.
    """
    from cryptfs.check.repair import configuration as repairs
    from cryptfs.check.repair.keeper import Keeper
    from cryptfs.vault import configfile
    from cryptfs.vault.layout import modes

    spare = repairs.spare(vault)
    if spare is None:
        raise damage
    try:
        unlocked = source.unlock(spare)
    except ConfigDamaged:
        raise damage from None
    text = f"{configfile.PREVIOUS} opens: it takes the place of {configfile.NAME}, which is kept"
    if dry_run:
        click.echo(f"would repair: {configfile.NAME}: {text}")
        return unlocked
    click.echo(f"{configfile.NAME} is lost or damaged.", err=True)
    confirm(f"{text}. Do that?", yes)
    with configfile.locked(vault):
        repairs.restore(vault, unlocked, Keeper(vault, modes(unlocked.config.backup_group).directory))
    click.echo(f"repaired: {configfile.NAME}: {text}")
    return unlocked


def remember(context: Context, state_dir: Path | None, *, in_use: bool) -> None:
    """Have the check compare what this host remembers. `in_use`: a mount of this user writes it."""
    from cryptfs.check.host import Host
    from cryptfs.check.hostindex import HostIndex
    from cryptfs.index import place

    for one in (context.host, context.index):
        if one is not None:
            one.close()
    kept = place.of_vault(context.vault_id, state_dir)
    context.host = Host.open(context, kept, in_use=in_use)
    context.index = HostIndex.open(context, kept, in_use=in_use)


def repair(
    context: Context,
    report: Report,
    parts: list[Part],
    *,
    dry_run: bool,
    yes: bool,
    quiet: bool,
    state_dir: Path | None,
    unlock: Callable[[], None],
) -> Report:
    """Repair what `report` found, with the vault's lock held, which `unlock` gives up; the report of the
    check behind it.

    With `dry_run` the same report with what would be done in it.
    """
    from cryptfs.check.repair import run as repairs
    from cryptfs.check.run import Check

    shop, steps, outcome = repairs.prepare(context, report.tally.findings)
    if not quiet:
        _show(steps, outcome.left, "would repair" if dry_run else "to repair")
    if dry_run or not steps:
        report.repair = _as_json(steps, outcome, dry_run=dry_run)
        return report
    confirm(f"Do these {len(steps)} repairs? What they replace is kept.", yes)
    before = _differing(context, state_dir)
    repairs.carry_out(shop, steps, outcome)
    forget_index(context, state_dir)
    context.forget_copies()
    _tell_the_witness(context, state_dir, before, outcome, unlock)
    if not quiet:
        _show_done(outcome)
    again = Check(context, parts=parts, scope=report.scope, content=repairs.touched(outcome)).run()
    # Content was read in the first check; what was read again are the files that were repaired.
    for name in ("chunks", "content_bytes", "content_skipped"):
        again.tally.counts[name] = report.tally.counts[name]
    again.bytes_read += report.bytes_read
    again.started, again.seconds = report.started, again.seconds + report.seconds
    again.repair = _as_json(steps, outcome, dry_run=False)
    return again


def forget_index(context: Context, state_dir: Path | None) -> None:
    """What this host remembers of the tree was changed under it: it is made anew."""
    from cryptfs.index import environment, place

    with contextlib.suppress(CryptfsError, OSError):
        environment.discard(place.of_vault(context.vault_id, state_dir), "metadata")


def _differing(context: Context, state_dir: Path | None) -> dict[bytes, Difference] | None:
    """The names that differ from what this host remembers, in the whole vault; None if it cannot tell."""
    from cryptfs.check.run import Check

    remember(context, state_dir, in_use=False)
    assert context.host is not None
    if not context.host.is_compared:
        return None
    Check(context, content=frozenset()).run()
    return dict(context.host.differing) if context.host.is_compared else None


def _tell_the_witness(
    context: Context,
    state_dir: Path | None,
    before: dict[bytes, Difference] | None,
    outcome: Outcome,
    unlock: Callable[[], None],
) -> None:
    """Have this host remember what the repair made of the vault."""
    from cryptfs.check.repair import telling
    from cryptfs.index import place

    after = None if before is None else _differing(context, state_dir)
    if before is not None and after is not None:
        told = telling.to_be_told(before, after, outcome)
        if told or telling.is_new_session(outcome):
            for one in (context.host, context.index):
                if one is not None:
                    one.close()
            unlock()  # for a session of the vault, which takes the lock itself
            try:
                kept = place.prepare(context.vault_id, state_dir, outside=[context.path])
                telling.tell(context, kept, told)
                outcome.told = len(told)
            except CryptfsError as problem:
                outcome.not_told = str(problem)
            except OSError as problem:
                outcome.not_told = problem.strerror or type(problem).__name__
    context.renew()
    remember(context, state_dir, in_use=False)


def _show(steps: list[Step], left: list[tuple[Finding, str]], word: str) -> None:
    for step in steps:
        click.echo(f"{word}: {printable_place(step.finding.place)}: {step.sentence}")
    for finding, reason in left:
        click.echo(f"not repaired: {printable_place(finding.place)}: {reason}")


def _show_done(outcome: Outcome) -> None:
    for step, problem in outcome.done:
        word = f"failed ({problem})" if problem else "repaired"
        click.echo(f"{word}: {printable_place(step.finding.place)}")
    if outcome.moved:
        click.echo(f"{len(outcome.moved)} objects are in lost+found in the root of the vault now.")
    if outcome.kept_in:
        click.echo(f"What was replaced, and a log, is in {printable(outcome.kept_in)} in the vault's folder.")
    if outcome.told:
        click.echo(f"The rollback witness of this computer was told of {outcome.told} names.")
    if outcome.not_told:
        click.echo(
            f"The rollback witness of this computer could not be told ({printable(outcome.not_told)}): "
            "cryptfs accept-restore accepts what was repaired."
        )


def _as_json(steps: list[Step], outcome: Outcome, *, dry_run: bool) -> dict[str, Any]:
    results = {id(step): problem or "done" for step, problem in outcome.done}
    return {
        "dry_run": dry_run,
        "steps": [
            {
                "place": printable_place(step.finding.place),
                "kind": step.finding.kind.value,
                "action": step.sentence,
                "result": results.get(id(step), "not done"),
            }
            for step in steps
        ],
        "not_repaired": [
            {"place": printable_place(finding.place), "kind": finding.kind.value, "reason": reason}
            for finding, reason in outcome.left
        ],
        "moved_to_lost_found": len(outcome.moved),
        "originals": outcome.kept_in or None,
        "witness": {"told": outcome.told, "problem": outcome.not_told or None},
    }

"""One repair from the check before it to the check behind it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from cryptfs.check.context import Context
from cryptfs.check.finding import Finding, Kind
from cryptfs.check.repair.keeper import Keeper
from cryptfs.check.repair.plan import MOUNTABLE, plan
from cryptfs.check.repair.workshop import Step, Unrepairable, Workshop
from cryptfs.errors import IntegrityError
from cryptfs.fs.recovery import recover
from cryptfs.vault import Vault
from cryptfs.vault.diskio import make_folder
from cryptfs.vault.layout import JOURNAL
from cryptfs.vault.lock import take_lock

log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """What was done: steps with how they ended ("" is well), and what nothing could be done about."""

    done: list[tuple[Step, str]] = field(default_factory=list)
    left: list[tuple[Finding, str]] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    kept_in: str = ""
    told: int = 0
    """Of how many names the rollback witness of this host was told."""
    not_told: str = ""
    """Why it could not be told."""


@contextlib.contextmanager
def alone(context: Context) -> Iterator[None]:
    """Hold the vault's lock: nobody mounts it meanwhile. VaultInUse if somebody has it."""
    make_folder(context.path / JOURNAL, context.modes.directory, exist_ok=True)
    fd = take_lock(context.path, context.modes.file)
    try:
        yield
    finally:
        os.close(fd)


def prepare(context: Context, findings: list[Finding]) -> tuple[Workshop, list[Step], Outcome]:
    """What would be done. Nothing is changed yet."""
    shop = Workshop(context, Keeper(context.path, context.modes.directory))
    steps, left = plan(shop, findings)
    return shop, steps, Outcome(left=left)


def carry_out(
    shop: Workshop, steps: list[Step], outcome: Outcome, on_step: Callable[[Step], None] = lambda step: None
) -> Outcome:
    """Do the steps, with `alone` held; a step that fails does not keep the others from being done.

    Between what the vault needs to be mounted and the rest, the journal is put in place, as a mount does.
    """
    first = [step for step in steps if step.finding.kind in MOUNTABLE]
    for step in first:
        on_step(step)
        outcome.done.append((step, _do(shop, step)))
    ready = _put_journal_in_place(shop.context)
    for step in steps:
        if step not in first:
            on_step(step)
            # A header that is newer than the journal's records would void them (format section 10).
            outcome.done.append((step, _do(shop, step) if ready else "the journal is not in place yet"))
    outcome.moved = shop.moved
    outcome.kept_in = shop.keeper.folder.name if shop.keeper.folder else ""
    return outcome


def _do(shop: Workshop, step: Step) -> str:
    try:
        step.do(shop)
    except Unrepairable as reason:
        return str(reason)
    except OSError as problem:
        return problem.strerror or type(problem).__name__
    return ""


def _put_journal_in_place(context: Context) -> bool:
    """What recovery does at the beginning of a mount; the caller holds the lock. False if it cannot be."""
    context.renew()
    if context.snapshot.findings:
        return False
    if not context.snapshot.segments:
        return True
    # Read-only means without a lock of its own here: `alone` holds it.
    vault = Vault(context.path, context.vault_id, context.keyring, read_only=True)
    with contextlib.closing(vault):
        try:
            recover(vault)
        except (IntegrityError, OSError) as problem:
            log.error("the journal cannot be put in place: %s", problem)
            return False
    context.renew()
    return True


def touched(outcome: Outcome) -> frozenset[bytes]:
    """The places whose content is to be read again."""
    content = (Kind.CONTENT, Kind.CUT)
    steps = [step.finding for step, _ in outcome.done]
    return frozenset(
        finding.place
        for finding in [*steps, *(found for found, _ in outcome.left)]
        if finding.kind in content
    )

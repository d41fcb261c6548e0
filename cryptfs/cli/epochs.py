"""`cryptfs verify --epochs`: which epoch keys the ciphertext needs."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import click

from cryptfs.cli.main import printable
from cryptfs.errors import EpochNeeded, IntegrityError

if TYPE_CHECKING:
    from cryptfs.vault.config import Unlocked
    from cryptfs.vault.epochs import Finding, Summary

_SHOWN = 20


def show(unlocked: Unlocked, *, as_json: bool) -> None:
    """Read every header of the vault and say what it needs.

    EpochNeeded if something is under another epoch than the current one, IntegrityError if something is
    damaged.
    """
    from cryptfs.vault.epochs import EpochReader

    summary = EpochReader(unlocked.config.path, unlocked.vault_id, unlocked.keyring).summary()
    if as_json:
        click.echo(json.dumps(_for_programs(unlocked, summary), indent=2))
    else:
        for number, count in sorted(summary.by_epoch.items()):
            click.echo(f"epoch {number}: {count} headers" + (", current" * (number == summary.current)))
        for finding in (summary.needs + summary.gone + summary.damaged)[:_SHOWN]:
            click.echo(_line(finding))
    if summary.needs:
        raise EpochNeeded(
            f"{len(summary.needs)} files hold headers under an older epoch: "
            "`cryptfs rotate` brings them to the current one."
        )
    if summary.gone:
        raise EpochNeeded(
            f"{len(summary.gone)} files hold headers under an epoch whose key this vault has no more: they "
            "come from a copy of the vault that is older than its last rotation."
        )
    if summary.damaged:
        raise IntegrityError(f"The headers of {len(summary.damaged)} files are damaged: `cryptfs verify`.")
    if not as_json:
        click.echo(f"Nothing needs another key than that of epoch {summary.current}.")


def _line(finding: Finding) -> str:
    name = printable(os.fsdecode(finding.path))
    if finding.older:
        return f"{name}: needs epoch {' and '.join(map(str, sorted(finding.older)))}"
    if finding.gone:
        return f"{name}: under epoch {' and '.join(map(str, sorted(finding.gone)))}, whose key is gone"
    return f"{name}: damaged"


def _for_programs(unlocked: Unlocked, summary: Summary) -> dict[str, object]:
    def names(findings: list[Finding]) -> list[str]:
        return [os.fsdecode(finding.path) for finding in findings]

    return {
        "current": summary.current,
        "epochs": [{"number": epoch.number, "created": epoch.created} for epoch in unlocked.keyring],
        "objects": summary.objects,
        "headers": {str(number): count for number, count in sorted(summary.by_epoch.items())},
        "needs_older": names(summary.needs),
        "key_gone": names(summary.gone),
        "damaged": names(summary.damaged),
        "proved": summary.proved and not summary.damaged,
    }

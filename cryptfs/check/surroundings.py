"""What lies around the tree: configuration, session state, journal, copies of headers."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from cryptfs.check.context import Context
from cryptfs.check.finding import Finding, Kind, Severity
from cryptfs.errors import CryptfsError
from cryptfs.vault import configfile, document


def configuration(context: Context) -> Iterator[Finding]:
    """The files beside cryptfs.json, which itself was proved when the vault was unlocked."""
    place = os.fsencode(configfile.PREVIOUS)
    file = context.path / configfile.PREVIOUS
    try:
        if not stat.S_ISREG(os.lstat(file).st_mode):
            yield Finding(Kind.WRONG_KIND, place)
            return
        text = configfile.read(file)
        if document.parse(text).vault_id != context.vault_id or not context.proves(text):
            yield Finding(Kind.CONFIGURATION, place, detail="it is not authentic")
    except FileNotFoundError:
        return
    except OSError as problem:
        yield Finding.of_error(place, problem)
    except CryptfsError as problem:
        yield Finding(Kind.CONFIGURATION, place, detail=str(problem))


def journal_and_state(context: Context) -> Iterator[Finding]:
    """Looked at until what is wrong with them stood still: a mount writes to them all the time."""
    for delay in context.delays:
        found = context.snapshot
        if not any(finding.severity is Severity.DAMAGE for finding in found.findings):
            break
        context.pause(delay)
        context.renew()
        if context.snapshot.findings == found.findings and context.snapshot.mark == found.mark:
            break
    yield from context.snapshot.findings
    pending = context.snapshot.pending
    if pending and not context.live:
        records = sum(map(len, pending.values()))
        yield Finding(Kind.PENDING, b"journal", detail=f"{records} writes to {len(pending)} objects")


def header_copies(context: Context) -> Iterator[Finding]:
    """What is damaged in `dirs/`, seen twice where somebody is writing."""
    for delay in context.delays:
        found = context.copies().findings
        if not found:
            return
        context.pause(delay)
        context.renew()
        context.forget_copies()
        if context.copies().findings == found:
            break
    yield from context.copies().findings

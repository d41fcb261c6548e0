"""Looking at something until what is seen can be believed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from cryptfs.check.context import Context
from cryptfs.check.finding import Finding, Kind, Severity


@dataclass
class Look:
    """What one look at an object or a directory saw.

    Two looks with equal damage and equal signatures saw the same thing at rest: the signature
    is the lower file's identity and times before and after, and what the journal holds for it.
    """

    findings: list[Finding] = field(default_factory=list)
    signature: object = None

    @property
    def damage(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity is Severity.DAMAGE]


def signature_of(status: os.stat_result) -> tuple[int, ...]:
    """What changes whenever a lower file or directory is changed."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


L = TypeVar("L", bound="Look")


def until_believed(context: Context, first: L, again: Callable[[], L], place: bytes) -> L:
    """`first`, if it is clean; else a later look that is clean, or the second of two that agree.

    If no two agree, because somebody keeps changing it, what is wrong is unknown: BUSY.
    """
    seen = first
    for delay in context.delays:
        if not seen.damage or context.stop.is_set():
            return seen
        context.pause(delay)
        context.renew()
        look = again()
        if look.damage == seen.damage and look.signature == seen.signature:
            return look
        seen = look
    if seen.damage:
        seen.findings = [finding for finding in seen.findings if finding not in seen.damage]
        seen.findings.append(Finding(Kind.BUSY, place))
    return seen

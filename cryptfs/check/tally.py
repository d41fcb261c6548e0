"""What was counted and found; what a resumed check goes on with."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptfs.check.finding import Finding, Kind, Severity

KEPT = {
    Severity.DAMAGE: 10_000,
    Severity.ROLLBACK: 10_000,
    Severity.INDEX: 200,
    Severity.UNCHECKED: 1000,
    Severity.NOTICE: 200,
}
"""How many findings of a kind are kept in full; the others are counted."""


@dataclass
class Tally:
    """Counts, findings, and who is who: for each object 8 bytes of its id, its inode, its link count."""

    counts: Counter[str] = field(default_factory=Counter)
    epochs: Counter[int] = field(default_factory=Counter)
    """How many header slots are wrapped under each epoch."""
    kinds: Counter[Kind] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    objects: array[int] = field(default_factory=lambda: array("Q"))

    def add(self, findings: Iterable[Finding]) -> list[Finding]:
        """Count findings; those that are kept in full."""
        kept = []
        for finding in findings:
            self.kinds[finding.kind] += 1
            if self.kinds[finding.kind] <= KEPT[finding.severity]:
                self.findings.append(finding)
                kept.append(finding)
        return kept

    def merge(self, other: Tally) -> list[Finding]:
        """Take another's in; the findings that were kept of it."""
        self.counts.update(other.counts)
        self.epochs.update(other.epochs)
        self.objects.extend(other.objects)
        kept = self.add(other.findings)
        for kind, count in other.kinds.items():
            self.kinds[kind] += count - sum(1 for finding in other.findings if finding.kind is kind)
        return kept

    def number(self, severity: Severity) -> int:
        """How many findings there are of one severity."""
        return sum(count for kind, count in self.kinds.items() if kind.severity is severity)

"""What a check says of itself: for a program, and for the file of an auditor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cryptfs.check.finding import Finding, Severity, printable_place
from cryptfs.check.tally import Tally

VERDICTS = {
    "clean": "no damage was found",
    "damaged": "DAMAGE WAS FOUND",
    "rolled-back": "NOT WHAT THIS COMPUTER LAST SAW THERE",
    "index-wrong": "no damage was found, but the index of this computer is wrong",
    "incomplete": "NOT ALL COULD BE CHECKED",
}


@dataclass
class Report:
    """One check from its beginning to its end. Times are RFC 3339, UTC."""

    vault: str
    vault_id: bytes
    version: str
    host: str
    started: str
    ended: str
    seconds: float
    scope: dict[str, Any]
    """What was asked for: whole vault or parts, since, sample, whether it was mounted."""
    tally: Tally
    finished: bool
    bytes_read: int
    names: dict[bytes, bytes] = field(default_factory=dict)
    """Plaintext paths by place, where they were asked for."""
    remembered: dict[str, str] = field(default_factory=dict)
    """What this host remembers and was compared: `witness`, `index`; "compared", or why not."""
    repair: dict[str, Any] | None = None
    """What a repair did, or would do; the findings are then those that are left."""

    @property
    def verdict(self) -> str:
        """`clean`, `damaged`, `rolled-back`, `index-wrong` or `incomplete`: the first that is so."""
        if self.tally.number(Severity.DAMAGE):
            return "damaged"
        if self.tally.number(Severity.ROLLBACK):
            return "rolled-back"
        if self.tally.number(Severity.INDEX):
            return "index-wrong"
        if self.tally.number(Severity.UNCHECKED) or not self.finished:
            return "incomplete"
        return "clean"

    def as_json(self) -> dict[str, Any]:
        """All of it. The fields are documented in docs/verify.md."""
        tally = self.tally
        return {
            "report": "cryptfs verify",
            "version": self.version,
            "vault": self.vault,
            "vault_id": self.vault_id.hex(),
            "host": self.host,
            "started": self.started,
            "ended": self.ended,
            "seconds": round(self.seconds, 1),
            "scope": self.scope,
            "finished": self.finished,
            "verdict": self.verdict,
            "checked": {
                **{name: tally.counts[name] for name in _COUNTS},
                "bytes_read": self.bytes_read,
                "header_slots_by_epoch": {str(n): count for n, count in sorted(tally.epochs.items())},
            },
            "remembered": self.remembered,
            "findings_by_kind": {
                kind.value: count
                for kind, count in sorted(tally.kinds.items(), key=lambda item: item[0].value)
            },
            "findings": [self._finding(finding) for finding in tally.findings],
            **({} if self.repair is None else {"repair": self.repair}),
        }

    def _finding(self, finding: Finding) -> dict[str, Any]:
        value = finding.as_json()
        name = self.names.get(finding.place)
        if name is not None:
            value["name"] = name.decode("utf-8", "backslashreplace")
        return value

    def as_text(self) -> str:
        """For people: everything that an auditor files."""
        counts = self.tally.counts
        scope = ", ".join(
            f"{name} {value}" for name, value in self.scope.items() if value not in (None, False)
        )
        lines = [
            "cryptfs verify: report",
            "",
            f"  vault          {self.vault}",
            f"  vault id       {self.vault_id.hex()}",
            f"  host           {self.host}",
            f"  cryptfs        {self.version}",
            f"  started        {self.started}",
            f"  ended          {self.ended}  ({self.seconds:.0f} s)",
            f"  scope          {scope}",
            f"  checked        {counts['directories']} directories, {counts['objects']} objects "
            f"({counts['files']} files, {counts['links']} links, {counts['special']} special files)",
            f"  content        {counts['chunks']} chunks, {counts['content_bytes']} bytes; "
            f"{counts['content_skipped']} files left out",
            f"  read           {self.bytes_read} bytes",
            *(f"  {name:<15}{state}" for name, state in self.remembered.items()),
            f"  RESULT         {VERDICTS[self.verdict]}"
            + ("" if self.finished else "; STOPPED BEFORE THE END"),
            "",
        ]
        for severity in Severity:
            lines += self._of(severity)
        if self.repair is not None:
            lines += _repair_lines(self.repair)
        return "\n".join(lines) + "\n"

    def _of(self, severity: Severity) -> list[str]:
        number = self.tally.number(severity)
        lines = [f"{severity.value}: {number}"]
        shown = [finding for finding in self.tally.findings if finding.severity is severity]
        lines += [f"  {describe(finding, self.names.get(finding.place))}" for finding in shown]
        if number > len(shown):
            lines.append(f"  and {number - len(shown)} more")
        return lines


_COUNTS = (
    "directories", "objects", "files", "links", "special", "bytes", "chunks", "content_bytes",
    "content_skipped",
)  # fmt: skip


def _repair_lines(repair: dict[str, Any]) -> list[str]:
    lines = ["repairs: " + ("what would be done" if repair["dry_run"] else "what was done")]
    lines += [f"  {step['place']}: {step['action']}: {step['result']}" for step in repair["steps"]]
    lines += [f"  {item['place']}: not repaired: {item['reason']}" for item in repair["not_repaired"]]
    if repair["originals"]:
        lines.append(f"  what was replaced is in {repair['originals']} in the vault's folder")
    return lines


def describe(finding: Finding, name: bytes | None = None) -> str:
    """One line: place, object, meaning; the plaintext path only if it is given."""
    parts = [printable_place(finding.place)]
    if name is not None:
        parts.append(f"({name.decode('utf-8', 'backslashreplace')!r})")
    if finding.object_id is not None:
        parts.append(f"[{finding.object_id.hex()}]")
    text = f"{' '.join(parts)}: {finding.kind.sentence}"
    if finding.detail:
        text += f"; {finding.detail}"
    if finding.ranges:
        shown = ", ".join(f"{begin} to {end}" for begin, end in finding.ranges[:8])
        text += f"; unreadable bytes {shown}" + (", …" if len(finding.ranges) > 8 else "")
    return text

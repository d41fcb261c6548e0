"""Which repair is for which kind of finding, and in which order they are done."""

from __future__ import annotations

from cryptfs.check.finding import Finding, Kind
from cryptfs.check.repair import attributes, configuration, content, copies, headers, lostfound, removal
from cryptfs.check.repair.workshop import Plan, Step, Workshop

REPAIRS: dict[Kind, Plan] = {
    # First what the vault needs to be mounted at all, so that the journal can be put in place.
    Kind.CONFIGURATION: configuration.previous,
    Kind.STATE: removal.session_record,
    Kind.JOURNAL: removal.journal,
    # Then headers, directories before what is in them; then what hangs on them.
    Kind.DIRECTORY_HEADER: headers.from_copy,
    Kind.DIRECTORY_LOST: lostfound.headerless,
    Kind.HEADER_SLOT: headers.slot,
    Kind.COPIES: copies.repair,
    Kind.WRONG_KIND: removal.stranger,
    Kind.NAME: lostfound.nameless,
    Kind.LONG_NAME: lostfound.nameless,
    Kind.CONTENT: content.repair,
    Kind.CUT: content.repair,
    Kind.ATTRIBUTES: attributes.repair,
    Kind.LEFTOVER: removal.away,
    Kind.ORPHANED_ATTRIBUTES: removal.away,
}

MOUNTABLE = (Kind.CONFIGURATION, Kind.STATE, Kind.JOURNAL)
"""The kinds that are repaired before the journal is put in place."""

_REASONS = {
    Kind.HEADER: "its key is lost with its header: restore the file from a backup",
    Kind.LINK_TARGET: "where it pointed to is lost: make the link anew",
    Kind.DUPLICATE: "which of the names is the right one only a person can tell",
    Kind.UNREADABLE: "the disk fails: copy what it still gives, replace it, restore the rest",
    Kind.BUSY: "it keeps changing",
    Kind.DENIED: "this user may not read it",
}


def plan(shop: Workshop, findings: list[Finding]) -> tuple[list[Step], list[tuple[Finding, str]]]:
    """The steps, in the order in which they are done, and the findings that nothing can be done about."""
    steps: list[Step] = []
    left: list[tuple[Finding, str]] = []
    order = list(REPAIRS)
    for finding in findings:
        repair = REPAIRS.get(finding.kind)
        if repair is None:
            if finding.kind in _REASONS:
                left.append((finding, _REASONS[finding.kind]))
            continue
        if finding.kind is Kind.WRONG_KIND and not _is_stranger(finding):
            left.append((finding, "another object stands in its place: restore the file from a backup"))
            continue
        result = repair(shop, finding)
        if isinstance(result, Step):
            steps.append(result)
        else:
            left.append((finding, result))
    # Within a kind: directories from above, as the check saw them.
    steps.sort(key=lambda step: order.index(step.finding.kind))
    return steps, left


def _is_stranger(finding: Finding) -> bool:
    """Whether it is no file at all, rather than a header of another kind."""
    return finding.object_id is None

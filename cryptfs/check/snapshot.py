"""The session state and the journal as they are at one instant.

A vault can be checked while it is mounted, because a killed mount leaves, at every instant, a vault in
which nothing is damaged: that is what the journal and the session state are for. So an object that looks
damaged is looked at again with both read anew, until object, journal and state stood still together.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from cryptfs.check.finding import Finding, Kind
from cryptfs.errors import IntegrityError
from cryptfs.vault.header import Header, HeaderCodec, HeaderInvalid, KeyringLike
from cryptfs.vault.journal import SUFFIX, Record, read_segment, segments
from cryptfs.vault.layout import JOURNAL
from cryptfs.vault.session import STATE_NAME, SessionState

_TRIES = 5


@dataclass
class Snapshot:
    """Unclean sessions with their last synced phase, and the journal's records of each object."""

    unclean: dict[int, int] = field(default_factory=dict)
    is_open: bool = False
    last: int | None = None
    """The session that wrote last, None if nothing says so."""
    pending: dict[bytes, list[Record]] = field(default_factory=dict)
    segments: int = 0
    findings: list[Finding] = field(default_factory=list)
    mark: object = None
    """Equal for two snapshots between which neither journal nor state was changed."""

    def suspects(self, header: Header) -> bool:
        """Whether content with this header may have been cut before it was ever synced (section 9)."""
        phase = self.unclean.get(header.session)
        return phase is not None and header.phase > phase

    def fingerprint(self, object_id: bytes) -> int:
        """Equal for two snapshots in which the journal holds the same of an object."""
        return hash(
            tuple(
                (record.length, tuple((at, bytes(data)) for at, data in record.extents))
                for record in self.pending.get(object_id, ())
            )
        )


def take(vault: Path, vault_id: bytes, codec: HeaderCodec, keyring: KeyringLike) -> Snapshot:
    """Read journal and state; what is damaged in them is among the findings."""
    found = Snapshot()
    for _ in range(_TRIES):
        before = mark(vault)
        found = Snapshot(mark=before)
        _read_state(vault, vault_id, keyring, found)
        try:
            _read_journal(vault, codec, found)
        except FileNotFoundError:
            continue  # a segment was settled and removed meanwhile
        if mark(vault) == before:
            break
    return found


def mark(vault: Path) -> object:
    """Names, sizes and times of the files in `journal/`."""
    folder = vault / JOURNAL
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name == STATE_NAME or entry.name.endswith(SUFFIX):
                    status = entry.stat(follow_symlinks=False)
                    found.append((entry.name, status.st_ino, status.st_size, status.st_mtime_ns))
    except FileNotFoundError:
        return object() if folder.is_dir() else None  # a segment that has just gone: unlike any other
    return sorted(found)


def _read_state(vault: Path, vault_id: bytes, keyring: KeyringLike, found: Snapshot) -> None:
    folder = vault / JOURNAL
    place = os.fsencode(f"{JOURNAL}/{STATE_NAME}")
    try:
        mode = os.lstat(folder / STATE_NAME).st_mode
        if not stat.S_ISREG(mode):
            found.findings.append(Finding(Kind.WRONG_KIND, place))
            return
        state = SessionState(str(folder), vault_id, keyring, 0o600)
    except FileNotFoundError:
        return
    except IntegrityError:
        found.findings.append(Finding(Kind.STATE, place))
        return
    except OSError as problem:
        found.findings.append(Finding.of_error(place, problem))
        return
    found.unclean, found.is_open, found.last = dict(state.unclean), state.found_open, state.last


def _read_journal(vault: Path, codec: HeaderCodec, found: Snapshot) -> None:
    """Everything up to the first segment that is damaged or missing; FileNotFoundError if one went."""
    expected: int | None = None
    records: list[Record] = []
    for name in segments(str(vault / JOURNAL)):
        place = os.fsencode(f"{JOURNAL}/{os.path.basename(name)}")
        number = int(os.path.basename(name).removesuffix(SUFFIX), 16)
        if expected is not None and number != expected:
            found.findings.append(Finding(Kind.JOURNAL, place, detail="the segment before it is missing"))
            break
        expected = number + 1
        found.segments += 1
        try:
            if not stat.S_ISREG(os.lstat(name).st_mode):
                found.findings.append(Finding(Kind.WRONG_KIND, place))
                break
            for item in read_segment(name, codec):
                if isinstance(item, Record):
                    records.append(item)
                else:
                    records = [record for record in records if record.object_id != item]
        except HeaderInvalid:
            found.findings.append(Finding(Kind.JOURNAL, place))
            break
        except FileNotFoundError:
            raise
        except OSError as problem:
            found.findings.append(Finding.of_error(place, problem))
            break
    for record in records:
        found.pending.setdefault(record.object_id, []).append(record)

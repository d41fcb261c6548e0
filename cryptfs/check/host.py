"""What this host remembers of the vault, compared with what a check sees of it.

Two things are compared while the tree is walked, name by name, without reading anything twice:

* the *rollback witness*: an object that is another one than before, or an older one, and names that are
  missing. The mount would refuse or report them (docs/restore.md);
* the *metadata index*: a record that the next mount would believe, and that is not what the header says.

A mount may be writing to both meanwhile. A name is changed in the vault first, and recorded later; before,
its directory is marked. So a difference is believed only when it is seen twice, at rest, in a directory that
is not marked: a record was read before and after the object, and is the same.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryptfs.check.finding import Finding, Kind
from cryptfs.errors import CryptfsError
from cryptfs.fs.verdicts import ROOT_PLACE, Verdict, record_of
from cryptfs.index.place import Unavailable
from cryptfs.index.remembered import Found, Held, WitnessView
from cryptfs.index.witness import folder_of, is_of_newer_keys
from cryptfs.vault.header import Header

if TYPE_CHECKING:
    from cryptfs.check.context import Context
    from cryptfs.check.walk import Visit

_REMEDY = "if it was restored on purpose, cryptfs accept-restore accepts it"


class Undecided(Exception):
    """What is there now cannot be compared: it is damaged, or has come back."""


@dataclass
class Doubt:
    """A name that differs from what is recorded.

    `look` gives the header that is there now, None for nothing there, or raises Undecided.
    """

    directory_id: bytes
    lname: bytes
    place: bytes
    seen: Header | None
    look: Callable[[], Header | None]


@dataclass(frozen=True)
class Difference:
    """A name that differs, and what would have to be recorded for it to be right; None for nothing."""

    kind: Kind
    place: bytes
    record: Held | None


class Host:
    """What one host remembers of one vault. Safe for several threads. Close it.

    `differing` collects all names that differ, by the keys of their records.
    """

    def __init__(self, witness: WitnessView | None, why_not: str, old_keys: bool = False) -> None:
        self.why_not = why_not
        """Why there is no witness to compare with."""
        self.compared = 0
        """Names that there was a record of."""
        self.differing: dict[bytes, Difference] = {}
        self._witness = witness
        self._old_keys = old_keys
        self._lock = threading.Lock()

    @classmethod
    def open(cls, context: Context, place: Path, *, in_use: bool) -> Host:
        """What is below `place` (`cryptfs.index.place.of_vault`). `in_use`: a mount here writes it."""
        folder = folder_of(place, context.path)
        if is_of_newer_keys(folder, context.keyring):
            return cls(None, "it is sealed under newer keys than cryptfs.json has", old_keys=True)
        try:
            witness = WitnessView.open(folder, context.vault_id, context.keyring, in_use=in_use)
        except Unavailable as error:
            return cls(None, str(error).rstrip("."))
        return cls(witness, "" if witness is not None else "this computer has not seen the vault before")

    @property
    def is_compared(self) -> bool:
        """Whether there is a witness."""
        return self._witness is not None

    @property
    def status(self) -> str:
        """For reports: whether the witness was compared, or why not."""
        return "compared" if self._witness is not None else f"not compared: {self.why_not}"

    def close(self) -> None:
        """Close the files."""
        if self._witness is not None:
            self._witness.close()
            self._witness = None

    def _give_up(self, error: Exception) -> None:
        self.why_not = str(error).rstrip(".") if isinstance(error, CryptfsError) else type(error).__name__
        self.close()

    # -- the vault as a whole ----------------------------------------------------------------------

    def whole(self, context: Context) -> Iterator[Finding]:
        """Whether the vault as a whole is an older one. To be asked first."""
        if self._old_keys:
            detail = f"keys that this computer knows of are not in it; {_REMEDY}"
            yield Finding(Kind.OLDER_VAULT, b"cryptfs.json", detail=detail)
        witness = self._witness
        if witness is None:
            return
        told: list[str] = []
        for delay in (0.0, *context.delays):
            context.pause(delay)
            context.renew()
            if any(finding.kind is Kind.STATE for finding in context.snapshot.findings):
                return
            with self._lock:
                witness.reload()
                found = Found(context.snapshot.last, context.snapshot.is_open)
                before, told = told, witness.look_at(found)
            if not told or told == before:
                break
        for sentence in told:
            yield Finding(Kind.OLDER_VAULT, b"journal/state", detail=sentence)

    # -- names -------------------------------------------------------------------------------------

    def differs(self, directory_id: bytes, lname: bytes, header: Header | None) -> bool:
        """Whether there is a record of a name that what is there does not fit; None for nothing there."""
        with self._lock:
            witness = self._witness
            if witness is None:
                return False
            try:
                key = witness.key(directory_id, lname)
                record = witness.get(key)
                self.compared += record is not None
                return self._verdict(witness, key, record, header) is not None
            except Unavailable as error:
                self._give_up(error)
                return False

    @staticmethod
    def _verdict(witness: WitnessView, key: bytes, record: Held | None, header: Header | None) -> Kind | None:
        """What is wrong with a name, as the mount would judge it."""
        if record is None:
            return None
        if header is None:
            return None if witness.expects_the_unexpected(key, record) else Kind.MISSING
        verdict = Verdict.of(record, header)
        if verdict is Verdict.OLDER:
            return Kind.OLDER
        if verdict is Verdict.OTHER and not witness.expects_the_unexpected(key, record):
            return Kind.REPLACED
        return None

    def missing(self, visit: Visit) -> list[Doubt]:
        """The recorded names of a directory that are not in it."""
        header, look = visit.look.header, visit.look
        if header is None:
            return []
        found: list[Doubt] = []
        with self._lock:
            witness = self._witness
            if witness is None:
                return []
            try:
                records = list(witness.below(header.object_id))
                there = {witness.key(header.object_id, lname) for lname in (*look.files, *look.directories)}
                for key, record in records:
                    if key not in there and self._verdict(witness, key, record, None):
                        found.append(_absent(visit, header.object_id, record.lname))
            except Unavailable as error:
                self._give_up(error)
                return []
        return found

    def believed(self, context: Context, doubts: list[Doubt]) -> Iterator[Finding]:
        """Those of the differences that are seen again, at rest."""
        for delay in context.delays:
            if not doubts or context.stop.is_set():
                return
            context.pause(delay)
            context.renew()
            left: list[Doubt] = []
            for doubt in doubts:
                found = self._again(doubt, left)
                if found is not None:
                    yield found
            doubts = left
        # What is still in doubt is being changed by the mount of this host, which compares by itself.

    def _again(self, doubt: Doubt, left: list[Doubt]) -> Finding | None:
        """Look at a difference once more; it goes to `left` if it is not at rest."""
        with self._lock:
            witness = self._witness
            if witness is None:
                return None
            try:
                key = witness.key(doubt.directory_id, doubt.lname)
                witness.renew()
                record = witness.get(key)
                before, doubt.seen = doubt.seen, doubt.look()
                kind = self._verdict(witness, key, record, doubt.seen)
                if kind is None or record is None:
                    return None
                # A header is never older than its record was, however busy its directory is.
                busy = kind is not Kind.OLDER and witness.is_changing(doubt.directory_id)
                witness.renew()
                if busy or witness.get(key) != record or not _same(before, doubt.seen):
                    left.append(doubt)
                    return None
            except Undecided:
                return None
            except (Unavailable, OSError) as error:
                self._give_up(error)
                return None
            present = None if doubt.seen is None else record_of(doubt.seen, doubt.lname)
            self.differing[key] = Difference(kind, doubt.place, present)
        return _finding(kind, doubt, record)

    def root(self, header: Header, look: Callable[[], Header | None]) -> list[Doubt]:
        """The same of the root directory itself."""
        if not self.differs(*ROOT_PLACE, header):
            return []
        return [Doubt(*ROOT_PLACE, b"tree", header, look)]


def _absent(visit: Visit, directory_id: bytes, lname: bytes) -> Doubt:
    """A name that is not listed; something that is no file may still stand there, and is found as such."""

    def look() -> Header | None:
        try:
            os.stat(lname, dir_fd=visit.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        raise Undecided

    return Doubt(directory_id, lname, visit.place.path(lname), None, look)


def _same(one: Header | None, two: Header | None) -> bool:
    if one is None or two is None:
        return one is two
    return (one.object_id, one.generation) == (two.object_id, two.generation)


def _finding(kind: Kind, doubt: Doubt, record: Held) -> Finding:
    detail, object_id = _REMEDY, record.object_id
    if doubt.seen is not None and kind is Kind.OLDER:
        detail = f"generation {doubt.seen.generation}, it was {record.generation}; {_REMEDY}"
    elif doubt.seen is not None:
        object_id = doubt.seen.object_id
        detail = f"it was {record.object_id.hex()}; {_REMEDY}"
    return Finding(kind, doubt.place, object_id, detail)

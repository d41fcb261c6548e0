"""What a check finds, in words that a report can carry out of the house: no plaintext is in them."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any


class Severity(enum.Enum):
    """How bad it is, and with it the exit code."""

    DAMAGE = "damage"
    """Something that no writer made, or that the disk does not give back."""
    ROLLBACK = "rollback"
    """It is authentic, and not what this host saw there before."""
    INDEX = "index"
    """What this host keeps of the vault is wrong; the vault is not."""
    UNCHECKED = "unchecked"
    """Something could not be looked at."""
    NOTICE = "notice"
    """Nothing is lost: what an unclean stop, another tool or a newer key left behind."""


class Kind(enum.Enum):
    """The kinds of findings. The values are what `--json` writes and never change."""

    # Damage.
    CONFIGURATION = "configuration"
    DIRECTORY_HEADER = "directory-header"
    DIRECTORY_LOST = "directory-lost"
    HEADER_SLOT = "header-slot"
    HEADER = "header"
    WRONG_KIND = "wrong-kind"
    CONTENT = "content"
    CUT = "cut"
    LINK_TARGET = "link-target"
    NAME = "name"
    LONG_NAME = "long-name"
    ATTRIBUTES = "attributes"
    DUPLICATE = "duplicate"
    JOURNAL = "journal"
    STATE = "state"
    COPIES = "header-copies"
    UNREADABLE = "unreadable"
    # What this host remembers.
    REPLACED = "replaced"
    OLDER = "older"
    MISSING = "missing"
    OLDER_VAULT = "older-vault"
    INDEX_WRONG = "index-wrong"
    # Not checked.
    BUSY = "busy"
    DENIED = "denied"
    # Notices.
    UNSYNCED = "unsynced"
    REMNANT = "remnant"
    PENDING = "pending"
    LEFTOVER = "leftover"
    ORPHANED_ATTRIBUTES = "orphaned-attributes"
    EXTRA_LINK = "extra-link"
    FOREIGN = "foreign"
    KEPT = "kept-originals"

    @property
    def severity(self) -> Severity:
        if self in _UNCHECKED:
            return Severity.UNCHECKED
        if self in _ROLLBACK:
            return Severity.ROLLBACK
        if self is Kind.INDEX_WRONG:
            return Severity.INDEX
        return Severity.NOTICE if self in _NOTICES else Severity.DAMAGE

    @property
    def sentence(self) -> str:
        """What it means."""
        return _SENTENCES[self]


_UNCHECKED = {Kind.BUSY, Kind.DENIED}
_ROLLBACK = {Kind.REPLACED, Kind.OLDER, Kind.MISSING, Kind.OLDER_VAULT}
_NOTICES = {
    Kind.UNSYNCED,
    Kind.REMNANT,
    Kind.PENDING,
    Kind.LEFTOVER,
    Kind.ORPHANED_ATTRIBUTES,
    Kind.EXTRA_LINK,
    Kind.FOREIGN,
    Kind.KEPT,
}

_SENTENCES = {
    Kind.CONFIGURATION: "a file of the configuration is damaged",
    Kind.DIRECTORY_HEADER: "the header of a directory is lost or damaged; a copy of it opens the directory",
    Kind.DIRECTORY_LOST: "the header of a directory is lost and no copy opens it: the names in it are lost",
    Kind.HEADER_SLOT: "one of the two copies of a header is damaged; the other is good",
    Kind.HEADER: "the header of an object is damaged: nothing of the object can be read",
    Kind.WRONG_KIND: "an entry is not what may stand there",
    Kind.CONTENT: "parts of a file do not authenticate and read as an error",
    Kind.CUT: "a file was cut or extended",
    Kind.LINK_TARGET: "the target of a symbolic link does not authenticate",
    Kind.NAME: "a name does not decrypt in its directory: the object is not shown",
    Kind.LONG_NAME: "the file that holds a long name is missing or damaged: the object is not shown",
    Kind.ATTRIBUTES: "extended attributes are missing or damaged",
    Kind.DUPLICATE: "one object stands in two files that are not hard links of each other",
    Kind.JOURNAL: "the journal is damaged: the vault does not mount",
    Kind.STATE: "the record of the last session is damaged: the vault does not mount",
    Kind.COPIES: "a copy of a directory's header is damaged",
    Kind.UNREADABLE: "the disk does not give back what was stored",
    Kind.REPLACED: "another object stands there than this computer last saw: a mount refuses it",
    Kind.OLDER: "it is an older version than this computer last saw: a mount refuses it",
    Kind.MISSING: "this computer saw it there, and it is gone",
    Kind.OLDER_VAULT: "the vault as a whole is not as this computer last saw it",
    Kind.INDEX_WRONG: "the metadata index of this computer is wrong: cryptfs index rebuild makes it anew",
    Kind.BUSY: "it changed each time it was looked at",
    Kind.DENIED: "the system does not let this user read it",
    Kind.UNSYNCED: "a file that was never synced was cut by a power failure or a kill: it is shown so far",
    Kind.REMNANT: "something that was being made when the last session ended; it is not shown",
    Kind.PENDING: "the journal holds writes that the next mount puts in place",
    Kind.LEFTOVER: "an unfinished write left a file behind",
    Kind.ORPHANED_ATTRIBUTES: "extended attributes of an object that is gone",
    Kind.EXTRA_LINK: "a file has more hard links than names in the vault: something outside holds it",
    Kind.FOREIGN: "a file that is not part of the vault",
    Kind.KEPT: "originals that a repair kept",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was found at one place.

    `place` is the ciphertext path relative to the vault. `ranges` are plaintext bytes, begin and end,
    that cannot be read; `size` the plaintext length as far as it is known. `detail` adds to the sentence
    of the kind.
    """

    kind: Kind
    place: bytes
    object_id: bytes | None = None
    detail: str = ""
    ranges: tuple[tuple[int, int], ...] = ()
    size: int | None = None
    facts: dict[str, Any] = field(default_factory=dict, compare=False)

    @classmethod
    def of_error(cls, place: bytes, problem: OSError, object_id: bytes | None = None) -> Finding:
        """Something that the system does not give out."""
        kind = Kind.DENIED if isinstance(problem, PermissionError) else Kind.UNREADABLE
        return cls(kind, place, object_id, problem.strerror or "")

    @property
    def severity(self) -> Severity:
        return self.kind.severity

    def as_json(self) -> dict[str, Any]:
        """For reports; without names."""
        value: dict[str, Any] = {
            "kind": self.kind.value,
            "severity": self.severity.value,
            "place": printable_place(self.place),
            "meaning": self.kind.sentence,
        }
        if self.object_id is not None:
            value["object"] = self.object_id.hex()
        if self.detail:
            value["detail"] = self.detail
        if self.ranges:
            value["unreadable_ranges"] = [list(pair) for pair in self.ranges]
        if self.size is not None:
            value["size"] = self.size
        return value


def printable_place(place: bytes) -> str:
    """A ciphertext path as text; bytes that no ciphertext name has are escaped."""
    return "".join(chr(byte) if 0x20 <= byte < 0x7F and byte != 0x5C else f"\\x{byte:02x}" for byte in place)

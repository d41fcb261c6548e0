"""A vault that is being attacked: where its files are, and what may be seen of it after what was done."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.security.archive import HEADER
from tests.tamper.effects import Effects, May
from tests.tamper.world import DATABASE, UNSYNCED, World

SLOT, SECOND = 192, 4096
"""Bytes of a header slot, and where the second one begins."""


def is_file(place: Path) -> bool:
    return stat.S_ISREG(place.lstat().st_mode)


def remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink()


class Spot(NamedTuple):
    """A file of the ciphertext by what it is for, so that an example means the same in each run."""

    role: str
    """object, folder, header, sidecar, attributes, log, state, segment, or a name beside the tree."""
    path: str = ""
    """The plaintext path it belongs to."""


@dataclass
class Scene:
    """A vault that is being attacked."""

    world: World
    moment: str
    effects: Effects
    alone: bool
    """Whether this is the only attack: what one alone may do is told more closely."""

    @property
    def root(self) -> Path:
        return self.world.vault

    @property
    def places(self) -> dict[str, str]:
        return self.world.moments[self.moment].places

    @property
    def killed(self) -> bool:
        return self.moment == "killed"

    def file(self, spot: Spot) -> Path | None:
        """Where a spot is now; None if it is not there in this moment, or not any more."""
        found = self.lies(spot)
        return found if found is not None and os.path.lexists(found) else None

    def regular(self, spot: Spot) -> Path | None:
        """The same, and None as well if something else than a file is there."""
        place = self.file(spot)
        return place if place is not None and is_file(place) else None

    def lies(self, spot: Spot) -> Path | None:
        """Where a spot lies in this moment, if it lies anywhere, whether anything is there now or not."""
        place = self.places.get(spot.path)
        if spot.role in ("object", "folder", "header", "sidecar"):
            if place is None:
                return None
            entry = self.root / place
            if spot.role == "header":
                return entry / "@dir"
            return entry.with_name(entry.name + ".name") if spot.role == "sidecar" else entry
        if spot.role == "attributes":
            seen = self.world.moments[self.moment].seen.get(spot.path.encode())
            if seen is None:
                return None
            text = seen.object_id.hex()
            return self.root / "xattr" / text[:2] / text
        if spot.role == "log":
            return max((self.root / "dirs").glob("*.log"), key=lambda log: log.stat().st_size, default=None)
        if spot.role == "segment":
            return min((self.root / "journal").glob("*.seg"), default=None)
        return self.root / spot.role

    def names_of(self, place: Path) -> list[str]:
        """The plaintext paths at which the object file at a place stands now."""
        status = place.lstat()
        found = []
        for path, other in self.places.items():
            with contextlib.suppress(OSError):
                if os.path.samestat((self.root / other).lstat(), status):
                    found.append(path)
        return found

    # -- what may be seen ------------------------------------------------------------------------

    def damaged(self, spot: Spot, begin: int = 0, end: int | None = None) -> None:
        """Bytes of a file from `begin` to `end` are not what they were, and were never authentic there."""
        effects = self.effects
        place = self.file(spot)
        if spot.role == "object" and place is not None:
            may = May.NOTHING
            if begin < SLOT or (begin < SECOND + SLOT and (end is None or end > SECOND)):
                may |= May.HEADER
                if self.killed:
                    may |= May.GONE  # without a header it counts as never made
            if end is None or end > HEADER:
                may |= May.CONTENT
                if self.killed and spot.path == UNSYNCED:
                    may |= May.CUT
            for path in self.names_of(place):
                effects.add(path, may)
        elif spot.role == "header":
            self.without_header(spot.path)
        elif spot.role == "sidecar":
            effects.add(spot.path, May.UNLISTED)
        elif spot.role == "attributes":
            owner = self.world.moments[self.moment].seen[spot.path.encode()].object_id
            for path, seen in self.world.moments[self.moment].seen.items():
                if seen.object_id == owner:
                    effects.add(path.decode(), May.ATTRIBUTES)
        elif spot.role == "journal/state":
            effects.opening = True
        elif spot.role == "segment":
            effects.opening = True
            self.journal_is_lost()
        elif spot.role in ("cryptfs.json", "journal/lock"):
            effects.opening = True

    def without_header(self, path: str) -> None:
        """A folder's own header is lost; a copy opens it."""
        self.effects.add(path, May.HEADER)
        if path == "void" or not self.alone:
            self.effects.add(path, May.GONE, below=True)
            self.effects.opening = self.effects.opening or not path

    def journal_is_lost(self) -> None:
        """What the journal held may not be put in place."""
        if self.killed:
            self.effects.add(DATABASE, May.OLD_CHUNKS | May.LAST)
            if not self.alone:
                self.effects.add(UNSYNCED, May.CUT)

    def gone(self, spot: Spot, *, report: bool = True) -> None:
        """A file is not there any more, or something that is none is in its place."""
        if spot.role in ("object", "folder"):
            self.effects.add(spot.path, May.GONE, below=spot.role == "folder")
            if report:
                self.effects.reports.add("missing")
        elif spot.role == "journal/state":
            self.effects.opening = True
            self.effects.reports.add("vault")
            self.effects.add(UNSYNCED, May.CUT | May.CONTENT)
        elif spot.role in ("tree", "journal", "dirs", "xattr"):
            self.effects.opening = True
            if spot.role == "journal":
                self.effects.reports.add("vault")
                self.journal_is_lost()
                self.effects.add(UNSYNCED, May.CUT | May.CONTENT)
            if spot.role == "xattr":
                self.effects.add("", May.ATTRIBUTES, below=True)
        else:
            self.damaged(spot)

    def replaced(self, path: str, *, is_folder: bool) -> None:
        """Another object of the vault may stand at a path."""
        self.effects.add(path, May.OTHER | May.GONE, below=is_folder)


@dataclass(frozen=True)
class Attack:
    """Something that is done to the bytes; prints as what it is."""

    def apply(self, scene: Scene) -> None:
        raise NotImplementedError

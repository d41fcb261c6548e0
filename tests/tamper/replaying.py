"""What was authentic once is put back."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.security.archive import HEADER
from tests.tamper.effects import May
from tests.tamper.scene import Attack, Scene, Spot, is_file
from tests.tamper.world import UNSYNCED


@dataclass(frozen=True)
class Replay(Attack):
    """What lies at a spot is put back as it was: all of it, or its chunks or header alone."""

    spot: Spot
    part: str
    in_place: bool

    def apply(self, scene: Scene) -> None:
        then = scene.world.moments["old"]
        lies = then.places.get(self.spot.path)
        place = scene.lies(self.spot)
        if self.spot.role == "object" and place is None and lies is not None:
            place = scene.root / lies  # it was deleted since
        if place is None:
            return
        kept = then.folder / "vault" / place.relative_to(scene.root)
        if not kept.is_file() or (os.path.lexists(place) and not is_file(place)) or not place.parent.is_dir():
            return
        old = kept.read_bytes()
        now = place.read_bytes() if place.exists() else b""
        if self.spot.role == "object" and now:
            if self.part == "chunks":
                old = now[:HEADER] + old[HEADER:]
            elif self.part == "header":
                old = old[:HEADER] + now[HEADER:]
        if old == now:
            return
        self._allow(scene, place, bool(now))
        if not self.in_place:
            with contextlib.suppress(FileNotFoundError):
                place.unlink()
        place.write_bytes(old)

    def _allow(self, scene: Scene, place: Path, was_there: bool) -> None:
        effects, spot = scene.effects, self.spot
        if spot.role == "object":
            paths = scene.names_of(place) if was_there and self.in_place else [spot.path]
            for path in paths:
                if self.part == "chunks" and was_there:
                    effects.add(path, May.OLD_CHUNKS | May.CONTENT)
                else:
                    effects.add(
                        path, May.OLD | May.OLD_CHUNKS | May.OTHER | May.CONTENT | May.HEADER | May.GONE
                    )
                    if was_there:
                        effects.reports.add("refused")
        elif spot.role == "header":
            effects.add(spot.path, May.HEADER | May.ATTRIBUTES)
            effects.reports.add("refused")
        elif spot.role == "journal/state":
            effects.reports.add("vault")
            effects.add(UNSYNCED, May.CUT | May.CONTENT)
            effects.opening = True
        else:
            scene.damaged(spot)


@dataclass(frozen=True)
class ReplayPart(Attack):
    """A part of the vault, or all of it, is put back as it was."""

    part: str

    def apply(self, scene: Scene) -> None:
        kept = scene.world.moments["old"].folder / "vault"
        for name in sorted(os.listdir(kept)) if self.part == "all" else [self.part]:
            target = scene.root / name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            elif os.path.lexists(target):
                target.unlink()
            if (kept / name).is_dir():
                shutil.copytree(kept / name, target, symlinks=True)
            else:
                shutil.copy2(kept / name, target)
        effects = scene.effects
        if self.part in ("tree", "all"):
            for path in {*scene.places, *scene.world.moments["old"].places}:
                effects.add(
                    path, May.OLD | May.OLD_CHUNKS | May.OTHER | May.GONE | May.HEADER | May.ATTRIBUTES
                )  # fmt: skip
            effects.reports |= {"refused", "missing"}
        if self.part in ("journal", "all"):
            effects.reports.add("vault")
            effects.opening = effects.opening or not scene.alone
            scene.journal_is_lost()
            effects.add(UNSYNCED, May.CUT | May.CONTENT)
        if self.part in ("xattr", "all"):
            for path in scene.places:
                effects.add(path, May.ATTRIBUTES)

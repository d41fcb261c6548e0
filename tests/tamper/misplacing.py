"""Entries put elsewhere: each is authentic, and not where it was."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from cryptfs.vault.diskio import renameat2
from tests.tamper.scene import Attack, Scene, Spot, is_file, remove

_EXCHANGE = 2


@dataclass(frozen=True)
class Exchange(Attack):
    """Two entries: exchanged, or one copied, linked or moved over the other."""

    one: Spot
    two: Spot
    how: str

    def apply(self, scene: Scene) -> None:
        one, two = scene.file(self.one), scene.file(self.two)
        if (
            one is None
            or two is None
            or one == two
            or self._nested()
            or not self.one.path
            or not self.two.path
        ):
            return
        folders = [os.path.isdir(place) and not place.is_symlink() for place in (one, two)]
        if self.how == "link" and folders[0]:
            return
        same = os.path.samestat(one.lstat(), two.lstat())
        inside = scene.names_of(two) if self.how == "write" else []
        if self.how == "exchange":
            renameat2(-100, os.fsencode(one), -100, os.fsencode(two), _EXCHANGE)
        elif self.how == "write":
            # Into the same file: all its names are concerned.
            if not (is_file(one) and is_file(two)) or same:
                return
            two.write_bytes(one.read_bytes())
        else:
            self._put(one, two, same)
        # What was done to an object before goes with it.
        ones, twos = scene.effects.carried(self.one.path), scene.effects.carried(self.two.path)
        for path in inside:
            scene.replaced(path, is_folder=False)
            scene.effects.add(path, ones)
        scene.effects.add(self.two.path, ones, below=any(folders))
        if self.how == "exchange":
            scene.effects.add(self.one.path, twos, below=any(folders))
        scene.replaced(self.two.path, is_folder=any(folders))
        if self.how in ("exchange", "move"):
            scene.replaced(self.one.path, is_folder=any(folders))
        if not same:
            scene.effects.reports |= {"refused", "missing"}

    def _nested(self) -> bool:
        one, two = self.one.path + "/", self.two.path + "/"
        return one.startswith(two) or two.startswith(one)

    def _put(self, one: Path, two: Path, same: bool) -> None:
        if same and self.how == "move":
            one.unlink()
            return
        if same:
            return
        remove(two)
        if self.how == "move":
            one.rename(two)
        elif self.how == "link":
            os.link(one, two, follow_symlinks=False)
        elif one.is_dir():
            shutil.copytree(one, two, symlinks=True)
        elif is_file(one):
            shutil.copy2(one, two)
        else:
            one.rename(two)


@dataclass(frozen=True)
class Duplicate(Attack):
    """An entry is copied to a name that nothing has: in its folder, or of another folder."""

    spot: Spot
    folder: Spot
    name: str

    def apply(self, scene: Scene) -> None:
        one, folder = scene.regular(self.spot), scene.file(self.folder)
        if one is None or folder is None or not folder.is_dir():
            return
        name = self.name or one.name
        if name.endswith("~"):  # a second spelling of its own name
            name = one.name[:-1] + chr(ord(one.name[-1]) ^ 1)
        if not os.path.lexists(folder / name):
            shutil.copy2(one, folder / name)

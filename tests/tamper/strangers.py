"""What is ours is taken away, and what is none of ours stands in its place or beside it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.tamper.scene import Attack, Scene, Spot, is_file, remove

_ROOT = Spot("folder", "")


@dataclass(frozen=True)
class Delete(Attack):
    spot: Spot

    def apply(self, scene: Scene) -> None:
        place = scene.file(self.spot)
        if place is None or self.spot == _ROOT:
            return
        scene.gone(self.spot)
        remove(place)


@dataclass(frozen=True)
class Alien(Attack):
    """Something that is no file of ours stands in the place of one."""

    spot: Spot
    what: str

    def apply(self, scene: Scene) -> None:
        place = scene.file(self.spot)
        if place is None or self.spot == _ROOT:
            return
        secret = scene.world.scratch / "outside"
        secret.write_bytes(b"what is outside the vault")
        scene.gone(self.spot, report=False)
        content = place.read_bytes() if is_file(place) else b""
        remove(place)
        make_alien(place, self.what, secret, content)


def make_alien(place: Path, what: str, outside: Path, content: bytes = b"") -> None:
    """A thing that may not stand there."""
    match what:
        case "link to outside":
            place.symlink_to(outside)
        case "link to itself":
            place.symlink_to(place.name)
        case "link to the same content":
            outside.with_name("moved").write_bytes(content)
            place.symlink_to(outside.with_name("moved"))
        case "pipe":
            os.mkfifo(place)
        case "socket":
            with contextlib.closing(socket.socket(socket.AF_UNIX)) as one:
                here = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    one.bind(f"/proc/self/fd/{here}/{place.name[:60]}")
                finally:
                    os.close(here)
            if len(place.name) > 60:
                place.with_name(place.name[:60]).rename(place)
        case "folder":
            place.mkdir()
        case "folder with a file":
            place.mkdir()
            (place / ("A" * 24)).write_bytes(content)
        case "empty file":
            place.write_bytes(b"")


STRANGERS: dict[str, Callable[[Path, Path], None]] = {
    "@tmp-0123456789abcdef": lambda place, donor: place.write_bytes(b"left over") and None,
    ".nfs0000000000000001": lambda place, donor: place.write_bytes(b"x") and None,
    "plain.dcm": lambda place, donor: place.write_bytes(b"DICM") and None,
    "A" * 24: lambda place, donor: shutil.copy2(donor, place) and None,
    "B" * 255: lambda place, donor: os.mkfifo(place),
    "@l" + "C" * 43: lambda place, donor: shutil.copy2(donor, place) and None,
    "@l" + "D" * 43 + ".name": lambda place, donor: place.write_bytes(b"E" * 300) and None,
    "F" * 30: lambda place, donor: place.symlink_to("/dev/zero"),
    "G" * 30: lambda place, donor: place.mkdir(),
    "stranger.log": lambda place, donor: place.write_bytes(b"\0" * 1000) and None,
    "pipe.log": lambda place, donor: os.mkfifo(place),
    "folder.log": lambda place, donor: place.mkdir(),
    "00000000000000ff.seg": lambda place, donor: place.write_bytes(b"") and None,
    "ffffffffffffffff.seg": lambda place, donor: shutil.copy2(donor, place) and None,
    "00000000000000aa.seg": lambda place, donor: os.mkfifo(place),
}


@dataclass(frozen=True)
class Stranger(Attack):
    """A file that is none of ours, beside the others; names of each kind in folders of each kind."""

    folder: Spot
    donor: Spot
    name: str

    def apply(self, scene: Scene) -> None:
        folder, donor = scene.file(self.folder), scene.regular(self.donor)
        if folder is None or not folder.is_dir() or donor is None:
            return
        place = folder / self.name
        if os.path.lexists(place):
            return
        STRANGERS[self.name](place, donor)
        if self.folder.role == "journal":
            scene.effects.opening = True
            scene.journal_is_lost()

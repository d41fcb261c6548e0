"""Bytes that were never authentic where they stand: flipped, overwritten, cut, appended, of another place."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

from tests.security.archive import HEADER
from tests.tamper.effects import May
from tests.tamper.scene import SECOND, SLOT, Attack, Scene, Spot

EDGES = (0, 1, 40, 41, SLOT - 1, SLOT, 256, SECOND - 1, SECOND, SECOND + SLOT, HEADER - 1, HEADER,
         HEADER + 39, HEADER + 40, HEADER + 41)  # fmt: skip


@dataclass(frozen=True)
class OnFile(Attack):
    """One that changes the bytes of a file; nothing is done where there is none."""

    spot: Spot

    def apply(self, scene: Scene) -> None:
        place = scene.regular(self.spot)
        if place is not None:
            self.harm(scene, place)

    def harm(self, scene: Scene, place: Path) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class OnFileWithDonor(OnFile):
    """One for which there has to be another file, whose bytes it may use."""

    donor: Spot

    def harm(self, scene: Scene, place: Path) -> None:
        donor = scene.regular(self.donor)
        if donor is not None:
            self.harm_with(scene, place, donor.read_bytes())

    def harm_with(self, scene: Scene, place: Path, donor: bytes) -> None:
        raise NotImplementedError


def filling(fill: str, size: int) -> bytes:
    if fill == "noise":
        return random.Random(size).randbytes(size)
    return {"zeros": b"\0", "ones": b"\xff"}[fill] * size


@dataclass(frozen=True)
class Attack:
    """Something that is done to the bytes; prints as what it is."""

    def apply(self, scene: Scene) -> None:
        raise NotImplementedError


def _bytes(fill: str, size: int) -> bytes:
    if fill == "noise":
        return random.Random(size).randbytes(size)
    return {"zeros": b"\0", "ones": b"\xff"}[fill] * size


@dataclass(frozen=True)
class At:
    """A place in a file: near the edge of something in the format, or (with `edge` None) anywhere."""

    edge: int | None
    delta: int = 0
    share: float = 0.0

    def of(self, place: Path) -> int:
        """Bytes from the beginning of the file."""
        size = place.stat().st_size
        if self.edge is None:
            return int(self.share * size)
        ends = [HEADER + number * stride_of(place) for number in range(1, 20)]
        edges = sorted({edge for edge in (*EDGES, *ends, size) if edge <= size})
        return min(max(0, edges[self.edge % len(edges)] + self.delta), size)


def stride_of(place: Path) -> int:
    """The bytes of one stored chunk of an object file, by its header, whether that is authentic or not."""
    with place.open("rb") as file:
        head = file.read(6)
    return (1 << head[5] if len(head) == 6 and 12 <= head[5] <= 20 else 65536) + 40


def overwrite(place: Path, at: int, data: bytes) -> None:
    with place.open("r+b") as file:
        file.seek(at)
        file.write(data)


@dataclass(frozen=True)
class Flip(OnFile):
    at: At
    bit: int

    def harm(self, scene: Scene, place: Path) -> None:
        size = place.stat().st_size
        if not size:
            return
        at = min(self.at.of(place), size - 1)
        old = place.read_bytes()[at]
        scene.damaged(self.spot, at, at + 1)
        overwrite(place, at, bytes([old ^ 1 << self.bit]))


@dataclass(frozen=True)
class Fill(OnFile):
    at: At
    length: int
    fill: str

    def harm(self, scene: Scene, place: Path) -> None:
        at = self.at.of(place)
        length = min(self.length, place.stat().st_size - at)
        scene.damaged(self.spot, at, at + length)
        overwrite(place, at, filling(self.fill, length))


@dataclass(frozen=True)
class Cut(OnFile):
    at: At

    def harm(self, scene: Scene, place: Path) -> None:
        at = self.at.of(place)
        if at == place.stat().st_size:
            return
        scene.damaged(self.spot, at)
        os.truncate(place, at)


@dataclass(frozen=True)
class Extend(OnFile):
    length: int
    fill: str

    def harm(self, scene: Scene, place: Path) -> None:
        size = place.stat().st_size
        scene.damaged(self.spot, max(size, HEADER if self.spot.role == "object" else 0))
        with place.open("ab") as file:
            if self.fill == "itself":
                file.write(place.read_bytes()[-self.length :])
            else:
                file.write(filling(self.fill, self.length))


@dataclass(frozen=True)
class Chunks(OnFileWithDonor):
    """Chunks of a file, swapped, copied over another, left out, repeated, or taken from another file."""

    how: str
    first: int
    second: int

    def harm_with(self, scene: Scene, place: Path, donor: bytes) -> None:
        data = place.read_bytes()
        header, body = data[:HEADER], data[HEADER:]
        stride = stride_of(place)
        parts = [body[at : at + stride] for at in range(0, len(body), stride)]
        if not parts:
            return
        one, two = self.first % len(parts), self.second % len(parts)
        match self.how:
            case "swap":
                parts[one], parts[two] = parts[two], parts[one]
            case "copy":
                parts[one] = parts[two]
            case "drop":
                del parts[one]
            case "repeat":
                parts.insert(one, parts[one])
            case "foreign":
                other = donor[HEADER:]
                at = two * stride % (len(other) or 1)
                parts[one] = other[at : at + stride]
        scene.damaged(self.spot, HEADER)
        place.write_bytes(header + b"".join(parts))


@dataclass(frozen=True)
class HeaderSlots(OnFileWithDonor):
    """The two slots of a header: one or both zeroed, exchanged, or those of another object."""

    how: str

    def harm_with(self, scene: Scene, place: Path, donor: bytes) -> None:
        data = place.read_bytes()
        slots = _slots(data)
        match self.how:
            case "zero first":
                slots[0] = bytes(SLOT)
            case "zero second":
                slots[1] = bytes(SLOT)
            case "zero both":
                slots = [bytes(SLOT), bytes(SLOT)]
            case "exchange":
                slots.reverse()
            case "foreign":
                slots = _slots(donor)
        scene.damaged(self.spot, 0, SLOT)
        if self.how == "foreign" and self.spot.role == "header":
            # No name decrypts under another folder's header.
            scene.effects.add(self.spot.path, May.OTHER | May.GONE, below=True)
            scene.effects.opening = scene.effects.opening or not self.spot.path
        if self.how == "foreign" and self.spot.role == "object":
            for path in scene.names_of(place):
                scene.effects.add(path, May.OTHER | May.CONTENT | May.GONE)
        overwrite(place, 0, slots[0])
        if len(data) > SECOND or any(slots[1]):
            overwrite(place, SECOND, slots[1])


def _slots(data: bytes) -> list[bytes]:
    return [data[at : at + SLOT].ljust(SLOT, b"\0") for at in (0, SECOND)]

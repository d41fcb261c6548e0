"""Whether what is seen of an attacked vault is right, or one of the things that the attack may cause."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator

from tests.tamper.effects import NOT_WITH_A_WITNESS, Effects, May
from tests.tamper.observe import PIECE, Seen
from tests.tamper.world import UNSYNCED, World

_MAY_FAIL = May.CONTENT | May.HEADER | May.GONE | May.OTHER | May.OLD
_CHUNK = 65536


def problems(
    world: World, moment: str, effects: Effects, seen: dict[bytes, Seen], *, remembers: bool
) -> Iterator[str]:
    """What should not have been seen, in words."""
    expected = world.moments[moment].seen
    for path in sorted({*expected, *seen}):
        may = effects.on(path.decode())
        recorded = remembers and path != UNSYNCED.encode()  # which was not durable when the mount was killed
        reason = _judge(world, moment, expected.get(path), seen.get(path), may, recorded)
        if reason and not _unreachable(seen, path):
            yield f"{path.decode()!r} {reason} ({may})"


def _unreachable(seen: dict[bytes, Seen], path: bytes) -> bool:
    """Whether a folder above cannot be entered: that is judged by itself."""
    while path:
        path = path.rpartition(b"/")[0]
        above = seen.get(path)
        if above is None or not isinstance(above.names, set) or above.error or not above.object_id:
            return True
        if above.kind != stat.S_IFDIR:
            return True
    return False


def _judge(
    world: World, moment: str, right: Seen | None, seen: Seen | None, may: May, remembers: bool
) -> str:
    if seen is None or seen.error == errno.ENOENT:
        if right is None or may & May.GONE:
            return ""
        return "is not there"
    if right is None and not may & (May.OLD | May.OTHER):
        return "is there, and never was"
    if seen.error:
        return "" if may & _MAY_FAIL else "cannot be read"
    if right is not None and not seen.listed and not may & (May.UNLISTED | May.GONE):
        return "is not listed"
    if moment == "killed" and seen.object_id == world.unsynced and may & May.CONTENT:
        may |= May.CUT
    known = world.versions.get(seen.object_id)
    if known is None:
        return "is an object that never was"
    if remembers and right is not None:
        # Older chunks can be put back under the newest header, an older header cannot.
        may &= ~NOT_WITH_A_WITNESS | (May.OLD if right.kind == stat.S_IFDIR else May.NOTHING)
    if right is not None and seen.object_id == right.object_id and not may & May.OLD:
        known = known if may & (May.HEADER | May.OLD_CHUNKS | May.ATTRIBUTES | May.OTHER) else [right]
        header = known if may & (May.HEADER | May.LAST | May.OTHER) else [right]
        chunks = known if may & (May.OLD_CHUNKS | May.OTHER) else [right]
        return _compare(world, seen, header, chunks, may)
    if right is not None and not may & (May.OTHER if seen.object_id != right.object_id else May.OLD):
        return "is another object"
    return _compare(world, seen, known, known, may)


def _compare(world: World, seen: Seen, header: list[Seen], chunks: list[Seen], may: May) -> str:
    """An object with what it was in some versions: those of its header, and those of its content."""
    if not any(_same_header(seen, one, may) for one in header):
        return "has attributes that it never had"
    if isinstance(seen.names, int):
        return "" if may & _MAY_FAIL else "cannot be listed"
    if isinstance(seen.attributes, int):
        if not may & (May.ATTRIBUTES | May.OLD | May.OTHER | May.HEADER):
            return "has attributes that cannot be read"
    elif seen.attributes not in [one.attributes for one in header]:
        older = [one.attributes for one in world.versions[seen.object_id]]
        if not may & (May.ATTRIBUTES | May.OLD | May.OTHER | May.HEADER) or (
            seen.attributes and seen.attributes not in older
        ):
            return "has extended attributes that it never had"
    if isinstance(seen.target, int):
        return "" if may & May.CONTENT else "leads nowhere"
    if seen.target not in [one.target for one in chunks]:
        return "leads elsewhere"
    return _content(world, seen, chunks, may)


def _same_header(seen: Seen, one: Seen, may: May) -> bool:
    same = (seen.mode, seen.uid, seen.gid, seen.rdev) == (one.mode, one.uid, one.gid, one.rdev)
    # An older header is one of many, and only some of them were looked at.
    free = seen.kind == stat.S_IFDIR or bool(may & (May.HEADER | May.OLD | May.OTHER))
    return same and (free or seen.mtime == one.mtime)


def _content(world: World, seen: Seen, versions: list[Seen], may: May) -> str:
    whole = all(piece is not None for piece in seen.pieces)
    if not whole and not may & May.CONTENT:
        return "cannot be read in parts"
    if seen.kind != stat.S_IFREG:
        return ""
    lengths = {one.size for one in versions}
    cut = bool(may & May.CUT)
    if seen.size not in lengths and not (cut and seen.size % _CHUNK == 0 and seen.size <= max(lengths)):
        if not may & May.CONTENT:
            return "has a length that it never had"
        if seen.pieces and seen.pieces[-1] is not None:
            return "is shorter or longer than it ever was, and reads without an error"
        if not seen.pieces:
            return "is empty, and reads without an error"
    for number, piece in enumerate(seen.pieces):
        begin = number * PIECE
        if piece is None or any(piece == one.content[begin : begin + len(piece)] for one in versions):
            continue
        last = number == len(seen.pieces) - 1
        if not may & May.CONTENT or seen.object_id != world.sparse or last or any(piece):
            return f"has content at {begin} that it never had there"
    return ""

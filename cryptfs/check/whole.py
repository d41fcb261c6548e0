"""What only shows when the whole tree was seen: link counts, doubled objects, attributes without owner.

A tree in use changes while it is walked, so what seems wrong is counted once more before it is said.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
from array import array
from collections.abc import Iterator
from pathlib import Path

from cryptfs.check.context import Context
from cryptfs.check.finding import Finding, Kind
from cryptfs.check.objects import Reader
from cryptfs.check.walk import Walk
from cryptfs.vault.layout import DIRS, JOURNAL, TREE, XATTR
from cryptfs.vault.names import TEMP_PREFIX

_ID = re.compile(r"[0-9a-f]{32}")
_FOLDER = re.compile(r"[0-9a-f]{2}")
_DOUBLED, _LINKED = 10_000, 100
"""So many objects are looked for once more, because they are doubled or have links elsewhere."""
KEPT_PREFIX = "repair-"
_OF_VAULT = {
    "cryptfs.json", "cryptfs.json.previous", "cryptfs.lock", TREE, DIRS, JOURNAL, XATTR,
}  # fmt: skip


def links_and_doubles(context: Context, objects: array[int]) -> Iterator[Finding]:
    """Objects with more hard links than names, and objects that stand in two files.

    `objects` are triples as in `Tally.objects`.
    """
    suspects = _suspects(objects)
    if not suspects:
        return
    seen: dict[bytes, dict[int, list[bytes]]] = {}
    links: dict[int, int] = {}
    reader = Reader(context)
    for visit in Walk(context):
        own = visit.look.header
        if own is not None and int.from_bytes(own.object_id[:8], "little") in suspects:
            ino = os.fstat(visit.fd).st_ino
            seen.setdefault(own.object_id, {}).setdefault(ino, []).append(visit.place.path())
            links[ino] = 1
        for lname in visit.look.files:
            try:
                ino = os.stat(lname, dir_fd=visit.fd, follow_symlinks=False).st_ino
            except OSError:
                continue
            place = visit.place.path(lname)
            look = reader.look_at(visit.fd, lname, place, content=False)
            header = look.header
            if header is None or int.from_bytes(header.object_id[:8], "little") not in suspects:
                continue
            seen.setdefault(header.object_id, {}).setdefault(ino, []).append(place)
            links[ino] = look.nlink
        if context.stop.is_set():
            return
    for object_id, files in sorted(seen.items()):
        if len(files) > 1:
            places = sorted(min(names) for names in files.values())
            others = ", ".join(place.decode("ascii", "replace") for place in places[1:4])
            yield Finding(Kind.DUPLICATE, places[0], object_id, f"and {others}", facts={"places": places})
        for ino, names in files.items():
            if links[ino] > len(names):
                detail = f"{links[ino]} links, {len(names)} names"
                yield Finding(Kind.EXTRA_LINK, min(names), object_id, detail)


def _suspects(objects: array[int]) -> set[int]:
    """The ids of objects to be looked for; no more than can be told to a person."""
    packed = sorted(
        object_id << 96 | ino << 32 | min(links, 0xFFFFFFFF)
        for object_id, ino, links in zip(objects[0::3], objects[1::3], objects[2::3], strict=True)
    )
    doubled: set[int] = set()
    linked: set[int] = set()
    for object_id, same_id in itertools.groupby(packed, lambda value: value >> 96):
        files = [list(group) for _, group in itertools.groupby(same_id, lambda value: value >> 32)]
        if len(files) > 1 and len(doubled) < _DOUBLED:
            doubled.add(object_id)
        elif files[0][0] & 0xFFFFFFFF > len(files[0]) and len(linked) < _LINKED:
            linked.add(object_id)
    return doubled | linked


def orphaned_attributes(context: Context, objects: array[int]) -> Iterator[Finding]:
    """Files of extended attributes that belong to no object that was seen, and strangers among them."""
    known = set(objects[0::3])
    folder = context.path / XATTR
    for first in _listed(folder):
        place = f"{XATTR}/{first}"
        if not _FOLDER.fullmatch(first) or not stat.S_ISDIR(os.lstat(folder / first).st_mode):
            yield Finding(Kind.FOREIGN, os.fsencode(place))
            continue
        for name in _listed(folder / first):
            path = os.fsencode(f"{place}/{name}")
            if name.startswith(TEMP_PREFIX.decode()):
                yield Finding(Kind.LEFTOVER, path)
            elif not _ID.fullmatch(name) or not name.startswith(first):
                yield Finding(Kind.FOREIGN, path)
            elif int.from_bytes(bytes.fromhex(name)[:8], "little") not in known:
                yield Finding(Kind.ORPHANED_ATTRIBUTES, path, bytes.fromhex(name))


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def strangers(context: Context) -> Iterator[Finding]:
    """What lies beside the parts of the vault and is not one, or is a leftover of them."""
    for name in _listed(context.path):
        if name in _OF_VAULT:
            continue
        kind = Kind.FOREIGN
        if name.startswith(TEMP_PREFIX.decode()):
            kind = Kind.LEFTOVER
        elif name.startswith(KEPT_PREFIX):
            kind = Kind.KEPT
        yield Finding(kind, os.fsencode(name))
    for folder, ours in ((JOURNAL, r"state|reencryption|lock|[0-9a-f]{16}\.seg"), (DIRS, r".*\.log")):
        for name in _listed(context.path / folder):
            if re.fullmatch(ours, name):
                continue
            leftover = name.startswith(TEMP_PREFIX.decode())
            yield Finding(Kind.LEFTOVER if leftover else Kind.FOREIGN, os.fsencode(f"{folder}/{name}"))

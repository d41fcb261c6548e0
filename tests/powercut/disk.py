"""What a power cut can leave of the lower file system: from a record of calls to states of the disk.

Two kinds of file system are modelled, both worse than any real one:

* *ordered* (ext4, XFS): changes of names reach the disk in the order they were made, as a prefix.
  A sync of an object takes with it everything up to the last change of that object's inode;
  a sync of an object whose inode did not change since promises nothing beside its content.
* *unordered*: each change of a name survives or not, by itself. A sync of a directory makes the
  changes in it durable, a sync of a file its content alone and not its name. Changes
  of the same name survive in their order, and a rename is one change.

Content: what was synced is there. Of what was written since, any page of 4096 bytes, or
any sector of 512, may hold any version that it had since then, in any combination, and the
length may be any that the file had.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.powercut.calls import EXCHANGE, Call, Interposer, Key

PAGE, SECTOR = 4096, 512
_NAMES = frozenset({"create", "mkdir", "link", "unlink", "rmdir", "rename"})
_INODE = frozenset({*_NAMES, "truncate", "attributes"})


class Disk(NamedTuple):
    """A state of the lower file system: directories by number, content of files by number."""

    folders: dict[int, dict[bytes, int]]
    content: dict[int, bytes]

    def write(self, to: Path, top: int) -> None:
        """Make it real."""
        done: dict[int, bytes] = {}
        to.mkdir(mode=0o700)
        todo = [(os.fsencode(to), top)]
        while todo:
            path, number = todo.pop()
            for name, child in self.folders[number].items():
                place = path + b"/" + name
                if child in self.folders:
                    os.mkdir(place, 0o700)
                    todo.append((place, child))
                elif child in done:
                    os.link(done[child], place)
                else:
                    done[child] = place
                    with open(place, "wb") as file:
                        file.write(self.content.get(child, b""))


class Recorder(Interposer):
    """Records what is done to a folder while it is entered; everything before counts as durable."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.calls: list[Call] = []
        self.start = Disk({}, {})
        todo = [(os.fsencode(root), self.top)]
        while todo:
            path, number = todo.pop()
            entries = self.start.folders[number] = {}
            for entry in os.scandir(path):
                child = entries[entry.name] = self.register(entry.stat(follow_symlinks=False))
                if entry.is_dir():
                    todo.append((entry.path, child))
                else:
                    self.start.content[child] = Path(os.fsdecode(entry.path)).read_bytes()

    @property
    def position(self) -> int:
        """How many calls there were."""
        return len(self.calls)

    def perform(self, call: Call, real: Callable[[], Any]) -> Any:  # noqa: ANN401
        result = real()
        self.calls.append(call)
        return result


def _apply_name(folders: dict[int, dict[bytes, int]], call: Call) -> None:
    """Make one change of names."""
    assert call.name is not None
    place, name = folders.setdefault(call.name[0], {}), call.name[1]
    match call.kind:
        case "create" | "link":
            place[name] = call.file
        case "mkdir":
            place[name] = call.file
            folders.setdefault(call.file, {})
        case "unlink" | "rmdir":
            place.pop(name, None)
        case "rename":
            assert call.other is not None
            target = folders.setdefault(call.other[0], {})
            moved = place.pop(name, None)
            if call.flags & EXCHANGE and call.other[1] in target:
                place[name] = target[call.other[1]]
            if moved is not None:
                target[call.other[1]] = moved


def _apply_content(data: bytearray, call: Call) -> None:
    if call.kind == "truncate":
        data[call.offset :] = b""
        data.extend(bytes(call.offset - len(data)))
    else:
        end = call.offset + len(call.data)
        data.extend(bytes(max(0, end - len(data))))
        data[call.offset : end] = call.data


def _keys(call: Call) -> list[Key]:
    return [key for key in (call.name, call.other) if key is not None]


class Survivors:
    """The states that a power cut after `cut` of the recorded calls could leave."""

    def __init__(self, record: Recorder, cut: int, *, ordered: bool) -> None:
        self._start = record.start
        self._calls = record.calls[:cut]
        self._ordered = ordered
        self.top = record.top

    # -- names -----------------------------------------------------------------------------------------

    def _committed(self) -> int:
        """Ordered: up to which call changes of names are certain."""
        last: dict[int, int] = {}
        length: dict[int, int] = {number: len(data) for number, data in self._start.content.items()}
        certain = 0
        for at, call in enumerate(self._calls, 1):
            if call.kind in _INODE:
                for key in _keys(call):
                    last[key[0]] = at
                last[call.file] = at
                if call.kind == "truncate":
                    length[call.file] = call.offset
            elif call.kind == "write":
                end = call.offset + len(call.data)
                if end > length.get(call.file, 0):
                    length[call.file] = end
                    last[call.file] = at
            elif call.kind == "syncfs":
                certain = at
            else:
                certain = max(certain, last.get(call.file, 0))
        return certain

    def _folders(self, rng: random.Random, keep: float) -> dict[int, dict[bytes, int]]:
        folders = {number: dict(entries) for number, entries in self._start.folders.items()}
        if self._ordered:
            end = certain = self._committed()
            if rng.random() < keep:
                end = rng.choice([len(self._calls), rng.randint(certain, len(self._calls))])
            chosen = [call for call in self._calls[:end] if call.kind in _NAMES]
        else:
            chosen = self._closed(rng, keep)
        for call in chosen:
            _apply_name(folders, call)
        return folders

    def _closed(self, rng: random.Random, keep: float) -> list[Call]:
        """Unordered: a set of changes with all that each of them builds on."""
        synced_at: dict[int, int] = {}
        everything = 0
        for at, call in enumerate(self._calls):
            if call.kind in ("fsync", "fdatasync"):
                synced_at[call.file] = at
            elif call.kind == "syncfs":
                everything = at
        before: dict[Key, int] = {}
        needs: list[list[int]] = []
        certain: set[int] = set()
        for at, call in enumerate(self._calls):
            needs.append([])
            if call.kind in _NAMES:
                for key in _keys(call):
                    if key in before:
                        needs[at].append(before[key])
                    before[key] = at
                    if at < synced_at.get(key[0], 0) or at < everything:
                        certain.add(at)
        for at in reversed(range(len(self._calls))):
            if at in certain:
                certain.update(needs[at])
        chosen: set[int] = set()
        for at, call in enumerate(self._calls):
            if call.kind in _NAMES and (
                at in certain or (rng.random() < keep and all(one in chosen for one in needs[at]))
            ):
                chosen.add(at)
        return [self._calls[at] for at in sorted(chosen)]

    # -- content ---------------------------------------------------------------------------------------

    def _content(self, rng: random.Random, keep: float, whole: bool) -> dict[int, bytes]:
        changes: dict[int, list[Call]] = {}
        synced: dict[int, bytearray] = {}

        def sync(number: int) -> None:
            data = synced.setdefault(number, bytearray(self._start.content.get(number, b"")))
            for change in changes.pop(number, []):
                _apply_content(data, change)

        for call in self._calls:
            if call.kind in ("write", "truncate"):
                changes.setdefault(call.file, []).append(call)
            elif call.kind in ("fsync", "fdatasync"):
                sync(call.file)
            elif call.kind == "syncfs":
                for number in list(changes):
                    sync(number)
        content = {**self._start.content, **{number: bytes(data) for number, data in synced.items()}}
        for number, pending in changes.items():
            content[number] = _mixed(bytearray(content.get(number, b"")), pending, rng, keep, whole)
        return content

    def state(self, rng: random.Random) -> Disk:
        """One of the states, by chance; the extreme ones come often."""
        names = rng.choice([0.0, 0.5, 0.9, 1.0, 1.0])
        data = rng.choice([0.0, 0.3, 0.7, 0.95, 1.0])
        return Disk(self._folders(rng, names), self._content(rng, data, rng.random() < 0.3))

    def killed(self) -> Disk:
        """What a killed process leaves: everything it did."""
        rng = random.Random(0)
        return Disk(self._folders(_Last(), 1.0), self._content(rng, 1.0, True))


class _Last(random.Random):
    """Chooses everything."""

    def random(self) -> float:
        return 0.0

    def choice(self, options: Any) -> Any:  # noqa: ANN401
        return options[0]


def _mixed(data: bytearray, pending: list[Call], rng: random.Random, keep: float, whole: bool) -> bytes:
    """Content of which the changes in `pending` may be on the disk or not."""
    if whole:
        count = len(pending) if keep == 1.0 else rng.randint(0, len(pending))
        for change in pending[:count]:
            _apply_content(data, change)
        return bytes(data)
    versions: dict[int, list[bytes]] = {}
    lengths = [len(data)]
    for change in pending:
        end = max(len(data), change.offset, change.offset + len(change.data))
        first = change.offset // PAGE
        last = (end if change.kind == "truncate" else change.offset + len(change.data)) // PAGE
        pages = range(first, last + 1)
        for page in pages:
            versions.setdefault(page, [_page(data, page)])
        _apply_content(data, change)
        for page in pages:
            versions[page].append(_page(data, page))
        lengths.append(len(data))
    length = lengths[-1] if rng.random() < keep else rng.choice(lengths)
    out = bytearray(data[:length].ljust(length, b"\0"))
    for page, known in versions.items():
        if rng.random() < keep:
            chosen = known[-1]
        elif rng.random() < 0.5:
            chosen = rng.choice(known)
        else:  # torn: sectors of two versions
            one, two, at = rng.choice(known), rng.choice(known), SECTOR * rng.randint(1, PAGE // SECTOR - 1)
            chosen = one[:at] + two[at:]
        out[page * PAGE : (page + 1) * PAGE] = chosen
    return bytes(out[:length])


def _page(data: bytearray, page: int) -> bytes:
    return bytes(data[page * PAGE : (page + 1) * PAGE]).ljust(PAGE, b"\0")


def seeds(seed: str) -> random.Random:
    """Chance that is the same in every run."""
    return random.Random(seed)

"""What must be found after a power cut: a client that knows what it was promised, and the check.

Positions are counts of recorded calls. A value is possible from the position at which the change
that made it began; a promise (an fsync that returned) holds from the position at which it
returned, and rules out everything older than the value it was given for.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from cryptfs.fs import FileSystem
from cryptfs.fs.file import HOLE_AT
from cryptfs.fs.options import SMALL_CHUNK_PATTERNS, SmallChunks
from cryptfs.fs.types import SetAttr
from tests.fs.support import ME

_small = SmallChunks(SMALL_CHUNK_PATTERNS)


@dataclass
class History:
    """The values of one thing in the order of time, and which of them were promised."""

    values: list[tuple[int, Any]] = field(default_factory=list)
    promises: list[tuple[int, int]] = field(default_factory=list)
    """Position from which it holds, index of the value."""

    def add(self, position: int, value: Any) -> None:  # noqa: ANN401
        self.values.append((position, value))

    @property
    def now(self) -> Any:  # noqa: ANN401
        return self.values[-1][1]

    def promise(self, position: int) -> None:
        self.promises.append((position, len(self.values) - 1))

    def promised(self, cut: int) -> bool:
        return any(at <= cut for at, _ in self.promises)

    def allowed(self, cut: int) -> list[Any]:
        """The values that may be found after a cut at `cut`."""
        oldest = max((index for at, index in self.promises if at <= cut), default=0)
        return [value for at, value in self.values[oldest:] if at <= cut]


@dataclass
class Thing:
    """A file or directory that the client made; `names` are those of a directory's entries."""

    kind: str
    chunk: int = 1 << 16
    content: History = field(default_factory=History)
    mode: History = field(default_factory=History)
    anew: list[int] = field(default_factory=list)
    """Indexes of the versions of the content with which the file was begun again, empty."""
    names: dict[bytes, History] = field(default_factory=dict)
    attributes: History | None = None
    places: list[tuple[Thing, bytes]] = field(default_factory=list)
    deleted: int | None = None
    """When its last name began to go."""

    def add_name(self, name: bytes, position: int, thing: Thing | None) -> None:
        if name not in self.names:
            self.names[name] = History([(0, None)])
        self.names[name].add(position, thing)


class Open:
    """An open file of the client."""

    def __init__(self, thing: Thing, handle: int, ino: int) -> None:
        self.thing, self.handle, self.ino = thing, handle, ino


class Client:
    """Does things by path on a FileSystem, and notes what they promise."""

    def __init__(self, fs: FileSystem, position: Callable[[], int]) -> None:
        self.fs = fs
        self._position = position
        self._looked_up: list[int] = []
        self.root = Thing("directory")
        self.root.mode.add(0, 0o755)
        self.root.mode.promise(0)

    # -- paths -------------------------------------------------------------------------------------

    def ino(self, path: str) -> int:
        ino = 1
        for name in path.split("/") if path else []:
            ino = self.fs.lookup(ino, name.encode()).ino
            self._looked_up.append(ino)
        return ino

    def forget(self) -> None:
        """What the kernel does under pressure: only open files are remembered."""
        for ino in self._looked_up:
            self.fs.forget(ino, 1)
        self._looked_up.clear()

    def thing(self, path: str) -> Thing:
        thing = self.root
        for name in path.split("/") if path else []:
            thing = thing.names[name.encode()].now
        return thing

    def _split(self, path: str) -> tuple[int, Thing, bytes]:
        parent, _, name = path.rpartition("/")
        return self.ino(parent), self.thing(parent), name.encode()

    def _promise_path(self, thing: Thing) -> None:
        """A thing's name, and those of all directories above it."""
        while thing.places:
            above, name = thing.places[-1]
            above.names[name].promise(self._position())
            thing.mode.promise(self._position())
            thing = above

    def _appeared(self, path: str, thing: Thing, began: int) -> None:
        _, above, name = self._split(path)
        above.add_name(name, began, thing)
        thing.places.append((above, name))

    def _gone(self, path: str, began: int) -> None:
        _, above, name = self._split(path)
        thing = above.names[name].now
        above.names[name].add(began, None)
        thing.places.remove((above, name))

    # -- making and removing --------------------------------------------------------------------------

    def mkdir(self, path: str, mode: int = 0o750) -> None:
        self.forget()
        began = self._position()
        parent, _, name = self._split(path)
        thing = Thing("directory")
        thing.mode.add(began, mode)
        self._appeared(path, thing, began)
        self._looked_up.append(self.fs.mkdir(parent, name, mode, ME).ino)

    def create(self, path: str, mode: int = 0o640) -> Open:
        self.forget()
        began = self._position()
        parent, _, name = self._split(path)
        thing = Thing("file", 1 << 12 if _small(name) else 1 << 16)
        thing.content.add(began, b"")
        thing.mode.add(began, mode)
        self._appeared(path, thing, began)
        handle, attr = self.fs.create(parent, name, mode, ME, os.O_RDWR)
        self._looked_up.append(attr.ino)
        return Open(thing, handle, attr.ino)

    def open(self, path: str) -> Open:
        self.forget()
        ino = self.ino(path)
        return Open(self.thing(path), self.fs.open(ino, os.O_RDWR), ino)

    def put(self, path: str, data: bytes, *, sync: bool = False, step: int = 1 << 20) -> None:
        """Store a whole file."""
        file = self.create(path)
        for at in range(0, len(data), step):
            self.write(file, at, data[at : at + step])
        if sync:
            self.fsync(file)
        self.close(file)

    def symlink(self, path: str, target: bytes) -> None:
        self.forget()
        began = self._position()
        parent, _, name = self._split(path)
        thing = Thing("link", 1 << 12)
        thing.content.add(began, b"")
        thing.content.add(began, target)
        thing.mode.add(began, 0o777)
        self._appeared(path, thing, began)
        self._looked_up.append(self.fs.symlink(parent, name, target, ME).ino)

    def link(self, old: str, new: str) -> None:
        self.forget()
        began = self._position()
        parent, _, name = self._split(new)
        self._appeared(new, self.thing(old), began)
        self._looked_up.append(self.fs.link(self.ino(old), parent, name).ino)

    def unlink(self, path: str) -> None:
        self.forget()
        began = self._position()
        parent, _, name = self._split(path)
        thing = self.thing(path)
        self._gone(path, began)
        thing.deleted = None if thing.places else began
        self.fs.unlink(parent, name)

    def rmdir(self, path: str) -> None:
        self.forget()
        began = self._position()
        parent, _, name = self._split(path)
        self._gone(path, began)
        self.fs.rmdir(parent, name)

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        self.forget()
        began = self._position()
        (old_parent, old_above, old_name), (new_parent, new_above, new_name) = (
            self._split(old), self._split(new),
        )  # fmt: skip
        moved = old_above.names[old_name].now
        replaced = new_above.names[new_name].now if new_name in new_above.names else None
        self._gone(old, began)
        if replaced is not None:
            replaced.places.remove((new_above, new_name))
            if flags:
                old_above.add_name(old_name, began, replaced)
                replaced.places.append((old_above, old_name))
            elif not replaced.places:
                replaced.deleted = began
        new_above.add_name(new_name, began, moved)
        moved.places.append((new_above, new_name))
        self.fs.rename(old_parent, old_name, new_parent, new_name, flags)

    def chmod(self, path: str, mode: int) -> None:
        self.forget()
        began = self._position()
        self.thing(path).mode.add(began, mode)
        self.fs.setattr(self.ino(path), SetAttr(mode=mode))

    def setxattr(self, path: str, name: bytes, value: bytes) -> None:
        self.forget()
        began = self._position()
        thing = self.thing(path)
        if thing.attributes is None:
            thing.attributes = History([(0, {})])
        thing.attributes.add(began, {**thing.attributes.now, name: value})
        self.fs.setxattr(self.ino(path), name, value)

    def removexattr(self, path: str, name: bytes) -> None:
        self.forget()
        began = self._position()
        thing = self.thing(path)
        assert thing.attributes is not None
        left = dict(thing.attributes.now)
        del left[name]
        thing.attributes.add(began, left)
        self.fs.removexattr(self.ino(path), name)

    # -- content ---------------------------------------------------------------------------------------

    def write(self, file: Open, at: int, data: bytes) -> None:
        began = self._position()
        old = file.thing.content.now
        if at > len(old):  # it grows first
            file.thing.content.add(began, old.ljust(at, b"\0"))
        file.thing.content.add(began, old[:at].ljust(at, b"\0") + data + old[at + len(data) :])
        self.fs.write(file.handle, at, data)

    def truncate(self, file: Open, size: int) -> None:
        began = self._position()
        if size == 0:
            file.thing.anew.append(len(file.thing.content.values))
        file.thing.content.add(began, file.thing.content.now[:size].ljust(size, b"\0"))
        self.fs.setattr(file.ino, SetAttr(size=size), file.handle)

    def close(self, file: Open) -> None:
        self.fs.flush(file.handle)
        self.fs.release(file.handle)

    # -- promises --------------------------------------------------------------------------------------

    def fsync(self, file: Open) -> None:
        self.fs.fsync(file.handle)
        file.thing.content.promise(self._position())
        file.thing.mode.promise(self._position())
        if file.thing.attributes is not None:
            file.thing.attributes.promise(self._position())
        self._promise_path(file.thing)

    def fsyncdir(self, path: str) -> None:
        self.forget()
        self.fs.fsyncdir(self.ino(path))
        thing = self.thing(path)
        for history in thing.names.values():
            history.promise(self._position())
        thing.mode.promise(self._position())
        self._promise_path(thing)

    def sync(self) -> None:
        """Everything is durable."""
        self.fs.sync()
        self.promise_all()

    def promise_all(self) -> None:
        """What there is now counts from now on."""
        for thing in self.things():
            for history in (thing.content, thing.mode, thing.attributes, *thing.names.values()):
                if history is not None and history.values:
                    history.promise(self._position())

    def commit(self) -> None:
        """What the background thread does every second."""
        self.fs._committer.commit()

    def checkpoint(self) -> None:
        """What the background thread does with a full journal."""
        self.fs._committer.checkpoint_all()

    def settle(self) -> None:
        """What the background thread does every 30 seconds."""
        self.fs._committer.checkpoint_all()
        self.fs._committer.settle()

    def things(self) -> Iterator[Thing]:
        """Everything that ever was."""
        seen: set[int] = set()
        todo = [self.root]
        while todo:
            thing = todo.pop()
            if id(thing) not in seen:
                seen.add(id(thing))
                yield thing
                todo += [value for history in thing.names.values() for _, value in history.values if value]


# -- what is found --------------------------------------------------------------------------------------


@dataclass
class Found:
    """A file or directory as the filesystem shows it."""

    kind: str
    mode: int
    content: bytes = b""
    attributes: dict[bytes, bytes] = field(default_factory=dict)
    entries: dict[bytes, Found] = field(default_factory=dict)


class Unreadable(AssertionError):
    """Something is shown that cannot be read."""


def look(fs: FileSystem, ino: int = 1, path: bytes = b"", *, xattrs: bool = False) -> Found:
    """Read the whole tree; Unreadable if anything in it fails."""
    try:
        return _look(fs, ino, path, xattrs)
    except OSError as error:
        raise Unreadable(f"/{path.decode()}: {error}") from error


def _look(fs: FileSystem, ino: int, path: bytes, xattrs: bool) -> Found:
    attr = fs.getattr(ino)
    attributes = {name: fs.getxattr(ino, name) for name in fs.listxattr(ino)} if xattrs else {}
    if stat.S_ISLNK(attr.mode):
        return Found("link", attr.mode & 0o7777, fs.readlink(ino), attributes)
    if stat.S_ISREG(attr.mode):
        handle = fs.open(ino, os.O_RDONLY)
        try:
            content = bytes(fs.read(handle, 0, attr.size + 1))
        finally:
            with suppress(OSError):  # what the disk still refuses of a change before; a mount tells no reader
                fs.release(handle)
        assert len(content) == attr.size, f"/{path.decode()}: size is {attr.size}, content {len(content)}"
        return Found("file", attr.mode & 0o7777, content, attributes)
    found = Found("directory", attr.mode & 0o7777, b"", attributes)
    handle = fs.opendir(ino)
    entries = list(fs.readdir(handle, 0))
    for name, _, _ in entries:
        below = path + b"/" + name if path else name
        child = fs.lookup(ino, name)
        found.entries[name] = look(fs, child.ino, below, xattrs=xattrs)
        fs.forget(child.ino, 1)
    fs.releasedir(handle)
    return found


def differences(thing: Thing, found: Found, cut: int, path: str = "") -> list[str]:
    """What is wrong with what was found after a cut at `cut`; nothing if all is well."""
    if thing.kind != found.kind:
        return [f"/{path} is a {found.kind}, should be a {thing.kind}"]
    wrong = []
    if found.mode not in thing.mode.allowed(cut):
        wrong.append(f"/{path} has mode {found.mode:o}, of {[f'{m:o}' for m in thing.mode.allowed(cut)]}")
    if thing.attributes is not None and found.attributes not in thing.attributes.allowed(cut):
        wrong.append(f"/{path} has attributes {found.attributes}")
    if thing.kind != "directory":
        if not _content_fits(thing, found.content, cut):
            wrong.append(f"/{path} has wrong content of {len(found.content)} bytes")
        return wrong
    for name in thing.names.keys() | found.entries.keys():
        here = f"{path}/{name.decode()}".lstrip("/")
        if name not in thing.names:
            wrong.append(f"/{here} was never made")
            continue
        allowed = thing.names[name].allowed(cut)
        if name not in found.entries:
            if None not in allowed:
                wrong.append(f"/{here} is lost")
            continue
        results = [differences(one, found.entries[name], cut, here) for one in allowed if one is not None]
        if not results:
            wrong.append(f"/{here} should be gone")
        elif all(results):
            wrong += min(results, key=len)
    return wrong


def _content_fits(thing: Thing, found: bytes, cut: int) -> bool:
    if found in thing.content.allowed(cut):
        return True
    # Begun in this session and not synced since: a run of chunks, each of them as it was at some time.
    versions = [value for at, value in thing.content.values if at <= cut]
    if thing.content.promised(cut):
        oldest = max(index for at, index in thing.content.promises if at <= cut)
        again = [index for index in thing.anew if index > oldest and index < len(versions)]
        if not again:
            return False
        versions = versions[again[0] :]
    size = thing.chunk
    sparse = any(len(new) - len(old) >= HOLE_AT for old, new in itertools.pairwise(versions))
    return all(
        any(piece == version[at : at + size] for version in versions)
        # Where a file has holes, content that never reached the disk is a hole, as on any file system.
        or (sparse and len(piece) == size and not any(piece))
        for at in range(0, len(found), size)
        for piece in [found[at : at + size]]
    )


def lost(client: Client, found: Found, cut: int) -> list[str]:
    """Durable files that are under none of the names they may have."""
    durable = [
        thing
        for thing in client.things()
        if thing.kind == "file"
        and thing.content.promised(cut)
        and (thing.deleted is None or thing.deleted > cut)
    ]
    return [
        f"a durable file of {len(thing.content.now)} bytes is under none of its names"
        for thing in durable
        if not _anywhere(thing, found, cut)
    ]


def _anywhere(thing: Thing, found: Found, cut: int) -> bool:
    if found.kind == "file":
        return _content_fits(thing, found.content, cut)
    return any(_anywhere(thing, child, cut) for child in found.entries.values())

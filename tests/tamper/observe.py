"""What a program sees of a mounted vault, with every error in the place where it came."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

from cryptfs.fs import FileSystem
from cryptfs.fs.types import Attr

PIECE = 4096
"""Content is compared in pieces of the smallest chunk."""
_LARGE = 1 << 16
_FOR_READERS = {errno.EIO, errno.ENOENT}
"""What a reader may get: damage, or that there is nothing of that name."""


@dataclass
class Seen:
    """One name as it was seen. An errno stands where something was refused."""

    object_id: bytes = b""
    mode: int = 0
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    mtime: int = 0
    size: int = 0
    error: int = 0
    """Of the lookup."""
    listed: bool = True
    pieces: list[bytes | None] = field(default_factory=list)
    """The content of a file; None for what cannot be read."""
    target: bytes | int = b""
    attributes: dict[bytes, bytes] | int = field(default_factory=dict)
    names: set[bytes] | int = field(default_factory=set)

    @property
    def kind(self) -> int:
        return stat.S_IFMT(self.mode)

    @cached_property
    def content(self) -> bytes:
        """The content of a file without damage."""
        return b"".join(piece or b"" for piece in self.pieces)

    def again(self) -> Seen:
        """What must be the same at the next mount: all but the times of directories."""
        times = 0 if stat.S_ISDIR(self.mode) else self.mtime
        size = 0 if stat.S_ISDIR(self.mode) else self.size
        return replace(self, mtime=times, size=size)


def refused(do: Callable[[], object]) -> int:
    """The errno of something, 0 if it is done. Only what a reader may get passes."""
    try:
        do()
    except OSError as error:
        if error.errno not in _FOR_READERS:
            raise
        return error.errno or errno.EIO
    return 0


def look(fs: FileSystem, ask: set[bytes] = frozenset(), most: int = 2000) -> dict[bytes, Seen]:  # type: ignore[assignment]
    """Everything below the root, by path; and the paths in `ask`, whether they are listed or not.

    A tree that goes on for ever ends in an assertion.
    """
    seen = {b"": _directory(fs, 1, fs.getattr(1))}
    todo = [(1, b"")]
    while todo:
        ino, path = todo.pop()
        names = seen[path].names
        listed = names if isinstance(names, set) else set()
        asked = {one.rpartition(b"/")[2] for one in ask if one.rpartition(b"/")[0] == path and one}
        for name in sorted(listed | asked):
            place = path + b"/" + name if path else name
            assert len(seen) < most, "the tree does not end"
            inner = _entry(fs, ino, name, seen, place)
            seen[place].listed = name in listed
            if inner:
                todo.append((inner, place))
    return seen


def _entry(fs: FileSystem, parent: int, name: bytes, seen: dict[bytes, Seen], place: bytes) -> int:
    """Look at one name; its inode number if it is a directory to be entered."""
    attr: list[Attr] = []
    error = refused(lambda: attr.append(fs.lookup(parent, name)))
    if error:
        seen[place] = Seen(error=error)
        return 0
    (found,) = attr
    if stat.S_ISDIR(found.mode):
        seen[place] = _directory(fs, found.ino, found)
        return found.ino if isinstance(seen[place].names, set) else 0
    seen[place] = _object(fs, found)
    fs.forget(found.ino, 1)
    return 0


def _common(fs: FileSystem, attr: Attr) -> Seen:
    seen = Seen(
        mode=attr.mode, uid=attr.uid, gid=attr.gid, rdev=attr.rdev, mtime=attr.mtime_ns, size=attr.size
    )
    found: list[bytes] = []
    error = refused(lambda: found.append(fs.identity(attr.ino)))
    if error:
        seen.error = error
        return seen
    seen.object_id = found[0]
    values: dict[bytes, bytes] = {}

    def attributes() -> None:
        for name in fs.listxattr(attr.ino):
            values[name] = fs.getxattr(attr.ino, name)

    seen.attributes = refused(attributes) or values
    return seen


def _directory(fs: FileSystem, ino: int, attr: Attr) -> Seen:
    seen = _common(fs, attr)
    names: set[bytes] = set()

    def listing() -> None:
        handle = fs.opendir(ino)
        try:
            names.update(name for name, _, _ in fs.readdir(handle, 0))
        finally:
            fs.releasedir(handle)

    seen.names = refused(listing) or names
    return seen


def _object(fs: FileSystem, attr: Attr) -> Seen:
    seen = _common(fs, attr)
    if seen.error:
        return seen
    if stat.S_ISLNK(attr.mode):
        found: list[bytes] = []
        seen.target = refused(lambda: found.append(fs.readlink(attr.ino))) or found[0]
    elif stat.S_ISREG(attr.mode):
        handles: list[int] = []
        seen.error = refused(lambda: handles.append(fs.open(attr.ino, os.O_RDONLY)))
        for handle in handles:
            opened = fs.getattr(attr.ino)
            assert _shown(opened) == _shown(attr), "open, it has other attributes than before"
            seen.pieces = _read(fs, handle, attr.size)
            fs.release(handle)
    return seen


def _shown(attr: Attr) -> tuple[int, ...]:
    return attr.mode, attr.uid, attr.gid, attr.size, attr.mtime_ns


def _read(fs: FileSystem, handle: int, size: int) -> list[bytes | None]:
    """The content in pieces; where a large request is refused, in small ones."""
    pieces: list[bytes | None] = []
    for begin in range(0, size, _LARGE):
        length = min(_LARGE, size - begin)
        data = _request(fs, handle, begin, length)
        if data is not None:
            pieces += [data[at : at + PIECE] for at in range(0, length, PIECE)]
        else:
            end = begin + length
            pieces += [_request(fs, handle, at, min(PIECE, end - at)) for at in range(begin, end, PIECE)]
    assert not bytes(fs.read(handle, size, 1)), "a file goes on behind its length"
    return pieces


def _request(fs: FileSystem, handle: int, offset: int, size: int) -> bytes | None:
    """What one request gets; None if it is refused."""
    found: list[bytes] = []
    if refused(lambda: found.append(bytes(fs.read(handle, offset, size)))):
        return None
    assert len(found[0]) == size, "a file ends before its length, without an error"
    return found[0]

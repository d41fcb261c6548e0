"""From plaintext paths to ciphertext ones and back; the latter only where names were asked for."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from cryptfs.check.batch import Batch
from cryptfs.check.context import Context
from cryptfs.check.directory import OPEN_DIR, DirectoryLook, look_at, plain_name
from cryptfs.check.place import Place
from cryptfs.check.walk import Visit, Walk
from cryptfs.errors import UsageError
from cryptfs.vault.names import (
    DIR_HEADER,
    LONG_SUFFIX,
    NAME_MAX,
    NameInvalid,
    TwoKeys,
    is_entry,
    long_entry,
)


class Part:
    """A part of the tree that was asked for: a directory with all below it, or one file."""

    def __init__(self, place: Place, fd: int, parent_id: bytes | None, lname: bytes | None) -> None:
        self.place = place
        self.fd = fd
        self.parent_id = parent_id
        self.lname = lname

    def items(self, context: Context) -> list[Batch] | Walking:
        """What the engine has to do; takes the descriptor over."""
        if self.lname is None:
            return Walking(context, self)
        look = look_at(context, self.place, self.fd, self.parent_id)
        own = None if look.header is None else look.header.object_id
        return [Batch(self.place, self.fd, self.parent_id, look.names, [self.lname], directory_id=own)]


class Walking:
    """All directories of a part."""

    def __init__(self, context: Context, part: Part) -> None:
        self._walk = Walk(context)
        self._part = part

    def __iter__(self) -> Iterator[Visit]:
        part = self._part
        return self._walk.below(part.place, part.fd, part.parent_id)


def find(context: Context, path: bytes, *, ciphertext: bool) -> Part:
    """The part at a plaintext path in the vault, or at a ciphertext one (`tree/…`, as reports have it).

    UsageError if there is none.
    """
    steps = [step for step in path.split(b"/") if step not in (b"", b".")]
    if ciphertext:
        if not steps or steps[0] != b"tree":
            raise UsageError(f"{os.fsdecode(path)} is no ciphertext path: it begins with tree/.")
        steps = steps[1:]
    place, fd, parent_id = Place(None, b""), os.dup(context.tree_fd), None
    try:
        for number, step in enumerate(steps):
            look = look_at(context, place, fd, parent_id)
            lname = step if ciphertext else _entry(look, step)
            mode = os.stat(lname, dir_fd=fd, follow_symlinks=False).st_mode if lname else 0
            if ciphertext and not is_entry(step):
                raise FileNotFoundError
            if stat.S_ISREG(mode) and number == len(steps) - 1:
                return Part(place, fd, parent_id, lname)
            if not lname or not stat.S_ISDIR(mode):
                raise FileNotFoundError
            inner = os.open(lname, OPEN_DIR, dir_fd=fd)
            os.close(fd)
            fd, place = inner, Place(place, lname)
            parent_id = look.header.object_id if look.header else None
    except OSError:
        os.close(fd)
        raise UsageError(f"There is no {os.fsdecode(path)} in this vault.") from None
    return Part(place, fd, parent_id, None)


def _entry(look: DirectoryLook, name: bytes) -> bytes | None:
    if look.names is None or len(name) > NAME_MAX or name == b"..":
        return None
    ciphers = [look.names, look.names.former] if isinstance(look.names, TwoKeys) else [look.names]
    found: list[bytes] = []
    for cipher in ciphers:
        text = cipher.encrypt(name)
        found.append(text if len(text) <= NAME_MAX else long_entry(text))
    there = {*look.files, *look.directories}
    return next((lname for lname in found if lname in there), found[0])


def plain_path(context: Context, place: bytes) -> bytes | None:
    """The plaintext path of a ciphertext one, as far as names decrypt; None if it is not in the tree."""
    steps = place.split(b"/")
    if steps[0] != b"tree":
        return None
    found: list[bytes] = []
    fd, here, parent_id = os.dup(context.tree_fd), Place(None, b""), None
    try:
        for step in steps[1:]:
            lname = step.removesuffix(LONG_SUFFIX)
            if lname == DIR_HEADER or not is_entry(lname):
                break
            look = look_at(context, here, fd, parent_id)
            try:
                found.append(plain_name(fd, look.names, lname) if look.names else b"?")
            except (NameInvalid, OSError):
                found.append(b"?")
            try:
                inner = os.open(lname, OPEN_DIR, dir_fd=fd)
            except OSError:
                break
            os.close(fd)
            fd, here = inner, Place(here, lname)
            parent_id = look.header.object_id if look.header else None
    finally:
        os.close(fd)
    return b"/" + b"/".join(found)

"""POSIX access control lists: what a filesystem has to do about them.

The kernel checks them (`default_permissions` with FUSE's posix_acl); keeping them in step with the mode
and handing them down to new objects is left to the filesystem. acl(5) says what must hold:

* an object's mode shows its access list's owner, mask (or group, without a mask) and other entries;
* what is created in a directory with a default list gets that list, cut down by the creation mode; a
  directory also gets it as its own default list.

One deviation: the kernel has applied the creator's umask before we see the mode, where acl(5) wants it
ignored if there is a default list. New objects may therefore get fewer permissions, never more.

Lists are kept as Linux encodes them in `system.posix_acl_*`: u32 version 2, then entries of u16 tag,
u16 permissions, u32 id.
"""

from __future__ import annotations

import errno
import stat
import struct

from cryptfs.fs.types import Attr, SetAttr
from cryptfs.mount.backend import Filesystem

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_VERSION = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")

Entries = list[tuple[int, int, int]]


def parse(value: bytes) -> Entries:
    """The entries (tag, permissions, id) of an encoded list. Raises OSError EINVAL."""
    if len(value) < 4 or (len(value) - 4) % _ENTRY.size or _VERSION.unpack_from(value)[0] != 2:
        raise OSError(errno.EINVAL, "malformed access control list")
    return list(_ENTRY.iter_unpack(value[4:]))


def encode(entries: Entries) -> bytes:
    return _VERSION.pack(2) + b"".join(_ENTRY.pack(*entry) for entry in entries)


def permissions(entries: Entries) -> int:
    """The nine permission bits that a list shows as."""
    by_tag = {tag: bits for tag, bits, _ in entries if tag not in (USER, GROUP)}
    group = by_tag.get(MASK, by_tag.get(GROUP_OBJ, 0))
    return by_tag.get(USER_OBJ, 0) << 6 | group << 3 | by_tag.get(OTHER, 0)


def is_minimal(entries: Entries) -> bool:
    """Whether the list says no more than a mode does."""
    return all(tag in (USER_OBJ, GROUP_OBJ, OTHER) for tag, _, _ in entries)


def with_mode(entries: Entries, mode: int, *, cut: bool) -> Entries:
    """The list after a chmod to `mode` or, with `cut`, cut down to it."""
    has_mask = any(tag == MASK for tag, _, _ in entries)
    bits = {USER_OBJ: mode >> 6 & 7, MASK if has_mask else GROUP_OBJ: mode >> 3 & 7, OTHER: mode & 7}
    return [
        (tag, (old & bits[tag] if cut else bits[tag]) if tag in bits else old, who)
        for tag, old, who in entries
    ]


def set_access(fs: Filesystem, ino: int, value: bytes) -> None:
    """Give `ino` an access list, and the mode that goes with it."""
    entries = parse(value)
    attr = fs.getattr(ino)
    mode = stat.S_IMODE(attr.mode) & ~0o777 | permissions(entries)
    if is_minimal(entries):
        _remove(fs, ino, ACCESS)
    else:
        fs.setxattr(ino, ACCESS, value, 0)
    if mode != stat.S_IMODE(attr.mode):
        fs.setattr(ino, SetAttr(mode=mode))


def follow_mode(fs: Filesystem, ino: int, mode: int) -> None:
    """Bring the access list of `ino`, if it has one, in line with its new mode."""
    value = _get(fs, ino, ACCESS)
    if value is not None:
        fs.setxattr(ino, ACCESS, encode(with_mode(parse(value), mode, cut=False)), 0)


def inherit(fs: Filesystem, parent: int, attr: Attr) -> Attr:
    """Hand the default list of `parent` down to the new object; returns its attributes afterwards."""
    value = _get(fs, parent, DEFAULT)
    if value is None:
        return attr
    if stat.S_ISDIR(attr.mode):
        fs.setxattr(attr.ino, DEFAULT, value, 0)
    entries = with_mode(parse(value), attr.mode, cut=True)
    if not is_minimal(entries):
        fs.setxattr(attr.ino, ACCESS, encode(entries), 0)
    mode = stat.S_IMODE(attr.mode) & ~0o777 | permissions(entries)
    return fs.setattr(attr.ino, SetAttr(mode=mode))


def _get(fs: Filesystem, ino: int, name: bytes) -> bytes | None:
    try:
        return fs.getxattr(ino, name)
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        raise


def _remove(fs: Filesystem, ino: int, name: bytes) -> None:
    if _get(fs, ino, name) is not None:
        fs.removexattr(ino, name)

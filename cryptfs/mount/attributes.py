"""From the filesystem layer's attributes to the kernel's, and back."""

from __future__ import annotations

import errno

import pyfuse3

from cryptfs.fs.types import Attr, Owner, SetAttr, StatFs

# The mount is the vault's only writer, so what the kernel once knows stays true until it is changed
# through the kernel itself.
CACHE_SECONDS = 86400.0


class Presentation:
    """How attributes are shown: as they are, or with every object belonging to one user.

    With an owner, what the kernel checks permissions against is that owner; nothing can be given to
    somebody else (EPERM), and what is created belongs to that owner, whoever created it.
    """

    def __init__(self, owner: Owner | None) -> None:
        self.owner = owner

    def entry(self, attr: Attr, entry: pyfuse3.EntryAttributes | None = None) -> pyfuse3.EntryAttributes:
        """For the kernel; in `entry`, where an earlier one is not needed any more."""
        if entry is None:
            entry = pyfuse3.EntryAttributes()
            entry.entry_timeout = CACHE_SECONDS
            entry.attr_timeout = CACHE_SECONDS
        (
            entry.st_ino,
            entry.st_mode,
            entry.st_nlink,
            entry.st_uid,
            entry.st_gid,
            entry.st_rdev,
            entry.st_size,
            entry.st_blocks,
            entry.st_atime_ns,
            entry.st_mtime_ns,
            entry.st_ctime_ns,
            entry.generation,
        ) = attr
        owner = self.owner
        if owner is not None:
            entry.st_uid, entry.st_gid = owner
        return entry

    def changes(self, attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields) -> SetAttr:
        """The changes that a SETATTR request asks for. Raises OSError EPERM, see the class."""
        changes = SetAttr()
        if fields.update_mode:
            changes.mode = attr.st_mode & 0o7777
        if fields.update_uid:
            changes.uid = attr.st_uid
        if fields.update_gid:
            changes.gid = attr.st_gid
        if fields.update_size:
            changes.size = attr.st_size
        if fields.update_atime:
            changes.atime_ns = attr.st_atime_ns
        if fields.update_mtime:
            changes.mtime_ns = attr.st_mtime_ns
        if fields.update_ctime:
            changes.ctime_ns = attr.st_ctime_ns
        if self.owner is not None:
            self._keep_owner(changes, self.owner)
        return changes

    @staticmethod
    def _keep_owner(changes: SetAttr, owner: Owner) -> None:
        if changes.uid not in (None, owner.uid) or changes.gid not in (None, owner.gid):
            raise OSError(errno.EPERM, "everything belongs to the owner the vault was mounted for")
        changes.uid = changes.gid = None


def absent() -> pyfuse3.EntryAttributes:
    """The answer "there is no such name", which the kernel may remember."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = CACHE_SECONDS
    return entry


def statvfs(stat: StatFs) -> pyfuse3.StatvfsData:
    data = pyfuse3.StatvfsData()
    (
        data.f_bsize,
        data.f_frsize,
        data.f_blocks,
        data.f_bfree,
        data.f_bavail,
        data.f_files,
        data.f_ffree,
        data.f_favail,
        data.f_namemax,
    ) = stat
    return data

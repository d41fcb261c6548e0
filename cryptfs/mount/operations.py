"""FUSE requests, answered from a filesystem.

Each handler is an ordinary function, its *body*, run in one of two places:

* in the event loop, when it takes microseconds: most requests;
* in a worker thread, when it waits for the disk, or is large; `workers` has the rules.

The filesystem serializes what concerns one inode with a lock. So that the event loop never waits for a
lock that a worker holds, an inode with a request in a worker is *busy*, and everything that concerns it
goes to a worker, too, until it is not. The table of busy inodes belongs to the event loop's thread.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import traceback
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from time import perf_counter
from typing import Any, NoReturn

import pyfuse3

from cryptfs.fs.types import Attr, Owner
from cryptfs.mount import acl
from cryptfs.mount.attributes import Presentation, absent, statvfs
from cryptfs.mount.backend import Buffer, Filesystem
from cryptfs.mount.gate import Gate
from cryptfs.mount.handlers import Body, Handler, changing, inline, inline_file
from cryptfs.mount.workers import Pace, Syncs, Workers

log = logging.getLogger(__name__)

_ABSENT = absent()
# What is damaged is listed under an inode number of no object, which the kernel must look up again.
_DAMAGED = 1 << 62
_DOTS = 2  # "." and ".." come before the filesystem's own directory offsets


def opening(body: Body) -> Handler:
    """Opening changes something only if the file is emptied."""
    return changing(body, lambda flags, ctx: flags & os.O_TRUNC != 0)


# Untyped, because `inline` makes the handlers out of bodies with positional arguments only.
_Base: Any = pyfuse3.Operations


class Operations(_Base):  # type: ignore[misc]
    """The requests of one mount.

    `files` and `directories` map open handles to inodes, `requests` counts all requests but forgets.
    """

    supports_dot_lookup = False
    enable_writeback_cache = True

    def __init__(
        self,
        fs: Filesystem,
        workers: Workers,
        *,
        owner: Owner | None = None,
        xattrs: bool = False,
    ) -> None:
        super().__init__()
        self.fs = fs
        self.files: dict[int, int] = {}
        self.directories: dict[int, int] = {}
        self.busy: dict[int, int] = {}
        self.paces: defaultdict[Body, Pace] = defaultdict(partial(Pace, workers.has_waited))
        self.requests = 0
        self.enable_acl = xattrs
        self.gate = Gate(workers.pass_on)
        self._xattrs = xattrs
        self._workers = workers
        self._read_pace = Pace(workers.has_waited)
        self._write_pace = Pace(workers.has_waited)
        self._syncs = Syncs()
        self._directory_syncs = Syncs()
        self._show = Presentation(owner)
        self._entry = self._show.entry
        self._logged: set[tuple[str, int]] = set()

    # --- where a request runs -------------------------------------------------------------------

    async def in_worker(self, ino: int, pace: Pace | None, size: int, call: Body, *args: Any) -> Any:  # noqa: ANN401
        """`call(*args)` in a worker thread, with `ino` busy meanwhile."""
        busy = self.busy
        busy[ino] = busy.get(ino, 0) + 1
        try:
            return await self._workers.run(call, *args, pace=pace, size=size)
        finally:
            if busy[ino] == 1:
                del busy[ino]
            else:
                busy[ino] -= 1

    async def _sync(self, ino: int, syncs: Syncs, call: Body, *args: Any) -> None:  # noqa: ANN401
        """A sync in a worker thread, or at once where that keeps nobody waiting."""
        if self.gate.closed:
            await self.gate.passage()
        if ino in self.busy or not syncs.may_stay():
            with self.gate.change():
                await self.in_worker(ino, syncs, 0, call, *args)
        else:
            started = perf_counter()
            call(*args)
            syncs.stayed(perf_counter() - started, somebody_waits=self._workers.somebody_waits())

    def refuse(self, error: Exception) -> NoReturn:
        """Turn any exception of a body into an answer; the mount survives whatever it is."""
        if isinstance(error, OSError):
            # On its way through threads and tasks it has become a part of a cycle, which is collected late;
            # its frames hold what was to be written, in clear and sealed, some MiB each on a full disk.
            traceback.clear_frames(error.__traceback__)
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from None
        if isinstance(error, pyfuse3.FUSEError):
            raise error
        self._log_once(error)
        raise pyfuse3.FUSEError(errno.EIO) from None

    def _log_once(self, error: Exception) -> None:
        # The exception's text and the frames' source lines' values could tell names or data: only the
        # places are logged.
        frames = traceback.extract_tb(error.__traceback__)
        last = frames[-1] if frames else None
        place = (last.filename, last.lineno or 0) if last else ("", 0)
        if place in self._logged:
            return
        self._logged.add(place)
        where = " < ".join(f"{f.name} ({f.filename}:{f.lineno})" for f in reversed(frames))
        log.error("a request failed with %s in %s; answered with EIO", type(error).__name__, where)

    def stacktrace(self) -> None:
        """pyfuse3's debugging aid, reachable by any user of the mount through setxattr: does nothing."""

    # --- names ----------------------------------------------------------------------------------

    @inline
    def lookup(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        try:
            return self._entry(self.fs.lookup(parent, name))
        except FileNotFoundError:
            return _ABSENT

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        self._syncs.it_was_a_forget()
        self._directory_syncs.it_was_a_forget()
        try:
            self.fs.forget_all([item for item in inode_list if item[0] < _DAMAGED])
        except Exception as error:
            self._log_once(error)

    @changing
    def mkdir(
        self, parent: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        attr = self.fs.mkdir(parent, name, stat.S_IMODE(mode), self._new_owner(ctx))
        return self._entry(self._inherit_acl(parent, attr))

    @changing
    def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        attr = self.fs.mknod(parent, name, mode, rdev, self._new_owner(ctx))
        return self._entry(self._inherit_acl(parent, attr))

    @changing
    def symlink(
        self, parent: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._entry(self.fs.symlink(parent, name, target, self._new_owner(ctx)))

    @changing
    def link(
        self, ino: int, new_parent: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._entry(self.fs.link(ino, new_parent, new_name))

    @inline
    def readlink(self, ino: int, ctx: pyfuse3.RequestContext) -> bytes:
        return self.fs.readlink(ino)

    @changing
    def unlink(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self.fs.unlink(parent, name)

    @changing
    def rmdir(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self.fs.rmdir(parent, name)

    @changing
    def rename(
        self,
        parent_old: int,
        name_old: bytes,
        parent_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        self.fs.rename(parent_old, name_old, parent_new, name_new, flags)

    def _new_owner(self, ctx: pyfuse3.RequestContext) -> Owner:
        """Whose a new object is; the filesystem lets it inherit the group of a set-group-ID directory."""
        return self._show.owner or Owner(ctx.uid, ctx.gid)

    # --- attributes -----------------------------------------------------------------------------

    @inline
    def getattr(self, ino: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._entry(self.fs.getattr(ino))

    @changing
    def setattr(
        self,
        ino: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        changes = self._show.changes(attr, fields)
        changed = self.fs.setattr(ino, changes, fh)
        if self._xattrs and changes.mode is not None:
            acl.follow_mode(self.fs, ino, changes.mode)
        return self._entry(changed)

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        self.requests += 1
        try:
            return statvfs(self.fs.statfs())
        except Exception as error:
            self.refuse(error)

    # --- files ----------------------------------------------------------------------------------

    @changing
    def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        owner = self._new_owner(ctx)
        fh, attr = self.fs.create(parent, name, stat.S_IMODE(mode), owner, _for_page_cache(flags))
        self.files[fh] = attr.ino
        return pyfuse3.FileInfo(fh), self._entry(self._inherit_acl(parent, attr))

    @opening
    def open(self, ino: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        fh = self.fs.open(ino, _for_page_cache(flags))
        self.files[fh] = ino
        return pyfuse3.FileInfo(fh)

    async def read(self, fh: int, off: int, size: int) -> Buffer:
        self.requests += 1
        try:
            ino, pace = self.files[fh], self._read_pace
            if ino in self.busy or pace.is_slow:
                data: Buffer = await self.in_worker(ino, pace, size, self.fs.read, fh, off, size)
            else:
                started = perf_counter()
                data = self.fs.read(fh, off, size)
                pace.note(perf_counter() - started, size)
            return data
        except Exception as error:
            self.refuse(error)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        self.requests += 1
        try:
            if self.gate.closed:
                await self.gate.passage()
            ino, pace, size = self.files[fh], self._write_pace, len(buf)
            if ino in self.busy or pace.is_slow:
                with self.gate.change():
                    written: int = await self.in_worker(ino, pace, size, self.fs.write, fh, off, buf)
            else:
                started = perf_counter()
                written = self.fs.write(fh, off, buf)
                pace.note(perf_counter() - started, size)
            return written
        except Exception as error:
            self.refuse(error)

    async def flush(self, fh: int) -> None:
        # ENOSYS once, and the kernel never sends a flush again: one round trip less for each close(2).
        # It hands us the dirty pages before the close returns all the same, and a write of ours is
        # complete, or has failed, when it is answered.
        raise pyfuse3.FUSEError(errno.ENOSYS)

    @inline_file
    def release(self, fh: int) -> None:
        del self.files[fh]
        self.fs.release(fh)

    async def fsync(self, fh: int, datasync: bool) -> None:
        self.requests += 1
        try:
            await self._sync(self.files[fh], self._syncs, self.fs.fsync, fh, datasync)
        except Exception as error:
            self.refuse(error)

    # --- directories ----------------------------------------------------------------------------

    @inline
    def opendir(self, ino: int, ctx: pyfuse3.RequestContext) -> int:
        dh = self.fs.opendir(ino)
        self.directories[dh] = ino
        return dh

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        self.requests += 1
        try:
            ino = self.directories[fh]
            if ino in self.busy:
                await self.in_worker(ino, None, 0, self._readdir, ino, fh, start_id, token)
            else:
                self._readdir(ino, fh, start_id, token)
        except Exception as error:
            self.refuse(error)

    def _readdir(self, ino: int, dh: int, start: int, token: pyfuse3.ReaddirToken) -> None:
        reply = pyfuse3.readdir_reply
        entry, taken, shown = self._entry, [], None
        while start < _DOTS:
            # The kernel takes no reference on these two. It knows the parent by itself.
            if not reply(token, b"." if start == 0 else b"..", entry(self.fs.getattr(ino)), start + 1):
                return
            start += 1
        listing = self.fs.readdir(dh, start - _DOTS)
        for name, attr, next_offset in listing:
            if attr.ino:
                shown = entry(attr, shown)  # the reply is a copy of it
                if not reply(token, name, shown, next_offset + _DOTS):
                    break
                taken.append(attr.ino)
            else:
                damaged = entry(attr._replace(ino=_DAMAGED + next_offset))
                damaged.entry_timeout = damaged.attr_timeout = 0
                if not reply(token, name, damaged, next_offset + _DOTS):
                    break
        # As long as the listing is at hand, nobody else changes anything.
        self.fs.remember_listed(dh, taken)

    async def releasedir(self, fh: int) -> None:
        self.requests += 1
        try:
            del self.directories[fh]
            self.fs.releasedir(fh)
        except Exception as error:
            self.refuse(error)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        self.requests += 1
        try:
            ino = self.directories[fh]
            await self._sync(ino, self._directory_syncs, self.fs.fsyncdir, ino)
        except Exception as error:
            self.refuse(error)

    # --- extended attributes --------------------------------------------------------------------
    # Without --xattrs the answer is ENOSYS, upon which the kernel never asks again. Else each write
    # would ask for security.capability.

    @inline
    def getxattr(self, ino: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        self._need_xattrs()
        return self.fs.getxattr(ino, name)

    @changing
    def setxattr(self, ino: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._need_xattrs()
        if name == acl.ACCESS:
            acl.set_access(self.fs, ino, value)
        else:
            # pyfuse3 has already honoured XATTR_CREATE and XATTR_REPLACE.
            self.fs.setxattr(ino, name, value, 0)

    @inline
    def listxattr(self, ino: int, ctx: pyfuse3.RequestContext) -> list[bytes]:
        self._need_xattrs()
        return list(self.fs.listxattr(ino))

    @changing
    def removexattr(self, ino: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._need_xattrs()
        self.fs.removexattr(ino, name)

    def _need_xattrs(self) -> None:
        if not self._xattrs:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def _inherit_acl(self, parent: int, attr: Attr) -> Attr:
        return acl.inherit(self.fs, parent, attr) if self._xattrs else attr

    # --- the end --------------------------------------------------------------------------------

    def release_all(self) -> None:
        """Close what the kernel did not: at an unmount it drops releases that it had not sent yet."""
        for handles, release in ((self.files, self.fs.release), (self.directories, self.fs.releasedir)):
            for handle in list(handles):
                del handles[handle]
                try:
                    release(handle)
                except OSError as error:
                    log.error("closing a file at the unmount failed: %s", os.strerror(error.errno or 0))


def _for_page_cache(flags: int) -> int:
    """The flags to open with below a write-back page cache.

    The kernel reads pages that are written in part, also for a file opened O_WRONLY, and finds the
    place of an O_APPEND write itself.
    """
    flags &= ~(os.O_APPEND | os.O_CREAT | os.O_NOCTTY)
    if flags & os.O_ACCMODE == os.O_WRONLY:
        flags = flags & ~os.O_ACCMODE | os.O_RDWR
    return flags

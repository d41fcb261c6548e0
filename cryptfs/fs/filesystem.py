"""The filesystem over one vault: what docs/architecture.md lists, for any caller.

Locks, always taken in this order: the namespace lock, a file's lock, the committer's and
the journal's. No method holds the namespace lock while it reads or writes content or syncs,
except where a rename must not be overtaken.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterable

from cryptfs.fs.chunks import Buffer
from cryptfs.fs.file import File
from cryptfs.fs.listing import Listing
from cryptfs.fs.namespace import error
from cryptfs.fs.nodes import Node
from cryptfs.fs.types import Attr, Owner, SetAttr
from cryptfs.fs.xattrrequests import AttributeRequests


class FileSystem(AttributeRequests):
    """Files and directories over an unlocked vault. Recovers from an unclean stop when made."""

    # -- inodes ------------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> Attr:
        return self._names.lookup(parent, name)

    def forget(self, ino: int, count: int) -> None:
        with self._lock:
            self._nodes.forget(ino, count)

    def forget_all(self, counts: Iterable[tuple[int, int]]) -> None:
        """`forget` of many."""
        with self._lock:
            forget = self._nodes.forget
            for ino, count in counts:
                forget(ino, count)

    def remember(self, ino: int) -> None:
        """Take a reference on an entry that `readdir` has just delivered."""
        with self._lock:
            for listing in reversed(self._listings.values()):
                if ino in listing.offered:
                    self._nodes.reference_listed(ino, listing.offered[ino])
                    return
            node = self._nodes.find(ino)
            if node is not None:
                self._nodes.reference(node)

    def remember_listed(self, dh: int, inos: Iterable[int]) -> None:
        """`remember` of many entries that this listing has just delivered."""
        with self._lock:
            offered, reference = self._listings[dh].offered, self._nodes.reference_listed
            for ino in inos:
                if ino in offered:
                    reference(ino, offered[ino])

    def getattr(self, ino: int) -> Attr:
        with self._lock:
            self._directories.trim()
            return self._objects.attr(self._nodes.get(ino))

    def identity(self, ino: int) -> bytes:
        """The object id of an inode (docs/format.md section 4), the same at all its names.

        It changes only when the object is re-encrypted. Takes no reference. ESTALE when its place is not
        known any more.
        """
        with self._lock:
            node = self._nodes.get(ino)
            if node.is_dir:
                return self._directories.get(node).header.object_id
            file = self._objects.open(node)
            try:
                return file.header.object_id
            finally:
                self._objects.drop(file)

    def identity_of_open(self, handle: int) -> bytes:
        """The object id of an open file."""
        return self._handles[handle].header.object_id

    def setattr(self, ino: int, change: SetAttr, handle: int | None = None) -> Attr:
        self._require_writable()
        change.bound_times()
        with self._lock:
            self._directories.trim()
            node = self._nodes.get(ino)
            if node.dead and node.file is None:
                return self._objects.attr(node)
            if node.is_dir:
                return self._set_directory(node, change)
            file = self._handles[handle] if handle is not None else self._objects.open(node)
            file.handles += 1
        try:
            if change.size is not None:
                if not stat.S_ISREG(file.header.st_mode):
                    raise error(errno.EINVAL)
                self._before_change(file)
                file.truncate(change.size)
            file.change(change)
            if file.handles == 1:
                file.flush()
            return self._objects.file_attr(file)
        finally:
            self._put(file)

    def _set_directory(self, node: Node, change: SetAttr) -> Attr:
        if change.size is not None:
            raise error(errno.EISDIR)
        self.knowledge.directory_changed(node)
        directory = self._directories.get(node)
        if change.mode is not None or change.uid is not None or change.gid is not None:
            header = directory.header.copy()
            header.mode = header.mode if change.mode is None else change.mode & 0o7777
            header.uid = header.uid if change.uid is None else change.uid
            header.gid = header.gid if change.gid is None else change.gid
            self._objects.touch_directory(node)
            self._objects.write_directory(node, directory, header)
        st = os.fstat(directory.fd)
        if change.atime_ns is not None or change.mtime_ns is not None:
            times = (
                st.st_atime_ns if change.atime_ns is None else change.atime_ns,
                st.st_mtime_ns if change.mtime_ns is None else change.mtime_ns,
            )
            os.utime(directory.fd, ns=times)
            st = os.fstat(directory.fd)
        return self._objects.directory_attr(node, directory.header, st)

    # -- names ----------------------------------------------------------------------------------

    def create(self, parent: int, name: bytes, mode: int, owner: Owner, flags: int) -> tuple[int, Attr]:
        self._require_writable()
        with self._lock:
            try:
                file, st = self._names.create(parent, name, mode, owner)
            except FileExistsError:
                if flags & os.O_EXCL:
                    raise
            else:
                return self._handle(file), self._objects.file_attr(file, st)
            # It was there: O_CREAT without O_EXCL opens it.
            attr = self.lookup(parent, name)
            try:
                return self.open(attr.ino, flags), self.getattr(attr.ino)
            except BaseException:
                self.forget(attr.ino, 1)
                raise

    def mkdir(self, parent: int, name: bytes, mode: int, owner: Owner) -> Attr:
        self._require_writable()
        return self._names.mkdir(parent, name, mode, owner)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, owner: Owner) -> Attr:
        self._require_writable()
        return self._names.mknod(parent, name, mode, rdev, owner)

    def symlink(self, parent: int, name: bytes, target: bytes, owner: Owner) -> Attr:
        self._require_writable()
        return self._names.symlink(parent, name, target, owner)

    def link(self, ino: int, new_parent: int, new_name: bytes) -> Attr:
        self._require_writable()
        return self._names.link(ino, new_parent, new_name)

    def unlink(self, parent: int, name: bytes) -> None:
        self._require_writable()
        self._names.unlink(parent, name)

    def rmdir(self, parent: int, name: bytes) -> None:
        self._require_writable()
        self._names.rmdir(parent, name)

    def rename(
        self, parent_old: int, name_old: bytes, parent_new: int, name_new: bytes, flags: int = 0
    ) -> None:
        self._require_writable()
        self._renamer.rename(parent_old, name_old, parent_new, name_new, flags)

    def readlink(self, ino: int) -> bytes:
        with self._lock:
            self._directories.trim()
            file = self._objects.open(self._nodes.get(ino))
            file.handles += 1
        try:
            if not stat.S_ISLNK(file.header.st_mode):
                raise error(errno.EINVAL)
            return bytes(file.read(0, file.size))
        finally:
            self._let_go(file)

    # -- listing ---------------------------------------------------------------------------------

    def opendir(self, ino: int) -> int:
        with self._lock:
            node = self._nodes.get(ino)
            if not node.is_dir:
                raise error(errno.ENOTDIR)
            number = next(self._numbers)
            self._listings[number] = Listing(
                node, self._directories, self._objects, self.knowledge, self.witness
            )
            return number

    def readdir(self, dh: int, offset: int) -> Generator[tuple[bytes, Attr, int], None, None]:
        """Entries after `offset`; an entry that is damaged has no links (`nlink` 0) and no size."""
        listing = self._listings[dh]
        with self._lock:
            self._directories.trim()
            yield from listing.entries(offset)

    def learn(self, dh: int, offset: int) -> Generator[tuple[bytes, Attr, int], None, None]:
        """As `readdir`, to read the entries into the index: files that were are all `listing.LEARNED`."""
        listing = self._listings[dh]
        with self._lock:
            self._directories.trim()
            yield from listing.entries(offset, learning=True)

    def releasedir(self, dh: int) -> None:
        with self._lock:
            self._listings.pop(dh, None)

    # -- content -----------------------------------------------------------------------------------

    def open(self, ino: int, flags: int) -> int:
        if flags & (os.O_ACCMODE | os.O_TRUNC) != os.O_RDONLY:
            self._require_writable()
        with self._lock:
            self._directories.trim()
            node = self._nodes.get(ino)
            if node.is_dir:
                raise error(errno.EISDIR)
            file = self._objects.open(node)
            number = self._handle(file)
        if flags & os.O_TRUNC:
            try:
                self._before_change(file)
                file.truncate(0)
            except BaseException:
                self.release(number)
                raise
        return number

    def _handle(self, file: File) -> int:
        number = next(self._numbers)
        file.handles += 1
        self._handles[number] = file
        return number

    def read(self, handle: int, offset: int, size: int) -> Buffer:
        data = self._handles[handle].read(offset, size)
        self._read_bytes += len(data)
        return data

    def write(self, handle: int, offset: int, data: Buffer) -> int:
        file = self._handles[handle]
        self._before_change(file)
        written = file.write(offset, data)
        self._written_bytes += written
        if file.overflows:
            self._committer.commit()
        # Without a lock held: a writer that outruns the background work does it itself.
        self._committer.hold_back()
        return written

    def _before_change(self, file: File) -> None:
        """What must be durable before the content of a durable file is changed."""
        if file.left_behind is not None:
            # It was deleted, and is changed without the journal from now on.
            self._committer.places.sync(file.left_behind)
            file.left_behind = None
        elif file.durable and self._committer.places.wandering(file.node):
            self._committer.places.sync(file.node.parent)

    def flush(self, handle: int) -> None:
        if not self.vault.read_only:
            self._handles[handle].flush()

    def fsync(self, handle: int, datasync: bool = False) -> None:
        """Durable when it returns. `datasync` spares nothing: the header is in the same sync."""
        if not self.vault.read_only:
            self._committer.fsync(self._handles[handle])

    def release(self, handle: int) -> None:
        with self._lock:
            file = self._handles.pop(handle)
        self._put(file)

    def fsyncdir(self, ino: int) -> None:
        """Names, headers and the entries' own headers survive a power cut."""
        if self.vault.read_only:
            return
        with self._lock:
            node = self._nodes.get(ino)
            unsettled = self._committer.unsettled_below(node)
            # Those in use need a header to be opened by; their content is their own fsync's concern.
            begun = [one.file for one in self._nodes if one.parent is node and one.file is not None]
            files = [file for file in begun if file.slot < 0 and not file.unlinked]
            for file in files:
                file.handles += 1
            for child in unsettled:
                try:
                    file = self._objects.open(self._nodes.find(child.ino) or child)
                except OSError:
                    continue  # renamed or removed meanwhile: its own directory has it now
                file.handles += 1
                files.append(file)
        for file in files:
            try:
                if file in begun:
                    file.sync_header()
                else:
                    self._committer.make_durable(file)
            finally:
                self._let_go(file)
        self._committer.places.sync(node, entries=True)

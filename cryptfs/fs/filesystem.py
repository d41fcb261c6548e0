"""The filesystem over one vault: what docs/architecture.md lists, for any caller.

Locks, always taken in this order: the namespace lock, a file's lock, the committer's and
the journal's. No method holds the namespace lock while it reads or writes content or syncs,
except where a rename must not be overtaken.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cryptfs.errors import IntegrityError
from cryptfs.fs.chunks import Buffer
from cryptfs.fs.commit import Committer
from cryptfs.fs.directory import DirectoryCache
from cryptfs.fs.file import File
from cryptfs.fs.freezing import Freezer
from cryptfs.fs.gate import Gate
from cryptfs.fs.indexing import open_knowledge
from cryptfs.fs.knowledge import Knowledge
from cryptfs.fs.listing import Listing
from cryptfs.fs.namespace import Namespace, error
from cryptfs.fs.nodes import Node, NodeTable
from cryptfs.fs.objects import Objects
from cryptfs.fs.options import FsOptions, SmallChunks
from cryptfs.fs.recovery import overlays, recover
from cryptfs.fs.renaming import Renamer
from cryptfs.fs.restoring import Survey
from cryptfs.fs.types import Attr, Owner, SetAttr, StatFs
from cryptfs.fs.witnessing import Witness
from cryptfs.fs.xattrs import ExtendedAttributes
from cryptfs.index.witness import Found
from cryptfs.vault.header import KeyringLike
from cryptfs.vault.names import NAME_MAX
from cryptfs.vault.vault import Vault


class Parts(NamedTuple):
    """What a filesystem is made of, for long jobs that work beside the requests (`cryptfs.fs.rewrap`)."""

    vault: Vault
    lock: threading.RLock
    nodes: NodeTable
    directories: DirectoryCache
    objects: Objects
    committer: Committer


class FileSystem:
    """Files and directories over an unlocked vault. Recovers from an unclean stop when made."""

    def __init__(
        self, vault: Vault, options: FsOptions | None = None, *, place: Path | None = None, why_not: str = ""
    ) -> None:
        """Takes the vault over: it is closed by `close`, or at once if this raises.

        `place` is where this host keeps what it remembers of the vault (`cryptfs.index.place.prepare`), or
        None, and `why_not` the reason.

        Raises IntegrityError if the journal, the session state or the root directory is damaged.
        """
        self.vault = vault
        self.options = options or FsOptions()
        self._lock = threading.RLock()
        self._handles: dict[int, File] = {}
        self._listings: dict[int, Listing] = {}
        self._numbers = itertools.count(1)
        self._read_bytes = self._written_bytes = 0
        self._directories = DirectoryCache(vault)
        self.knowledge = Knowledge()
        self.witness = Witness()
        try:
            self.witness = Witness.open(place, vault, compares=self.options.compare)
            self.knowledge = open_knowledge(vault, place, wanted=self.options.index, why_not=why_not)
            self._begin()
        except BaseException:
            self.witness.close()
            self._directories.close()
            self.knowledge.close(None)
            vault.close()
            raise

    def _begin(self) -> None:
        vault = self.vault
        self._nodes = NodeTable(os.fstat(vault.tree_fd).st_ino)
        pending = overlays(vault) if vault.read_only else recover(vault)
        self.witness.begin(Found(vault.state.last, vault.state.found_open), vault.session)
        self._committer = Committer(vault, self._directories, self._lock, self.witness)
        self._freezer = Freezer(vault, self.sync)
        self._committer.gate = self._freezer.gate
        self._committer.hold, self._committer.let_go = self._hold, self._let_go
        self._committer.open_files = self._files
        self._objects = Objects(
            vault, self._nodes, self._directories, self._committer, pending, self.knowledge, self.witness
        )  # fmt: skip
        self._committer.note = self._objects.note
        self._directories.check = self.witness.check
        self.knowledge.bind(self._lock, self._nodes, self._directories, self._objects)
        self._names = Namespace(
            vault, self._lock, self._nodes, self._directories, self._objects, self._committer,
            SmallChunks(self.options.small_chunk_patterns), self.knowledge, self.witness,
        )  # fmt: skip
        self._xattrs = ExtendedAttributes(vault.xattrs, self._objects, self._directories, self.options.xattrs)
        self._renamer = Renamer(
            vault, self._lock, self._nodes, self._directories, self._objects, self._committer, self._names,
            self.knowledge, self.witness,
        )  # fmt: skip
        # The root must open, else there is nothing to serve.
        try:
            root = self._directories.get(self._nodes.root)
        except OSError:
            raise IntegrityError(
                f"the header of the root directory of {vault.path} is damaged and no copy of it opens"
            ) from None
        self.witness.check_root(root.header)
        if not vault.read_only:
            vault.state.begin()
            self.witness.confirm()
            self._committer.start()

    # -- inodes ------------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> Attr:
        return self._names.lookup(parent, name)

    def forget(self, ino: int, count: int) -> None:
        with self._lock:
            self._nodes.forget(ino, count)

    def remember(self, ino: int) -> None:
        """Take a reference on an entry that `readdir` has just delivered."""
        with self._lock:
            node = self._nodes.find(ino)
            if node is None or node.dead:
                for listing in self._listings.values():
                    if ino in listing.offered:
                        node = listing.offered[ino]
                        break
            if node is not None:
                self._nodes.reference(node)

    def getattr(self, ino: int) -> Attr:
        with self._lock:
            self._directories.trim()
            return self._objects.attr(self._nodes.get(ino))

    def identity(self, ino: int) -> bytes:
        """The object id of an inode (docs/format.md section 4), the same for ever and at all its names.

        Takes no reference. ESTALE when its place is not known any more.
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
            self._put(file)

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

    def _put(self, file: File) -> None:
        """Give back one use of a file."""
        try:
            if file.handles == 1 and not file.unlinked and self.vault.changeable:
                file.flush()
        finally:
            with self._lock:
                file.handles -= 1
                self._objects.drop(file)

    def _hold(self, file: File) -> bool:
        """Use a file that may be closed by somebody else at any time; False if it is."""
        with self._lock:
            if file.node.file is not file:
                return False
            file.handles += 1
            return True

    def _let_go(self, file: File) -> None:
        """Give back what `_hold` took: nothing is left to be written."""
        with self._lock:
            file.handles -= 1
            self._objects.drop(file)

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
                self._put(file)
        self._committer.places.sync(node, entries=True)

    # -- extended attributes ------------------------------------------------------------------------

    def getxattr(self, ino: int, name: bytes) -> bytes:
        with self._lock, self._using(ino) as node:
            return self._xattrs.get(node, name)

    def listxattr(self, ino: int) -> list[bytes]:
        with self._lock, self._using(ino) as node:
            return self._xattrs.names(node)

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
        self._require_writable()
        with self._lock, self._using(ino) as node:
            self._xattrs.set(node, name, value, flags)

    def removexattr(self, ino: int, name: bytes) -> None:
        self._require_writable()
        with self._lock, self._using(ino) as node:
            self._xattrs.remove(node, name)

    @contextmanager
    def _using(self, ino: int) -> Iterator[Node]:
        """A node whose file, if it is one, stays open until the end."""
        self._directories.trim()
        node = self._nodes.get(ino)
        if node.is_dir:
            yield node
            return
        file = self._objects.open(node)
        file.handles += 1
        try:
            yield node
        finally:
            self._put(file)

    # -- the whole ------------------------------------------------------------------------------------

    def statfs(self) -> StatFs:
        st = os.fstatvfs(self.vault.tree_fd)
        return StatFs(
            st.f_bsize, st.f_frsize, st.f_blocks, st.f_bfree, st.f_bavail,
            st.f_files, st.f_ffree, st.f_favail, NAME_MAX,
        )  # fmt: skip

    def sync(self) -> None:
        """Make everything durable that was written so far."""
        if self.vault.read_only:
            return
        self._names.clear_half_made()
        self._for_each_file(lambda file: file.flush())
        self._committer.sync_all()
        self._for_each_file(
            lambda file: self._committer.make_durable(file) if file.unsynced and not file.unlinked else None
        )

    def freeze(self) -> None:
        """Hold the ciphertext still, as after an unmount; OSError if not everything could be synced.

        Reading goes on. The caller lets no method in that changes anything until `thaw`.
        """
        self._freezer.freeze()

    def thaw(self) -> None:
        """Let changes go on after `freeze`."""
        self._freezer.thaw()

    @property
    def gate(self) -> Gate:
        """What changes the ciphertext in the background, beside this class, passes it."""
        return self._freezer.gate

    def _for_each_file(self, do: Callable[[File], None]) -> None:
        """For every file in use, while others may close it."""
        for file in self._files():
            if self._hold(file):
                try:
                    do(file)
                finally:
                    self._let_go(file)

    @property
    def parts(self) -> Parts:
        """For long jobs in this layer."""
        return Parts(
            self.vault, self._lock, self._nodes, self._directories, self._objects, self._committer
        )  # fmt: skip

    def hold_files(self) -> Iterator[File]:
        """The files in use at the moment, one after the other; the caller gives each back."""
        for file in self._files():
            with self._lock:
                if file.node.file is not file:
                    continue
                file.handles += 1
            yield file

    def give_back(self, file: File) -> None:
        """The counterpart of `hold_files`."""
        self._put(file)

    def use_keyring(self, keyring: KeyringLike) -> None:
        """Go on with another keyring: from now on headers are sealed under its current epoch."""
        with self._lock:
            self.vault.use_keyring(keyring)
            self.witness.use_keyring(keyring)

    def _files(self) -> list[File]:
        with self._lock:
            return [node.file for node in self._nodes if node.file is not None]

    def survey(self) -> Survey:
        """A comparison of the whole vault with what this host remembers: `run` it, and close it."""
        return Survey(self.vault, self.witness, self._objects, self._directories, self._lock)

    def accept(self, survey: Survey) -> None:
        """Remember what a survey found as right, durably. Raises CryptfsError, OSError."""
        self._require_writable()
        survey.accept(self.vault, self.witness, self._lock)

    def stats(self) -> dict[str, Any]:
        """Counters for status reports; sizes in bytes."""
        return {
            "open_files": len(self._handles),
            "open_directories": len(self._listings),
            "inodes": len(self._nodes),
            "bytes_read": self._read_bytes,
            "bytes_written": self._written_bytes,
            "journal_bytes": self.vault.journal.size,
            "dirty_bytes": sum(file.dirty_bytes() for file in set(self._handles.values())),
            "unclean_sessions": len(self.vault.state.unclean),
            "index": self.knowledge.status(),
            "witness": self.witness.stats(),
        }

    def close(self) -> None:
        """Sync everything, record a clean stop, and close the vault."""
        self.thaw()
        self._committer.stop()
        ended: int | None = None
        try:
            if not self.vault.read_only:
                self.sync()
                if self.witness.waiting:
                    self._committer.sync_all()
                self.vault.state.end()
                self.witness.end()
                ended = self.vault.session
        finally:
            self.witness.close()
            with self._lock:
                for file in self._files():
                    file.close()
                self._directories.close()
            self.knowledge.close(ended)
            self.vault.close()

    def _require_writable(self) -> None:
        if self.vault.read_only:
            raise error(errno.EROFS)

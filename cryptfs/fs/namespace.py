"""Names: lookup, create, link, remove. Renaming is in `renaming`.

Every public method holds the namespace lock for its whole duration, and takes it before
any file's lock. Lower calls are single system calls that the lower file system makes atomic,
so a power cut leaves each name old or new.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cryptfs.fs.commit import Committer
from cryptfs.fs.directory import Directory, DirectoryCache
from cryptfs.fs.file import File
from cryptfs.fs.knowledge import Knowledge
from cryptfs.fs.nodes import Node, NodeTable
from cryptfs.fs.objects import Objects
from cryptfs.fs.options import SmallChunks
from cryptfs.fs.removing import Remover
from cryptfs.fs.types import Attr, Owner
from cryptfs.fs.verdicts import record_of
from cryptfs.fs.witnessing import Witness
from cryptfs.vault.content import DEFAULT_CHUNK_LOG2, SMALL_CHUNK_LOG2
from cryptfs.vault.diskio import create, make_folder, pwrite_all
from cryptfs.vault.header import BLOCK, CHAR, DIRECTORY, FILE, KIND_OF_TYPE, SYMLINK, Header
from cryptfs.vault.names import is_long
from cryptfs.vault.vault import Vault

log = logging.getLogger(__name__)

SYMLINK_MAX = 4095


def error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


class Namespace:
    """The tree of names of one vault."""

    def __init__(
        self,
        vault: Vault,
        lock: threading.RLock,
        nodes: NodeTable,
        directories: DirectoryCache,
        objects: Objects,
        committer: Committer,
        small_chunks: SmallChunks,
        knowledge: Knowledge,
        witness: Witness,
    ) -> None:
        self._vault = vault
        self._lock = lock
        self._nodes = nodes
        self._directories = directories
        self._objects = objects
        self._committer = committer
        self._small_chunks = small_chunks
        self._knowledge = knowledge
        self._witness = witness
        self.remover = Remover(lock, directories, objects, committer, knowledge, witness)

    def enter(self, parent: int) -> tuple[Node, Directory]:
        """The node and the open directory of an inode; ENOTDIR or ENOENT if it is none any more."""
        self._directories.trim()
        node = self._directory(parent)
        return node, self._directories.get(node)

    def _change(self, parent: int) -> tuple[Node, Directory]:
        """The same, of a directory that is about to be changed."""
        node, directory = self.enter(parent)
        self._knowledge.directory_changed(node)
        return node, directory

    def _directory(self, ino: int) -> Node:
        node = self._nodes.get(ino)
        if not node.is_dir:
            raise error(errno.ENOTDIR)
        if node.dead:
            raise error(errno.ENOENT)
        return node

    def lookup(self, parent: int, name: bytes) -> Attr:
        with self._lock:
            known = self._knowledge.find(self._directory(parent), name)
            if known is None:
                node, directory = self.enter(parent)
                lname = directory.lower_name(name)[0]
                try:
                    known = self._objects.look(node, directory, lname, name)
                except FileNotFoundError:
                    self._witness.lacks(node, directory.header.object_id, lname)
                    raise
            self._nodes.reference(known[0])
            return known[1]

    # -- making ----------------------------------------------------------------------------------

    def _header(
        self, kind: int, chunk_log2: int, mode: int, owner: Owner, above: Header, rdev: int = 0
    ) -> Header:
        now = time.time_ns()
        gid = owner.gid
        if above.mode & stat.S_ISGID:
            # As on ext4: what is made in a set-group-ID directory belongs to its group.
            gid = above.gid
            if kind == DIRECTORY:
                mode |= stat.S_ISGID
        return Header(
            kind, chunk_log2, 0, self._vault.codec.current_epoch, mode & 0o7777, 1, os.urandom(16),
            self._vault.session, owner.uid, gid, rdev, now, now, now, now, os.urandom(32),
            self._committer.phase,
        )  # fmt: skip

    def create(self, parent: int, name: bytes, mode: int, owner: Owner) -> tuple[File, os.stat_result]:
        """A new regular file in use, with one reference taken; EEXIST if the name is there.

        The status is that of its object file.
        """
        with self._lock:
            node, directory = self._change(parent)
            log2 = SMALL_CHUNK_LOG2 if self._small_chunks(name) else DEFAULT_CHUNK_LOG2
            header = self._header(FILE, log2, mode, owner, directory.header)
            return self._make(node, directory, name, header)

    def _make(
        self, parent: Node, directory: Directory, name: bytes, header: Header
    ) -> tuple[File, os.stat_result]:
        """An object file with its header; on disk it is complete but for its content."""
        lname, text = directory.lower_name(name)
        self._witness.changing(directory.header.object_id, lname)
        directory.add_long(lname, text, self._vault.modes.file)
        try:
            fd = create(lname, self._vault.modes.file, os.O_RDWR, dir_fd=directory.fd)
        except FileExistsError:
            try:
                self._objects.look(parent, directory, lname, name)
            except FileNotFoundError:  # it was a remnant of a power cut, now gone, or is half made
                self.remover.clear_half_made()
                fd = create(lname, self._vault.modes.file, os.O_RDWR, dir_fd=directory.fd)
            else:
                raise
        try:
            pwrite_all(fd, self._vault.codec.pack(header), 0)
            st = os.fstat(fd)
        except BaseException:
            self._undo(parent, lname, fd)
            os.close(fd)
            raise
        node = self._nodes.place(self._nodes.number(st.st_ino), parent, lname, False)
        file = File(self._committer, node, fd, header, -1, -1, False)
        node.file = file
        self._nodes.reference(node)
        self._committer.places.entry_changed(parent)
        self._knowledge.made(parent, lname, name, node)
        return file, st

    def symlink(self, parent: int, name: bytes, target: bytes, owner: Owner) -> Attr:
        if len(target) > SYMLINK_MAX:
            raise error(errno.ENAMETOOLONG)
        with self._lock:
            node, directory = self._change(parent)
            header = self._header(SYMLINK, SMALL_CHUNK_LOG2, 0o777, owner, directory.header)
            return self._finish(self._make(node, directory, name, header)[0], target)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, owner: Owner) -> Attr:
        with self._lock:
            node, directory = self._change(parent)
            kind = KIND_OF_TYPE.get(stat.S_IFMT(mode) or stat.S_IFREG)
            rdev = rdev if kind in (CHAR, BLOCK) else 0
            if kind is None or kind in (DIRECTORY, SYMLINK):
                raise error(errno.EINVAL)
            log2 = 0
            if kind == FILE:
                log2 = SMALL_CHUNK_LOG2 if self._small_chunks(name) else DEFAULT_CHUNK_LOG2
            header = self._header(kind, log2, mode, owner, directory.header, rdev)
            return self._finish(self._make(node, directory, name, header)[0], b"")

    def _finish(self, file: File, content: bytes) -> Attr:
        """Write the content of an object that nobody has open, and its attributes."""
        try:
            if file.header.chunk_log2:
                file.write(0, content)
            file.flush()
            return self._objects.file_attr(file)
        except OSError:
            node = file.node
            assert node.parent is not None
            self._undo(node.parent, node.lname, file.fd)
            self._knowledge.gone(node.parent, node.lname)
            file.orphaned(node.parent)
            node.dead = True
            self._nodes.forget(node.ino, 1)
            raise
        finally:
            self._objects.drop(file)

    def mkdir(self, parent: int, name: bytes, mode: int, owner: Owner) -> Attr:
        """On disk: the directory, then its header in it, then the copy; without a header it is a remnant."""
        with self._lock:
            node, directory = self._change(parent)
            header = self._header(DIRECTORY, 0, mode, owner, directory.header)
            lname, text = directory.lower_name(name)
            self._witness.changing(directory.header.object_id, lname)
            directory.add_long(lname, text, self._vault.modes.file)
            try:
                make_folder(lname, self._vault.modes.directory & 0o777, dir_fd=directory.fd)
            except FileExistsError:
                self._clear_remnant(node, directory, lname)
                make_folder(lname, self._vault.modes.directory & 0o777, dir_fd=directory.fd)
            try:
                fd = os.open(
                    lname, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd
                )
            except BaseException:
                with suppress(OSError):
                    os.rmdir(lname, dir_fd=directory.fd)
                raise
            try:
                self._directories.write_header(fd, header, -1)
                st = os.fstat(fd)
                ino = self._nodes.number(st.st_ino)
                slot = self._vault.codec.pack(header)
                self._committer.places.header_written(ino, slot, directory.header.object_id)
            except BaseException:
                self._undo(node, lname, fd)
                os.close(fd)
                raise
            made = self._nodes.place(ino, node, lname, True)
            self._directories.insert(made.ino, Directory(fd, header, 0))
            self._nodes.reference(made)
            self._committer.places.entry_changed(node)
            self._knowledge.made(node, lname, name, made)
            self._knowledge.directory_made(made, header)
            self._witness.placed(directory.header.object_id, lname, record_of(header, lname))
            self._committer.places.made(made)
            if self._directories.marks is not None:
                self._directories.marks.made(header.object_id)
            return self._objects.directory_attr(made, header, st)

    def _undo(self, parent: Node, lname: bytes, fd: int) -> None:
        """Remove an object that could not be made; where the disk refuses that as well, later."""
        with suppress(OSError):
            self._directories.half_made.add(parent, lname, fd)
            self.remover.clear_half_made()

    def _clear_remnant(self, parent: Node, directory: Directory, lname: bytes) -> None:
        """Remove a directory that a power cut left without header and content; EEXIST for any other."""
        try:
            self._objects.look(parent, directory, lname)
        except FileNotFoundError:
            self.remover.remove_hidden(directory, lname)
        else:
            raise error(errno.EEXIST)

    def link(self, ino: int, parent: int, name: bytes) -> Attr:
        with self._lock:
            node, directory = self._change(parent)
            source = self._nodes.get(ino)
            if self.sinks(source, node):
                self._committer.places.secure(node)
            if source.is_dir:
                raise error(errno.EPERM)
            if source.dead or source.parent is None:
                raise error(errno.ENOENT)
            above = self._directories.get(source.parent)
            lname, text = directory.lower_name(name)
            if (marks := self._directories.marks) is not None:
                done = marks.is_done(above, source.lname)
                lname, text = marks.place(done, directory, name, (lname, text))
            self._witness.changing(directory.header.object_id, lname)
            directory.add_long(lname, text, self._vault.modes.file)
            os.link(source.lname, lname, src_dir_fd=above.fd, dst_dir_fd=directory.fd, follow_symlinks=False)
            self._knowledge.shared(source)
            self._knowledge.made(node, lname, name, source)
            self._committer.places.entry_changed(node, source.parent)
            source.seen_at(node, lname)
            self._committer.moved(source)
            self._committer.places.moved(source)
            file = self._objects.open(source)
            try:
                file.noted = 0  # not under this name
                file.touch_ctime()
                self._nodes.reference(source)
                return self._objects.file_attr(file)
            finally:
                self._objects.drop(file)

    def sinks(self, source: Node, directory: Node) -> bool:
        """Whether something durable would be lost with a new directory that it is moved into.

        That directory must be made secure (`Places.secure`) first.
        """
        if not self._committer.places.sinks(directory):
            return False
        if source.file is not None:
            return source.file.durable
        left = self._committer.unsettled(source.ino)
        return left is None or left.durable

    # -- removing ----------------------------------------------------------------------------------

    @contextmanager
    def _removing(self, parent: int) -> Iterator[None]:
        """The namespace lock, once a directory may lose an entry."""
        while True:
            with self._lock:
                node = self._nodes.get(parent)
                if not self._committer.places.needs_place(node):
                    yield
                    return
            self._committer.places.place(node)

    def unlink(self, parent: int, name: bytes) -> None:
        with self._removing(parent):
            node, directory = self._change(parent)
            lname, _ = directory.lower_name(name)
            st = os.stat(lname, dir_fd=directory.fd, follow_symlinks=False)
            if stat.S_ISDIR(st.st_mode):
                raise error(errno.EISDIR)
            target = self._nodes.find(self._nodes.number(st.st_ino))
            if st.st_nlink > 1:
                self._settle_links(target)
            self._witness.changing(directory.header.object_id, lname)
            os.unlink(lname, dir_fd=directory.fd)
            self._knowledge.gone(node, lname)
            self._witness.gone(directory.header.object_id, lname)
            self._committer.places.entry_changed(node)
            self.drop_long(lname, directory)
            self.gone(self._nodes.number(st.st_ino), target, st.st_nlink, node, lname)

    def drop_long(self, lname: bytes, directory: Directory, moved_to: Directory | None = None) -> None:
        """Remove the encrypted name of a long entry that is gone, never before the entry on any disk.

        An error leaves a file that means nothing without its entry, and is removed with the directory.
        """
        if not is_long(lname):
            return
        try:
            if not self._committer.places.ordered:
                if moved_to is not None:
                    os.fsync(moved_to.fd)
                os.fsync(directory.fd)
            directory.drop_long(lname)
        except OSError as problem:
            log.warning("the encrypted name of a removed entry stays behind: %s", problem.strerror)

    def _settle_links(self, node: Node | None) -> None:
        """Before one of several names goes: the journal must not need it to find the object."""
        if node is not None and node.file is not None and self._committer.needs(node.file):
            self._committer.checkpoint(node.file)

    def gone(self, ino: int, node: Node | None, links: int, parent: Node, lname: bytes) -> None:
        """An object lost the name `lname`; it had `links` of them."""
        if links > 1:
            if node is not None:
                node.lost(parent, lname)
                self._lost_a_link(node)
            return
        if node is None or node.file is None:
            self._committer.deleted(None, ino)
        else:
            node.file.orphaned(parent)
            self._committer.deleted(node.file, ino)
            self._objects.drop(node.file)
        if node is not None:
            node.dead = True

    def _lost_a_link(self, node: Node) -> None:
        """Its change time, which the kernel writes back by itself only for regular files."""
        if node.file is None and stat.S_ISREG(node.mode):
            return
        with suppress(OSError):  # the name is gone all the same
            file = self._objects.open(node)
            try:
                file.touch_ctime()
            finally:
                self._objects.drop(file)

    def rmdir(self, parent: int, name: bytes) -> None:
        """On disk: the header goes first; a directory without header and entries is a remnant."""
        with self._removing(parent):
            node, directory = self._change(parent)
            lname, _ = directory.lower_name(name)
            found, _attr = self._objects.look(node, directory, lname, name)
            if not found.is_dir:
                raise error(errno.ENOTDIR)
            inner = self._directories.get(found)
            self.remover.require_empty(found, inner)
            self._witness.changing(directory.header.object_id, lname)
            self.remover.remove_directory(found, inner, node, lname)
            self._knowledge.gone(node, lname)
            self._witness.gone(directory.header.object_id, lname)
            self._committer.places.entry_changed(node)
            self.drop_long(lname, directory)

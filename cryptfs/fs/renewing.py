"""The content of a vault under new keys: batches of copies, and files with several names (fs.reencrypt).

A batch is copied without locks, made durable by one sync, read back, and put in place with the namespace
lock, a few files at a time. So small files cost no sync each, and what is written twice is bounded. While
one batch is copied, the one before it is proved (`proving`), and what the one before that replaced is freed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from cryptfs.errors import CryptfsError
from cryptfs.fs.file import File
from cryptfs.fs.filesystem import FileSystem
from cryptfs.fs.nodes import Node
from cryptfs.fs.proving import Proof, close_all
from cryptfs.fs.recopying import COPY_PREFIX, Copy, Room
from cryptfs.fs.relinking import Linked, Names, Relinker
from cryptfs.fs.replacing import Replacer
from cryptfs.fs.throttle import Progress, Stopped, Throttle
from cryptfs.fs.unreadable import Unreadable
from cryptfs.fs.walk import GONE
from cryptfs.vault.layout import JOURNAL, TREE

BATCH_BYTES = 32 << 20
BATCH_FILES = 96
"""So much is in one batch, or one larger file; for that to be begun, all others must be in place."""
ROUNDS = 8
FEW = 8
"""A file that is changed while it is copied is copied again so often, until no more MiB than this changed."""

Refused = Callable[[Node, bytes, Node], None]
"""Told, with the namespace lock, of a file that cannot be read: its directory, its name there, itself."""


class Renewer:
    """Does the files that a walk finds. Used by one thread; no method is called with a lock held."""

    def __init__(self, fs: FileSystem, throttle: Throttle, progress: Progress, refused: Refused) -> None:
        self._fs = fs
        self._parts = fs.parts
        self._throttle = throttle
        self.progress = progress
        self._on_refused = refused
        self._room, self._room_to_prove = Room(), Room()
        self._replacer = Replacer(self._parts, lambda *what: fs.on_rekeyed(*what))
        self._copies: list[Copy] = []
        self._waiting = 0
        self._proof: Proof | None = None
        self._replaced: list[int] = []
        """Open descriptors of files that were replaced; closing the last one of a file takes time."""
        self._former_attributes: list[bytes] = []
        self._folder = -1
        self._folder_name = JOURNAL
        self._open_folder()

    def close(self) -> None:
        """Give up what was not put in place."""
        proof, self._proof = self._proof, None
        if proof is not None:
            with suppress(OSError, CryptfsError, Stopped):
                proof.wait(self._throttle)
            self._give_back(proof.batch)
        self._give_back(self._copies)
        self._copies.clear()
        close_all(self._replaced)
        os.close(self._folder)

    def _open_folder(self) -> None:
        """Where copies are made: outside the tree, whose directories keep their times, if that can be."""
        vault = self._parts.vault
        self._folder = os.open(vault.journal_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if os.fstat(self._folder).st_dev != os.fstat(vault.tree_fd).st_dev:
            os.close(self._folder)
            self._folder, self._folder_name = os.dup(vault.tree_fd), TREE
        for name in map(os.fsencode, os.listdir(self._folder)):
            if name.startswith(COPY_PREFIX):  # of a run that was killed
                os.unlink(name, dir_fd=self._folder)

    def add(self, node: Node, size: int) -> None:
        """Begin a copy of a file of about `size` bytes; it is put in place with others."""
        if size > BATCH_BYTES:
            self.finish()  # so that there is room for one such file at a time
        elif self._waiting + size > BATCH_BYTES:
            self._turn_over()
        copy = self._make(node)
        if copy is None:
            return
        self._throttle.count()
        self._copies.append(copy)
        self._waiting += size
        if self._waiting >= BATCH_BYTES or len(self._copies) >= BATCH_FILES:
            self._turn_over()

    def _make(self, node: Node) -> Copy | None:
        """A copy of a file, of which the caller gives back the file; None if there is none to be made."""
        parts, throttle, progress = self._parts, self._throttle, self.progress
        file = self._open(node)
        if file is None:
            return None
        copy: Copy | None = None
        begun = progress.bytes_done
        try:
            # One that was renamed meanwhile is found again, and may be in this batch already.
            if not file.unlinked and file.touched is None:
                parts.committer.settle_fully(file)
                copy = Copy(parts.vault, file, self._folder, self._room)
                copy.fill(throttle.check, self._advance)
                self._catch_up(copy)
                return copy
        except BaseException as problem:
            if copy is not None:
                self._discard(copy)
            self._fs.give_back(file)
            progress.bytes_done = begun
            if not isinstance(problem, Unreadable):
                raise
            self._refused(node)
            return None
        self._fs.give_back(file)
        return None

    def _catch_up(self, copy: Copy) -> None:
        """Copy what was changed meanwhile, until that is little."""
        for _ in range(ROUNDS):
            if copy.is_outdated or copy.again(self._throttle.check) <= FEW:
                break

    def _open(self, node: Node) -> File | None:
        parts = self._parts
        with parts.lock:
            parts.directories.trim()
            if node.dead or node.parent is None:
                return None
            try:
                file = parts.objects.open(node)
            except OSError as problem:
                if problem.errno != errno.EIO:
                    return None  # moved, which is noted, or gone
                try:  # a remnant of a power cut goes like this
                    parts.objects.look(node.parent, parts.directories.get(node.parent), node.lname)
                except FileNotFoundError:
                    return None
                except OSError:
                    self._refused(node)
                return None
            file.handles += 1
            return file

    def _advance(self, number: int) -> None:
        self.progress.bytes_done += number

    @contextmanager
    def _unless_unreadable(self, copy: Copy) -> Iterator[None]:
        """Around the last of a copy: a file that cannot be read any more is passed over."""
        try:
            yield
        except Unreadable:
            self._refused(copy.file.node)

    def _refused(self, node: Node) -> None:
        with self._parts.lock:
            if node.dead or node.parent is None:
                return
            try:
                self._on_refused(node.parent, node.lname, node)
            except OSError as problem:
                if problem.errno not in GONE:  # with its directory, meanwhile
                    raise

    # -- the second half of a batch: durable, proved, in place -------------------------------------------

    def finish(self) -> None:
        """Put everything in place that was copied, and give back what it replaced."""
        self._turn_over()
        self._place_proved()
        close_all(self._replaced)

    def _turn_over(self) -> None:
        """Put the last batch in place, and have this one proved."""
        self._place_proved()
        batch, self._copies, self._waiting = self._copies, [], 0
        if not batch:
            return
        # All renames so far become durable with it, and what they replaced loses its attributes then.
        former, self._former_attributes = self._former_attributes, []
        replaced, self._replaced = self._replaced, []
        self._proof = Proof(self._folder, batch, replaced, former, self._room_to_prove)
        self._proof.start(self._throttle)

    def _place_proved(self) -> None:
        proof, self._proof = self._proof, None
        if proof is None:
            return
        try:
            proof.wait(self._throttle)
            for object_id in proof.former:
                self._parts.vault.xattrs.remove(object_id)
            self._place(proof.batch)
        finally:
            self._give_back(proof.batch)

    def _place(self, batch: list[Copy]) -> None:
        """A batch is durable, and was read back: put it in place."""
        throttle, queue = self._throttle, []
        for copy in batch:
            with self._unless_unreadable(copy):
                if len(copy.file.touched or ()) > FEW and not copy.is_outdated:
                    # It was changed so much since that the rest would keep everybody waiting.
                    self._catch_up(copy)
                    self._prove(copy)
                queue.append(copy)
        while queue:
            with self._parts.lock:
                self._parts.directories.trim()
                while queue:
                    copy = queue.pop()
                    with self._unless_unreadable(copy):
                        if self._replacer.put(copy):
                            self._is_done(copy)
                    if throttle.slice_is_over:
                        break
            throttle.check()

    def _prove(self, copy: Copy) -> None:
        os.fsync(copy.fd)
        copy.leave_cache()
        copy.verify(pause=self._throttle.check)

    def _is_done(self, copy: Copy) -> None:
        self.progress.changed += 1
        if copy.former_attributes is not None:
            self._former_attributes.append(copy.former_attributes)

    def remove_former_attributes(self) -> None:
        """Those of files whose replacement is durable: no power cut brings one back that needs them."""
        while self._former_attributes:
            self._parts.vault.xattrs.remove(self._former_attributes.pop())

    def _give_back(self, copies: list[Copy]) -> None:
        for copy in copies:
            if copy.placed:
                self._replaced.append(copy.fd)
            else:
                self._discard(copy)
            self._fs.give_back(copy.file)

    def _discard(self, copy: Copy) -> None:
        with self._throttle.clearing_up() as may_change:
            copy.discard(remove=may_change)

    def relink(self, linked: Linked) -> None:
        """Files with several names, one after the other."""
        parts = self._parts
        relinker = Relinker(parts, self._replacer, self._folder, self._folder_name)
        names_only, all_names = linked.take()
        for names in names_only:
            self._respell(names)
            self._throttle.check()
        for names in all_names:
            parent, lname = next(iter(names))
            with parts.lock:
                parts.directories.trim()
                node = self._node_at(parent, lname)
            copy = self._make(node) if node is not None else None
            if copy is None:
                continue
            self._throttle.count()
            try:
                self._prove(copy)
                with self._unless_unreadable(copy), parts.lock:
                    parts.directories.trim()
                    if relinker.put(copy, names):
                        self._is_done(copy)
            finally:
                self._give_back([copy])
                close_all(self._replaced)
            self._throttle.check()

    def _respell(self, names: Names) -> None:
        """Names of a file that was done, and lacks only some of its new names."""
        parts = self._parts
        parent, lname = next(iter(names))
        with parts.lock:
            node = self._node_at(parent, lname)
        file = self._open(node) if node is not None else None
        if file is None:
            return
        try:
            with parts.lock, file.lock:
                parts.directories.trim()
                parts.committer.settle_held(file)
                for parent, lname in names:
                    directory = self._replacer.still_there(file, parent, lname)
                    if directory is not None and directory.old is not None:
                        parts.respeller.renew(parent, directory, file.node, lname)
                        self.progress.changed += 1
        finally:
            self._fs.give_back(file)

    def _node_at(self, parent: Node, lname: bytes) -> Node | None:
        try:
            directory = self._parts.directories.get(parent)
            st = os.stat(lname, dir_fd=directory.fd, follow_symlinks=False)
        except OSError:
            return None
        return self._parts.nodes.place(self._parts.nodes.number(st.st_ino), parent, lname, False)

"""rename(2) in all its forms.

Atomic: the target is the old object or the new one, at every instant and after a power cut.
Two things must be so before a name changes: what the journal knows by its path is in place,
and a file that replaces another is durable. Both wait for the disk, so they are done without
the namespace lock, and the rename then looks again whether they are still so.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Sequence
from typing import NamedTuple

from cryptfs.fs.commit import Committer
from cryptfs.fs.directory import Directory, DirectoryCache
from cryptfs.fs.file import File
from cryptfs.fs.knowledge import Knowledge
from cryptfs.fs.namespace import Namespace, error
from cryptfs.fs.nodes import Node, NodeTable
from cryptfs.fs.objects import Objects
from cryptfs.fs.respelling import Marks, Respeller
from cryptfs.fs.witnessing import Witness
from cryptfs.vault.diskio import renameat2
from cryptfs.vault.vault import Vault

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
TRIES = 1000
"""How often a rename waits for the disk because somebody wrote in between."""

log = logging.getLogger(__name__)


class _Wait(NamedTuple):
    """What has to be done before the rename: all of the journal, or these files and directories."""

    everything: bool = False
    checkpoint: Sequence[File] = ()
    make_durable: Sequence[File] = ()
    secure: Sequence[Node] = ()
    place: Sequence[Node] = ()


class Renamer:
    """Renames within one vault."""

    def __init__(
        self,
        vault: Vault,
        lock: threading.RLock,
        nodes: NodeTable,
        directories: DirectoryCache,
        objects: Objects,
        committer: Committer,
        names: Namespace,
        knowledge: Knowledge,
        witness: Witness,
        respeller: Respeller,
    ) -> None:
        self._vault = vault
        self._lock = lock
        self._nodes = nodes
        self._directories = directories
        self._objects = objects
        self._committer = committer
        self._names = names
        self._knowledge = knowledge
        self._witness = witness
        self._respeller = respeller

    def rename(self, old_parent: int, old_name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        """As renameat2(2), with RENAME_NOREPLACE or RENAME_EXCHANGE."""
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
            raise error(errno.EINVAL)
        for _ in range(TRIES):
            with self._lock:
                wait = self._try(old_parent, old_name, new_parent, new_name, flags)
            if wait is None:
                return
            self._do(wait)
        # Two copies of one object have one id, and each keeps the other waiting for ever.
        log.error("a rename cannot be made durable: two objects seem to be one")
        raise error(errno.EIO)

    def _do(self, wait: _Wait) -> None:
        try:
            if wait.everything:
                self._committer.checkpoint_all()
            for file in wait.checkpoint:
                self._committer.checkpoint(file)
            for file in wait.make_durable:
                self._committer.make_durable(file)
            for node in wait.secure:
                self._committer.places.secure(node)
            self._committer.places.place(*wait.place)
        finally:
            with self._lock:
                for file in (*wait.checkpoint, *wait.make_durable):
                    file.handles -= 1
                    self._objects.drop(file)

    def _try(
        self, old_parent: int, old_name: bytes, new_parent: int, new_name: bytes, flags: int
    ) -> _Wait | None:
        """Rename, or say what must be done before. The caller holds the namespace lock."""
        exchange = bool(flags & RENAME_EXCHANGE)
        old_node, old_dir = self._names.enter(old_parent)
        new_node = self._nodes.get(new_parent)
        if not new_node.is_dir:
            raise error(errno.ENOTDIR)
        new_dir = self._directories.get(new_node)
        self._knowledge.directory_changed(old_node)
        self._knowledge.directory_changed(new_node)
        old_lname, _ = old_dir.lower_name(old_name)
        new_lname, new_text = new_dir.lower_name(new_name)
        source, _ = self._objects.look(old_node, old_dir, old_lname, old_name)
        target: Node | None = None
        links = 0
        try:
            target, attr = self._objects.look(new_node, new_dir, new_lname, new_name)
            links = attr.nlink
        except FileNotFoundError:
            pass
        self._check(source, target, flags)
        if target is not None and target.ino == source.ino:
            return None  # two names of one file: nothing happens
        if target is not None and target.is_dir and not exchange:
            self._names.remover.require_empty(target, self._directories.get(target))
        wait = self._needed(source, target, exchange) or self._directories_needed(
            source, old_node, target if exchange else None, new_node
        )
        if wait is not None:
            return wait
        with self._committer.paths:
            if self._in_journal(source, target, exchange):
                return _Wait()  # a write has just come in between
            if (marks := self._directories.marks) is not None:
                done = source.is_dir or marks.is_done(old_dir, old_lname)
                if target is None:
                    new_lname, new_text = marks.place(done, new_dir, new_name, (new_lname, new_text))
                else:
                    target_done = target.is_dir or marks.is_done(new_dir, new_lname)
                    if not done:
                        new_lname = self._mark(marks, new_node, new_dir, target, new_lname)
                    if exchange and not target_done:
                        old_lname = self._mark(marks, old_node, old_dir, source, old_lname)
            if not exchange and (target is None or marks is None):
                new_dir.add_long(new_lname, new_text, self._vault.modes.file)
            places = (old_dir.header.object_id, old_lname), (new_dir.header.object_id, new_lname)
            for place in places:
                self._witness.changing(*place)
            try:
                self._lower(old_node, old_lname, new_node, new_lname, target, exchange)
            except OSError:
                self._knowledge.uncertain(old_node)
                self._knowledge.uncertain(new_node)
                raise
            self._witness.moved(*places, exchange=exchange)
            self._moved(source, new_node, new_lname)
            self._knowledge.gone(old_node, old_lname)
            self._knowledge.made(new_node, new_lname, new_name, source)
            if exchange and target is not None:
                self._moved(target, old_node, old_lname)
                self._knowledge.made(old_node, old_lname, old_name, target)
        self._committer.places.entry_changed(new_node, old_node)
        if exchange:
            self._committer.places.entry_changed(old_node, new_node)
        else:
            self._names.drop_long(old_lname, old_dir, new_dir)
            if target is not None and not target.is_dir:
                self._names.gone(target.ino, target, links, new_node, new_lname)
        return None

    def _mark(self, marks: Marks, parent: Node, directory: Directory, replaced: Node, lname: bytes) -> bytes:
        """Have an entry stand under the old key, because something not done is about to take its place.

        Until then the replaced object keeps its plaintext name at every instant.
        """
        marks.unmake(directory)
        return self._respeller.mark(parent, directory, replaced, lname)

    @staticmethod
    def _check(source: Node, target: Node | None, flags: int) -> None:
        if flags & RENAME_NOREPLACE and target is not None:
            raise error(errno.EEXIST)
        if flags & RENAME_EXCHANGE:
            if target is None:
                raise error(errno.ENOENT)
        elif target is not None and target.ino != source.ino:
            if source.is_dir and not target.is_dir:
                raise error(errno.ENOTDIR)
            if target.is_dir and not source.is_dir:
                raise error(errno.EISDIR)

    def _needed(self, source: Node, target: Node | None, exchange: bool) -> _Wait | None:
        """What keeps the rename waiting; files in it are held open for `_do`."""
        if self._in_journal(source, target, exchange):
            if source.is_dir or (target is not None and target.is_dir):
                return _Wait(everything=True)
            files = [node.file for node in (source, target) if node is not None and node.file is not None]
            for file in files:
                file.handles += 1
            return _Wait(checkpoint=files)
        if target is not None and not source.is_dir:
            held = source.file
            if held.unsynced or held.has_pending() if held else self._committer.unsettled(source.ino):
                file = self._objects.open(source)
                file.handles += 1
                return _Wait(make_durable=[file])
        return None

    def _directories_needed(self, source: Node, old: Node, exchanged: Node | None, new: Node) -> _Wait | None:
        """What keeps the rename waiting in the directories that give and take (fs.places)."""
        places = self._committer.places
        if old is new:
            return None
        gaining = [(source, new)] if exchanged is None else [(source, new), (exchanged, old)]
        sinking = [directory for node, directory in gaining if self._names.sinks(node, directory)]
        if sinking:
            return _Wait(secure=sinking)
        losing = [old] if exchanged is None else [old, new]
        relied = [node for node in losing if places.needs_place(node)]
        return _Wait(place=relied) if relied else None

    def _in_journal(self, source: Node, target: Node | None, exchange: bool) -> bool:
        """Whether the journal knows something by a path that is about to change."""
        journal = self._committer.journal
        if source.is_dir or (target is not None and target.is_dir and exchange):
            return journal.any_live()
        return any(
            node is not None and node.file is not None and journal.live(node.file.header.object_id)
            for node in (source, target)
        )

    def _lower(
        self, old_node: Node, old_l: bytes, new_node: Node, new_l: bytes, target: Node | None, exchange: bool
    ) -> None:
        old, new = self._directories.get(old_node), self._directories.get(new_node)
        if exchange:
            renameat2(old.fd, old_l, new.fd, new_l, RENAME_EXCHANGE)
        elif target is not None and target.is_dir:
            # The target's own header makes its ciphertext directory non-empty: exchange the
            # two, which is atomic, and remove what is then under the old name.
            inner = self._directories.get(target)
            renameat2(old.fd, old_l, new.fd, new_l, RENAME_EXCHANGE)
            self._names.remover.remove_directory(target, inner, old_node, old_l)
        else:
            os.rename(old_l, new_l, src_dir_fd=old.fd, dst_dir_fd=new.fd)

    def _moved(self, node: Node, parent: Node, lname: bytes) -> None:
        node.move(parent, lname)
        self._committer.places.moved(node)
        self._committer.moved(node)

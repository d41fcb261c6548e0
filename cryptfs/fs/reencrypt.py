"""New keys for everything, and all content written anew, while the filesystem is used (docs/rotation.md).

What is on disk for one directory, one after the other:

1. its header, key K1;
2. the same header beside it as `@old`, durable;
3. in `@dir` a header with a new key K2, durable; a copy of it in `dirs/`, durable;
4. one entry after the other under a name of K2, as soon as it is done;
5. when all of the vault is done and durable, no `@old` any more.

For one file: a complete copy under a new key, synced and read back (`recopying`); that renamed over the
file; then the entry renamed to its new name, which says that it is done. The copy is never in the tree
before it is complete, so at each instant a name leads to all of the old file or all of the new one. A cut
needs no repair: the next run goes over the tree again and does what stands under old names. Files with
several names are done last (`relinking`).

When all is done and the old names are gone, `Rewrap` removes what is left under older epochs (the second
slots of directories' headers, copies, the journal) and reads everything once more.
"""

from __future__ import annotations

import logging
import os
import stat
from typing import Any

from cryptfs.errors import CryptfsError
from cryptfs.fs.beginning import Beginner
from cryptfs.fs.cleaning import Cleaner
from cryptfs.fs.directory import Directory
from cryptfs.fs.filesystem import FileSystem
from cryptfs.fs.jobs import Job
from cryptfs.fs.marks import Marks
from cryptfs.fs.nodes import Node
from cryptfs.fs.relinking import Linked
from cryptfs.fs.renaming import TRIES
from cryptfs.fs.renewing import Renewer
from cryptfs.fs.rewrap import NAMED, Rewrap
from cryptfs.fs.throttle import Progress, Throttle
from cryptfs.fs.walk import GONE, Folder, Walk, measure
from cryptfs.vault.diskio import syncfs
from cryptfs.vault.epochs import Summary
from cryptfs.vault.header import READ_SIZE, SLOT_OFFSETS, SLOT_SIZE, epoch_of
from cryptfs.vault.keyring import Keyring
from cryptfs.vault.names import NameInvalid
from cryptfs.vault.reencryption import Phase

log = logging.getLogger(__name__)

PASSES = 20


class Reencrypt:
    """The job for one filesystem. `run` may be called from a thread of its own, once.

    With `despite_damage` an object that cannot be read gets its new name as if it were done, and keeps what
    it has of content and keys; without, the old keys of directories stay as long as there is one.
    """

    def __init__(self, fs: FileSystem, throttle: Throttle, *, despite_damage: bool = False) -> None:
        self.progress = throttle.progress = Progress()
        self.renewed = 0
        """How many objects got new keys, directories counted for key and name."""
        self._fs = fs
        self._parts = fs.parts
        self._throttle = throttle
        self._despite_damage = despite_damage
        self._beginner = Beginner(self._parts, self._has_damaged_attributes)
        self._todo: list[tuple[Node, int]] = []
        self._misnamed: list[Node] = []
        self._linked = Linked()
        self._found = self._stuck = 0
        self.named: list[bytes] = []
        """Some of what is damaged, as ciphertext paths."""
        self._walk = Walk(
            self._parts, throttle, self.progress, self._on_directory, self._on_entry, self._between
        )
        self._walk.order, self._walk.counts = self._oldest_first, False

    def run(self) -> Summary | None:
        """Do everything and read it all again; the summary of that reading.

        None if something is damaged, so that what was there before it is still needed. Stopped if the
        throttle says so, OSError if the disk refuses, CopyDiffers if it does not give back what it was
        given. What was done stays done.
        """
        if not self.renew():
            return None
        self._throttle.limit = 0.0  # it is for files that are written; what is left is read only
        return Rewrap(self._fs, self._throttle, self.progress).run()

    def renew(self) -> bool:
        """The first part: everything under new keys and names. False if something is damaged."""
        with self._throttle.working(self._fs.gate):
            phase = self._begin()
            if phase is Phase.SWITCHING and not self._switch():
                return False
            if phase is not Phase.DONE:
                Cleaner(self._fs, self._beginner, self._throttle, self.progress).run()
        self.renewed = self.progress.changed
        return True

    def _begin(self) -> Phase:
        parts = self._parts
        # What was changed before the new epoch was there is durable, or still open.
        self._fs.sync()
        phase = parts.vault.reencryption.begin()
        with parts.lock:
            if phase is Phase.SWITCHING and parts.directories.marks is None:
                parts.directories.marks = Marks()
        return phase

    # -- the first half: everything under new keys and new names -----------------------------------------

    def _switch(self) -> bool:
        """Whether all is done; else something is damaged."""
        progress, throttle = self.progress, self._throttle
        progress.phase = "counting"
        progress.total, progress.bytes_total = measure(self._parts.vault.tree_fd, throttle.check)
        self._renewer = Renewer(self._fs, throttle, progress, self._is_damaged)
        try:
            with self._walk.watching():
                for _ in range(PASSES):
                    self._one_pass()
                    if self._found == self._stuck:
                        return not progress.damaged or self._despite_damage
        finally:
            self._drop_everything()
            self._renewer.close()
        raise CryptfsError(
            "Files with several names were renamed again and again while their names were looked for: run it "
            "again at a quieter time. Everything else is done."
        )

    def _one_pass(self) -> None:
        """Everything that stands under an old name, once."""
        progress = self.progress
        progress.begin("re-encrypting")
        progress.damaged = self._found = self._stuck = 0
        self.named.clear()
        self._walk.run()
        self._between()
        self._renewer.finish()
        self._renewer.relink(self._linked)
        # Whatever a name was taken from is durable now, and needs nothing of before.
        syncfs(self._parts.vault.tree_fd)
        self._renewer.remove_former_attributes()

    def _on_directory(self, node: Node) -> None:
        if self._beginner.begin(node):
            self.progress.changed += 1

    def _oldest_first(self, fd: int, names: list[bytes]) -> None:
        """What is left over from rotations that never ended is done before what they had done."""
        keyring = self._parts.vault.keyring
        if isinstance(keyring, Keyring) and len(keyring) > 2:
            names.sort(key=lambda name: _epoch_at(fd, name), reverse=True)

    def _on_entry(self, folder: Folder, lname: bytes) -> Node | None:
        """Look at one entry; the caller holds the namespace lock. The node of a directory."""
        parts = self._parts
        marks = parts.directories.marks
        assert marks is not None
        if folder.node.dead:
            return None
        try:
            st = os.stat(lname, dir_fd=folder.fd, follow_symlinks=False)
            directory = parts.directories.get(folder.node)
        except OSError as problem:
            if problem.errno in GONE:
                return None
            raise
        is_dir = stat.S_ISDIR(st.st_mode)
        done = marks.is_done(directory, lname)
        if done and not is_dir:
            self.progress.bytes_done += st.st_size
            if st.st_nlink > 1:
                self._linked.is_done(st.st_ino)
            return None
        node = parts.nodes.place(parts.nodes.number(st.st_ino), folder.node, lname, is_dir)
        if done:
            return node
        self._found += 1
        if not marks.is_begun(directory):
            self._walk.again(folder.node)  # made since, and then something was moved into it
        elif not _has_name(directory, lname) or not (is_dir or stat.S_ISREG(st.st_mode)):
            self._is_damaged(folder.node, lname, None)
        elif is_dir:
            self._rename_directory(node, directory, lname)
        elif st.st_nlink > 1:
            self._linked.add(st.st_ino, folder.node, lname)
        else:
            parts.nodes.reference(node)
            self._todo.append((node, st.st_size))
        return node if is_dir else None

    def _rename_directory(self, node: Node, directory: Directory, lname: bytes) -> None:
        """Its new name, at once, or as soon as the journal knows nothing below it by its path."""
        parts = self._parts
        with parts.committer.paths:
            if parts.committer.journal.any_live():
                parts.nodes.reference(node)
                self._misnamed.append(node)
            elif node.parent is not None:
                parts.respeller.renew(node.parent, directory, node, lname)
                self.progress.changed += 1

    def _is_damaged(self, parent: Node, lname: bytes, node: Node | None) -> None:
        """Leave something as it is; `node` unless its name is damaged. The namespace lock is held."""
        directory = self._parts.directories.get(parent)
        if self._despite_damage and node is not None and directory.old is not None:
            self._parts.respeller.renew(parent, directory, node, lname)
            return
        self._stuck += 1
        self._count_damaged(parent.path(), lname)

    def _has_damaged_attributes(self, node: Node) -> None:
        if not self._despite_damage:
            self._count_damaged(node.path())

    def _count_damaged(self, *path: bytes) -> None:
        self.progress.damaged += 1
        if len(self.named) < NAMED:
            self.named.append(b"/".join(part for part in (b"tree", *path) if part))

    # -- between two slices: content, without locks ------------------------------------------------------

    def _between(self) -> None:
        while self._todo:
            node, size = self._todo.pop()
            try:
                self._renewer.add(node, size)
            finally:
                with self._parts.lock:
                    self._parts.nodes.forget(node.ino, 1)
        while self._misnamed:
            node = self._misnamed.pop()
            try:
                self._rename_later(node)
            finally:
                with self._parts.lock:
                    self._parts.nodes.forget(node.ino, 1)

    def _rename_later(self, node: Node) -> None:
        parts = self._parts
        for _ in range(TRIES):
            parts.committer.checkpoint_all()
            with parts.lock:
                if node.dead or node.parent is None or node.parent.dead:
                    return
                directory = parts.directories.get(node.parent)
                if directory.old is None or directory.is_new(node.lname):
                    return
                with parts.committer.paths:
                    if not parts.committer.journal.any_live():
                        parts.respeller.renew(node.parent, directory, node, node.lname)
                        self.progress.changed += 1
                        return
            self._throttle.check()
        log.warning("a directory keeps its old name for now: the journal is never empty")

    def _drop_everything(self) -> None:
        """At the end, whatever it was."""
        with self._parts.lock:
            for node in [*(node for node, _ in self._todo), *self._misnamed]:
                self._parts.nodes.forget(node.ino, 1)
        self._todo.clear()
        self._misnamed.clear()


def _epoch_at(fd: int, lname: bytes) -> int:
    """The epoch that a header claims, the newest if there is none: directories come last."""
    newest = 1 << 32
    try:
        file = os.open(lname, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
    except OSError:
        return newest
    try:
        area = os.pread(file, READ_SIZE, 0)
    except OSError:
        return newest
    finally:
        os.close(file)
    claimed = [epoch_of(area[at : at + SLOT_SIZE]) for at in SLOT_OFFSETS]
    return max((epoch for epoch in claimed if epoch is not None), default=newest)


def _has_name(directory: Directory, lname: bytes) -> bool:
    try:
        directory.plain_name(lname)
    except NameInvalid:
        return False
    return True


def reencrypt_job(fs: FileSystem, throttle: Throttle, *, despite_damage: bool = False) -> Job:
    """The job, not started yet; its result counts objects and names, at most so many, what is amiss."""
    work = Reencrypt(fs, throttle, despite_damage=despite_damage)

    def run() -> dict[str, Any]:
        summary = work.run()
        if summary is None:
            named, needs, damaged, objects = work.named, 0, work.progress.damaged, work.progress.done
        else:
            named = [finding.path for finding in summary.needs + summary.damaged][:NAMED]
            needs, damaged, objects = len(summary.needs), len(summary.damaged), summary.objects
        return {
            "epoch": fs.vault.codec.current_epoch,
            "objects": objects,
            "reencrypted": work.renewed or work.progress.changed,
            "needs": needs,
            "damaged": damaged,
            "named": [os.fsdecode(name) for name in named],
        }

    return Job("reencrypt", run, work.progress, throttle)

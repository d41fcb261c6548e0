"""Sealing every header anew under the current epoch, while the filesystem is used (docs/rotation.md).

No content is touched, and no object key changes. What is on disk for one object, A being the slot
that holds its last durable header, under an older epoch, and B the other one:

1. A as it was, B torn, old or new: the new header, one generation higher, is written to B, unsynced;
2. A as it was, B new: after a sync for all objects of a batch;
3. A torn, old or zero, B new: A is zeroed, and directories' headers that the file carries, unsynced;
4. A zero, B new: after the next batch's sync.

At every instant one of the two is valid under an epoch that the keyring holds, because the older epoch is
destroyed only after the last sync and a second reading of everything. So a cut needs no repair: the next run
goes over the tree again and does what is still to do. The same holds for the journal's segments
(`_Segment.rewrap`), the copies of directory headers (`DirLog.rewrap`) and `journal/state`.

A file that is in use, or of which something is not durable yet, is done through its `File`, which
knows its slots and what of it is in the journal. New headers are sealed under the current epoch from
the moment it is there, so the job has to find only what was there before.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from dataclasses import dataclass
from typing import Any

from cryptfs.fs.commit import Unsettled
from cryptfs.fs.file import File
from cryptfs.fs.filesystem import FileSystem
from cryptfs.fs.jobs import Job
from cryptfs.fs.nodes import Node
from cryptfs.fs.throttle import Progress, Throttle
from cryptfs.fs.unreadable import reading
from cryptfs.fs.walk import Folder, Walk, count_objects
from cryptfs.vault.dirlog import CARRIED_AT, CARRIED_MAX, RECORD_SIZE
from cryptfs.vault.diskio import pread_all, pwrite_all, syncfs
from cryptfs.vault.epochs import EpochReader, Summary
from cryptfs.vault.header import (
    MAGIC,
    READ_SIZE,
    SLOT_OFFSETS,
    SLOT_SIZE,
    HeaderInvalid,
    HeaderMissing,
    epoch_of,
)
from cryptfs.vault.keyring import Keyring
from cryptfs.vault.names import DIR_HEADER

log = logging.getLogger(__name__)

BATCH = 512
"""So many objects share a sync; each is held open from its new header to the end of the old one."""
PASSES = 5
NAMED = 20
_OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_CARRIED_END = CARRIED_AT + CARRIED_MAX * RECORD_SIZE


@dataclass(slots=True)
class _Item:
    """An object whose new header is written: where it is, and what stands there."""

    fd: int
    node: Node
    slot: int
    packed: bytes
    token: Unsettled | None


class Rewrap:
    """The job for one filesystem. `run` may be called from a thread of its own, once."""

    def __init__(self, fs: FileSystem, throttle: Throttle, progress: Progress | None = None) -> None:
        self.progress = throttle.progress = progress or Progress()
        self._fs = fs
        self._parts = fs.parts
        self._throttle = throttle
        self._batch: list[_Item] = []
        self._in_use: list[Node] = []
        self._walk = Walk(
            self._parts, throttle, self.progress, self._on_directory, self._on_entry, self._between
        )

    @property
    def current(self) -> int:
        return self._parts.vault.codec.current_epoch

    def run(self) -> Summary:
        """Rewrap everything and read it all again; the summary of that reading.

        Stopped if the throttle says so, OSError if the disk refuses. What was done stays done.
        """
        try:
            with self._throttle.working(self._fs.gate), self._walk.watching():
                return self._run()
        finally:
            for item in self._batch:
                os.close(item.fd)
            self._batch.clear()

    def _run(self) -> Summary:
        vault, progress = self._parts.vault, self.progress
        keyring = vault.keyring
        assert isinstance(keyring, Keyring)
        progress.phase = "counting"
        progress.total = count_objects(vault.tree_fd, self._throttle.check)
        # What was changed before the new epoch was there is durable, or still open.
        self._fs.sync()
        for file in self._fs.hold_files():
            self._renew(file)
        vault.state.use(keyring)
        vault.journal.rewrap()
        for _ in range(PASSES):
            progress.begin("rewrapping")
            self._walk.run()
            while self._batch or self._in_use:
                self._finish()
            vault.dirlog.rewrap(self._throttle.check)
            syncfs(vault.tree_fd)
            summary = self._read_again(keyring)
            if summary.only_current:
                break
        progress.phase = "done"
        return summary

    def _read_again(self, keyring: Keyring) -> Summary:
        progress, summary = self.progress, Summary(self.current)
        progress.begin("checking")
        for finding in EpochReader(self._parts.vault.path, self._parts.vault.vault_id, keyring).read():
            summary.add(finding)
            progress.done = summary.objects
            self._throttle.count()
            self._throttle.check()
        return summary

    # -- the first half: a new header beside the old one -------------------------------------------------

    def _on_directory(self, node: Node) -> None:
        with self._parts.lock:
            self._parts.directories.trim()
            with reading():
                directory = self._parts.directories.get(node)
            try:
                with reading():
                    fd = os.open(DIR_HEADER, _OPEN, dir_fd=directory.fd)
            except FileNotFoundError:
                fd = -1
            try:
                old = directory.header.epoch != self.current
                if fd >= 0 and not old:
                    with reading():
                        area = pread_all(fd, READ_SIZE, 0)
                    if not _needs(area, self.current):
                        os.close(fd)
                        return
                if old or fd < 0:
                    self._parts.objects.write_directory(node, directory, directory.header.copy())
                    self.progress.changed += 1
                    if fd < 0:
                        return
                packed = pread_all(fd, SLOT_SIZE, SLOT_OFFSETS[directory.slot])
            except BaseException:
                if fd >= 0:
                    os.close(fd)
                raise
            self._batch.append(_Item(fd, node, directory.slot, packed, None))

    def _on_entry(self, folder: Folder, lname: bytes) -> Node | None:
        """Look at one entry; the caller holds the namespace lock. The node of a directory."""
        try:
            fd = os.open(lname, _OPEN, dir_fd=folder.fd)
        except IsADirectoryError:
            st = os.stat(lname, dir_fd=folder.fd, follow_symlinks=False)
            return self._parts.nodes.place(self._parts.nodes.number(st.st_ino), folder.node, lname, True)
        except OSError as problem:
            if problem.errno != errno.ENOENT:
                self.progress.damaged += 1
            return None
        keep = False
        try:
            keep = self._visit(folder, lname, fd)
        finally:
            if not keep:
                os.close(fd)
        return None

    def _visit(self, folder: Folder, lname: bytes, fd: int) -> bool:
        """Write a new header if need be; whether the descriptor is kept for the second half."""
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode):
            self.progress.damaged += 1
            return False
        area = os.pread(fd, READ_SIZE, 0)
        current = self.current
        if not _needs(area, current):
            return False
        parts = self._parts
        node = parts.nodes.place(parts.nodes.number(st.st_ino), folder.node, lname, False)
        if node.file is not None or parts.committer.unsettled(node.ino) is not None:
            self._in_use.append(node)
            return False
        codec = parts.vault.codec
        try:
            header, slot = codec.read(area)
        except HeaderMissing:
            return False
        except HeaderInvalid:
            self.progress.damaged += 1
            return False
        if parts.vault.state.suspects(header):
            self._in_use.append(node)  # opening it puts it in order first
            return False
        if header.epoch == current:
            at = SLOT_OFFSETS[slot]
            self._batch.append(_Item(fd, node, slot, area[at : at + SLOT_SIZE], None))
            return True
        header.epoch = current
        header.generation += 1
        packed = codec.pack(header)
        target = 1 - slot
        pwrite_all(fd, packed, SLOT_OFFSETS[target])
        token = parts.committer.header_replaced(node, slot)
        self._batch.append(_Item(fd, node, target, packed, token))
        self.progress.changed += 1
        return True

    # -- the second half: the new header is durable, the old one goes ------------------------------------

    def _between(self) -> None:
        if len(self._batch) + len(self._in_use) >= BATCH:
            self._finish()

    def _finish(self) -> None:
        items, self._batch = self._batch, []
        in_use, self._in_use = self._in_use, []
        try:
            # Copies of directories' headers, too: those that files carry are not needed after it.
            self._parts.committer.places.sync_headers()
            syncfs(self._parts.vault.tree_fd)
            self._parts.committer.headers_synced(item.token for item in items if item.token is not None)
            while items:
                with self._parts.lock:
                    while items:
                        item = items.pop()
                        try:
                            self._clear_item(item, in_use)
                        finally:
                            os.close(item.fd)
                        if self._throttle.slice_is_over:
                            break
                self._throttle.check()
        finally:
            for item in items:
                os.close(item.fd)
        for node in in_use:
            self._renew_node(node)
            self._throttle.check()

    def _clear_item(self, item: _Item, in_use: list[Node]) -> None:
        parts, node = self._parts, item.node
        if node.is_dir:
            directory = parts.directories.cached(node.ino)
            if directory is not None and directory.slot != item.slot:
                return  # changed since, and with that the other slot was written anew
        else:
            known = parts.nodes.find(node.ino) or node
            if known.file is not None or parts.committer.unsettled(node.ino) is not None:
                in_use.append(known)
                return
        self._clear(item.fd, item.slot, item.packed)

    def _clear(self, fd: int, slot: int, expected: bytes = b"") -> None:
        """Zero what needs an older epoch beside the durable header in `slot`; nothing if it is not there."""
        area = os.pread(fd, READ_SIZE, 0)
        at = SLOT_OFFSETS[slot]
        packed = area[at : at + SLOT_SIZE]
        if expected:
            if packed != expected:
                return
        else:
            try:
                if self._parts.vault.codec.unpack(packed).epoch != self.current:
                    return
            except HeaderInvalid:
                return
        if slot:
            if _is_older(area, 0, self.current):
                pwrite_all(fd, bytes(SLOT_SIZE), 0)
        elif _is_older(area, SLOT_OFFSETS[1], self.current):
            pwrite_all(fd, bytes(SLOT_SIZE), SLOT_OFFSETS[1])
        if _carries_older(area, self.current):
            pwrite_all(fd, bytes(_CARRIED_END - CARRIED_AT), CARRIED_AT)

    # -- files in use -----------------------------------------------------------------------------------

    def _renew_node(self, node: Node) -> None:
        with self._parts.lock:
            self._parts.directories.trim()
            try:
                file = self._parts.objects.open(self._parts.nodes.find(node.ino) or node)
            except OSError:
                return  # gone, or damaged; moved elsewhere it is on the walk's list
            file.handles += 1
        self._renew(file)

    def _renew(self, file: File) -> None:
        """Through the file itself; gives it back."""
        try:
            if file.unlinked:
                return
            file.renew_header()
            if file.durable or file.slot >= 0:
                self._parts.committer.settle_fully(file)
                file.clear_older(self._clear)
            else:
                file.flush()  # never durable: it has one slot, which is written over
            self.progress.changed += 1
        finally:
            self._fs.give_back(file)


def _is_older(area: bytes, at: int, current: int) -> bool:
    return epoch_of(area[at : at + SLOT_SIZE]) not in (None, current)


def _carries_older(area: bytes, current: int) -> bool:
    if not area.startswith(MAGIC, CARRIED_AT):
        return False
    return any(_is_older(area, at, current) for at in range(CARRIED_AT, _CARRIED_END, RECORD_SIZE))


def _needs(area: bytes, current: int) -> bool:
    """Whether anything in a header area names another epoch than the current one."""
    return any(_is_older(area, at, current) for at in SLOT_OFFSETS) or _carries_older(area, current)


def rewrap_job(fs: FileSystem, throttle: Throttle) -> Job:
    """The job, not started yet; its result counts objects and names, at most so many, what is amiss."""
    rewrap = Rewrap(fs, throttle)

    def work() -> dict[str, Any]:
        summary = rewrap.run()
        if summary.only_current:
            fs.on_rewrapped(fs.vault.codec.keyring)
        return {
            "epoch": summary.current,
            "objects": summary.objects,
            "rewrapped": rewrap.progress.changed,
            "needs": len(summary.needs),
            "damaged": len(summary.damaged),
            "named": [os.fsdecode(finding.path) for finding in summary.needs + summary.damaged][:NAMED],
        }

    return Job("rewrap", work, rewrap.progress, throttle)

"""The end of a re-encryption: the former keys of directories are removed (docs/format.md section 13).

On disk: everything under new names, durably; then the record says so, durably; then one `@old` after the
other goes, durably, then extended attributes that are nobody's (`orphans`), then `@old` of the root, durably;
then the record says that it is done. As long as the root has `@old`, the vault is known for one with two keys
even without the record.
"""

from __future__ import annotations

import os
import stat

from cryptfs.fs.beginning import Beginner
from cryptfs.fs.filesystem import FileSystem
from cryptfs.fs.nodes import ROOT, Node
from cryptfs.fs.orphans import Orphans
from cryptfs.fs.throttle import Progress, Throttle
from cryptfs.fs.walk import Folder, Walk
from cryptfs.vault.diskio import syncfs
from cryptfs.vault.reencryption import Phase


class Cleaner:
    """Ends what a `Beginner` began; all of it is done."""

    def __init__(self, fs: FileSystem, beginner: Beginner, throttle: Throttle, progress: Progress) -> None:
        self._fs = fs
        self._parts = fs.parts
        self._beginner = beginner
        self._throttle = throttle
        self._progress = progress
        self._walk = Walk(
            self._parts, throttle, progress, self._on_directory, self._on_entry, lambda: None
        )  # fmt: skip

        self._walk.counts = False

    def run(self) -> None:
        """OSError if the disk refuses, Stopped; what was done stays done."""
        parts = self._parts
        reencryption = parts.vault.reencryption
        if reencryption.phase is not Phase.CLEANING:
            self._fs.sync()
            syncfs(parts.vault.tree_fd)
            with parts.lock:
                reencryption.enter(Phase.CLEANING)
                parts.directories.marks = None
        self._progress.begin("cleaning")
        self._progress.bytes_total = 0
        with self._walk.watching():
            self._walk.run()
        syncfs(parts.vault.tree_fd)
        self._progress.begin("cleaning")
        Orphans(self._fs, self._throttle, self._progress).run()
        self._beginner.end(parts.nodes.root)
        syncfs(parts.vault.tree_fd)
        with parts.lock:
            reencryption.enter(Phase.DONE)

    def _on_directory(self, node: Node) -> None:
        if node.ino != ROOT:
            self._beginner.end(node)

    def _on_entry(self, folder: Folder, lname: bytes) -> Node | None:
        try:
            st = os.stat(lname, dir_fd=folder.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if not stat.S_ISDIR(st.st_mode):
            return None
        return self._parts.nodes.place(self._parts.nodes.number(st.st_ino), folder.node, lname, True)

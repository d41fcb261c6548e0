"""Removing directories, and what lies in one and is not shown."""

from __future__ import annotations

import errno
import os
import threading

from cryptfs.fs.commit import Committer
from cryptfs.fs.directory import Directory, DirectoryCache
from cryptfs.fs.knowledge import Knowledge
from cryptfs.fs.nodes import Node
from cryptfs.fs.objects import Objects
from cryptfs.fs.remnants import remove_own, remove_remnant
from cryptfs.fs.witnessing import Witness
from cryptfs.vault.names import DIR_HEADER, LONG_PREFIX, OLD_HEADER, TEMP_PREFIX


class Remover:
    """The caller of every method holds the namespace lock, but for `clear_half_made`."""

    def __init__(
        self,
        lock: threading.RLock,
        directories: DirectoryCache,
        objects: Objects,
        committer: Committer,
        knowledge: Knowledge,
        witness: Witness,
    ) -> None:
        self._lock = lock
        self._directories = directories
        self._objects = objects
        self._committer = committer
        self._knowledge = knowledge
        self._witness = witness

    def clear_half_made(self) -> None:
        """Remove what could not be made and not be removed then; OSError if the disk still refuses."""
        with self._lock:
            self._directories.half_made.clear(self._directories.get)

    def remove_hidden(self, directory: Directory, lname: bytes) -> None:
        """Remove what lies there and is not shown."""
        self.clear_half_made()
        remove_remnant(lname, directory.fd)

    def require_empty(self, node: Node, directory: Directory) -> None:
        """ENOTEMPTY if anything but remnants of a power cut is in it."""
        for lname in directory.entries():
            try:
                self._objects.look(node, directory, lname)
            except FileNotFoundError:
                self.remove_hidden(directory, lname)
                continue
            except OSError:
                pass  # damaged, but there
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    def remove_directory(self, node: Node, inner: Directory, parent: Node, lname: bytes) -> None:
        """Remove an empty directory that lies as `lname` in `parent`.

        Where the disk refuses its removal, and then its header as well, it counts as removed: nothing could
        be kept in it. It goes when the disk allows it.
        """
        for leftover in map(os.fsencode, os.listdir(inner.fd)):
            # Ours only: what else somebody put there (a NAS, a sync tool) keeps the directory.
            if leftover.startswith((TEMP_PREFIX, LONG_PREFIX, OLD_HEADER)):
                remove_own(leftover, inner.fd)
        remove_own(DIR_HEADER, inner.fd)
        try:
            os.rmdir(lname, dir_fd=self._directories.get(parent).fd)
        except OSError:
            self._knowledge.uncertain(node)
            try:
                self._directories.write_header(inner.fd, inner.header, -1)
            except OSError:
                self._directories.half_made.add(parent, lname, inner.fd)
                self._forget_directory(node, inner)
            raise
        self._forget_directory(node, inner)

    def _forget_directory(self, node: Node, inner: Directory) -> None:
        node.dead = True
        self._witness.directory_gone(inner.header.object_id)
        self._directories.discard(node.ino)
        self._committer.places.directory_gone(node.ino)
        self._knowledge.directory_gone(node)

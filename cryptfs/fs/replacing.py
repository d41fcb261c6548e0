"""Putting a finished copy in the place of the file that it was made of (docs/format.md section 13)."""

from __future__ import annotations

import os
from collections.abc import Callable

from cryptfs.fs.directory import Directory
from cryptfs.fs.file import File
from cryptfs.fs.nodes import Node
from cryptfs.fs.parts import Parts
from cryptfs.fs.recopying import Copy
from cryptfs.fs.respelling import keeping_times
from cryptfs.index.witness import Held
from cryptfs.vault.header import FILE

Rekeyed = Callable[[bytes, bytes, bytes], None]
"""Told of a file that has another object id: that of its directory, its name, and the new id."""


class Replacer:
    """For files with one name. The caller of every method holds the namespace lock."""

    def __init__(self, parts: Parts, rekeyed: Rekeyed) -> None:
        self._parts = parts
        self._rekeyed = rekeyed

    def put(self, copy: Copy) -> bool:
        """Put it in place, and let the name of the file say that it is done.

        False, with nothing changed, if the file has gone meanwhile, or got a second name, or changed too
        much: then it is found again. The copy is synced and was read back. OSError, CopyDiffers.
        """
        parts, file = self._parts, copy.file
        node = file.node
        with file.lock:
            parent, lname = node.parent, node.lname
            directory = self.still_there(file, parent, lname)
            if parent is None or directory is None or os.fstat(file.fd).st_nlink != 1:
                return False
            if not self.bring_up_to_date(copy):
                return False
            directory_id = directory.header.object_id
            parts.witness.changing(directory_id, lname)
            with keeping_times(directory.fd):
                copy.put(directory.fd, lname)
            parts.nodes.replaced(node, os.fstat(file.fd).st_ino)
            self.tell(copy, parent, directory, lname)
        return True

    def still_there(self, file: File, parent: Node | None, lname: bytes) -> Directory | None:
        """The directory in which a file still has this name, and is still to be done; else None."""
        parts = self._parts
        if file.unlinked or file.node.dead or parent is None or parent.dead:
            return None
        try:
            directory = parts.directories.get(parent)
            there = os.stat(lname, dir_fd=directory.fd, follow_symlinks=False)
        except OSError:
            return None  # renamed, which is noted, or gone
        marks = parts.directories.marks
        if marks is None or marks.is_done(directory, lname) or there.st_ino != os.fstat(file.fd).st_ino:
            return None
        return directory

    def bring_up_to_date(self, copy: Copy) -> bool:
        """With the file's lock held: the file durable, the copy the same; False if that is too much."""
        if copy.is_outdated:
            return False
        # Should the rename not become durable, the file of before must have all that was promised.
        self._parts.committer.settle_held(copy.file)
        changed = copy.catch_up()
        if changed is not None:
            os.fsync(copy.fd)
            copy.leave_cache()
            copy.verify(changed)
        return True

    def tell(self, copy: Copy, parent: Node, directory: Directory, lname: bytes) -> None:
        """One of the names has the new object; give that name its new spelling."""
        parts, header, node = self._parts, copy.header, copy.file.node
        directory_id = directory.header.object_id
        held = Held(header.object_id, header.generation, False, lname)
        parts.witness.placed(directory_id, lname, held)
        parts.knowledge.shared(node)
        parts.committer.places.moved(node)
        parts.committer.places.entry_changed(parent)
        name = directory.plain_name(lname)
        if directory.old is not None:
            parts.respeller.renew(parent, directory, node, lname)
        if header.kind == FILE:
            self._rekeyed(directory_id, name, header.object_id)

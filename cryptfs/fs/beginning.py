"""Giving a directory a second key, and taking the first one away (docs/format.md section 13).

On disk, at each instant of the beginning: `@dir` with the one key; the same header also in `@old`, durable;
`@dir` with the new key, durable, and a copy of it in `dirs/`, durable, before any name is made under it. Cut
before `@dir` is whole, its other slot has the header that it had. `@old` with the key of `@dir` says nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from cryptfs.fs.directory import Directory
from cryptfs.fs.nodes import Node
from cryptfs.fs.parts import Parts
from cryptfs.fs.respelling import keeping_times
from cryptfs.fs.unreadable import Unreadable, reading
from cryptfs.vault.diskio import create, fsync_path, pwrite_all
from cryptfs.vault.header import FLAG_XATTR
from cryptfs.vault.names import DIR_HEADER, OLD_HEADER, TEMP_PREFIX


class Beginner:
    """Begins directories, and ends what was begun. Without locks; OSError leaves a state of the above."""

    def __init__(self, parts: Parts, on_damaged: Callable[[Node], None]) -> None:
        """`on_damaged` is told, with the namespace lock, of directories whose attributes are damaged."""
        self._parts = parts
        self._on_damaged = on_damaged
        self._recorded: set[int] = set()

    def begin(self, node: Node) -> bool:
        """Have a directory have two keys, unless it has, or needs none; whether something was done."""
        parts = self._parts
        with parts.lock:
            parts.directories.trim()
            with reading():
                directory = parts.directories.get(node)
            marks = parts.directories.marks
            if marks is None or marks.is_begun(directory):
                self._record(node, directory)
                if directory.old is not None:
                    self._attributes(node, directory)  # also those that a run before this one met are told
                return False
            fd = os.dup(directory.fd)
            try:
                self._keep(directory)
            except BaseException:
                os.close(fd)
                raise
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        with parts.lock:
            parts.directories.trim()
            with reading():
                directory = parts.directories.get(node)
            self._switch(node, directory)
        return True

    def _record(self, node: Node, directory: Directory) -> None:
        """A directory that a run before this one began: its copy in `dirs/` may not have become durable."""
        if directory.old is not None and node.ino not in self._recorded:
            self._recorded.add(node.ino)
            packed = self._parts.vault.codec.pack(directory.header)
            self._parts.committer.places.header_written(node.ino, packed, self._above(node))

    def _above(self, node: Node) -> bytes:
        if node.parent is None:
            return bytes(16)
        return self._parts.directories.get(node.parent).header.object_id

    def _keep(self, directory: Directory) -> None:
        """The header that there is, in `@old`, synced, but not yet its name."""
        vault, fd = self._parts.vault, directory.fd
        header = directory.header.copy()
        header.epoch = vault.codec.current_epoch
        temporary = TEMP_PREFIX + os.urandom(8).hex().encode()
        with keeping_times(fd):
            file = create(temporary, vault.modes.file, dir_fd=fd)
            try:
                pwrite_all(file, vault.codec.pack(header), 0)
                os.fsync(file)
                os.rename(temporary, OLD_HEADER, src_dir_fd=fd, dst_dir_fd=fd)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=fd)
                raise
            finally:
                os.close(file)

    def _switch(self, node: Node, directory: Directory) -> None:
        """The new key, in `@dir`. The caller holds the namespace lock, also while that is synced."""
        parts = self._parts
        before, header = directory.header, directory.header.copy()
        header.key = os.urandom(32)
        header.generation += 1
        try:
            slot = parts.directories.write_header(directory.fd, header, directory.slot)
            fsync_path(DIR_HEADER, directory.fd)
            directory.former(before)
            parts.objects.directory_rekeyed(node, directory, header, slot, self._above(node))
        except OSError:
            parts.directories.discard(node.ino)  # to be read again: it has one key, or both
            raise
        self._recorded.add(node.ino)
        parts.committer.places.sync_headers()
        self._move_attributes(node, directory)

    def _move_attributes(self, node: Node, directory: Directory) -> None:
        """Seal extended attributes under the new key; until then both keys are tried.

        Damaged ones stay as they are: what is in the directory does not depend on them.
        """
        found = self._attributes(node, directory)
        if found is not None:
            header = directory.header
            self._parts.vault.xattrs.save(header.object_id, header.key, found)

    def _attributes(self, node: Node, directory: Directory) -> dict[bytes, bytes] | None:
        header = directory.header
        if not header.flags & FLAG_XATTR:
            return None
        try:
            with reading():
                return self._parts.vault.xattrs.load(header.object_id, header.key, directory.former_key)
        except Unreadable:
            self._on_damaged(node)
            return None

    def end(self, node: Node) -> None:
        """Take the former key away: all names are under the new one, durably."""
        parts = self._parts
        with parts.lock:
            parts.directories.trim()
            with reading():
                directory = parts.directories.get(node)
            if directory.old is None and not directory.has(OLD_HEADER):
                return
            self._move_attributes(node, directory)
            with keeping_times(directory.fd):
                for name in map(os.fsencode, os.listdir(directory.fd)):
                    if name == OLD_HEADER or name.startswith(TEMP_PREFIX):  # of a run that was killed
                        os.unlink(name, dir_fd=directory.fd)
            directory.former(None)
            parts.committer.places.entry_changed(node)

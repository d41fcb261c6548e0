"""Replacing a file that has several names, at all of them (docs/format.md section 13).

On disk, in this order: the copy, complete and synced, outside the tree; the record of all names, durable; a
link to the copy beside each name; each name replaced by its link, one after the other; the directories
synced; no record. While the mount lives nobody sees a state between, because the namespace lock is held
from the first name to the last. After a kill or a power cut some names lead to the old file and some to the
copy, which has the same content, and the next mount that may write replaces the rest (`finish`). Done twice
it is the same as once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cryptfs.fs.directory import Directory
from cryptfs.fs.nodes import Node
from cryptfs.fs.parts import Parts
from cryptfs.fs.recopying import Copy
from cryptfs.fs.replacing import Replacer
from cryptfs.fs.respelling import keeping_times
from cryptfs.vault.diskio import pread_all
from cryptfs.vault.header import READ_SIZE, HeaderInvalid, HeaderMissing
from cryptfs.vault.names import TEMP_PREFIX
from cryptfs.vault.reencryption import Links
from cryptfs.vault.vault import Vault

log = logging.getLogger(__name__)

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


Names = set[tuple[Node, bytes]]
"""Names of one file: the node of the directory, and the ciphertext name in it."""


class Linked:
    """The names of files that have several, as a walk found them, by the number of the ciphertext file."""

    def __init__(self) -> None:
        self._names: dict[int, Names] = {}
        self._done: set[int] = set()

    def add(self, lower_ino: int, parent: Node, lname: bytes) -> None:
        self._names.setdefault(lower_ino, set()).add((parent, lname))

    def is_done(self, lower_ino: int) -> None:
        """Another name of the file is new: it was replaced, and a cut came between its names."""
        self._done.add(lower_ino)

    def take(self) -> tuple[list[Names], list[Names]]:
        """The old names of each file, of those that are done and of others; there are none afterwards."""
        names, done, self._names, self._done = self._names, self._done, {}, set()
        return (
            [found for ino, found in names.items() if ino in done],
            [found for ino, found in names.items() if ino not in done],
        )


class Relinker:
    """Puts a copy in place of a file at all its names."""

    def __init__(self, parts: Parts, replacer: Replacer, folder: int, folder_name: str) -> None:
        """Copies are made in the directory open as `folder`, whose path in the vault is `folder_name`."""
        self._parts = parts
        self._replacer = replacer
        self._folder = folder
        self._folder_name = folder_name

    def put(self, copy: Copy, names: Names) -> bool:
        """As `Replacer.put`; False also if these are not all the names. The namespace lock is held."""
        parts, file = self._parts, copy.file
        with file.lock:
            places: list[tuple[Node, Directory, bytes]] = []
            for parent, lname in sorted(names, key=lambda place: (place[0].ino, place[1])):
                directory = self._replacer.still_there(file, parent, lname)
                if directory is not None:
                    places.append((parent, directory, lname))
            if not places or len(places) != os.fstat(file.fd).st_nlink:
                return False
            if not self._replacer.bring_up_to_date(copy):
                return False
            for _, directory, lname in places:
                parts.witness.changing(directory.header.object_id, lname)
            self._replace(copy, places)
            copy.take_over()
            parts.nodes.replaced(file.node, os.fstat(file.fd).st_ino)
            for parent, directory, lname in places:
                self._replacer.tell(copy, parent, directory, lname)
        return True

    def _replace(self, copy: Copy, places: list[tuple[Node, Directory, bytes]]) -> None:
        old, new = copy.file.header.object_id, copy.header.object_id
        paths = [_join(parent.path(), lname).decode() for parent, _, lname in places]
        links = Links(old.hex(), new.hex(), f"{self._folder_name}/{copy.name.decode()}", paths)
        reencryption = self._parts.vault.reencryption
        reencryption.replacing(links)
        try:
            # Whatever may need room comes before the first name is changed.
            for number, (_, directory, _) in enumerate(places):
                with keeping_times(directory.fd):
                    beside = _beside(new, number)
                    os.link(
                        copy.name, beside,
                        src_dir_fd=self._folder, dst_dir_fd=directory.fd, follow_symlinks=False,
                    )  # fmt: skip
        except OSError:
            for number, (_, directory, _) in enumerate(places):
                with keeping_times(directory.fd), suppress(OSError):
                    os.unlink(_beside(new, number), dir_fd=directory.fd)
            reencryption.replacing(None)
            raise
        copy.placed = True  # somewhere at least, from the next call on: the record completes it
        for number, (_, directory, lname) in enumerate(places):
            with keeping_times(directory.fd):
                os.rename(_beside(new, number), lname, src_dir_fd=directory.fd, dst_dir_fd=directory.fd)
        os.unlink(copy.name, dir_fd=self._folder)
        for fd in {directory.fd for _, directory, _ in places}:
            os.fsync(fd)
        reencryption.replacing(None)


def finish(vault: Vault) -> None:
    """Do what a session that was killed had begun, at the next mount that may write."""
    links = vault.reencryption.links
    if links is None:
        return
    root = os.open(vault.path, _OPEN_DIR)
    copy = os.fsencode(links.copy)
    try:
        if _is_object(vault, root, copy, links.new):
            _replace_rest(vault, links, root, copy)
        else:  # removed, once it stood at every name; or the names that do not have it never will
            for name in links.names:
                with _place_of(vault, name) as (directory, lname):
                    if directory >= 0 and _is_object(vault, directory, lname, links.new):
                        _replace_rest(vault, links, directory, lname)
                        break
        with suppress(FileNotFoundError):
            os.unlink(copy, dir_fd=root)
    finally:
        os.close(root)
    vault.reencryption.replacing(None)


def _replace_rest(vault: Vault, links: Links, source_fd: int, source: bytes) -> None:
    replaced = 0
    for number, name in enumerate(links.names):
        beside = _beside(bytes.fromhex(links.new), number)
        with _place_of(vault, name) as (directory, lname):
            if directory < 0:
                continue
            with keeping_times(directory):
                with suppress(FileNotFoundError):
                    os.unlink(beside, dir_fd=directory)
                if _is_object(vault, directory, lname, links.old):
                    os.link(source, beside, src_dir_fd=source_fd, dst_dir_fd=directory, follow_symlinks=False)
                    os.rename(beside, lname, src_dir_fd=directory, dst_dir_fd=directory)
                    replaced += 1
            os.fsync(directory)
    if replaced:
        log.warning("a file with several names was being replaced when the last session ended: completed")


@contextmanager
def _place_of(vault: Vault, path: str) -> Iterator[tuple[int, bytes]]:
    """The directory of a recorded name, open, and the name in it; -1 if it is gone."""
    above, _, lname = os.fsencode(path).rpartition(b"/")
    try:
        fd = _open_below(vault.tree_fd, above)
    except OSError:
        yield -1, lname
        return
    try:
        yield fd, lname
    finally:
        os.close(fd)


def _open_below(tree_fd: int, path: bytes) -> int:
    """A directory of the tree, step by step: a path may be too long for one call."""
    fd = os.dup(tree_fd)
    for step in path.split(b"/") if path else []:
        try:
            inner = os.open(step, _OPEN_DIR, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    return fd


def _is_object(vault: Vault, directory: int, path: bytes, object_id: str) -> bool:
    """Whether this object is under a name."""
    try:
        fd = os.open(path, _OPEN, dir_fd=directory)
    except OSError:
        return False
    try:
        return vault.codec.read(pread_all(fd, READ_SIZE, 0))[0].object_id.hex() == object_id
    except (HeaderMissing, HeaderInvalid, OSError):
        return False
    finally:
        os.close(fd)


def _beside(new: bytes, number: int) -> bytes:
    """The link beside a name, by which it is replaced."""
    return TEMP_PREFIX + f"{new.hex()}-{number}".encode()


def _join(above: bytes, lname: bytes) -> bytes:
    return above + b"/" + lname if above else lname

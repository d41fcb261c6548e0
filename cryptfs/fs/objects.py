"""Ciphertext objects seen from above: which inode an entry is, its attributes, its content."""

from __future__ import annotations

import errno
import logging
import os
import stat
from contextlib import suppress
from typing import NamedTuple

from cryptfs.fs.chunks import Buffer
from cryptfs.fs.commit import Committer
from cryptfs.fs.directory import Directory, DirectoryCache, eio, name_cipher, open_entry
from cryptfs.fs.file import File
from cryptfs.fs.knowledge import Knowledge
from cryptfs.fs.nodes import Node, NodeTable, stale
from cryptfs.fs.types import Attr
from cryptfs.fs.verdicts import record_of
from cryptfs.fs.witnessing import Witness
from cryptfs.index.witness import Held
from cryptfs.vault.content import Geometry
from cryptfs.vault.header import (
    AREA_SIZE,
    FILE,
    READ_SIZE,
    SLOT_OFFSETS,
    SLOT_SIZE,
    SYMLINK,
    Header,
    HeaderInvalid,
    HeaderMissing,
)
from cryptfs.vault.journal import Record, superseded
from cryptfs.vault.vault import Vault

log = logging.getLogger(__name__)

_GEOMETRIES = {log2: Geometry(log2) for log2 in range(12, 21)}


class Ghost(Exception):
    """A remnant of a power cut: an object file whose header never became durable."""


class Lower(NamedTuple):
    """A regular object file as it stands: header, its slot, ciphertext length, journal overlay."""

    header: Header
    slot: int
    length: int
    overlay: dict[int, Buffer]


def plain_size(header: Header, length: int) -> int | None:
    """Plaintext length of an object, None if no content has that ciphertext length."""
    if header.kind == FILE or header.kind == SYMLINK:
        return _GEOMETRIES[header.chunk_log2].plain_size(length)
    return 0


def plain_size_of(mode: int, chunk_log2: int, length: int) -> int | None:
    """The same, of an object whose type is in `mode`."""
    return _GEOMETRIES[chunk_log2].plain_size(length) if stat.S_ISREG(mode) or stat.S_ISLNK(mode) else 0


class Objects:
    """Reads headers, builds attributes, opens content. The caller holds the namespace lock."""

    def __init__(
        self,
        vault: Vault,
        nodes: NodeTable,
        directories: DirectoryCache,
        committer: Committer,
        overlays: dict[bytes, list[Record]],
        knowledge: Knowledge,
        witness: Witness,
    ) -> None:
        self._vault = vault
        self._nodes = nodes
        self._directories = directories
        self._committer = committer
        self._overlays = overlays
        self._knowledge = knowledge
        self._witness = witness
        self._access = os.O_RDONLY if vault.read_only else os.O_RDWR

    # -- entries -----------------------------------------------------------------------------

    def look(self, parent: Node, directory: Directory, lname: bytes, name: bytes = b"") -> tuple[Node, Attr]:
        """The node and attributes of an entry as its ciphertext has them, without a reference.

        `name` is the plaintext name where the caller knows it. FileNotFoundError if there is none (or
        only a remnant of a power cut), EIO if it is damaged.
        """
        fd = open_entry(lname, os.O_RDONLY, directory.fd)
        keep = False
        try:
            st = os.fstat(fd)
            ino = self._nodes.number(st.st_ino)
            if stat.S_ISREG(st.st_mode):
                if st.st_ino in self._directories.half_made:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
                node = self._nodes.place(ino, parent, lname, False)
                if node.file is not None:
                    self._knowledge.looked(parent, directory, lname, name, node, None, st, 0)
                    return node, self.file_attr(node.file, st)
                return node, self._object_attr(parent, node, directory, fd, st, lname, name)
            if not stat.S_ISDIR(st.st_mode):
                raise eio()
            node = self._nodes.place(ino, parent, lname, True)
            known = self._directories.cached(ino)
            if known is None:
                known = self._directories.enter(fd, directory.header.object_id)
                self._witness.check(parent, directory.header.object_id, lname, known.header)
                self._directories.insert(ino, known)
                keep = True
            attr = self.directory_attr(node, known.header, os.fstat(fd))  # reading it may have repaired it
            self._knowledge.directory_listed(parent, lname, name, node)
            return node, attr
        except Ghost:
            self._bury(parent, directory, lname)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None
        finally:
            if not keep:
                os.close(fd)

    def inspect(
        self, parent: Node, directory: Directory, lname: bytes
    ) -> tuple[Header, os.stat_result, int] | None:
        """Header, status and plaintext size of a file that is not in use, changing nothing.

        None for a directory and for a file in use or to be repaired; EIO where it is damaged,
        FileNotFoundError.
        """
        fd = open_entry(lname, os.O_RDONLY, directory.fd)
        try:
            st = os.fstat(fd)
            node = self._nodes.find(self._nodes.number(st.st_ino))
            if stat.S_ISDIR(st.st_mode) or (node is not None and node.file is not None):
                return None
            lower = self._read_lower(fd, st)
        except Ghost:
            raise eio() from None
        finally:
            os.close(fd)
        if self._vault.state.suspects(lower.header):
            return None
        self._witness.check(parent, directory.header.object_id, lname, lower.header)
        size = plain_size(lower.header, lower.length)
        if size is None:
            raise eio()
        return lower.header, st, size

    def _bury(self, parent: Node, directory: Directory, lname: bytes) -> None:
        """Remove a remnant: it holds nothing that could ever be read. EIO if something durable was there."""
        if self._witness.was_durable(parent, directory.header.object_id, lname):
            raise eio()
        log.warning("an object that was being created when the power failed was never synced and is gone")
        if self._vault.changeable:
            with suppress(OSError):
                os.unlink(lname, dir_fd=directory.fd)
            self._knowledge.gone(parent, lname)

    def _object_attr(
        self, parent: Node, node: Node, directory: Directory, fd: int, st: os.stat_result, lname: bytes,
        name: bytes,
    ) -> Attr:  # fmt: skip
        lower = self._read_lower(fd, st)
        header = lower.header
        self._witness.check(parent, directory.header.object_id, lname, header)
        size = plain_size(header, lower.length)
        if size is None or self._vault.state.suspects(header):
            self._knowledge.looked(parent, directory, lname, name, node, None, st, 0)
            file = self._file(node, open_entry(node.lname, self._access, directory.fd), lower)
            try:
                if self._vault.changeable:
                    file.flush()
                size = file.size
                st = os.fstat(fd)
            finally:
                self.drop(file)
        else:
            self._knowledge.looked(parent, directory, lname, name, node, header, st, size)
        return _attr(node, header, st, size)

    def header_of(self, fd: int, st: os.stat_result) -> Header:
        """The header of an open object file, the journal laid over it. Ghost or EIO if there is none."""
        return self._read_lower(fd, st).header

    def _read_lower(self, fd: int, st: os.stat_result) -> Lower:
        area = os.pread(fd, READ_SIZE, 0)
        length = st.st_size
        overlay: dict[int, Buffer] = {}
        if self._overlays:
            area, length, overlay = self._overlaid(area, length)
        try:
            header, slot = self._vault.codec.read(area)
        except HeaderMissing:
            if self._vault.state.unclean or st.st_ino in self._directories.half_made:
                raise Ghost from None
            log.error("an object has no header")
            raise eio() from None
        except HeaderInvalid as error:
            log.error("an object's header is damaged: %s", error)
            raise eio() from None
        if header.kind not in (FILE, SYMLINK) and not 3 <= header.kind <= 7:
            raise eio()
        return Lower(header, slot, length, overlay)

    def _overlaid(self, area: bytes, length: int) -> tuple[bytes, int, dict[int, Buffer]]:
        """What the object would be after recovery, for a vault that must not be changed."""
        chunks: dict[int, Buffer] = {}
        for object_id in {area[at + 24 : at + 40] for at in SLOT_OFFSETS}:
            records = self._overlays.get(object_id, [])
            if records and self._is_newer(area, records):
                continue
            for record in records:
                if record.length is not None:
                    length = record.length
                    chunks = {at: data for at, data in chunks.items() if at < length}
                for offset, data in record.extents:
                    if offset in SLOT_OFFSETS and len(data) == SLOT_SIZE:
                        area = area[:offset].ljust(offset, b"\0") + bytes(data) + area[offset + SLOT_SIZE :]
                    else:
                        chunks[offset] = data
                        length = max(length, offset + len(data))
        return area, length, chunks

    def _is_newer(self, area: bytes, records: list[Record]) -> bool:
        try:
            header, _ = self._vault.codec.read(area)
        except (HeaderMissing, HeaderInvalid):
            return False
        return superseded(header, records, self._vault.codec)

    # -- attributes ----------------------------------------------------------------------------

    def directory_attr(self, node: Node, header: Header, st: os.stat_result) -> Attr:
        node.mode = header.st_mode
        attr = Attr(
            node.ino, node.mode, st.st_nlink, header.uid, header.gid, 0, st.st_size, st.st_blocks,
            st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns, node.generation,
        )  # fmt: skip
        self._knowledge.directory_looked(node, header, attr)
        return attr

    def touch_directory(self, node: Node) -> None:
        """Now is its change time, which is that of the lower directory; nothing else of it changes."""
        fd = self._directories.get(node).fd
        self._knowledge.directory_changed(node)
        os.fchmod(fd, stat.S_IMODE(os.fstat(fd).st_mode))

    def write_directory(self, node: Node, directory: Directory, header: Header) -> None:
        """Give a directory a changed header, and its copy as well."""
        header.generation += 1
        header.epoch = self._vault.codec.current_epoch
        slot = self._directories.write_header(directory.fd, header, directory.slot)
        above = self._directories.get(node.parent).header.object_id if node.parent else bytes(16)
        self._written(node, directory, header, slot, above)

    def directory_rekeyed(
        self, node: Node, directory: Directory, header: Header, slot: int, above: bytes
    ) -> None:
        """A directory has another key, by a header that is durable in `slot`; the id of that above it."""
        directory.names = name_cipher(header.key, header.object_id)
        self._knowledge.rekeyed(node)
        self._written(node, directory, header, slot, above)

    def _written(self, node: Node, directory: Directory, header: Header, slot: int, above: bytes) -> None:
        directory.slot, directory.header = slot, header
        self._committer.places.header_written(node.ino, self._vault.codec.pack(header), above)
        self._knowledge.directory_changed(node)
        self._witness.placed(above, node.lname, record_of(header, node.lname))
        self._committer.places.rewritten(node)

    def file_attr(self, file: File, st: os.stat_result | None = None) -> Attr:
        """The attributes of a file in use: what it will be, not what is on disk."""
        st = st or os.fstat(file.fd)
        return _attr(file.node, file.header, st, file.size)

    def attr(self, node: Node) -> Attr:
        """The attributes of a known inode. ESTALE when its place is not known any more."""
        if node.file is not None:
            return self.file_attr(node.file)
        if node.dead:
            # Deleted and not open: the kernel may still ask, and write its times back.
            return Attr(node.ino, node.mode, 0, 0, 0, 0, 0, 0, 0, 0, 0, node.generation)
        known = self._knowledge.attr(node)
        if known is not None:
            return known
        if node.is_dir:
            directory = self._directories.get(node)
            return self.directory_attr(node, directory.header, os.fstat(directory.fd))
        if node.parent is None or node.dead:
            raise stale()
        directory = self._directories.get(node.parent)
        found, attr = self.look(node.parent, directory, node.lname)
        if found is not node:
            raise stale()
        return attr

    # -- content ---------------------------------------------------------------------------------

    def open(self, node: Node) -> File:
        """The file of a node, opened if it is not in use yet; the caller counts its handles."""
        if node.file is not None:
            return node.file
        if node.parent is None or node.dead:
            raise stale()
        directory = self._directories.get(node.parent)
        fd = open_entry(node.lname, self._access, directory.fd)
        try:
            st = os.fstat(fd)
            if not stat.S_ISREG(st.st_mode) or self._nodes.number(st.st_ino) != node.ino:
                raise stale()
            lower = self._read_lower(fd, st)
            self._witness.check(node.parent, directory.header.object_id, node.lname, lower.header)
        except Ghost:
            os.close(fd)
            raise eio() from None
        except BaseException:
            os.close(fd)
            raise
        return self._file(node, fd, lower)

    def _file(self, node: Node, fd: int, lower: Lower) -> File:
        """A file over an open object file; repaired first if a power cut left it without its end."""
        header = lower.header
        size = plain_size(header, lower.length)
        suspect = self._vault.state.suspects(header)
        try:
            if size is None and not suspect:
                log.error("object %s: the file was cut or extended", header.object_id.hex())
                raise eio()
            left = self._committer.unsettled(node.ino)
            durable, slot = (True, lower.slot) if left is None else (left.durable, left.slot)
            # The content of special files is nothing; as a file they have size 0 and are never read.
            file = File(self._committer, node, fd, header, slot, size or 0, durable)
            file.noted = header.generation
            if left is not None:
                file.not_synced()
                file.found_written(lower.slot)
            if lower.overlay:
                geometry = _GEOMETRIES[header.chunk_log2]
                file.overlay(
                    {(at - AREA_SIZE) // geometry.stride: data for at, data in lower.overlay.items()}
                )
            if size == 0 and not suspect and header.kind in (FILE, SYMLINK) and not file.verify_tail():
                # No read would ever touch the one chunk that says the file is really empty.
                raise file.damaged()
            if suspect and header.kind in (FILE, SYMLINK):
                self._settle_suspect(file, size is not None)
        except BaseException:
            os.close(fd)
            raise
        node.file = file
        self._nodes.keep(node)
        return file

    def _settle_suspect(self, file: File, fits: bool) -> None:
        """Check a file that was in flight when the last session died; once, then it is as any other."""
        if not fits or not file.is_whole():
            log.warning(
                "object %s lost unsynced content in a power cut and was cut to what is whole",
                file.header.object_id.hex(),
            )
            file.salvage()
        if self._vault.changeable:
            file.adopt()

    def note(self, file: File) -> None:
        """Tell the rollback witness of a header that was put in place since it last heard of the file."""
        node = file.node
        if file.placed == file.noted or file.unlinked or node.parent is None or node.dead:
            return
        try:
            above = self._directories.get(node.parent).header.object_id
        except OSError:
            return  # what was recorded before stays true
        file.noted = file.placed
        held = Held(file.header.object_id, file.placed, False, node.lname)
        self._witness.placed(above, node.lname, held)

    def drop(self, file: File) -> None:
        """Close a file that nobody has open, unless the committer still needs it."""
        if file.handles == 0 and not self._committer.needs(file) and file.node.file is file:
            self._committer.closing(file)
            if not file.is_as_opened:
                self.note(file)
                self._knowledge.closing(file)
            file.node.file = None
            file.close()
            self._nodes.release(file.node)


def _attr(node: Node, header: Header, st: os.stat_result, size: int) -> Attr:
    node.mode = header.st_mode
    return Attr(
        node.ino, node.mode, st.st_nlink, header.uid, header.gid, header.rdev, size, st.st_blocks,
        header.atime, header.mtime, header.ctime, node.generation,
    )  # fmt: skip

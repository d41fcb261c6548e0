"""Open ciphertext directories: their names, and the cache of those in use.

All lower calls are relative to a directory's descriptor, so a deep tree never meets
the length limit of a path and a rename above costs nothing.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator

from cryptfs.fs.nodes import ROOT, Node, stale
from cryptfs.fs.remnants import is_remnant
from cryptfs.vault.dirlog import CARRIED_AT, CARRIED_MAX, RECORD_SIZE
from cryptfs.vault.diskio import pread_all, pwrite_all, replace_file
from cryptfs.vault.header import (
    DIRECTORY,
    READ_SIZE,
    SLOT_OFFSETS,
    SLOT_SIZE,
    Header,
    HeaderInvalid,
    HeaderMissing,
)
from cryptfs.vault.names import (
    DIR_HEADER,
    LONG_SUFFIX,
    NAME_MAX,
    NameCipher,
    NameInvalid,
    is_entry,
    is_long,
    long_entry,
)
from cryptfs.vault.vault import Vault

log = logging.getLogger(__name__)

_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_LONG_TEXT_MAX = 400
CARRIERS_MAX = 2000
"""So many entries are looked at for a lost header: a tree made for it would keep the mount busy for ever."""


def eio() -> OSError:
    """Ciphertext is damaged."""
    return OSError(errno.EIO, os.strerror(errno.EIO))


def lower_name(names: NameCipher, name: bytes) -> tuple[bytes, bytes | None]:
    """The entry of a plaintext name, and the text of a long name or None."""
    if len(name) > NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    text = names.encrypt(name)
    if len(text) <= NAME_MAX:
        return text, None
    return long_entry(text), text


def _entries(fd: int) -> list[bytes]:
    return [name for name in map(os.fsencode, os.listdir(fd)) if is_entry(name)]


class Directory:
    """One ciphertext directory, open. Not safe for several threads at once."""

    __slots__ = ("fd", "header", "names", "slot")

    def __init__(self, fd: int, header: Header, slot: int) -> None:
        self.fd = fd
        self.header = header
        self.slot = slot
        self.names = NameCipher(header.key, header.object_id)

    def lower_name(self, name: bytes) -> tuple[bytes, bytes | None]:
        """The entry of a plaintext name, and the text of a long name or None."""
        return lower_name(self.names, name)

    def plain_name(self, lname: bytes) -> bytes:
        """The plaintext of an entry; NameInvalid if it does not decrypt."""
        if not is_long(lname):
            return self.names.decrypt(lname)
        try:
            fd = os.open(lname + LONG_SUFFIX, _OPEN_FILE, dir_fd=self.fd)
        except FileNotFoundError:
            raise NameInvalid from None
        try:
            text = pread_all(fd, _LONG_TEXT_MAX, 0)
        finally:
            os.close(fd)
        if long_entry(text) != lname:
            raise NameInvalid
        return self.names.decrypt(text)

    def add_long(self, lname: bytes, text: bytes | None, mode: int) -> None:
        """Write the encrypted name beside its entry, before the entry; nothing for short names."""
        if text is None:
            return
        try:
            os.stat(lname + LONG_SUFFIX, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            replace_file(self.fd, (lname + LONG_SUFFIX).decode(), text, mode)

    def drop_long(self, lname: bytes) -> None:
        """Remove the encrypted name, after its entry; nothing for short names."""
        if is_long(lname):
            try:
                os.unlink(lname + LONG_SUFFIX, dir_fd=self.fd)
            except FileNotFoundError:
                pass

    def entries(self) -> list[bytes]:
        """The ciphertext names of the objects in it."""
        return _entries(self.fd)


class DirectoryCache:
    """Directories in use, the least recently used closed first.

    The caller holds the namespace lock for as long as it uses a directory's descriptor.
    """

    def __init__(self, vault: Vault, limit: int = 512) -> None:
        self._vault = vault
        self._limit = limit
        self._open: OrderedDict[int, Directory] = OrderedDict()
        self.check: Callable[[Node, bytes, bytes, Header], None] = lambda *_: None
        """Called for every header that was read: the directory above, its id, the name. May raise EIO."""
        self.half_made: dict[int, tuple[Node, bytes]] = {}
        """Where objects lie that could neither be finished nor removed, by ciphertext number: remnants."""

    def get(self, node: Node) -> Directory:
        """The open directory of a node. EIO if its header is damaged, ESTALE if it is gone."""
        directory = self._open.get(node.ino)
        if directory is not None:
            self._open.move_to_end(node.ino)
            return directory
        # Upwards to the first that is open, then down: without recursion, trees may be deep.
        chain: list[Node] = []
        above: Node | None = node
        while above is not None and above.ino not in self._open:
            chain.append(above)
            above = above.parent
        if above is None and chain[-1].ino != ROOT:
            raise stale()
        for step in reversed(chain):
            directory = self._open_step(step)
        assert directory is not None
        return directory

    def _open_step(self, node: Node) -> Directory:
        if node.ino == ROOT or node.parent is None:
            fd = os.dup(self._vault.tree_fd)
            parent_id = None
        else:
            parent = self._open[node.parent.ino]
            try:
                fd = os.open(node.lname, _OPEN_DIR, dir_fd=parent.fd)
            except FileNotFoundError:
                raise stale() from None
            parent_id = parent.header.object_id
        try:
            return self._adopt(node, fd, parent_id)
        except BaseException:
            os.close(fd)
            raise

    def _adopt(self, node: Node, fd: int, parent_id: bytes | None) -> Directory:
        header, slot = self.read_header(fd, parent_id)
        if parent_id is not None and node.parent is not None:
            self.check(node.parent, parent_id, node.lname, header)
        return self.insert(node.ino, Directory(fd, header, slot))

    def insert(self, ino: int, directory: Directory) -> Directory:
        """Take over a directory that the caller has just opened or made."""
        old = self._open.pop(ino, None)
        if old is not None:
            os.close(old.fd)
        self._open[ino] = directory
        return directory

    def trim(self) -> None:
        """Close what is over the limit: at the beginning of an operation, before any is in use."""
        while len(self._open) > self._limit:
            _, oldest = self._open.popitem(last=False)
            os.close(oldest.fd)

    def discard(self, ino: int) -> None:
        """The directory is gone (or its header changed elsewhere)."""
        directory = self._open.pop(ino, None)
        if directory is not None:
            os.close(directory.fd)

    def cached(self, ino: int) -> Directory | None:
        return self._open.get(ino)

    def close(self) -> None:
        for directory in self._open.values():
            os.close(directory.fd)
        self._open.clear()

    def read_header(self, fd: int, parent_id: bytes | None) -> tuple[Header, int]:
        """The header of the directory open as `fd`, from its copy if `@dir` is lost.

        FileNotFoundError if the directory is a remnant of a power cut: without a header and
        without an entry that was ever durable. EIO if it cannot be opened.
        """
        try:
            file = os.open(DIR_HEADER, _OPEN_FILE, dir_fd=fd)
        except FileNotFoundError:
            area = b""
        else:
            try:
                if not stat.S_ISREG(os.fstat(file).st_mode):
                    raise eio()
                area = pread_all(file, READ_SIZE, 0)
            finally:
                os.close(file)
        try:
            header, slot = self._vault.codec.read(area)
            if header.kind == DIRECTORY:
                return header, slot
        except (HeaderMissing, HeaderInvalid):
            pass
        return self._recover(fd, parent_id), 0

    def _recover(self, fd: int, parent_id: bytes | None) -> Header:
        entries = _entries(fd)
        for header in itertools.chain(self._vault.dirlog.candidates(parent_id), self._carried(fd, entries)):
            directory = Directory(fd, header, 0)
            for lname in entries[:20]:
                try:
                    directory.plain_name(lname)
                except NameInvalid:
                    continue
                log.warning("the header of a directory was lost and has been restored from its copy")
                if self._vault.changeable:
                    self.write_header(fd, header, -1)
                return header
        if is_remnant(fd, self._vault) or (not entries and os.fstat(fd).st_ino in self.half_made):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        log.error("a directory has neither a valid header nor a copy of it")
        raise eio()

    def _carried(
        self, fd: int, entries: list[bytes], depth: int = 0, budget: Iterator[int] | None = None
    ) -> Iterator[Header]:
        """Headers that the files below a directory carry; a few files of each, and so many in all, do."""
        budget = iter(range(CARRIERS_MAX)) if budget is None else budget
        for lname in entries[:50]:
            if next(budget, None) is None:
                return
            inner = os.open(lname, _OPEN_FILE, dir_fd=fd)
            try:
                if stat.S_ISDIR(os.fstat(inner).st_mode):
                    if depth < CARRIED_MAX:
                        yield from self._carried(inner, _entries(inner), depth + 1, budget)
                    continue
                area = pread_all(inner, CARRIED_MAX * RECORD_SIZE, CARRIED_AT)
            finally:
                os.close(inner)
            for at in range(0, len(area), RECORD_SIZE):
                try:
                    header = self._vault.codec.unpack(area[at : at + SLOT_SIZE])
                except HeaderInvalid:
                    break
                if header.kind == DIRECTORY:
                    yield header

    def write_header(self, fd: int, header: Header, slot: int) -> int:
        """Write a directory's header to the slot that is not `slot` (0 where none is); its number."""
        target = 0 if slot != 0 else 1
        header.epoch = self._vault.codec.current_epoch
        mode = self._vault.modes.file
        file = os.open(DIR_HEADER, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=fd)
        try:
            pwrite_all(file, self._vault.codec.pack(header), SLOT_OFFSETS[target])
        finally:
            os.close(file)
        return target

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
from functools import lru_cache
from typing import TYPE_CHECKING

from cryptfs.fs.halfmade import HalfMade
from cryptfs.fs.nodes import ROOT, Node, stale
from cryptfs.fs.remnants import is_remnant
from cryptfs.vault.dirlog import CARRIED_AT, CARRIED_MAX, RECORD_SIZE
from cryptfs.vault.diskio import NotRegular, open_regular, pread_all, pwrite_all, replace_file
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
    OLD_HEADER,
    TEMP_PREFIX,
    NameCipher,
    NameInvalid,
    is_entry,
    is_long,
    long_entry,
)
from cryptfs.vault.vault import Vault

if TYPE_CHECKING:
    from cryptfs.fs.marks import Marks

log = logging.getLogger(__name__)

_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LONG_TEXT_MAX = 400
CARRIERS_MAX = 2000
"""So many entries are looked at for a lost header: a tree made for it would keep the mount busy for ever."""


name_cipher = lru_cache(maxsize=1024)(NameCipher)
"""The cipher of a directory's names, by its key and object id."""


def eio() -> OSError:
    """Ciphertext is damaged."""
    return OSError(errno.EIO, os.strerror(errno.EIO))


def open_entry(lname: bytes, flags: int, dir_fd: int) -> int:
    """Open an entry of a directory; EIO where a link, a socket or such a thing stands in its place."""
    try:
        return os.open(lname, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=dir_fd)
    except OSError as problem:
        if problem.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ENOTDIR):
            raise eio() from None
        raise


def lower_name(names: NameCipher, name: bytes) -> tuple[bytes, bytes | None]:
    """The entry of a plaintext name, and the text of a long name or None."""
    if len(name) > NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    text = names.encrypt(name)
    if len(text) <= NAME_MAX:
        return text, None
    return long_entry(text), text


def _opens(directory: Directory, entries: list[bytes]) -> bool:
    """Whether one of the first entries has a name in a directory."""
    for lname in entries[:20]:
        try:
            directory.plain_name(lname)
        except NameInvalid:
            continue
        return True
    return False


def _entries(fd: int) -> list[bytes]:
    # In the order of their inodes: so their status, and most often their content, lies on the disk.
    with os.scandir(fd) as found:
        numbered = [(entry.inode(), entry.name) for entry in found]
    numbered.sort()
    return [name for name in (os.fsencode(name) for _, name in numbered) if is_entry(name)]


class Directory:
    """One ciphertext directory, open. Not safe for several threads at once.

    `old` are its names under the key that it had before, while it is being re-encrypted (format section 13).
    """

    __slots__ = ("fd", "former_key", "header", "names", "old", "slot")

    def __init__(self, fd: int, header: Header, slot: int, former: Header | None = None) -> None:
        self.fd = fd
        self.header = header
        self.slot = slot
        self.names = name_cipher(header.key, header.object_id)
        self.former(former)

    def former(self, header: Header | None) -> None:
        """The header that it had before its key was replaced; None if there is one key only."""
        self.old = None if header is None else name_cipher(header.key, header.object_id)
        self.former_key = None if header is None else header.key

    def lower_name(self, name: bytes) -> tuple[bytes, bytes | None]:
        """The entry of a plaintext name, and the text of a long name or None.

        With two keys it is the entry that is there, and one under the new key where there is none.
        """
        if self.old is not None:
            return self._standing(name, self.old)
        return lower_name(self.names, name)

    def _standing(self, name: bytes, old: NameCipher) -> tuple[bytes, bytes | None]:
        new = lower_name(self.names, name)
        if not self.has(new[0]):
            former = lower_name(old, name)
            if self.has(former[0]):
                return former
        return new

    def has(self, lname: bytes) -> bool:
        """Whether there is such an entry."""
        try:
            os.stat(lname, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def plain_name(self, lname: bytes) -> bytes:
        """The plaintext of an entry; NameInvalid if it does not decrypt."""
        text = self._text(lname)
        try:
            return self.names.decrypt(text)
        except NameInvalid:
            if self.old is None:
                raise
            return self.old.decrypt(text)

    def is_new(self, lname: bytes) -> bool:
        """Whether the name of an entry is under the key that the directory has now."""
        try:
            self.names.decrypt(self._text(lname))
        except NameInvalid:
            return False
        return True

    def _text(self, lname: bytes) -> bytes:
        if not is_long(lname):
            return lname
        try:
            fd = open_regular(lname + LONG_SUFFIX, dir_fd=self.fd)
        except (FileNotFoundError, NotRegular):
            raise NameInvalid from None
        try:
            text = pread_all(fd, _LONG_TEXT_MAX, 0)
        finally:
            os.close(fd)
        if long_entry(text) != lname:
            raise NameInvalid
        return text

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
        self.marks: Marks | None = None
        """While the vault is being re-encrypted, what of it is done."""
        self.half_made = HalfMade()

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
                fd = open_entry(node.lname, _OPEN_DIR, parent.fd)
            except FileNotFoundError:
                raise stale() from None
            parent_id = parent.header.object_id
        try:
            return self._adopt(node, fd, parent_id)
        except BaseException:
            os.close(fd)
            raise

    def _adopt(self, node: Node, fd: int, parent_id: bytes | None) -> Directory:
        directory = self.enter(fd, parent_id)
        if parent_id is not None and node.parent is not None:
            self.check(node.parent, parent_id, node.lname, directory.header)
        return self.insert(node.ino, directory)

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
        self.half_made.close()

    def enter(self, fd: int, parent_id: bytes | None) -> Directory:
        """The directory open as `fd`, which it takes over; errors as `read_header`."""
        header, slot = self.read_header(fd, parent_id)
        former = self.old_header(fd) if self._vault.reencryption.active else None
        if former is not None and (former.object_id != header.object_id or former.key == header.key):
            former = None
        return Directory(fd, header, slot, former)

    def old_header(self, fd: int) -> Header | None:
        """What stands in `@old`: the header that a directory had before its key was replaced."""
        try:
            file = open_regular(OLD_HEADER, dir_fd=fd)
        except FileNotFoundError:
            return None
        except NotRegular:
            file = -1
        if file >= 0:
            try:
                header, _ = self._vault.codec.read(pread_all(file, READ_SIZE, 0))
                if header.kind == DIRECTORY:
                    return header
            except (HeaderMissing, HeaderInvalid):
                pass
            finally:
                os.close(file)
        log.error("the former header of a directory is damaged: names under it are not shown")
        return None

    def read_header(self, fd: int, parent_id: bytes | None) -> tuple[Header, int]:
        """The header of the directory open as `fd`, from its copy if `@dir` is lost.

        FileNotFoundError if the directory is a remnant of a power cut: without a header and
        without an entry that was ever durable. EIO if it cannot be opened.
        """
        try:
            file = open_regular(DIR_HEADER, dir_fd=fd)
        except (FileNotFoundError, NotRegular):
            area = b""
        else:
            try:
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
        before = self.old_header(fd) if self._vault.reencryption.active else None
        copies = itertools.chain(self._vault.dirlog.candidates(parent_id), self._carried(fd, entries))
        for header in copies if before is None else itertools.chain(copies, [before]):
            if before is not None:  # it says whose it is, though no name may be under the newest key yet
                if header.object_id != before.object_id:
                    continue
            elif not _opens(Directory(fd, header, 0), entries):
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
            try:
                inner = open_entry(lname, os.O_RDONLY, fd)
            except OSError:
                continue  # no file of ours
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
        """Write a directory's header to the slot that is not `slot` (0 where none is); its number.

        What stands in its place and is no file is moved aside: without its header the directory would
        be lost with its last entry.
        """
        target = 0 if slot != 0 else 1
        header.epoch = self._vault.codec.current_epoch
        mode = self._vault.modes.file
        try:
            file = open_regular(DIR_HEADER, os.O_WRONLY | os.O_CREAT, mode=mode, dir_fd=fd)
        except NotRegular:
            log.error("something else was put in the place of the header of a directory; it is moved aside")
            os.rename(DIR_HEADER, TEMP_PREFIX + os.urandom(8).hex().encode(), src_dir_fd=fd, dst_dir_fd=fd)
            file = open_regular(DIR_HEADER, os.O_WRONLY | os.O_CREAT, mode=mode, dir_fd=fd)
        try:
            pwrite_all(file, self._vault.codec.pack(header), SLOT_OFFSETS[target])
        finally:
            os.close(file)
        return target

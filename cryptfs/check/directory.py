"""One ciphertext directory: its header, what is in it, and the names of its entries."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from cryptfs.check import attributes
from cryptfs.check.context import Context
from cryptfs.check.copies import carried_headers
from cryptfs.check.finding import Finding, Kind
from cryptfs.check.headers import judge
from cryptfs.check.look import Look, signature_of
from cryptfs.check.place import Place
from cryptfs.vault.dirlog import CARRIED_MAX
from cryptfs.vault.diskio import pread_all
from cryptfs.vault.header import DIRECTORY, READ_SIZE, Header
from cryptfs.vault.names import (
    DIR_HEADER,
    LONG_SUFFIX,
    OLD_HEADER,
    TEMP_PREFIX,
    NameCipher,
    NameInvalid,
    TwoKeys,
    is_entry,
    is_long,
    long_entry,
)

OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_SIDECAR = re.compile(rb"@l[A-Za-z0-9_-]{43}\.name")
_LONG_TEXT_MAX = 400
_TRIED_NAMES, _TRIED_FILES, _TRIED_IN_ALL = 20, 50, 2000


@dataclass
class DirectoryLook(Look):
    """A directory as it was seen; `header` is the one it opens with, `slot` -1 if not its own."""

    header: Header | None = None
    former: Header | None = None
    """The header that it had before its key was replaced, in a vault that is being re-encrypted."""
    slot: int = 0
    epochs: tuple[int, ...] = ()
    files: list[bytes] = field(default_factory=list)
    directories: list[bytes] = field(default_factory=list)

    @property
    def names(self) -> NameCipher | None:
        """For the names in it; None if its key is lost."""
        if self.header is None:
            return None
        if self.former is not None:
            return TwoKeys(self.header.key, self.former.key, self.header.object_id)
        return NameCipher(self.header.key, self.header.object_id)


def look_at(context: Context, place: Place, fd: int, parent_id: bytes | None) -> DirectoryLook:
    """Look at the directory open as `fd`: header and entries, not yet their names."""
    look = DirectoryLook()
    before = signature_of(os.fstat(fd))
    own = _read_header(context, place, fd, look)
    _list(context, place, fd, look)
    if own is None:
        _find_header(context, place, fd, parent_id, look)
    if look.header is not None:
        if look.former is not None and not _is_former(look.former, look.header):
            look.former = None
        problem = attributes.check(context, look.header, place.path(), look.former)
        if problem is not None:
            look.findings.append(problem)
    after = signature_of(os.fstat(fd))
    look.signature = (before, after, _header_signature(fd), context.snapshot.unclean)
    return look


def _header_signature(fd: int) -> object:
    try:
        return signature_of(os.stat(DIR_HEADER, dir_fd=fd, follow_symlinks=False))
    except FileNotFoundError:
        return None


def _read_header(context: Context, place: Place, fd: int, look: DirectoryLook) -> Header | None:
    path = place.path(DIR_HEADER)
    try:
        if not stat.S_ISREG(os.stat(DIR_HEADER, dir_fd=fd, follow_symlinks=False).st_mode):
            look.findings.append(Finding(Kind.WRONG_KIND, path))
            return None
        file = os.open(DIR_HEADER, OPEN_FILE, dir_fd=fd)
    except FileNotFoundError:
        return None
    try:
        slots = judge(pread_all(file, READ_SIZE, 0), context.codec, context.keyring)
    except OSError as problem:
        look.findings.append(Finding.of_error(path, problem))
        return None
    finally:
        os.close(file)
    header = slots.header
    if header is None or header.kind != DIRECTORY:
        return None
    if slots.bad:
        look.findings.append(Finding(Kind.HEADER_SLOT, path, header.object_id))
    look.header, look.slot, look.epochs = header, slots.slot, slots.epochs
    return header


def _is_former(former: Header, header: Header) -> bool:
    """Whether what stands in `@old` is another key of the same directory."""
    return former.object_id == header.object_id and former.key != header.key


def former_header(context: Context, fd: int) -> Header | None:
    """What stands in `@old`, if that is the header of a directory."""
    try:
        if not stat.S_ISREG(os.stat(OLD_HEADER, dir_fd=fd, follow_symlinks=False).st_mode):
            return None
        file = os.open(OLD_HEADER, OPEN_FILE, dir_fd=fd)
    except OSError:
        return None
    try:
        header = judge(pread_all(file, READ_SIZE, 0), context.codec, context.keyring).header
    except OSError:
        return None
    finally:
        os.close(file)
    return header if header is not None and header.kind == DIRECTORY else None


def _list(context: Context, place: Place, fd: int, look: DirectoryLook) -> None:
    """Tell the entries apart, by the table of format section 2."""
    sidecars: list[bytes] = []
    entries: set[bytes] = set()
    with os.scandir(fd) as listing:
        for entry in listing:
            lname = os.fsencode(entry.name)
            if is_entry(lname):
                entries.add(lname)
                if entry.is_dir(follow_symlinks=False):
                    look.directories.append(lname)
                elif entry.is_file(follow_symlinks=False):
                    look.files.append(lname)
                elif not _gone(fd, lname):
                    look.findings.append(Finding(Kind.WRONG_KIND, place.path(lname)))
            elif _SIDECAR.fullmatch(lname):
                sidecars.append(lname)
            elif lname.startswith(TEMP_PREFIX):
                look.findings.append(Finding(Kind.LEFTOVER, place.path(lname)))
            elif lname == OLD_HEADER:
                look.former = former_header(context, fd)
                if look.former is None and not _gone(fd, lname):
                    look.findings.append(Finding(Kind.HEADER_SLOT, place.path(lname)))
            elif lname != DIR_HEADER:
                look.findings.append(Finding(Kind.FOREIGN, place.path(lname)))
    look.files.sort()
    look.directories.sort()
    for lname in sidecars:
        if lname.removesuffix(LONG_SUFFIX) not in entries:
            look.findings.append(Finding(Kind.LEFTOVER, place.path(lname)))


def _gone(fd: int, lname: bytes) -> bool:
    try:
        os.stat(lname, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return True
    return False


def _find_header(
    context: Context, place: Place, fd: int, parent_id: bytes | None, look: DirectoryLook
) -> None:
    """The directory has no valid `@dir`: what opens it instead, or why nothing has to."""
    path = place.path()
    entries = look.files + look.directories
    former = look.former
    if former is not None:
        found = [one for one in context.copies().candidates(parent_id) if one.object_id == former.object_id]
        look.header, look.slot = (found or [former])[0], -1
        look.findings.append(Finding(Kind.DIRECTORY_HEADER, path, former.object_id))
        return
    if not entries:
        remnant = bool(context.snapshot.unclean) and place.parent is not None
        look.findings.append(Finding(Kind.REMNANT if remnant else Kind.DIRECTORY_LOST, path))
        return
    for header in context.copies().candidates(parent_id):
        if _opens(fd, header, entries):
            break
    else:
        for header in _carried(context, fd, entries, [_TRIED_IN_ALL]):
            if _opens(fd, header, entries):
                break
        else:
            look.findings.append(Finding(Kind.DIRECTORY_LOST, path, detail=f"{len(entries)} entries"))
            return
    look.header, look.slot = header, -1
    look.findings.append(Finding(Kind.DIRECTORY_HEADER, path, header.object_id))


def _opens(fd: int, header: Header, entries: list[bytes]) -> bool:
    """Whether a name in the directory decrypts with this header."""
    names = NameCipher(header.key, header.object_id)
    for lname in entries[:_TRIED_NAMES]:
        try:
            plain_name(fd, names, lname)
        except (NameInvalid, OSError):
            continue
        return True
    return False


def _carried(
    context: Context, fd: int, entries: list[bytes], budget: list[int], depth: int = 0
) -> Iterator[Header]:
    """Headers that the files below a directory carry; a few files of each are enough.

    `budget` bounds how many entries are looked at in all: a tree may be as wide as it is deep.
    """
    for lname in entries[:_TRIED_FILES]:
        budget[0] -= 1
        if budget[0] < 0:
            return
        try:
            mode = os.stat(lname, dir_fd=fd, follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode) and depth < CARRIED_MAX:
                inner = os.open(lname, OPEN_DIR, dir_fd=fd)
                try:
                    below = [name for name in map(os.fsencode, os.listdir(inner)) if is_entry(name)]
                    yield from _carried(context, inner, below, budget, depth + 1)
                finally:
                    os.close(inner)
            elif stat.S_ISREG(mode):
                file = os.open(lname, OPEN_FILE, dir_fd=fd)
                try:
                    yield from carried_headers(file, context.codec)
                finally:
                    os.close(file)
        except OSError:
            continue


def plain_name(fd: int, names: NameCipher, lname: bytes) -> bytes:
    """The plaintext of an entry; NameInvalid if it does not decrypt, OSError where the disk refuses."""
    if not is_long(lname):
        return names.decrypt(lname)
    text = long_text(fd, lname)
    if text is None:
        raise NameInvalid
    return names.decrypt(text)


def long_text(fd: int, lname: bytes) -> bytes | None:
    """The encrypted name beside a long entry; None if it is missing or another one's."""
    try:
        if not stat.S_ISREG(os.stat(lname + LONG_SUFFIX, dir_fd=fd, follow_symlinks=False).st_mode):
            return None
        file = os.open(lname + LONG_SUFFIX, OPEN_FILE, dir_fd=fd)
    except FileNotFoundError:
        return None
    try:
        text = pread_all(file, _LONG_TEXT_MAX, 0)
    finally:
        os.close(file)
    try:
        return text if long_entry(text) == lname else None
    except NameInvalid:
        return None


def check_name(place: Place, fd: int, names: NameCipher, lname: bytes) -> Finding | None:
    """What is wrong with the name of an entry; None also if the entry has just gone."""
    try:
        plain_name(fd, names, lname)
        return None
    except NameInvalid:
        if _gone(fd, lname):
            return None
        lost = is_long(lname) and long_text(fd, lname) is None
        return Finding(Kind.LONG_NAME if lost else Kind.NAME, place.path(lname))
    except OSError as problem:
        return Finding.of_error(place.path(lname + LONG_SUFFIX), problem)

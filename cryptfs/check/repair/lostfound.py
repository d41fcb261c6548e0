"""`lost+found`: where an object goes whose name cannot be read any more.

Its folder there is called after the one it was in; the object is called by its id, with an ending that
its content suggests, so that imaging software finds images among what was saved.
"""

from __future__ import annotations

import errno
import os
import stat

from cryptfs.check import names as places
from cryptfs.check.directory import OPEN_DIR, OPEN_FILE, former_header, plain_name
from cryptfs.check.finding import Finding
from cryptfs.check.headers import judge
from cryptfs.check.repair import headers
from cryptfs.check.repair.workshop import Opened, Step, Unrepairable, Workshop
from cryptfs.vault.content import ContentCipher, Geometry, InvalidTag
from cryptfs.vault.diskio import create, make_folder, pread_all, pwrite_all, renameat2
from cryptfs.vault.header import DIRECTORY, FILE, READ_SIZE, SYMLINK, Header
from cryptfs.vault.names import (
    DIR_HEADER,
    LONG_SUFFIX,
    TEMP_PREFIX,
    NameCipher,
    NameInvalid,
    is_entry,
    is_long,
)

NAME = b"lost+found"
_NOREPLACE = 1
_FOLDER_MAX = 120
_MAGIC = {(128, b"DICM"): b".dcm", (0, b"SQLite format 3\0"): b".db", (0, b"%PDF-"): b".pdf"}


def nameless(shop: Workshop, finding: Finding) -> Step | str:
    """An entry whose name does not decrypt: its object, if it is of this vault, goes to lost+found."""

    def do(shop: Workshop) -> None:
        with shop.directory_of(finding.place) as opened:
            if _is_nameless(opened):
                move(shop, opened, opened.lname)

    return Step(finding, "move the object to lost+found, if it is one of this vault, else away", do)


def _is_nameless(opened: Opened) -> bool:
    """Whether the entry is still there and its name still lost."""
    try:
        os.stat(opened.lname, dir_fd=opened.fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    cipher = opened.look().names
    if cipher is None:
        return True
    try:
        plain_name(opened.fd, cipher, opened.lname)
    except NameInvalid:
        return True
    return False


def headerless(shop: Workshop, finding: Finding) -> Step | str:
    """A directory that nothing opens: it gets a new, empty name space, its entries go to lost+found.

    On disk: the new header first. From then on each entry that is not moved yet is one whose name
    does not decrypt, which the next repair moves.
    """

    def do(shop: Workshop) -> None:
        with shop.directory_at(finding.place) as opened:
            look = opened.look()
            if look.header is None:
                header = headers.new_directory_header(shop, opened.above.header if opened.above else None)
                headers.put(shop, opened, header)
                headers.record_copy(shop, header, opened.parent_id)
                shop.context.forget_copies()
            for lname in look.files + look.directories:
                opened.lname = lname
                if _is_nameless(opened):
                    move(shop, opened, lname)

    return Step(finding, "give the directory a new header and move its entries to lost+found", do)


def move(shop: Workshop, opened: Opened, lname: bytes) -> None:
    """Move one entry to lost+found, under a name made up for it; what is no object of this vault, away."""
    place = opened.path(lname)
    wanted = _made_up_name(shop, opened.fd, lname)
    if wanted is None:
        shop.keeper.move(place, "an entry without valid name and header is moved away", opened.fd, lname)
        return
    origin = places.plain_path(shop.context, opened.path()) or b"/"
    folder_name = origin.strip(b"/").replace(b"/", b"_")[:_FOLDER_MAX] or b"root"
    target, cipher = _folder(shop, folder_name)
    try:
        stem, ending = os.path.splitext(wanted)
        for number in range(1, 1000):
            name = wanted if number == 1 else stem + b"-%d" % number + ending
            try:
                renameat2(opened.fd, lname, target, cipher.encrypt(name), _NOREPLACE)
                break
            except OSError as problem:
                if problem.errno != errno.EEXIST:
                    raise
        else:
            raise Unrepairable("lost+found has too many of this object already")
        os.fsync(target)
        os.fsync(opened.fd)
    finally:
        os.close(target)
    where = (NAME + b"/" + folder_name + b"/" + name).decode("utf-8", "backslashreplace")
    shop.moved.append(where)
    shop.keeper.note(place, "an object without a name is in lost+found now")
    if is_long(lname):
        try:
            os.stat(lname + LONG_SUFFIX, dir_fd=opened.fd, follow_symlinks=False)
        except FileNotFoundError:
            return
        shop.keeper.move(
            place + LONG_SUFFIX, "a name without its entry is moved away", opened.fd, lname + LONG_SUFFIX
        )


def _made_up_name(shop: Workshop, dir_fd: int, lname: bytes) -> bytes | None:
    """A name for an object; None if it is not an object of this vault."""
    mode = os.stat(lname, dir_fd=dir_fd, follow_symlinks=False).st_mode
    if stat.S_ISDIR(mode):
        inner = os.open(lname, OPEN_DIR, dir_fd=dir_fd)
        try:
            header = _header_of(shop, inner, DIR_HEADER)
            if header is not None and header.kind == DIRECTORY:
                return b"folder-" + header.object_id.hex().encode()
            below = any(is_entry(name) for name in map(os.fsencode, os.listdir(inner)))
        finally:
            os.close(inner)
        # Without a header, but not empty: there may be objects below.
        return b"folder-" + lname[-16:].replace(b"@", b"") if below else None
    if not stat.S_ISREG(mode):
        return None
    header = _header_of(shop, dir_fd, lname)
    if header is None or header.kind == DIRECTORY:
        return None
    name = header.object_id.hex().encode()
    if header.kind == FILE:
        return name + _ending(dir_fd, lname, header)
    return (b"link-" if header.kind == SYMLINK else b"special-") + name


def _header_of(shop: Workshop, dir_fd: int, lname: bytes) -> Header | None:
    try:
        if not stat.S_ISREG(os.stat(lname, dir_fd=dir_fd, follow_symlinks=False).st_mode):
            return None
        fd = os.open(lname, OPEN_FILE, dir_fd=dir_fd)
    except FileNotFoundError:
        return None
    try:
        return judge(pread_all(fd, READ_SIZE, 0), shop.context.codec, shop.context.keyring).header
    finally:
        os.close(fd)


def _ending(dir_fd: int, lname: bytes, header: Header) -> bytes:
    """What the first chunk says the file is."""
    geometry, cipher = Geometry(header.chunk_log2), ContentCipher(header.key, header.object_id)
    fd = os.open(lname, OPEN_FILE, dir_fd=dir_fd)
    try:
        sealed = pread_all(fd, geometry.stride, geometry.offset(0))
    finally:
        os.close(fd)
    for final in (False, True):
        try:
            head = cipher.open(0, final, sealed)
        except InvalidTag:
            continue
        return next((end for (at, magic), end in _MAGIC.items() if head[at:].startswith(magic)), b"")
    return b""


def _folder(shop: Workshop, name: bytes) -> tuple[int, NameCipher]:
    """`lost+found/NAME`, open, made if need be."""
    root = os.dup(shop.context.tree_fd)
    try:
        with shop.directory_at(b"tree") as opened:
            header = opened.look().header
        if header is None:
            raise Unrepairable("the root directory has no header yet")
        top, top_header = _child(shop, root, header, NAME)
    finally:
        os.close(root)
    try:
        inner, inner_header = _child(shop, top, top_header, name)
    finally:
        os.close(top)
    # Where everything is being re-encrypted, what comes there is still to be done.
    inner_header = former_header(shop.context, inner) or inner_header
    return inner, NameCipher(inner_header.key, inner_header.object_id)


def _child(shop: Workshop, dir_fd: int, above: Header, name: bytes) -> tuple[int, Header]:
    """A directory below another, open; made whole under another name first, so that none is half made."""
    lname = NameCipher(above.key, above.object_id).encrypt(name)
    former = former_header(shop.context, dir_fd)
    if former is not None:
        under_former = NameCipher(former.key, former.object_id).encrypt(name)
        if under_former in map(os.fsencode, os.listdir(dir_fd)):
            lname = under_former
    try:
        fd = os.open(lname, OPEN_DIR, dir_fd=dir_fd)
    except FileNotFoundError:
        header = headers.new_directory_header(shop, above)
        header.mode = 0o700
        temporary = TEMP_PREFIX + os.urandom(8).hex().encode()
        make_folder(temporary, shop.context.modes.directory, dir_fd=dir_fd)
        fd = os.open(temporary, OPEN_DIR, dir_fd=dir_fd)
        try:
            file = create(DIR_HEADER, shop.context.modes.file, dir_fd=fd)
            try:
                pwrite_all(file, shop.context.codec.pack(header), 0)
                os.fsync(file)
            finally:
                os.close(file)
            os.fsync(fd)
            headers.record_copy(shop, header, above.object_id)
            os.rename(temporary, lname, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
            os.fsync(dir_fd)
        except BaseException:
            os.close(fd)
            raise
        return fd, header
    found = _header_of(shop, fd, DIR_HEADER)
    if found is None:
        os.close(fd)
        raise Unrepairable("lost+found itself is damaged: repair once more")
    return fd, found

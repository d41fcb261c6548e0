"""A copy of one file under a new key, made while the file is used (docs/format.md section 13).

On disk: a temporary outside the tree, which nobody reads, until it is renamed over the file it was made of.
By then it is complete, synced, and was read back from the disk.

The plaintext goes from the file to the copy in pieces of 1 MiB, by the same way on which anybody reads it.
Of each piece a digest is kept; what is read back is compared with it. What is changed meanwhile the file
notes (`File.touched`), and it is copied again: the last of it with the file's lock held.

The digest is an AES-GCM tag over the piece, under a key that is drawn for each copy and forgotten with it.
Nobody sees a tag, so this is a universal hash with a secret key: two pieces that differ, whatever they are,
have the same one with a probability of 2^-112. It costs a third of SHA-256.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cryptfs.crypto.aead import OVERHEAD, InvalidTag
from cryptfs.errors import StorageError
from cryptfs.fs.chunks import Buffer
from cryptfs.fs.file import MIB_LOG2, File
from cryptfs.fs.unreadable import reading
from cryptfs.vault.content import ContentCipher, Geometry
from cryptfs.vault.diskio import create, pread_into, pwrite_all
from cryptfs.vault.header import (
    AREA_SIZE,
    FILE,
    FLAG_SPARSE,
    FLAG_XATTR,
    SLOT_SIZE,
    SYMLINK,
    Header,
    HeaderInvalid,
    HeaderMissing,
)
from cryptfs.vault.names import TEMP_PREFIX
from cryptfs.vault.vault import Vault

PIECE = 1 << MIB_LOG2
TOUCHED_MAX = 4096
"""With so many pieces changed since, a copy is begun anew: a hole that became longer stays a hole."""
COPY_PREFIX = TEMP_PREFIX + b"copy-"
_ROOM = PIECE + (PIECE >> 12) * OVERHEAD
_ZEROS = memoryview(bytes(PIECE))

Pause = Callable[[], None]


class CopyDiffers(StorageError):
    """What was read back is not what was written."""

    def __init__(self) -> None:
        super().__init__(
            "A file that was written anew does not read back as what was written: the disk or the memory of "
            "this machine fails. The file of before was kept."
        )


class Room:
    """Memory that one thread uses again for each piece."""

    def __init__(self) -> None:
        self.sealed = memoryview(bytearray(_ROOM))
        self.plain = memoryview(bytearray(PIECE))


def _be_like(fd: int, st: os.stat_result) -> None:
    """Give a ciphertext file the owner and mode of another: whoever reads that, a backup, reads this."""
    own = os.fstat(fd)
    if (own.st_uid, own.st_gid) != (st.st_uid, st.st_gid):
        with suppress(PermissionError):
            os.fchown(fd, st.st_uid, st.st_gid)
    if stat.S_IMODE(own.st_mode) != stat.S_IMODE(st.st_mode):
        os.fchmod(fd, stat.S_IMODE(st.st_mode))


class Copy:
    """The copy of a file that the caller holds open. `discard` removes it; once put in place, `fd` is what
    it replaced, for the caller to close.
    """

    def __init__(self, vault: Vault, file: File, folder: int, room: Room) -> None:
        """Make it in the directory open as `folder`. The file is durable in place."""
        self.file = file
        self._vault = vault
        self._folder = folder
        self._room = room
        self.name = COPY_PREFIX + os.urandom(8).hex().encode()
        self.fd = create(self.name, vault.modes.file, os.O_RDWR, dir_fd=folder)
        self.placed = False
        _be_like(self.fd, os.fstat(file.fd))
        with file.lock:
            file.touched = set()
            self.header = self._new_header()
            self.size = file.size
        self.header.object_id, self.header.key = os.urandom(16), os.urandom(32)
        self._geometry = Geometry(self.header.chunk_log2)
        self._sealer = ContentCipher(self.header.key, self.header.object_id).sealer()
        self._mac = AESGCM(os.urandom(32))
        self._digests: dict[int, bytes] = {}
        self._attributes: dict[bytes, bytes] | None = None
        self.former_attributes: bytes | None = None
        """The object id under which the file's extended attributes were, where it had any."""

    def _new_header(self) -> Header:
        """The file's header as it is, of the first generation of another object."""
        header = self.file.header.copy()
        header.epoch, header.generation = self._vault.codec.current_epoch, 1
        return header

    @property
    def has_content(self) -> bool:
        """Whether there are chunks: not in a FIFO, a socket or a device."""
        return self.header.kind in (FILE, SYMLINK)

    # -- copying ---------------------------------------------------------------------------------

    def fill(self, pause: Pause, progress: Callable[[int], None]) -> None:
        """Copy all of it, calling `pause` and `progress` with the bytes done, without locks.

        Unreadable if the file or its attributes are damaged; OSError is of the copy, here and below.
        """
        self._save_attributes()
        number = 0
        while self.has_content and number * PIECE <= max(self.size - 1, 0):
            data_at = self._next_data(number)
            if data_at > number:
                progress((data_at - number) * PIECE)
                number = data_at
                continue
            self._copy(number, self.size, fresh=True)
            progress(min(PIECE, self.size - number * PIECE))
            number += 1
            pause()
        self._write_header()
        self._set_length()

    @property
    def is_outdated(self) -> bool:
        """Whether so much changed that a new copy is better than to go on with this one."""
        now = self.file.header
        return (
            now.chunk_log2 != self.header.chunk_log2
            or bool((now.flags ^ self.header.flags) & FLAG_SPARSE)
            or len(self.file.touched or ()) > TOUCHED_MAX
        )

    def again(self, pause: Pause) -> int:
        """Copy once more what was changed meanwhile, without locks; how many pieces these were."""
        with self.file.lock:
            touched, self.file.touched = self.file.touched or set(), set()
            self.size = self.file.size
        for number in sorted(touched):
            self._copy(number, self.size, fresh=False)
            pause()
        self._set_length()
        return len(touched)

    def catch_up(self) -> set[int] | None:
        """The last of it, with the namespace lock and the file's lock held; None if nothing changed.

        Else the copy must be synced and the pieces returned read back before it is put in place.
        """
        file = self.file
        touched, file.touched = file.touched or set(), set()
        header = self._new_header()
        header.object_id, header.key = self.header.object_id, self.header.key
        attributes = self._save_attributes() if header.flags & FLAG_XATTR else False
        if not touched and file.size == self.size and header == self.header and not attributes:
            return None
        self.header, self.size = header, file.size
        for number in sorted(touched):
            self._copy(number, self.size, fresh=False)
        self._write_header()
        self._set_length()
        last = max(self.size - 1, 0) // PIECE
        return {number for number in touched if number <= last}

    def _next_data(self, number: int) -> int:
        """The first piece from this one on that is not all hole in the object file."""
        if not self.header.flags & FLAG_SPARSE:
            return number
        per_piece = PIECE // self._geometry.chunk
        last = max(self.size - 1, 0) // PIECE
        try:
            at = os.lseek(self.file.fd, self._geometry.offset(number * per_piece), os.SEEK_DATA)
        except OSError:
            return number  # no data any more: the last chunk is, though; or not known there
        index = (at - AREA_SIZE) // self._geometry.stride
        return max(number, min(index // per_piece, last))

    def _copy(self, number: int, size: int, *, fresh: bool) -> None:
        """Copy one piece of a file that has `size` bytes."""
        begin = number * PIECE
        wanted = min(PIECE, size - begin)
        if wanted < 0 or (wanted == 0 and begin):
            self._digests.pop(number, None)
            return
        with reading():
            data: Buffer = self.file.read(begin, wanted)
        if len(data) <= self._geometry.chunk:
            data = bytes(data)  # it may be what the file is about to change
        if len(data) != wanted:
            return  # it has just been cut, which is noted: it will be copied again
        self._digests[number] = self._digest(number, data)
        chunk, last = self._geometry.chunk, self._geometry.count(size) - 1
        first = begin // chunk
        sparse = self.header.flags & FLAG_SPARSE
        room, view = self._room.sealed, memoryview(data)
        from_, to = 0, 0
        for index in range(first, first + max(1, -(-wanted // chunk))):
            part = view[(index - first) * chunk : (index - first + 1) * chunk]
            if sparse and index != last and part == _ZEROS[:chunk]:
                end = to + self._geometry.stride
                if fresh:  # there is nothing but a hole yet
                    self._put(first, from_, to)
                    from_ = end
                else:
                    room[to:end] = bytes(end - to)
                to = end
                continue
            to += self._sealer.seal_into(index, index == last, part, room[to:])
        self._put(first, from_, to)

    def _digest(self, number: int, data: Buffer) -> bytes:
        return self._mac.encrypt(number.to_bytes(12, "little"), b"", data)

    def _put(self, first: int, begin: int, end: int) -> None:
        if end > begin:
            pwrite_all(self.fd, self._room.sealed[begin:end], self._geometry.offset(first) + begin)

    @property
    def _length(self) -> int:
        return self._geometry.lower_size(self.size) if self.has_content else AREA_SIZE

    def _set_length(self) -> None:
        os.ftruncate(self.fd, self._length)

    def _write_header(self) -> None:
        pwrite_all(self.fd, self._vault.codec.pack(self.header), 0)

    def _save_attributes(self) -> bool:
        """Have the copy's extended attributes be those of the file, durably; whether they changed."""
        header = self.file.header
        if not header.flags & FLAG_XATTR:
            return False
        with reading():
            found = self._vault.xattrs.load(header.object_id, header.key)
        if found == self._attributes:
            return False
        self._vault.xattrs.save(self.header.object_id, self.header.key, found)
        self._attributes, self.former_attributes = found, header.object_id
        return True

    # -- proving ---------------------------------------------------------------------------------

    def leave_cache(self) -> None:
        """After a sync: have what is read back come from the disk, and the first of it be on its way."""
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(self.fd, 0, min(self._length, _ROOM), os.POSIX_FADV_WILLNEED)

    def verify(
        self, pieces: Iterable[int] | None = None, *, room: Room | None = None, pause: Pause = lambda: None
    ) -> None:
        """Compare it, all or these pieces, after a sync and `leave_cache`. CopyDiffers if anything differs.

        What was changed in the file since it was copied is left out: it will be copied again. Another
        thread than that which copies needs a `room` of its own.
        """
        cipher = ContentCipher(self.header.key, self.header.object_id)
        try:
            header = self._vault.codec.unpack(os.pread(self.fd, SLOT_SIZE, 0))
        except (HeaderMissing, HeaderInvalid):
            raise CopyDiffers() from None
        if header != self.header or os.fstat(self.fd).st_size != self._length:
            raise CopyDiffers()
        for number in sorted(self._digests) if pieces is None else sorted(pieces):
            if number not in (self.file.touched or ()):
                self._compare(cipher, number, room or self._room)
                pause()

    def _compare(self, cipher: ContentCipher, number: int, room: Room) -> None:
        geometry, last = self._geometry, self._geometry.count(self.size) - 1
        begin = number * PIECE
        wanted = min(PIECE, self.size - begin)
        first = begin // geometry.chunk
        count = max(1, -(-wanted // geometry.chunk))
        if begin + wanted < self.size:
            ahead = geometry.offset(first + count)
            os.posix_fadvise(self.fd, ahead, _ROOM, os.POSIX_FADV_WILLNEED)
        sealed = room.sealed[: wanted + count * OVERHEAD]
        sealed = sealed[: pread_into(self.fd, sealed, geometry.offset(first))]
        plain = room.plain[:wanted]
        for index in range(first, first + count):
            at = (index - first) * geometry.chunk
            source = sealed[(index - first) * geometry.stride : (index - first + 1) * geometry.stride]
            target = plain[at : at + geometry.chunk]
            try:
                cipher.open_into(index, index == last, source, target)
            except (InvalidTag, ValueError):
                hole = self.header.flags & FLAG_SPARSE and index != last and not any(source)
                if not hole:
                    raise CopyDiffers() from None
                target[:] = _ZEROS[: len(target)]
        if self._digest(number, plain) != self._digests.get(number):
            raise CopyDiffers()

    # -- the end ---------------------------------------------------------------------------------

    def put(self, directory: int, lname: bytes) -> None:
        """Rename it over an entry, and have the file go on with it. The locks are held."""
        os.rename(self.name, lname, src_dir_fd=self._folder, dst_dir_fd=directory)
        self.take_over()

    def take_over(self) -> None:
        """The copy stands in place of the file now: the file goes on with it."""
        self.placed = True
        self.file.touched = None
        self.fd = self.file.replace(self.fd, self.header)

    def discard(self, *, remove: bool) -> None:
        """Give up what was not put in place, without locks.

        If it may not be removed, or the disk refuses that, the next run does it.
        """
        os.close(self.fd)
        self.file.touched = None
        if not remove:
            return
        with suppress(OSError):
            os.unlink(self.name, dir_fd=self._folder)
            if self._attributes is not None:
                self._vault.xattrs.remove(self.header.object_id)

"""One object file: its header, its content, its extended attributes."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, field

from cryptfs.check import attributes
from cryptfs.check.content import ContentChecker, Verdict
from cryptfs.check.context import Context
from cryptfs.check.directory import OPEN_FILE
from cryptfs.check.finding import Finding, Kind
from cryptfs.check.headers import Slots, judge
from cryptfs.check.look import Look, signature_of
from cryptfs.check.source import Overlaid, Plain, Source
from cryptfs.vault.content import ContentCipher, InvalidTag
from cryptfs.vault.header import (
    AREA_SIZE,
    DIRECTORY,
    FILE,
    READ_SIZE,
    SEGMENT,
    SYMLINK,
    Header,
)
from cryptfs.vault.journal import superseded

_TARGET_MAX = 4095


@dataclass
class ObjectLook(Look):
    """An object file as it was seen."""

    header: Header | None = None
    status: os.stat_result | None = None
    """Of its ciphertext, if that did not change while it was looked at."""
    ino: int = 0
    nlink: int = 0
    epochs: tuple[int, ...] = ()
    length: int = 0
    plain: int = 0
    chunks: int = 0
    skipped: bool = False
    """Whether its content was not to be read."""
    gone: bool = False


@dataclass
class Reader:
    """What one thread needs to look at objects."""

    context: Context
    content: ContentChecker = field(init=False)

    def __post_init__(self) -> None:
        self.content = ContentChecker(self.context.throttle)

    def look_at(self, fd: int, lname: bytes, place: bytes, *, content: bool = True) -> ObjectLook:
        """Look at the object file `lname` in the directory open as `fd`; nothing is changed or locked."""
        look = ObjectLook()
        try:
            if not stat.S_ISREG(os.stat(lname, dir_fd=fd, follow_symlinks=False).st_mode):
                look.findings.append(Finding(Kind.WRONG_KIND, place))
                return look
            file = os.open(lname, OPEN_FILE, dir_fd=fd)
        except FileNotFoundError:
            look.gone = True
            return look
        except OSError as problem:
            look.findings.append(Finding.of_error(place, problem))
            return look
        try:
            before = os.fstat(file)
            look.ino, look.nlink, look.length = before.st_ino, before.st_nlink, before.st_size
            try:
                self._read(look, file, before, place, content)
            except OSError as problem:
                look.findings.append(Finding.of_error(place, problem))
            snapshot, after = self.context.snapshot, os.fstat(file)
            look.status = before if signature_of(before) == signature_of(after) else None
            look.signature = (
                signature_of(before),
                signature_of(after),
                snapshot.unclean,
                look.header and snapshot.fingerprint(look.header.object_id),
            )
        finally:
            os.close(file)
        return look

    def _read(self, look: ObjectLook, file: int, status: os.stat_result, place: bytes, content: bool) -> None:
        context, options = self.context, self.context.options
        if options.from_disk:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        source: Source = Plain(file, status)
        got = self.content.head(source) if content else self._header_only(source)
        slots = self._judge(got)
        header = slots.header
        if (
            header is not None
            and (records := context.snapshot.pending.get(header.object_id))
            and not superseded(header, records, context.codec)
        ):
            # What recovery will make of it, or the mount is making of it now.
            source = Overlaid(Plain(file, status), records)
            got = self.content.head(source) if content else self._header_only(source)
            slots = self._judge(got)
        header = slots.header
        if header is None or header.kind in (DIRECTORY, SEGMENT):
            look.findings.append(self._no_header(slots, place))
            return
        look.header, look.epochs = header, slots.epochs
        if slots.bad:
            look.findings.append(Finding(Kind.HEADER_SLOT, place, header.object_id))
        if (problem := attributes.check(context, header, place)) is not None:
            look.findings.append(problem)
        if header.kind not in (FILE, SYMLINK):
            return
        if not content or self._passes_over(header, status):
            look.skipped = True
            return
        verdict = self.content.check(source, header, got)
        look.plain, look.chunks = verdict.size, verdict.chunks
        if header.kind == SYMLINK:
            self._target(look, source, header, verdict, place)
        elif not verdict.good:
            look.findings.append(self._content(source, header, verdict, place))

    def _judge(self, got: int) -> Slots:
        area = bytes(self.content.room[: min(got, READ_SIZE)])
        return judge(area, self.context.codec, self.context.keyring)

    def _header_only(self, source: Source) -> int:
        room = self.content.room[: min(READ_SIZE, source.length)]
        got = source.read_into(room, 0)
        self.content.bytes_read += got
        return got

    def _passes_over(self, header: Header, status: os.stat_result) -> bool:
        """Whether what was asked for leaves this file's content out."""
        options = self.context.options
        changed = max(status.st_mtime_ns, status.st_ctime_ns)
        if options.since_ns is not None and changed < options.since_ns:
            return True
        if options.sample is None:
            return False
        digest = hashlib.blake2b(header.object_id, digest_size=8, key=options.seed).digest()
        return int.from_bytes(digest, "little") >= options.sample * 2**64

    def _no_header(self, slots: Slots, place: bytes) -> Finding:
        if slots.header is not None:
            return Finding(Kind.WRONG_KIND, place, slots.header.object_id)
        if slots.missing and self.context.snapshot.unclean:
            return Finding(Kind.REMNANT, place)
        return Finding(Kind.HEADER, place, detail="it has none" if slots.missing else "")

    def _content(self, source: Source, header: Header, verdict: Verdict, place: bytes) -> Finding:
        chunk = header.chunk_size
        ranges = tuple(
            (first * chunk, min((last + 1) * chunk, max(verdict.size, first * chunk)))
            for first, last in verdict.bad
        )
        facts = {"verdict": verdict, "length": source.length}
        if self.context.suspects(header):
            return Finding(Kind.UNSYNCED, place, header.object_id, facts=facts)
        kind = Kind.CUT if verdict.cut else Kind.CONTENT
        lost = sum(last - first + 1 for first, last in verdict.bad)
        detail = f"{lost} of {verdict.chunks} chunks do not authenticate"
        if kind is Kind.CUT:
            detail = f"{verdict.chunks - lost} chunks authenticate, but the end is not where it should be"
        return Finding(kind, place, header.object_id, detail, ranges, verdict.size, facts)

    def _target(
        self, look: ObjectLook, source: Source, header: Header, verdict: Verdict, place: bytes
    ) -> None:
        if self.context.suspects(header):
            if not verdict.good:
                look.findings.append(Finding(Kind.UNSYNCED, place, header.object_id))
            return
        if verdict.good and verdict.chunks == 1 and 1 <= verdict.size <= _TARGET_MAX:
            sealed = memoryview(bytearray(source.length - AREA_SIZE))
            source.read_into(sealed, AREA_SIZE)
            try:
                if 0 not in ContentCipher(header.key, header.object_id).open(0, True, sealed):
                    return
            except InvalidTag:
                pass
        look.findings.append(Finding(Kind.LINK_TARGET, place, header.object_id))

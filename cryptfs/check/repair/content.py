"""Files that were cut or extended, and files with damaged chunks.

The rule: **what is lost reads as an error, never as data.** No byte is made up. A viewer that comes to
a damaged range gets EIO and says so; it never shows black or an older picture as if it had been measured.

* A damaged chunk stays as it is: reading it is an error, the chunks around it are readable already.
* A file that goes on behind its sealed end, by zeros or by less than a chunk, is cut there: whole again.
* A file without its end gets a mark behind its last whole chunk: 41 bytes that no key opens. All that
  is left is readable then, and behind it comes an error, not an end of file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from cryptfs.check.content import ContentChecker, Verdict
from cryptfs.check.finding import Finding
from cryptfs.check.headers import judge
from cryptfs.check.repair.workshop import RDWR, Step, Workshop
from cryptfs.check.source import Plain
from cryptfs.crypto.aead import OVERHEAD
from cryptfs.vault.content import ContentCipher, Geometry, InvalidTag
from cryptfs.vault.diskio import pread_all, pwrite_all
from cryptfs.vault.header import FILE, READ_SIZE, Header

MARK = b"cryptfs: what followed in this file: lost"
assert len(MARK) == OVERHEAD + 1
_JUNK_MAX = 4200
"""If so many bytes or fewer were put behind the end, and are no zeros, the end is found by trying."""
_RUN = 1 << 20


@dataclass(frozen=True)
class _Remedy:
    """Cut the file at `at` (and write the mark there), or the sentence why not."""

    at: int = -1
    mark: bool = False
    reason: str = ""


def repair(shop: Workshop, finding: Finding) -> Step | str:
    """What can be done is found out by reading the file, and once more when it is done."""
    remedy = _examine(shop, finding.place, os.O_RDONLY)
    if remedy.reason:
        return remedy.reason
    sentence = "mark where its rest is lost" if remedy.mark else "cut off what lies behind its sealed end"

    def do(shop: Workshop) -> None:
        _examine(shop, finding.place, RDWR, apply=True)

    return Step(finding, sentence, do)


def _examine(shop: Workshop, place: bytes, flags: int, *, apply: bool = False) -> _Remedy:
    with shop.directory_of(place) as opened:
        fd = os.open(opened.lname, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=opened.fd)
        try:
            remedy = _remedy(shop, fd)
            if apply and not remedy.reason:
                _apply(shop, fd, place, remedy)
            return remedy
        finally:
            os.close(fd)


def _apply(shop: Workshop, fd: int, place: bytes, remedy: _Remedy) -> None:
    """On disk: what is cut off is kept, then the file is cut, then the mark is written.

    Cut in between, the file is one without its end, which the next repair marks.
    """
    length = os.fstat(fd).st_size
    action = "the end of the file is marked as lost" if remedy.mark else "what lies behind the end is cut off"
    shop.keeper.part(place, action, fd, remedy.at, length - remedy.at)
    os.ftruncate(fd, remedy.at)
    if remedy.mark:
        pwrite_all(fd, MARK, remedy.at)
    os.fsync(fd)


def _remedy(shop: Workshop, fd: int) -> _Remedy:
    context = shop.context
    header = judge(pread_all(fd, READ_SIZE, 0), context.codec, context.keyring).header
    if header is None or header.kind != FILE:
        return _Remedy(reason="its header is damaged")
    length = os.fstat(fd).st_size
    checker, source = ContentChecker(context.throttle), Plain(fd, os.fstat(fd))
    verdict = checker.check(source, header, checker.head(source))
    if verdict.good:
        return _Remedy(reason="it is whole")
    good = verdict.chunks - sum(last - first + 1 for first, last in verdict.bad)
    if not verdict.bad or verdict.bad[-1][1] != verdict.chunks - 1:
        return _Remedy(reason=f"{good} of its {verdict.chunks} chunks are readable, the others an error")
    end = _sealed_end(fd, header, verdict, length)
    if end is not None:
        return _Remedy(end)
    whole = _whole_chunks(fd, header, verdict, length)
    if not whole or (good == 0 and whole < verdict.chunks):
        return _Remedy(reason=f"{good} of its {verdict.chunks} chunks are readable, the others an error")
    return _Remedy(Geometry(header.chunk_log2).offset(whole), mark=True)


def _sealed_end(fd: int, header: Header, verdict: Verdict, length: int) -> int | None:
    """Where the file ended when it was sealed, if nothing but zeros or a piece of a chunk follows."""
    geometry = Geometry(header.chunk_log2)
    first_bad, _ = verdict.bad[-1]
    if verdict.beyond:
        return None
    if verdict.final_at is not None:
        end = geometry.offset(verdict.final_at + 1)
        return end if first_bad <= verdict.final_at and _is_nothing(fd, geometry, end, length) else None
    cipher = ContentCipher(header.key, header.object_id)
    at = geometry.offset(first_bad)
    piece = pread_all(fd, min(geometry.stride, length - at), at)
    solid = len(piece.rstrip(b"\0"))
    likely = range(solid, min(solid + OVERHEAD, len(piece)) + 1)
    junk = range(len(piece), max(OVERHEAD, len(piece) - _JUNK_MAX) - 1, -1)
    for size in (*likely, *junk):
        if size < OVERHEAD or (size == OVERHEAD and first_bad) or at + size >= length:
            continue
        try:
            cipher.open(first_bad, True, memoryview(piece)[:size])
        except InvalidTag:
            continue
        return at + size if _is_nothing(fd, geometry, at + size, length) else None
    return None


def _is_nothing(fd: int, geometry: Geometry, end: int, length: int) -> bool:
    """Whether what follows cannot be the remains of more content: less than a chunk, or zeros."""
    if length - end <= geometry.stride:
        return True
    at = end
    while at < length:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            return True
        if any(pread_all(fd, min(_RUN, length - at), at)):
            return False
        at += _RUN
    return True


def _whole_chunks(fd: int, header: Header, verdict: Verdict, length: int) -> int:
    """Behind how many chunks the end is missing; 0 where the last one merely is damaged."""
    geometry, last = Geometry(header.chunk_log2), verdict.chunks - 1
    at = geometry.offset(last)
    if length - at == geometry.stride:
        try:
            ContentCipher(header.key, header.object_id).open(last, False, pread_all(fd, geometry.stride, at))
        except InvalidTag:
            return 0
        return verdict.chunks
    return last if geometry.plain_size(length) is None else 0

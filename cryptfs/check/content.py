"""Every chunk of one file (docs/format.md section 6).

Large runs are read into one buffer and decrypted beside it; both calls let other threads run. What a
chunk decrypts to is thrown away.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptfs.check.source import Source
from cryptfs.check.throttle import Throttle
from cryptfs.crypto.aead import OVERHEAD
from cryptfs.vault.content import ContentCipher, Geometry, InvalidTag
from cryptfs.vault.header import AREA_SIZE, FLAG_SPARSE, Header

RUN_BYTES = 1 << 20
"""About how much is read at once."""
MAX_RANGES = 1000
"""How many separate damaged ranges of one file are told apart."""

_GEOMETRIES = {log2: Geometry(log2) for log2 in range(12, 21)}


@dataclass
class Verdict:
    """What is wrong with the chunks of a file; chunks that are in no range are good.

    `bad` are first and last index of runs of chunks that do not open where they stand. `cut` says
    that the end is not where a final chunk says it is; `final_at` is a chunk that opens as the last one
    although it is not.
    """

    chunks: int = 0
    size: int = 0
    bad: list[tuple[int, int]] = field(default_factory=list)
    cut: bool = False
    final_at: int | None = None
    beyond: bool = False
    """Whether a chunk behind `final_at` opens, too: then that is not the end."""

    @property
    def good(self) -> bool:
        return not self.bad and not self.cut

    def add(self, first: int, last: int) -> None:
        """Some more bad chunks, behind all others."""
        if self.bad and (self.bad[-1][1] + 1 == first or len(self.bad) >= MAX_RANGES):
            self.bad[-1] = self.bad[-1][0], last
        else:
            self.bad.append((first, last))


class ContentChecker:
    """Checks one file after the other; one of these for each thread."""

    def __init__(self, throttle: Throttle) -> None:
        self._throttle = throttle
        self.room = memoryview(bytearray(AREA_SIZE + RUN_BYTES + (1 << 17)))
        self._out = memoryview(bytearray(1 << 20))
        self.bytes_read = 0

    def head(self, source: Source) -> int:
        """Read the header area and what follows into `room`; how much that is."""
        # Sixteen chunks of 64 KiB: the usual image is read by one call.
        size = min(source.length, AREA_SIZE + _per_run(1 << 16) * ((1 << 16) + OVERHEAD))
        got = source.read_into(self.room[:size], 0)
        self.bytes_read += got
        self._throttle.take(got)
        return got

    def check(self, source: Source, header: Header, got: int) -> Verdict:
        """Check all chunks. `got` bytes from the beginning of the file are in `room`, as `head` left them.

        OSError where the disk refuses.
        """
        geometry = _GEOMETRIES[header.chunk_log2]
        stride = geometry.stride
        body = max(0, source.length - AREA_SIZE)
        size = geometry.plain_size(source.length)
        verdict = Verdict(chunks=max(1, -(-body // stride)), cut=size is None)
        verdict.size = size if size is not None else body // stride * geometry.chunk
        if body == 0:
            verdict.add(0, 0)
            return verdict
        cipher = ContentCipher(header.key, header.object_id)
        index, begin, end = 0, 0, got
        per_run = _per_run(geometry.chunk)
        while index < verdict.chunks:
            at = AREA_SIZE + index * stride
            here = min(stride, source.length - at)
            if at + here > end:
                data_at = source.next_data(at)
                skipped = verdict.chunks - index if data_at >= source.length else (data_at - at) // stride
                if skipped > 0:
                    self._hole(verdict, header, index, skipped)
                    index += skipped
                    continue
                room = self.room[: min(per_run * stride, source.length - at)]
                read = source.read_into(room, at)
                self.bytes_read += read
                self._throttle.take(read)
                begin, end = at, at + read
                if read < here:
                    # It was cut while it was read: whoever asked looks again.
                    verdict.cut = True
                    verdict.add(index, verdict.chunks - 1)
                    return verdict
            piece = self.room[at - begin : at - begin + here]
            if not self._opens(cipher, index, index == verdict.chunks - 1, piece):
                self._judge_bad(verdict, cipher, header, index, piece)
            elif verdict.final_at is not None:
                verdict.beyond = True
            index += 1
        return verdict

    def _opens(self, cipher: ContentCipher, index: int, final: bool, piece: memoryview) -> bool:
        try:
            cipher.open_into(index, final, piece, self._out[: max(0, len(piece) - OVERHEAD)])
        except (InvalidTag, ValueError):
            return False
        return True

    def _judge_bad(
        self, verdict: Verdict, cipher: ContentCipher, header: Header, index: int, piece: memoryview
    ) -> None:
        """A chunk that does not open where it stands: a hole, the wrong end, or damage."""
        last = index == verdict.chunks - 1
        if not last:
            if header.flags & FLAG_SPARSE and _is_zero(piece):
                return
            if self._opens(cipher, index, True, piece):
                verdict.cut, verdict.beyond = True, verdict.beyond or verdict.final_at is not None
                verdict.final_at = index
        elif len(piece) == header.chunk_size + OVERHEAD and self._opens(cipher, index, False, piece):
            verdict.cut = True
            verdict.beyond = verdict.beyond or verdict.final_at is not None
        verdict.add(index, index)

    @staticmethod
    def _hole(verdict: Verdict, header: Header, index: int, count: int) -> None:
        """Chunks that the lower file system has no bytes for."""
        if not header.flags & FLAG_SPARSE:
            verdict.add(index, index + count - 1)
        elif index + count == verdict.chunks:
            verdict.add(verdict.chunks - 1, verdict.chunks - 1)


def _per_run(chunk: int) -> int:
    return max(1, RUN_BYTES // chunk)


def _is_zero(piece: memoryview) -> bool:
    return not any(piece[:OVERHEAD]) and bytes(piece) == bytes(len(piece))

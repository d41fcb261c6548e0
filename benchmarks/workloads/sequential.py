"""One large file, written and read in order in requests of 1 MiB."""

from __future__ import annotations

import os

from benchmarks.data import MIB
from benchmarks.figures import Figure
from benchmarks.workloads.base import Place, expect, workload, write_all

SIZE_MIB = 1024
WRITE = Figure("seq-write", "MB/s", "new file, 1 MiB writes, until close returns; no sync")
WRITE_SYNC = Figure("seq-write-sync", "MB/s", "the same with fsync before close, inside the timing")
READ_COLD = Figure("seq-read-cold", "MB/s", "1 MiB reads after dropping caches")
READ_WARM = Figure("seq-read-warm", "MB/s", "the same again at once")


@workload("sequential", WRITE, WRITE_SYNC, READ_COLD, READ_WARM)
def sequential(place: Place) -> None:
    """Write, write with fsync, read cold, read warm."""
    size = place.scaled(SIZE_MIB) * MIB
    pieces = list(place.data.pieces(0, size, MIB))
    with place.folder("sequential") as folder:
        for name, figure in (("plain", WRITE), ("synced", WRITE_SYNC)):
            path = str(folder / name)
            with place.meter.timing(figure, size / 1e6):
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
                for piece in pieces:
                    write_all(descriptor, piece)
                if figure is WRITE_SYNC:
                    os.fsync(descriptor)
                os.close(descriptor)
        place.make_cold()
        for figure in (READ_COLD, READ_WARM):
            with place.meter.timing(figure, size / 1e6):
                total = _read(path)
            expect(f"bytes read of {path}", total, size)
        if place.verify:
            place.check(path, pieces)


def _read(path: str) -> int:
    buffer = bytearray(MIB)
    total = 0
    descriptor = os.open(path, os.O_RDONLY)
    while count := os.readv(descriptor, [buffer]):
        total += count
    os.close(descriptor)
    return total

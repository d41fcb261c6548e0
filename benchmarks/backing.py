"""Where the vaults lie: on tmpfs, on the disk, or in a directory of the user's choice."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.errors import BenchmarkError
from benchmarks.machine import file_system

SHARED_MEMORY = Path("/dev/shm")
DISK = Path("/var/tmp")


@contextmanager
def working_directory(backing: str) -> Iterator[Path]:
    """A new private directory on the wished backing, removed afterwards.

    `backing` is "tmpfs" (below /dev/shm), "disk" (below /var/tmp, which must not be tmpfs) or a directory.
    """
    parent = {"tmpfs": SHARED_MEMORY, "disk": DISK}.get(backing, Path(backing))
    if not parent.is_dir():
        raise BenchmarkError(f"The backing directory {parent} does not exist.")
    kind = file_system(parent)[0]
    if backing in ("tmpfs", "disk") and (kind == "tmpfs") != (backing == "tmpfs"):
        raise BenchmarkError(f"{parent} is on {kind}, not on {backing}: name a directory with --backing DIR.")
    directory = Path(tempfile.mkdtemp(prefix="cryptfs-bench-", dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)

"""Settings of this process and of the kernel that make the mount faster, each only where permitted."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import resource
import sys
from pathlib import Path

from cryptfs.mount import libc

log = logging.getLogger(__name__)

READ_AHEAD_KB = 1024
# A tenth of Python's default.
SWITCH_SECONDS = 5e-4
MAX_RATIO_PERCENT = 20
# Glibc's limit for blocks from its heap.
KEEP_FREED_BYTES = 32 << 20


def process() -> None:
    """Before the mount: file descriptors, memory, and our part in writing dirty pages."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # What was imported lives as long as the process; requests make next to no cycles.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    # A request that arrives while a thread of the background works waits this long for the interpreter.
    sys.setswitchinterval(SWITCH_SECONDS)
    # Buffers of a request's size stay with the process: given back to the kernel each time, they cost a
    # page fault per 4 KiB again, more than the encryption.
    libc.keep_freed_memory(KEEP_FREED_BYTES)
    # The kernel throttles writers when much is dirty. This process must not be throttled: it is the one
    # that gets the pages clean. Needs CAP_SYS_RESOURCE.
    with contextlib.suppress(OSError):
        libc.set_io_flusher()


def own_memory() -> int:
    """Bytes of memory that are this process's alone.

    Without the files that it maps, as LMDB does: their pages are the kernel's cache, which others may have.
    0 where the kernel does not tell.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def kernel(mountpoint: str) -> None:
    """After the mount: larger read-ahead (requests of 1 MiB), and more pages that may wait dirty."""
    device = os.stat(mountpoint).st_dev
    folder = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}")
    for name, value in (("read_ahead_kb", READ_AHEAD_KB), ("max_ratio", MAX_RATIO_PERCENT)):
        try:
            (folder / name).write_text(str(value))
        except OSError as error:
            log.info(
                "%s stays at the kernel's default (%s): large reads and writes will be slower; "
                "as root, write %d to %s",
                name,
                error.strerror,
                value,
                folder / name,
            )

"""Measuring: wall time, a daemon's processor time and peak memory, and dropping caches."""

from __future__ import annotations

import gc
import mmap
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.errors import BenchmarkError
from benchmarks.figures import Figure, Sample

DROP_CACHES = Path("/proc/sys/vm/drop_caches")
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time that these processes, with all their threads, have used so far.

    The kernel counts it in ticks (usually 10 ms); time of threads that have ended is included.
    """
    ticks = 0
    for pid in pids:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            continue  # ended meanwhile
        fields = stat.rpartition(")")[2].split()  # the command name may contain spaces
        ticks += int(fields[11]) + int(fields[12])
    return ticks / CLOCK_TICKS


def machine_cpu_seconds() -> float:
    """Processor time that the whole machine has been busy, what the hypervisor took included."""
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]
    idle, iowait = int(fields[3]), int(fields[4])
    return (sum(map(int, fields)) - idle - iowait) / CLOCK_TICKS


def peak_memory(pids: Sequence[int]) -> float:
    """Sum of the processes' largest resident sizes (VmHWM) in MiB."""
    kib = 0
    for pid in pids:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        kib += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    return kib / 1024


def drop_caches() -> None:
    """Empty the kernel's page, dentry and inode caches, of the mount and of the disk below.

    What lies on tmpfs is not a cache and stays.
    """
    os.sync()
    try:
        DROP_CACHES.write_text("3")
    except OSError as error:
        raise BenchmarkError(
            f"Cannot drop the caches ({error.strerror}): run the benchmarks as root."
        ) from error


def settle(pids: Sequence[int], patience: float = 5.0) -> None:
    """Wait until the daemon has finished what it still does in the background (closing, forgetting).

    Gives up after `patience` seconds, so that a daemon that never rests is measured as it is.
    """
    deadline = time.monotonic() + patience
    used = cpu_seconds(pids)
    while pids and time.monotonic() < deadline:
        time.sleep(0.1)
        now = cpu_seconds(pids)
        if now == used:
            return
        used = now


def touch_memory(size: int) -> None:
    """Make the kernel's free memory ready to use, at most half of what is available; `size` in bytes.

    In a virtual machine the host backs a page only when it is first touched, and may take free pages back.
    Without this the system that happens to meet untouched memory writes three to ten times slower.
    """
    available = os.sysconf("SC_AVPHYS_PAGES") * mmap.PAGESIZE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    mmap.mmap(-1, max(mmap.PAGESIZE, min(size, available // 2)), flags=flags).close()


class Meter:
    """Takes samples of one system in one round."""

    def __init__(self, system: str, round_number: int, daemon_pids: Callable[[], Sequence[int]]) -> None:
        self._system = system
        self._round = round_number
        self._daemon_pids = daemon_pids
        self.samples: list[Sample] = []

    @contextmanager
    def timing(self, figure: Figure, amount: float) -> Iterator[None]:
        """Time the body; the figure's value is `amount` per second.

        Everything dirty is written back first, outside the timing, so that earlier work is not counted.
        """
        os.sync()
        pids = self._daemon_pids()
        settle(pids)
        gc.collect()
        gc.disable()
        try:
            cpu, own, machine = cpu_seconds(pids), time.process_time(), machine_cpu_seconds()
            start = time.perf_counter()
            yield
            seconds = time.perf_counter() - start
            machine = machine_cpu_seconds() - machine
            own = time.process_time() - own
            cpu = cpu_seconds(pids) - cpu
        finally:
            gc.enable()
        others = max(0.0, machine - own - cpu)
        self.add(figure, amount / seconds, seconds, cpu if pids else None, others)

    def add(
        self,
        figure: Figure,
        value: float,
        seconds: float = 0.0,
        cpu: float | None = None,
        others: float | None = None,
    ) -> None:
        """Record a value; by itself only for what was measured otherwise."""
        self.samples.append(Sample(figure.name, self._system, self._round, value, seconds, cpu, others))

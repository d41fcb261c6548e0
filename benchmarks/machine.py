"""Facts about the machine that a reader needs to judge the figures."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path


def facts(backing: Path) -> dict[str, object]:
    """Kernel, processor, memory and the file system under `backing`."""
    kind, device, options = file_system(backing)
    return {
        "kernel": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "processor": _field(Path("/proc/cpuinfo"), "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": int(_field(Path("/proc/meminfo"), "MemTotal").split()[0]) // 1024,
        "python": platform.python_version(),
        "backing_file_system": kind,
        "backing_device": device,
        "backing_options": options,
        "load_average_before": os.getloadavg()[0],
    }


def file_system(path: Path) -> tuple[str, str, str]:
    """Type, device and options of the mount that holds `path`."""
    resolved = path.resolve()
    best: tuple[int, tuple[str, str, str]] = (-1, ("unknown", "unknown", ""))
    for line in Path("/proc/self/mounts").read_text().splitlines():
        device, mountpoint, kind, options = line.split()[:4]
        place = Path(mountpoint.replace("\\040", " "))
        if resolved.is_relative_to(place) and len(place.parts) >= best[0]:
            best = (len(place.parts), (kind, device, options))
    return best[1]


def package_version(package: str) -> str:
    """The Debian package's version, or an empty string."""
    try:
        found = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def _field(path: Path, name: str) -> str:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "0"

"""Walking a tree with stat: first after a mount, and again with all caches dropped.

`python3 -m benchmarks.walks --files 10000 --files 100000`: one tree of empty files in folders of 200 on
each system, on the disk of `--directory`. "first" is the first walk after a mount with dropped caches,
"steady" one after the caches were dropped again without unmounting. Figures are microseconds for each
entry (lower is better), and for cryptfs the bytes of its index for each entry.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

from benchmarks.measure import drop_caches
from benchmarks.systems import Cryptfs, Gocryptfs, Plain, Securefs

PER_FOLDER = 200
SYSTEMS: dict[str, type[Plain]] = {kind.name: kind for kind in (Cryptfs, Gocryptfs, Securefs, Plain)}


def populate(root: Path, files: int) -> None:
    """Empty files: only names and attributes are measured."""
    for begin in range(0, files, PER_FOLDER):
        folder = root / f"series{begin // PER_FOLDER:06}"
        folder.mkdir()
        for number in range(begin, min(begin + PER_FOLDER, files)):
            (folder / f"1.2.276.0.7230010.3.1.4.{number:08}.dcm").touch()


def walk(root: Path) -> tuple[float, int]:
    """Seconds and entries of one walk with a stat of everything."""
    begin, count, todo = time.perf_counter(), 0, [os.fspath(root)]
    while todo:
        with os.scandir(todo.pop()) as entries:
            for entry in entries:
                count += 1
                entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
    return time.perf_counter() - begin, count


def measure(system: type[Plain], base: Path, files: int) -> dict[str, float]:
    """One system and size: microseconds per entry."""
    mounted = system(base)
    mounted.create()
    mounted.mount()
    try:
        populate(mounted.root, files)
        mounted.unmount()
        drop_caches()
        time.sleep(2.5)  # what is younger is not recognised by its times
        mounted.mount()
        result: dict[str, float] = {}
        for name in ("first", "steady"):
            drop_caches()
            seconds, count = walk(mounted.root)
            result[name] = round(seconds / count * 1e6, 2)
    finally:
        mounted.unmount()
    index = sum(path.stat().st_blocks * 512 for path in (mounted.directory / "state").rglob("*.mdb"))
    if index:
        result["index_bytes"] = round(index / count)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, action="append", help="size of a tree; may be repeated")
    parser.add_argument("--system", action="append", choices=sorted(SYSTEMS), help="only these systems")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args()
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for files in arguments.files or [10_000, 100_000]:
        for name in arguments.system or SYSTEMS:
            base = Path(tempfile.mkdtemp(prefix="walks-", dir=arguments.directory))
            try:
                figures.setdefault(str(files), {})[name] = measure(SYSTEMS[name], base, files)
            finally:
                shutil.rmtree(base, ignore_errors=True)
            print(f"{files:>9} {name:<10} {figures[str(files)][name]}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""How fast `cryptfs verify` checks a vault, beside only reading its files with cat.

`python3 -m benchmarks.verify`: for CT slices of 526 KB, for small files, and for files of 256 MiB; once with
everything in memory, once with the caches dropped (which on tmpfs is the same). The program's start and
the opening of the vault, which are the same for a gigabyte and for a terabyte, are not in the time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks import cli, machine
from benchmarks.backing import working_directory
from benchmarks.data import MIB
from benchmarks.errors import BenchmarkError
from benchmarks.measure import drop_caches
from cryptfs.check.context import Context
from cryptfs.check.run import Check
from cryptfs.fs import FileSystem, FsOptions
from cryptfs.fs.types import Owner
from cryptfs.vault import Vault
from cryptfs.vault.keyring import Keyring
from cryptfs.vault.layout import create_tree

VAULT_ID = bytes(16)
KINDS = {"ct": (526 * 1024, 1.0), "small": (20_000, 0.1), "large": (256 * MIB, 1.0)}
"""Bytes of one file, and the share of --size that is written of the kind."""
PER_FOLDER = 200


class Times(NamedTuple):
    """Wall and processor seconds."""

    wall: float
    cpu: float


def main() -> int:
    """Run the benchmark; exit codes as for `python3 -m benchmarks`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--backing", default="tmpfs", metavar="tmpfs|disk|DIR", help="where the vaults lie")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds (default 3)")
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="of each kind (default 1024)")
    parser.add_argument("--only", metavar="NAME[,…]", help=f"some of {', '.join(KINDS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures")
    options = parser.parse_args()
    return cli.guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    if os.geteuid() != 0:
        raise BenchmarkError("Run the benchmarks as root: only root may drop the kernel's caches.")
    found: dict[str, dict[str, float]] = {}
    with working_directory(options.backing) as working:
        facts = machine.facts(working)
        for kind in options.only.split(",") if options.only else KINDS:
            if kind not in KINDS:
                raise BenchmarkError(f"There is no kind {kind}: choose of {', '.join(KINDS)}.")
            cli.say(f"{kind}: making the vault")
            keyring = Keyring.new()
            size = make(working / kind, keyring, kind, options.size * MIB)
            for state in ("in memory", "from disk"):
                cli.say(f"{kind}: {state}")
                found[f"{kind}, {state}"] = _compare(
                    working / kind, keyring, size, options.rounds, cold=state == "from disk"
                )
    print(
        f"{facts['kernel']}, {facts['cores']} cores ({facts['processor']}), "
        f"backing {facts['backing_file_system']}, load before {facts['load_average_before']:.2f}\n"
    )
    print(
        f"{'':22}{'cat MB/s':>10}{'verify MB/s':>13}{'ratio':>8}{'cat cpu s/GB':>14}{'verify cpu s/GB':>17}"
    )
    for name, row in found.items():
        print(
            f"{name:22}{row['cat']:>10,.0f}{row['verify']:>13,.0f}{row['ratio']:>8.2f}"
            f"{row['cat_cpu']:>14.2f}{row['verify_cpu']:>17.2f}"
        )
    if options.json:
        options.json.write_text(json.dumps({"machine": facts, "figures": found}, indent=2) + "\n")


def make(path: Path, keyring: Keyring, kind: str, size: int) -> int:
    """A vault with files of one kind; the bytes of ciphertext below its tree."""
    path.mkdir()
    create_tree(path, VAULT_ID, keyring, backup_group=False, mode=0o755, uid=0, gid=0)
    file_size, share = KINDS[kind]
    count = max(2, int(size * share) // file_size)
    data = os.urandom(min(file_size, 16 * MIB))
    owner = Owner(0, 0)
    fs = FileSystem(Vault(path, VAULT_ID, keyring), FsOptions())
    try:
        for number in range(count):
            if number % PER_FOLDER == 0:
                folder = fs.mkdir(1, f"study {number // PER_FOLDER}".encode(), 0o755, owner).ino
            handle, attr = fs.create(folder, f"{number}.dcm".encode(), 0o644, owner, os.O_RDWR)
            for offset in range(0, file_size, MIB):
                piece = data[offset % len(data) :][: min(MIB, file_size - offset)]
                fs.write(handle, offset, piece)
            fs.release(handle)
            fs.forget(attr.ino, 1)
    finally:
        fs.close()
    return sum(file.stat().st_size for file in (path / "tree").rglob("*") if file.is_file())


def _compare(path: Path, keyring: Keyring, size: int, rounds: int, *, cold: bool) -> dict[str, float]:
    """Both, one directly after the other, in each round; the best round of each."""
    cat: list[Times] = []
    verify: list[Times] = []
    for _ in range(rounds):
        for times, work in ((cat, lambda: _cat(path)), (verify, lambda: _verify(path, keyring))):
            if cold:
                drop_caches()
            times.append(_timed(work))
    best, ours = min(cat), min(verify)
    return {
        "cat": size / best.wall / 1e6,
        "verify": size / ours.wall / 1e6,
        "ratio": best.wall / ours.wall,
        "cat_cpu": best.cpu / size * 1e9,
        "verify_cpu": ours.cpu / size * 1e9,
    }


def _timed(work: Callable[[], None]) -> Times:
    def cpu() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in used)

    begin, used = time.perf_counter(), cpu()
    work()
    return Times(time.perf_counter() - begin, cpu() - used)


def _cat(path: Path) -> None:
    subprocess.run(f"find {path}/tree -type f -print0 | xargs -0 cat > /dev/null", shell=True, check=True)


def _verify(path: Path, keyring: Keyring) -> None:
    context = Context(path, VAULT_ID, keyring)
    report = Check(context).run()
    context.close()
    if report.verdict != "clean":
        raise BenchmarkError(f"The vault that was just made is {report.verdict}.")


if __name__ == "__main__":
    raise SystemExit(main())

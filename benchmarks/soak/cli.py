"""`python3 -m benchmarks.soak`: options, report and exit code."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

from benchmarks import cli
from benchmarks.backing import DISK
from benchmarks.errors import BenchmarkError
from benchmarks.soak.driver import Driver, Totals
from benchmarks.soak.vault import SoakVault
from benchmarks.soak.watch import Watch
from benchmarks.soak.worker import Mismatch

MINUTES = 10.0
LONG = "CRYPTFS_SOAK_MINUTES"


def main() -> int:
    """Run the soak; exit codes as for `python3 -m benchmarks`."""
    options = _parser().parse_args()
    return cli.guarded(lambda: _run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.soak",
        description=(
            "Mixed load on a mount with a full disk and kill -9 from time to time; every byte is checked "
            "against a model, and the daemon's memory and open files must not grow."
        ),
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=float(os.environ.get(LONG, MINUTES)),
        metavar="N",
        help=f"how long (default {MINUTES:g}, or ${LONG})",
    )
    parser.add_argument("--lower", choices=["ext4", "tmpfs"], default="ext4", help="what the vault lies on")
    parser.add_argument("--size", type=cli.count, default=768, metavar="MIB", help="how large that is")
    parser.add_argument(
        "--fill-chance", type=float, default=0.4, metavar="P", help="how likely a full disk is in a round"
    )
    parser.add_argument("--seed", type=int, default=None, help="repeat the choices of a run")
    parser.add_argument("--keep", action="store_true", help="leave everything in place after a failure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all samples")
    return parser


def _run(options: argparse.Namespace) -> None:
    if os.geteuid() != 0:
        raise BenchmarkError("Run the soak as root: it mounts a small file system to fill it up.")
    seed = int(time.time()) if options.seed is None else options.seed
    cli.say(f"{options.minutes:g} minutes on {options.lower}, --seed {seed}")
    working = Path(tempfile.mkdtemp(prefix="cryptfs-soak-", dir=DISK))
    vault = None
    watch = Watch()
    failed = True
    try:
        vault = SoakVault(working, options.lower, options.size)
        vault.create()
        totals = Driver(vault, watch, seed, options.fill_chance, cli.say).run(options.minutes * 60)
        watch.close()
        growth = watch.growth()
        print(_report(totals, watch))
        if options.json:
            options.json.write_text(json.dumps({**totals._asdict(), "samples": watch.samples}) + "\n")
        if growth:
            raise BenchmarkError("The daemon grows: " + "; ".join(growth) + ".")
        failed = False
    except Mismatch as problem:
        raise BenchmarkError(f"{problem} (seed {seed}).") from problem
    finally:
        if failed and options.keep:
            cli.say(f"left in place: {working}")
        else:
            if vault is not None:
                vault.close()
            shutil.rmtree(working, ignore_errors=True)


def _report(totals: Totals, watch: Watch) -> str:
    done = ", ".join(f"{name} {count}" for name, count in totals.steps.items())
    refused = sum(totals.refused.values())
    return (
        f"{totals.seconds / 60:.1f} minutes, {totals.rounds} rounds, {totals.kills} times kill -9, "
        f"{totals.fillings} times a full disk ({refused} steps refused)\n"
        f"steps: {done}\n"
        f"daemon: {watch.summary()}\n"
        "Everything read back as the models say."
    )

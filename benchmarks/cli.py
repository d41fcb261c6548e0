"""The command line of `python3 -m benchmarks`."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import machine, report, runner
from benchmarks.backing import working_directory
from benchmarks.errors import BenchmarkError
from benchmarks.floor import Floor
from benchmarks.systems import SYSTEMS, Plain
from benchmarks.workloads import WORKLOADS

DEFAULT_SCALE = 0.4
QUICK_SCALE = 0.02


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks; returns the exit code: 0 done, 1 could not go on, 130 interrupted."""
    options = _parser().parse_args(arguments)
    if options.list:
        print(_listing())
        return 0
    return guarded(lambda: _run(options))


def guarded(run: Callable[[], None]) -> int:
    """Run, turning failures into one sentence; SIGTERM unwinds like Ctrl-C: mounts go away."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        run()
    except (BenchmarkError, OSError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmarks: interrupted; nothing is left mounted.", file=sys.stderr)
        return 130
    return 0


def choose(names: str | None, known: Iterable[str], what: str) -> list[str]:
    """The comma-separated names, checked; all that are known if none are given."""
    if names is None:
        return list(known)
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        wrong = ", ".join(unknown) or "(none)"
        raise BenchmarkError(f"Unknown {what} {wrong}: choose from {', '.join(known)}.")
    return list(dict.fromkeys(chosen))


def say(line: str) -> None:
    """Progress, on standard error so that standard output is the report alone."""
    print(line, file=sys.stderr, flush=True)


def about(program: str, options: argparse.Namespace, systems: list[Plain], working: Path) -> dict[str, Any]:
    """What a reader must know of the run to judge or repeat it."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python3", "-m", program, *sys.argv[1:]]),
        "backing": options.backing,
        "versions": {system.name: system.version() for system in systems},
        "machine": machine.facts(working),
    }


def heading(about: dict[str, Any]) -> str:
    """The facts of `about` that stand above the tables."""
    facts = about["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"{about['date']}  {about['command']}\n"
        f"{versions}\n"
        f"{facts['kernel']}, {facts['cores']} cores ({facts['processor']}), {facts['memory_mib']} MiB, "
        f"backing {facts['backing_file_system']}, Python {facts['python']}, "
        f"load before {facts['load_average_before']:.2f}\n"
    )


def add_common_options(parser: argparse.ArgumentParser, backing: str) -> None:
    """Options that both benchmark programs have."""
    parser.add_argument(
        "--backing",
        default=backing,
        metavar="tmpfs|disk|DIR",
        help=f"where the vaults lie (default {backing})",
    )
    parser.add_argument("--rounds", type=count, metavar="N", help="rounds (default 3)")
    parser.add_argument("--systems", metavar="NAME[,…]", help="which to run (default all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all samples and facts")


def _run(options: argparse.Namespace) -> None:
    if os.geteuid() != 0:
        raise BenchmarkError("Run the benchmarks as root: only root may drop the kernel's caches.")
    known = SYSTEMS | {Floor.name: Floor} if options.systems else SYSTEMS  # unless named, it is no system
    names = choose(options.systems, known, "system")
    plan = runner.Plan(
        workloads=[WORKLOADS[name] for name in choose(options.only, WORKLOADS, "workload")],
        rounds=options.rounds or (1 if options.quick else 3),
        scale=options.scale or (QUICK_SCALE if options.quick else DEFAULT_SCALE),
        remount=options.remount,
    )
    cold = "remount and drop caches" if plan.remount else "drop caches"
    with working_directory(options.backing) as working:
        systems = [known[name](working) for name in names]
        facts = about("benchmarks", options, systems, working)
        facts |= {"rounds": plan.rounds, "scale": plan.scale, "cold": cold}
        samples = runner.run(plan, systems, say)
    found = report.summaries(runner.figures(plan.workloads), samples)
    print(heading(facts) + f"{plan.rounds} rounds, scale {plan.scale:g}, cold: {cold}\n")
    print(report.text_report(found, names))
    if options.json:
        report.write_json(options.json, report.json_report(samples, found, facts))


def _listing() -> str:
    lines = []
    for workload in WORKLOADS.values():
        lines.append(workload.name)
        lines += [f"  {figure.name:<16}{figure.unit:<11}{figure.meaning}" for figure in workload.figures]
    return "\n".join(lines)


def count(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _scale(text: str) -> float:
    if not 0 < (value := float(text)) <= 10:
        raise argparse.ArgumentTypeError("must be above 0 and at most 10")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks", description="Measure cryptfs beside gocryptfs, securefs and the bare file system."
    )
    add_common_options(parser, "tmpfs")
    parser.add_argument("--only", metavar="WORKLOAD[,…]", help="which to run (default all)")
    parser.add_argument(
        "--scale", type=_scale, metavar="X", help=f"1 is the full size (default {DEFAULT_SCALE})"
    )
    parser.add_argument("--quick", action="store_true", help=f"one round at scale {QUICK_SCALE}")
    parser.add_argument("--remount", action="store_true", help="cold means a new mount, too")
    parser.add_argument("--list", action="store_true", help="list workloads and figures, and stop")
    return parser

"""Fuzz the targets one after another, each in a process of its own (tools/fuzz)."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.corpus import inputs, save

SHORT = 400
"""Longer inputs are not kept: bytes."""
KEPT = 200
"""So many inputs are kept for a target at the most."""


def fuzz(target: str, seconds: int) -> bool:
    """Whether a target survived; what was learned is added to the corpus."""
    with tempfile.TemporaryDirectory(prefix="cryptfs-fuzz-") as folder:
        known, crashed = Path(folder) / "corpus", Path(folder) / "crash-"
        known.mkdir()
        for number, data in enumerate(inputs(target)):
            (known / f"kept-{number}").write_bytes(data)
        command = [sys.executable, "-m", "tests.fuzz.one", target, str(known), f"-max_total_time={seconds}"]
        command += [f"-artifact_prefix={crashed}", "-max_len=20000", "-timeout=20", "-rss_limit_mb=1000"]
        done = subprocess.run([*command, "-verbosity=0"], check=False)
        learned = [path.read_bytes() for path in known.iterdir() if path.stat().st_size <= SHORT]
        bad = [path.read_bytes() for path in Path(folder).glob("crash-*")]
        save(target, sorted(learned, key=len)[:KEPT] + bad)
    return done.returncode == 0 and not bad


def main(arguments: list[str]) -> int:
    seconds = int(arguments[0]) if arguments else 300
    from tests.fuzz.targets import TARGETS

    failed = []
    for target in arguments[1:] or TARGETS:
        print(f"{target}: {seconds} s", flush=True)
        if not fuzz(target, seconds):
            failed.append(target)
    if failed:
        print(f"tools/fuzz: crashed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

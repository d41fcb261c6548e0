"""Walking a tree with stat: first after a mount, and again with all caches dropped.

`python3 -m benchmarks.walks --files 10000 --files 100000`: one tree of empty files in folders of 200 on
each system, on the disk of `--directory`. "first" is `find -ls` right after a mount with dropped caches,
"steady" one after the caches were dropped again without unmounting. Figures are microseconds for each
entry (lower is better), with "_cpu" those of processor time in daemon and find, which count on a busy
machine. "mount" is the time, in seconds, from the command to the first answer of a mount with dropped caches
(with a key file for cryptfs: how long a passphrase takes is decided when a vault is made), "listing" that of
the first listing of the top folder, "memory" (MiB, RssAnon) that of the daemon then and "walked" after the
walks. `--plot` draws the walks over the size of the tree.

For cryptfs there are also the bytes of the metadata index for each entry, and the files that
`cryptfs index rebuild` reads in a second. Its trees are made through the library, which takes a quarter of
the time; it is mounted without the study index, which others do not have.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import cpu_seconds, drop_caches
from benchmarks.systems import Cryptfs, Gocryptfs, Plain, Securefs

PER_FOLDER = 200


class WithoutStudies(Cryptfs):
    """Nothing but the mount works while it is measured, and no passphrase is hashed."""

    def create(self) -> None:
        super().create()
        self._key_file = self.directory / "key-file"
        self._key_file.touch(mode=0o600)
        self._key_file.write_bytes(os.urandom(64))
        add = ("key", "add", self.volume, "keyfile", "--new-key-file", self._key_file)
        self._run(self._cryptfs(*add, *self._passphrase()))

    def mount_command(self) -> list[str]:
        return self._cryptfs("mount", self.volume, self.root, "--key-file", self._key_file, "--no-studies")


SYSTEMS: dict[str, type[Plain]] = {kind.name: kind for kind in (WithoutStudies, Gocryptfs, Securefs, Plain)}


def populate(root: Path, files: int) -> None:
    """Empty files: only names and attributes are measured."""
    for begin in range(0, files, PER_FOLDER):
        folder = root / f"series{begin // PER_FOLDER:06}"
        folder.mkdir()
        for number in range(begin, min(begin + PER_FOLDER, files)):
            (folder / f"1.2.276.0.7230010.3.1.4.{number:08}.dcm").touch()


def populate_vault(volume: Cryptfs, files: int) -> None:
    """The same in a vault that is not mounted, with all that a mount of it would remember."""
    from cryptfs.fs import FileSystem
    from cryptfs.fs.types import Owner
    from cryptfs.index import place
    from cryptfs.keyslots import passphrase
    from cryptfs.vault import Vault
    from cryptfs.vault.config import load, unlock

    unlocked = unlock(load(volume.volume), passphrase.Passphrase(volume.secret.read_text().rstrip("\n")))
    vault = Vault(volume.volume, unlocked.vault_id, unlocked.keyring)
    fs = FileSystem(vault, place=place.prepare(unlocked.vault_id, volume.directory / "state"))
    owner = Owner(os.getuid(), os.getgid())
    for begin in range(0, files, PER_FOLDER):
        folder = fs.mkdir(1, b"series%06d" % (begin // PER_FOLDER), 0o755, owner).ino
        for number in range(begin, min(begin + PER_FOLDER, files)):
            name = b"1.2.276.0.7230010.3.1.4.%08d.dcm" % number
            handle, attr = fs.create(folder, name, 0o644, owner, os.O_WRONLY)
            fs.release(handle)
            fs.forget(attr.ino, 1)
        fs.forget(folder, 1)
    time.sleep(2.5)  # what is younger when the index is closed is not recognised by its times
    fs.close()


def walk(root: Path) -> float:
    """Seconds of one walk with a stat of everything."""
    begin = time.perf_counter()
    subprocess.run(["find", os.fspath(root), "-ls"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def own_memory(pids: Sequence[int]) -> float:
    """MiB of memory that is the processes' own, without mapped files."""
    kib = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        kib += sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
    return round(kib / 1024, 1)


def _processor(mounted: Plain) -> float:
    """Seconds of processor time that the daemon and the commands that were run here have used."""
    own = os.times()
    return cpu_seconds(mounted.daemon_pids()) + own.children_user + own.children_system


def rebuild(volume: Cryptfs) -> float:
    """Entries that `cryptfs index rebuild` reads in a second, of a vault that is not mounted."""
    command = ["index", "rebuild", "--json", volume.volume, "--passphrase-file", volume.secret]
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "cryptfs", *map(str, command)],
        env={**os.environ, "CRYPTFS_STATE_DIR": str(volume.directory / "state")},
        check=True,
        capture_output=True,
    )
    entries: int = json.loads(done.stdout)["entries"]
    return round(entries / (time.perf_counter() - begin))


def measure(system: type[Plain], base: Path, files: int) -> dict[str, float]:
    """One system and size: microseconds per entry."""
    mounted = system(base)
    mounted.create()
    if isinstance(mounted, Cryptfs):
        populate_vault(mounted, files)
    else:
        mounted.mount()
        try:
            populate(mounted.root, files)
        finally:
            mounted.unmount()
    time.sleep(2.5)  # what is younger is not recognised by its times
    drop_caches()
    count = files + -(-files // PER_FOLDER) + 1
    begin = time.perf_counter()
    mounted.mount()
    result: dict[str, float] = {}
    try:
        os.stat(mounted.root)
        result["mount"] = round(time.perf_counter() - begin, 2)
        begin = time.perf_counter()
        os.listdir(mounted.root)
        result["listing"] = round(time.perf_counter() - begin, 2)
        result["memory"] = own_memory(mounted.daemon_pids())
        for name in ("first", "steady"):
            drop_caches()
            before = _processor(mounted)
            result[name] = round(walk(mounted.root) / count * 1e6, 2)
            result[f"{name}_cpu"] = round((_processor(mounted) - before) / count * 1e6, 2)
        result["walked"] = own_memory(mounted.daemon_pids())
    finally:
        mounted.unmount()
    if isinstance(mounted, Cryptfs):
        index = (mounted.directory / "state").glob("*/metadata/data.mdb")
        result["index_bytes"] = round(sum(path.stat().st_blocks * 512 for path in index) / count)
        drop_caches()
        result["rebuilt"] = rebuild(mounted)
    return result


def plot(figures: dict[str, dict[str, dict[str, float]]], target: Path) -> None:
    """Microseconds for each entry over the number of files, of all systems."""
    from matplotlib import pyplot  # the `plot` extra: only who draws needs it

    _, axes = pyplot.subplots(figsize=(7, 4))
    sizes = sorted(figures, key=int)
    for name in dict.fromkeys(name for size in sizes for name in figures[size]):
        there = [size for size in sizes if name in figures[size]]
        for walk_name, style in (("first", ":"), ("steady", "-")):
            values = [figures[size][name][walk_name] for size in there]
            axes.plot([int(size) for size in there], values, style, marker="o", label=f"{name}, {walk_name}")
    axes.set(
        xscale="log", xlabel="files", ylabel="µs per entry", ylim=(0, None), title="find -ls, caches dropped"
    )
    axes.legend()
    pyplot.savefig(target, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, action="append", help="size of a tree; may be repeated")
    parser.add_argument("--system", action="append", choices=sorted(SYSTEMS), help="only these systems")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the walks (SVG, PNG, PDF)")
    arguments = parser.parse_args()
    if arguments.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install -e '.[plot]'")
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
    if arguments.plot:
        plot(figures, arguments.plot)


if __name__ == "__main__":
    main()

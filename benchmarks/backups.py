"""How much a nightly incremental backup of the ciphertext uploads: `python3 -m benchmarks.backups`.

A mounted vault with images and a database is backed up by restic and borg to local repositories, each
time inside `cryptfs freeze`. What a step uploads is how much the repository grows.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import cli
from benchmarks.backing import working_directory
from benchmarks.errors import BenchmarkError
from benchmarks.systems import CHECKOUT, Cryptfs

IMAGES = 2000
NEW_IMAGES = 500
SIZES = (35_000, 132_000, 526_000)
PATIENTS = 20_000


class Repository:
    """What both tools have in common: a local repository that grows."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / type(self).__name__.lower()
        self.environment = dict(os.environ)

    def size(self) -> int:
        """Bytes of all its files."""
        return sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())

    def create(self) -> None:
        raise NotImplementedError

    def command(self, vault: Path, step: str) -> list[str]:
        """The command that backs the vault up."""
        raise NotImplementedError

    def run(self, command: list[str]) -> None:
        try:
            done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise BenchmarkError(f"{command[0]} is not installed.") from error
        if done.returncode:
            raise BenchmarkError(f"{command[0]} failed: {done.stderr.strip()[-300:]}")


class Restic(Repository):
    def create(self) -> None:
        self.environment |= {"RESTIC_PASSWORD": "backup", "RESTIC_REPOSITORY": str(self.path)}
        self.run(["restic", "-q", "--no-cache", "init"])

    def command(self, vault: Path, step: str) -> list[str]:
        return ["restic", "-q", "--no-cache", "backup", str(vault)]


class Borg(Repository):
    def create(self) -> None:
        self.environment |= {"BORG_BASE_DIR": str(self.path.parent), "BORG_REPO": str(self.path)}
        self.run(["borg", "init", "--encryption=none"])

    def command(self, vault: Path, step: str) -> list[str]:
        return ["borg", "create", f"::{step}", str(vault)]


class Archive:
    """The plaintext: images in folders of 100, and a database of patients."""

    def __init__(self, system: Cryptfs, images: int) -> None:
        self.system = system
        self.images = images
        self._random = random.Random(1)
        self._stored = 0

    def fill(self) -> None:
        """What is there before the first backup."""
        self.store(self.images)
        with sqlite3.connect(self.system.root / "index") as database:
            database.execute("CREATE TABLE patients(number INTEGER PRIMARY KEY, name TEXT, data BLOB)")
            database.executemany(
                "INSERT INTO patients VALUES(?, ?, ?)",
                ((n, f"patient {n}", self._random.randbytes(700)) for n in range(PATIENTS)),
            )
        database.close()

    def store(self, count: int) -> int:
        """More images; how many bytes they have."""
        total = 0
        for _ in range(count):
            folder = self.system.root / f"study-{self._stored // 100}"
            folder.mkdir(exist_ok=True)
            data = self._random.randbytes(self._random.choice(SIZES))
            (folder / f"{self._stored}.dcm").write_bytes(data)
            self._stored += 1
            total += len(data)
        return total

    def vacuum(self) -> int:
        """A tenth of the patients deleted and the database vacuumed; its size."""
        path = self.system.root / "index"
        database = sqlite3.connect(path, isolation_level=None)
        database.execute("DELETE FROM patients WHERE number % 10 = 3")
        database.execute("VACUUM")
        database.close()
        return path.stat().st_size

    def rotate(self) -> int:
        """A new epoch: the header of every file is written anew, no content is."""
        self.cryptfs("rotate", str(self.system.volume), "--passphrase-file", str(self.system.secret))
        return 0

    def cryptfs(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        """Run the command line of this checkout."""
        done = subprocess.run(
            [sys.executable, "-m", "cryptfs", *arguments],
            env=(environment or dict(os.environ)) | {"PYTHONPATH": str(CHECKOUT)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BenchmarkError(f"cryptfs {arguments[0]} failed: {done.stderr.strip()[-300:]}")


def main() -> int:
    """Run it; exit codes as for `python3 -m benchmarks`."""
    parser = argparse.ArgumentParser(prog="benchmarks.backups", description=__doc__)
    parser.add_argument("--backing", default="disk", help="tmpfs, disk, or a directory (default disk)")
    parser.add_argument("--images", type=cli.count, default=IMAGES, metavar="N", help="images at the start")
    options = parser.parse_args()
    return cli.guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    from cryptfs.cli.main import COMMANDS

    with working_directory(options.backing) as working:
        system = Cryptfs(working)
        system.create()
        system.mount()
        try:
            archive = Archive(system, options.images)
            repositories = [kind(working) for kind in (Restic, Borg) if shutil.which(kind.__name__.lower())]
            if not repositories:
                raise BenchmarkError("Neither restic nor borg is installed.")
            archive.fill()
            for repository in repositories:
                repository.create()
            steps: list[tuple[str, Callable[[], int]]] = [
                ("everything", lambda: 0),
                ("nothing changed", lambda: 0),
                (f"{NEW_IMAGES} new images", lambda: archive.store(NEW_IMAGES)),
                ("database vacuumed", archive.vacuum),
            ]
            if "rotate" in COMMANDS:
                steps.append(("keys rotated", archive.rotate))
            print(f"{'step':<20}{'written':>12}" + "".join(f"{r.path.name:>12}" for r in repositories))
            for step, change in steps:
                written = change()
                uploads = [_upload(archive, repository, step) for repository in repositories]
                print(f"{step:<20}{_mib(written):>12}" + "".join(f"{_mib(upload):>12}" for upload in uploads))
        finally:
            system.unmount()


def _upload(archive: Archive, repository: Repository, step: str) -> int:
    before = repository.size()
    vault = archive.system.volume
    command = repository.command(vault, step.replace(" ", "-"))
    archive.cryptfs(
        "freeze", str(vault), "--timeout", "1h", "--", *command, environment=repository.environment
    )
    return repository.size() - before


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.2f} MiB"


if __name__ == "__main__":
    raise SystemExit(main())

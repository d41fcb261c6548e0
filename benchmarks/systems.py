"""The systems under test: each makes its volume, mounts it, unmounts it and knows its daemon.

Every one is run by its command line with its defaults, in the background, as its users run it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.errors import BenchmarkError
from benchmarks.machine import package_version

CHECKOUT = Path(__file__).resolve().parent.parent
PASSPHRASE = "correct horse battery staple of the benchmarks"
PATIENCE = 30.0  # seconds for a mount to appear or a daemon to end


class Plain:
    """The bare directory on the backing file system: what encryption costs is measured against it."""

    name = "plain"

    def __init__(self, working: Path) -> None:
        self.directory = working / self.name
        self.volume = self.directory / "volume"
        self.root = self.volume

    def version(self) -> str:
        """What was measured."""
        return "no encryption"

    def create(self) -> None:
        """Make the empty volume."""
        self.volume.mkdir(parents=True)

    def mount(self) -> None:
        """Make the plaintext appear at `root`."""

    def unmount(self) -> None:
        """Take it away again, and wait until nothing of it runs any more."""

    def abandon(self) -> None:
        """Take it away after a failure, when files may still be open; the daemon ends when we do."""

    def daemon_pids(self) -> list[int]:
        """The processes that serve the mount."""
        return []


class FuseSystem(Plain):
    """What all mounted systems have in common; subclasses say which commands to run."""

    def __init__(self, working: Path) -> None:
        super().__init__(working)
        self.root = self.directory / "mnt"
        self.secret = self.directory / "secret"
        self._log = self.directory / "log"
        self._pids: list[int] = []

    def create_command(self) -> list[str]:
        """The command that makes the volume."""
        raise NotImplementedError

    def mount_command(self) -> list[str]:
        """The command that mounts it in the background."""
        raise NotImplementedError

    def unmount_command(self) -> list[str]:
        """The command that unmounts it."""
        return ["fusermount3", "-u", str(self.root)]

    def create(self) -> None:
        self.volume.mkdir(parents=True)
        self.root.mkdir()
        self.secret.touch(mode=0o600)
        self.secret.write_text(PASSPHRASE + "\n")
        self._run(self.create_command())

    def mount(self) -> None:
        self._run(self.mount_command())
        deadline = time.monotonic() + PATIENCE
        while not (os.path.ismount(self.root) and (pids := fuse_daemons(self.root))):
            if time.monotonic() > deadline:
                raise BenchmarkError(
                    f"{self.name} did not mount within {PATIENCE:.0f} s: {self._last_words()}"
                )
            time.sleep(0.02)
        self._pids = pids

    def unmount(self) -> None:
        self._run(self.unmount_command())
        deadline = time.monotonic() + PATIENCE
        while any(_runs(pid) for pid in self._pids):
            if time.monotonic() > deadline:
                raise BenchmarkError(
                    f"{self.name}'s daemon did not end within {PATIENCE:.0f} s of its unmount."
                )
            time.sleep(0.02)
        self._pids = []

    def abandon(self) -> None:
        if os.path.ismount(self.root):
            subprocess.run(["umount", "-l", str(self.root)], check=False)

    def daemon_pids(self) -> list[int]:
        return self._pids

    def _run(self, command: list[str]) -> None:
        # Output goes to a file: a daemon that keeps it open must not keep us waiting.
        with self._log.open("ab") as log:
            try:
                done = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment(),
                    check=False,
                )
            except FileNotFoundError as error:
                raise BenchmarkError(f"{command[0]} is not installed.") from error
        if done.returncode:
            raise BenchmarkError(f"{self.name} failed with exit code {done.returncode}: {self._last_words()}")

    def _environment(self) -> dict[str, str]:
        return dict(os.environ)

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


class Cryptfs(FuseSystem):
    """cryptfs of this checkout, driven by its command line."""

    name = "cryptfs"

    def version(self) -> str:
        import cryptfs

        revision = _git("rev-parse", "--short", "HEAD") or "no revision"
        changed = " with changes" if _git("status", "--porcelain", "--", "cryptfs") else ""
        return f"{cryptfs.__version__} ({revision}{changed})"

    def create_command(self) -> list[str]:
        self.volume.rmdir()
        recovery = self.directory / "recovery-key"
        return self._cryptfs("init", self.volume, *self._passphrase(), "--recovery-key-file", recovery)

    def mount_command(self) -> list[str]:
        return self._cryptfs("mount", self.volume, self.root, *self._passphrase())

    def unmount_command(self) -> list[str]:
        return self._cryptfs("unmount", self.root)

    def _cryptfs(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "cryptfs", *map(str, arguments)]

    def _passphrase(self) -> list[str]:
        return ["--passphrase-file", str(self.secret)]

    def _environment(self) -> dict[str, str]:
        state = str(self.directory / "state")
        return {**os.environ, "PYTHONPATH": str(CHECKOUT), "CRYPTFS_STATE_DIR": state}


class Gocryptfs(FuseSystem):
    """gocryptfs with its defaults; the cheap scrypt parameter only shortens unlocking."""

    name = "gocryptfs"

    def version(self) -> str:
        return _debian_version("gocryptfs")

    def create_command(self) -> list[str]:
        return ["gocryptfs", "-q", "-init", "-scryptn", "10", *self._passfile(), str(self.volume)]

    def mount_command(self) -> list[str]:
        return ["gocryptfs", "-q", *self._passfile(), str(self.volume), str(self.root)]

    def _passfile(self) -> list[str]:
        return ["-passfile", str(self.secret)]


class Securefs(FuseSystem):
    """securefs with its defaults, unlocked by a key file."""

    name = "securefs"

    def version(self) -> str:
        return _debian_version("securefs")

    def create_command(self) -> list[str]:
        return ["securefs", "create", "--keyfile", str(self.secret), str(self.volume)]

    def mount_command(self) -> list[str]:
        return ["securefs", "mount", "-b", "--keyfile", str(self.secret), str(self.volume), str(self.root)]


SYSTEMS: dict[str, type[Plain]] = {system.name: system for system in (Cryptfs, Gocryptfs, Securefs, Plain)}


def fuse_daemons(mountpoint: Path) -> list[int]:
    """The processes that serve the FUSE mount at `mountpoint`.

    They hold /dev/fuse open and name the mountpoint or, on kernels that tell (6.15 and later), the
    mount's connection number in the descriptor's fdinfo.
    """
    connection = os.minor(os.stat(mountpoint).st_dev)
    return [
        int(process.name)
        for process in Path("/proc").iterdir()
        if process.name.isdecimal() and _serves(process, connection, os.fsencode(mountpoint))
    ]


def _serves(process: Path, connection: int, mountpoint: bytes) -> bool:
    try:
        for descriptor in (process / "fd").iterdir():
            if str(descriptor.readlink()) != "/dev/fuse":
                continue
            information = (process / "fdinfo" / descriptor.name).read_text()
            told = [
                line.split()[1] for line in information.splitlines() if line.startswith("fuse_connection:")
            ]
            if told:
                if int(told[0]) == connection:
                    return True
            elif mountpoint in (process / "cmdline").read_bytes().split(b"\0"):
                return True
    except OSError:
        pass  # ended while we looked
    return False


def _runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def _debian_version(package: str) -> str:
    if shutil.which(package) is None:
        raise BenchmarkError(
            f"{package} is not installed: install the package or leave it out with --systems."
        )
    return package_version(package) or "not from a Debian package"


def _git(*arguments: str) -> str:
    try:
        found = subprocess.run(
            ["git", "-C", str(CHECKOUT), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return found.stdout.strip()

"""The vault under the soak, on a small file system of its own that can be filled up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.errors import BenchmarkError
from benchmarks.systems import CHECKOUT, PATIENCE, fuse_daemons

_PASSPHRASE = "a passphrase of the soak"
_RESERVE = 64 * 1024


class SoakVault:
    """Makes the small file system in `working`, a vault on it, and mounts, kills and fills it.

    `kind` is "ext4" (an image on a loop device, where fsync is real) or "tmpfs"; `size` in MiB.
    """

    def __init__(self, working: Path, kind: str, size: int) -> None:
        self.lower = working / "lower"
        self.vault = self.lower / "vault"
        self.root = working / "mnt"
        self.log = working / "log"
        self.pid = 0
        self._working = working
        self._filler = self.lower / "filler"
        self._recovery = working / "recovery-key"
        self.lower.mkdir()
        self.root.mkdir()
        if kind == "tmpfs":
            self._system("mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", self.lower)
        else:
            image = working / "image"
            with image.open("wb") as file:
                file.truncate(size << 20)
            self._system("mkfs.ext4", "-q", "-m", "0", image)
            self._system("mount", "-o", "loop", image, self.lower)

    def create(self) -> None:
        """Make the vault."""
        secret = self._working / "secret"
        secret.touch(mode=0o600)
        secret.write_text(_PASSPHRASE + "\n")
        self.cryptfs("init", self.vault, "--passphrase-file", secret, "--recovery-key-file", self._recovery)

    def mount(self) -> None:
        """Mount it, over what a killed process left if need be."""
        self.cryptfs(
            *("mount", self.vault, self.root, "--recovery-key-file", self._recovery, "--log", self.log)
        )
        (self.pid,) = fuse_daemons(self.root)

    def unmount(self) -> None:
        """Unmount it and wait for the end of its process."""
        self.cryptfs("unmount", self.root, "--timeout", "30s")
        self._gone()

    def kill(self) -> None:
        """kill -9, and wait until the process is gone."""
        os.kill(self.pid, signal.SIGKILL)
        self._gone()

    def _gone(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while os.path.exists(f"/proc/{self.pid}"):
            if time.monotonic() > deadline:
                raise BenchmarkError("The mount's process does not end.")
            time.sleep(0.02)

    def fill(self) -> None:
        """Take all room on the lower file system."""
        with self._filler.open("wb") as file:
            free = os.statvfs(self.lower)
            room = free.f_bavail * free.f_frsize
            try:
                os.posix_fallocate(file.fileno(), 0, max(room - _RESERVE, 1))
            except OSError:
                pass  # somebody was faster: it is full all the same

    def free(self) -> None:
        """Give the room back."""
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount everything, whatever state it is in."""
        if os.path.ismount(self.root) or fuse_is_dead(self.root):
            subprocess.run(["umount", "-l", self.root], check=False)
        if self.pid and os.path.exists(f"/proc/{self.pid}"):
            deadline = time.monotonic() + PATIENCE
            while os.path.exists(f"/proc/{self.pid}") and time.monotonic() < deadline:
                time.sleep(0.05)
        subprocess.run(["umount", "-l", self.lower], check=False)

    def cryptfs(self, *arguments: str | Path) -> None:
        """Run the command line of this checkout."""
        environment = os.environ | {
            "PYTHONPATH": str(CHECKOUT),
            "CRYPTFS_RUNTIME_DIR": str(self._working / "run"),
        }
        said = self._working / "said"
        with said.open("wb") as output:
            code = subprocess.call(
                [sys.executable, "-m", "cryptfs", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
            )
        if code:
            words = said.read_text(errors="replace").strip()[-300:]
            raise BenchmarkError(f"cryptfs {arguments[0]} failed with {code}: {words}")

    @staticmethod
    def _system(*command: str | Path) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkError(f"{command[0]} failed: {done.stderr.strip()}")


def fuse_is_dead(path: Path) -> bool:
    """Whether a mount whose process is gone lies there."""
    try:
        path.stat()
    except OSError:
        return True
    return False

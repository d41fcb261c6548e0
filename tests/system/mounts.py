"""A mounted filesystem to test, and its undoing whatever happened to it.

`CRYPTFS_TEST_SYSTEM` says what lies under the tests:

    cryptfs   a vault made and mounted with the command line of this checkout (the default)
    plain     an ordinary directory: tells a fault of a test from a fault of the filesystem

Tests that look at ciphertext have nothing to look at on `plain` and are skipped there.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.waiting import wait_until

PROJECT = Path(__file__).resolve().parents[2]
PASSPHRASE = "mammography-Köln-1895 röntgen"


def system_under_test() -> str:
    name = os.environ.get("CRYPTFS_TEST_SYSTEM", "cryptfs")
    if name not in ("cryptfs", "plain"):
        raise ValueError(f"CRYPTFS_TEST_SYSTEM is {name!r}, it must be cryptfs or plain")
    return name


def is_mounted(path: Path) -> bool:
    """Whether something is mounted exactly there. Works on a mount whose daemon is dead, unlike stat(2)."""
    escaped = str(path).replace(" ", r"\040")
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split(" ")[4] == escaped for line in lines)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")


def public_tempdir() -> Path:
    """A temporary directory that other users may enter (pytest's own may not be)."""
    path = Path(tempfile.mkdtemp(prefix="cryptfs-system-"))
    path.chmod(0o755)
    return path


class PlainFolder:
    """The reference: an ordinary directory with the interface of a mount."""

    encrypted = False

    def __init__(self, base: Path):
        self.base = base
        self.path = base / "data"
        self.path.mkdir()

    def mount(self, *, owner: str | None = None, read_only: bool = False, xattrs: bool = False) -> None:
        if owner is not None:
            shutil.chown(self.path, owner)
            self.path.chmod(0o700)

    def unmount(self) -> None:
        pass

    def remount(self) -> None:
        pass

    def recover(self) -> None:
        pass

    def remount_after_kill(self, *, by_unmount: bool) -> None:
        pass

    def is_served(self) -> bool:
        return True

    def kill_daemon(self) -> None:
        pass

    def close(self) -> None:
        shutil.rmtree(self.base)


class CryptfsMount:
    """A vault and its mountpoint, driven only through `python -m cryptfs`."""

    encrypted = True
    studies = True
    """Whether the mount looks into new files for patients and studies, in its own time."""

    def __init__(self, base: Path):
        self.base = base
        self.vault = base / "vault"
        self.path = base / "mnt"
        self.passphrase_file = base / "passphrase"
        self.recovery_file = base / "recovery-key"
        self.log = base / "log"
        self._options: list[str] = []
        self._commands = 0
        self.path.mkdir()
        self.passphrase_file.touch(0o600)
        self.passphrase_file.write_text(PASSPHRASE + "\n")

    def cli(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs one command to its end. Its output goes through files, as a daemon keeps a pipe open."""
        self._commands += 1
        out_path, err_path = (self.base / f"command-{self._commands}.{kind}" for kind in ("out", "err"))
        environment = os.environ | {
            "CRYPTFS_RUNTIME_DIR": str(self.base / "run"),
            "CRYPTFS_STATE_DIR": str(self.base / "state"),
            "PYTHONPATH": str(PROJECT),
        }
        argv = [sys.executable, "-m", "cryptfs", *map(str, arguments)]
        with out_path.open("w") as out, err_path.open("w") as err:
            code = subprocess.call(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, cwd="/", timeout=600
            )
        result = subprocess.CompletedProcess(argv, code, out_path.read_text(), err_path.read_text())
        if check and code != 0:
            raise AssertionError(
                f"cryptfs {' '.join(argv[3:])}: exit code {code}\n{result.stdout}{result.stderr}"
            )
        return result

    def init(self) -> None:
        self.cli(
            *("init", self.vault),
            *("--passphrase-file", self.passphrase_file, "--recovery-key-file", self.recovery_file),
        )

    def mount(self, *, owner: str | None = None, read_only: bool = False, xattrs: bool = False) -> None:
        new = not self.vault.exists()
        if new:
            self.init()
        self._options = ["--owner", owner] if owner else ["--allow-other"]
        self._options += ["--read-only"] * read_only + ["--xattrs"] * xattrs + ["--log", str(self.log)]
        self._options += ["--no-studies"] * (not self.studies)
        self._mount("--passphrase-file", self.passphrase_file)
        if new and not owner:
            self.path.chmod(0o755)  # a new vault is its owner's alone

    def _mount(self, *secret: str | Path) -> None:
        # The recovery key needs no Argon2, so mounting again takes a fraction of a second.
        secret = secret or ("--recovery-key-file", self.recovery_file)
        self.cli("mount", self.vault, self.path, *secret, *self._options)
        assert is_mounted(self.path), "mount returned before the filesystem was there"

    def unmount(self) -> None:
        """Unmounts and waits until the daemon has written everything and is gone."""
        pids = self.daemon_pids()
        self.cli("unmount", self.path)
        assert not is_mounted(self.path)
        wait_until(lambda: not any(map(is_alive, pids)), "the daemon has ended")

    def remount(self) -> None:
        """Unmounts and mounts again with the same options: nothing comes from a cache after it."""
        self.unmount()
        self._mount()

    def recover(self) -> None:
        """Mounts again after the daemon died."""
        self.cli("unmount", self.path, check=False)
        self._mount()

    def remount_after_kill(self, *, by_unmount: bool) -> None:
        """Mounts over the dead mount, or takes that away with `cryptfs unmount` first."""
        if by_unmount:
            self.cli("unmount", self.path)
            assert not is_mounted(self.path)
        self._mount()
        mounted = Path("/proc/self/mountinfo").read_text().count(f" {self.path} ")
        assert mounted == 1, "the dead mount is still below the new one"

    def is_served(self) -> bool:
        """Whether the filesystem is mounted and answers."""
        return is_mounted(self.path) and bool(self.daemon_pids())

    def daemon_pids(self) -> list[int]:
        """The processes that serve this mount, found by the mountpoint on their command line."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    argv = (entry / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if b"cryptfs" in argv and b"mount" in argv and os.fsencode(self.path) in argv:
                    found.append(int(entry.name))
        return [pid for pid in found if is_alive(pid)]

    def kill_daemon(self) -> None:
        pids = self.daemon_pids()
        assert pids, "no daemon to kill"
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(map(is_alive, pids)), "the killed daemon is gone")

    def close(self) -> None:
        """Leaves no mount, process or file behind; what had to be forced is an error."""
        problem = None
        if is_mounted(self.path):
            try:
                self.unmount()
            except (AssertionError, subprocess.TimeoutExpired) as error:
                problem = error
        while is_mounted(self.path):
            subprocess.run(["umount", "-l", self.path], check=True)
        for pid in self.daemon_pids():
            os.kill(pid, signal.SIGKILL)
            problem = problem or AssertionError(f"daemon {pid} outlived its mount")
        if self.log.exists():
            lines = self.log.read_text().splitlines()
            print(
                "\n".join(line for line in lines if " INFO: " not in line)
            )  # pytest shows it if the test failed
        shutil.rmtree(self.base, ignore_errors=True)
        if problem:
            raise problem


Mount = PlainFolder | CryptfsMount


def new_mount() -> Mount:
    """A filesystem that is not mounted yet; to be closed by the caller."""
    base = public_tempdir()
    return PlainFolder(base) if system_under_test() == "plain" else CryptfsMount(base)

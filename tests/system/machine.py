"""A machine that is switched on: this system's files under a systemd of its own.

Everything that a boot writes goes to memory and is gone afterwards, except what lies in folders that the test
lends to it. It has a network with loopback only.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from .mounts import PROJECT, public_tempdir

_TARGET = """
[Unit]
Description=What the test starts
Requires=basic.target
After=basic.target
AllowIsolate=yes
"""
# The test's own part of a boot: it ends with the machine switched off, whatever happens.
_WITNESS = """
[Unit]
Description=What the test looks at
After=basic.target

[Service]
Type=oneshot
ExecStart=/bin/bash -x /lent/witness
ExecStopPost=/bin/sh -c 'journalctl -b --no-pager >/lent/journal 2>&1; systemctl --no-block poweroff'
StandardOutput=append:/lent/log
StandardError=append:/lent/log
TimeoutStartSec=240
"""
_SECONDS = 400


class Machine:
    """`lent` is a folder of this system, seen as /lent; files of the machine are put below `files`."""

    def __init__(self) -> None:
        self.base = public_tempdir()
        self._memory, self._root = self.base / "memory", self.base / "root"
        self.lent = self.base / "lent"
        for folder in (self._memory, self._root, self.lent):
            folder.mkdir()
        self._tree = {"lent": self.lent}
        self._units: list[str] = []
        self.files = self.base / "files"
        self.write("etc/systemd/system/test.target", _TARGET)
        self.write("etc/systemd/system/witness.service", _WITNESS)
        self.write("usr/local/bin/cryptfs", f'#!/bin/sh\nexec {sys.executable} -m cryptfs "$@"\n').chmod(
            0o755
        )

    def write(self, path: str, text: str) -> Path:
        """One file of the machine."""
        target = self.files / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    def forget(self, unit: str, file: str) -> None:
        """Undo a `want` and a `write`."""
        self._units.remove(unit)
        (self.files / file).unlink()

    def without(self, unit: str) -> None:
        """A unit of this system that is not to be started, whatever wants it."""
        (self.files / "etc/systemd/system" / unit).symlink_to("/dev/null")

    def lend(self, name: str, folder: Path) -> None:
        """Another folder of this system, seen as `/name`."""
        self._tree[name] = folder

    def want(self, *units: str) -> None:
        """Units to start, as `systemctl enable` has them started."""
        self._units += units

    def may_boot(self) -> str:
        """Why no machine can be booted here; nothing if it can."""
        if os.geteuid() != 0:
            return "only root boots a machine"
        if shutil.which("systemd-nspawn") is None:
            return "systemd-nspawn is not installed"
        try:
            done = self._nspawn("--as-pid2", "/bin/true")
        except subprocess.CalledProcessError as error:
            return f"no overlay file system: {error}"
        return (
            "" if done.returncode == 0 else f"systemd-nspawn: {done.stderr.decode(errors='replace')[-500:]}"
        )

    def boot(self, witness: str) -> str:
        """Switches it on, runs a script of bash as root, switches it off; what the script printed.

        The script may begin before the units have started. AssertionError if it fails or the machine hangs.
        """
        (self.lent / "witness").write_text(f"set -eu\n{witness}\necho witnessed\n")
        (self.lent / "log").write_text("")
        wants = "\n".join(f"Wants={unit}" for unit in ("witness.service", *self._units))
        self.write("etc/systemd/system/test.target.d/wants.conf", f"[Unit]\n{wants}\n")
        done = self._nspawn("--boot", "systemd.unit=test.target", "systemd.show_status=0")
        log = (self.lent / "log").read_text()
        journal = self.lent / "journal"
        assert done.returncode == 0 and "\nwitnessed\n" in log, (
            f"exit code {done.returncode}\n{log}\n{journal.read_text()[-6000:] if journal.exists() else ''}"
            f"\n{done.stdout.decode(errors='replace')[-2000:]}{done.stderr.decode(errors='replace')[-2000:]}"
        )
        return log

    def _nspawn(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        # A new upper layer each time, as nothing of a machine that is switched off stays in memory.
        subprocess.run(["mount", "-t", "tmpfs", "cryptfs-test", self._memory], check=True)
        try:
            upper, work = self._memory / "upper", self._memory / "work"
            shutil.copytree(self.files, upper, symlinks=True)
            work.mkdir()
            layers = f"lowerdir=/,upperdir={upper},workdir={work}"
            subprocess.run(["mount", "-t", "overlay", "cryptfs-test", "-o", layers, self._root], check=True)
            try:
                return self._run(*arguments)
            finally:
                subprocess.run(["umount", "--recursive", self._root], check=True)
        finally:
            subprocess.run(["umount", self._memory], check=True)

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        shared = [f"--bind={folder}:/{name}" for name, folder in self._tree.items()]
        seen = {str(PROJECT), sys.prefix, sys.base_prefix} - {
            "/usr"
        }  # other file systems are not in the overlay
        process = subprocess.Popen(
            [
                *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--link-journal=no"),
                *("--private-network", f"--machine=cryptfs-test-{os.getpid()}", "--bind=/dev/fuse"),
                *("--console=pipe", f"--directory={self._root}", "--settings=no", "--resolv-conf=off"),
                *("--timezone=off", *shared, *(f"--bind-ro={path}" for path in sorted(seen))),
                *arguments,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            out, err = process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            out, err = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def close(self) -> None:
        shutil.rmtree(self.base)

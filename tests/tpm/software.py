"""A TPM in software (swtpm) for one test, with something measured into its PCRs as firmware does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from cryptfs.tpm import device
from tests.waiting import wait_until


def installed() -> bool:
    return shutil.which("swtpm") is not None


class SoftwareTpm:
    """Started on construction; `address` is what `--tpm-device` takes. PCRs 0 and 7 are not empty."""

    def __init__(self, state: Path | None = None) -> None:
        # The path of a socket has to be short.
        self.folder = Path(tempfile.mkdtemp(prefix="swtpm-", dir="/tmp"))
        self.state = state or self.folder / "state"
        self.state.mkdir(exist_ok=True)
        self.pid = 0
        self.start()

    @property
    def address(self) -> str:
        return f"swtpm:path={self.folder / 'socket'}"

    def start(self) -> None:
        """As after the machine was switched on."""
        pid_file = self.folder / "pid"
        pid_file.unlink(missing_ok=True)
        socket = self.folder / "socket"
        subprocess.run(
            [
                *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.state}"),
                *("--server", f"type=unixio,path={socket},mode=0600"),
                *("--ctrl", f"type=unixio,path={socket}.ctrl,mode=0600"),
                *("--flags", "not-need-init,startup-clear", "--daemon", "--pid", f"file={pid_file}"),
            ],
            check=True,
            stdin=subprocess.DEVNULL,
        )
        wait_until(lambda: pid_file.exists() and pid_file.read_text().strip(), "swtpm wrote its pid")
        self.pid = int(pid_file.read_text())
        for pcr in (0, 7):
            self.extend(pcr, b"as the firmware does")

    def stop(self) -> None:
        """As when the power is cut."""
        if self.pid:
            os.kill(self.pid, signal.SIGTERM)
            pid, self.pid = self.pid, 0
            wait_until(lambda: not _alive(pid), "swtpm ended")

    def restart(self) -> None:
        """The machine is switched off and on; what it measures is the same."""
        self.stop()
        self.start()

    def extend(self, pcr: int, event: bytes = b"something else was booted") -> None:
        with device.connect(self.address) as esys:
            from tpm2_pytss import ESYS_TR

            esys.pcr_event(getattr(ESYS_TR, f"PCR{pcr}"), event)

    def clear(self) -> None:
        """TPM2_Clear, as the firmware's menu does it: a new storage seed."""
        with device.connect(self.address) as esys:
            from tpm2_pytss import ESYS_TR

            esys.clear(ESYS_TR.PLATFORM)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # A daemon of ours that nobody waits for stays as a zombie where there is no init.
        return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False

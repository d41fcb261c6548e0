"""The metadata index under a real mount: what the daemon asks of the disk, and what it says of itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.waiting import HANG, wait_until

from .mounts import CryptfsMount, is_mounted

pytestmark = pytest.mark.system


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def fill(mount: CryptfsMount, folders: int = 4, files: int = 50) -> None:
    for folder in range(folders):
        (mount.path / f"study{folder}").mkdir()
        for number in range(files):
            (mount.path / f"study{folder}/image{number}").write_bytes(b"x" * number)


def walked(mount: CryptfsMount) -> list[str]:
    """All names and attributes, in an order of their own: an index lists a folder in another one."""
    command = ["find", str(mount.path), "-printf", "%p %s %m %T@ %C@ %n %i\n"]
    return sorted(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines())


def lower_calls(mount: CryptfsMount, tmp_path: Path, walk: list[str]) -> list[str]:
    """The daemon's system calls on the vault while a program runs on the mount."""
    (pid,) = mount.daemon_pids()
    log = tmp_path / "strace"
    tracer = subprocess.Popen(
        ["strace", "-f", "-y", "-e", "trace=%file,%desc", "-o", log, "-p", str(pid)], stderr=subprocess.PIPE
    )
    try:
        assert tracer.stderr is not None
        assert b"attached" in tracer.stderr.readline()
        subprocess.run(walk, check=True, capture_output=True)
        # Proof that strace saw the daemon serve all of it: what it reads from /dev/fuse.
        wait_until(lambda: "/dev/fuse" in log.read_text(errors="replace"), "strace has seen a request")
    finally:
        tracer.terminate()
        tracer.communicate()
    tree = re.escape(str(mount.vault / "tree"))
    lines = log.read_text(errors="replace").splitlines()
    # How much room there is only the disk knows; find asks that once.
    return [line for line in lines if re.search(tree, line) and "statfs(" not in line]


def calls_of_a_walk(mount: CryptfsMount, tmp_path: Path) -> list[str]:
    """Those of the first walk during which the background had nothing to do, such as settling what is new."""
    enough = time.monotonic() + HANG
    while True:
        drop_caches()
        calls = lower_calls(mount, tmp_path, ["find", str(mount.path), "-ls"])
        if not calls or time.monotonic() > enough:
            return calls


def test_steady_state_leaves_the_vault_alone(vault: CryptfsMount, tmp_path: Path) -> None:
    vault.studies = False
    vault.mount()
    fill(vault)
    first = walked(vault)
    assert calls_of_a_walk(vault, tmp_path) == []
    drop_caches()
    assert walked(vault) == first
    vault.remount()
    assert walked(vault) == first
    assert calls_of_a_walk(vault, tmp_path) == []
    vault.unmount()


def test_commands_on_a_mounted_vault(vault: CryptfsMount) -> None:
    vault.mount()
    fill(vault, 2, 10)

    def index(*arguments: str) -> dict[str, object]:
        answer: dict[str, object] = json.loads(vault.cli("index", *arguments, "--json").stdout)
        return answer

    walked(vault)
    found = index("status", str(vault.vault))
    assert found["state"] == "in use" and found["mounted"] is True
    assert index("rebuild", str(vault.vault))["entries"] == 22
    assert index("verify", str(vault.vault))["wrong"] == 0
    assert index("drop", str(vault.vault)) == {"dropped": True}
    assert len(list(vault.path.rglob("*"))) == 22
    status = json.loads(vault.cli("status", vault.path, "--json").stdout)["mounts"][0]
    assert "records" in status["index"]
    vault.unmount()


def test_state_directory_that_is_full(vault: CryptfsMount) -> None:
    """The mount serves every file, and says what is wrong."""
    state = vault.base / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", state], check=True)
    try:
        vault.mount()
        fill(vault, 3, 300)
        wait_until(lambda: "No space left" in vault.cli("status", vault.path).stdout, "status says why")
        assert len(walked(vault)) == 1 + 3 + 900
        vault.unmount()
    finally:
        if is_mounted(vault.path):
            vault.unmount()
        subprocess.run(["umount", state], check=True)

"""`cryptfs freeze` on a live mount: what waits, what goes on, how it ends, and what a copy made in it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.waiting import wait_until

from .mounts import PROJECT, CryptfsMount, is_alive
from .processes import Child

pytestmark = pytest.mark.system


@pytest.fixture
def mounted(vault: CryptfsMount) -> CryptfsMount:
    vault.mount()
    (vault.path / "before").write_bytes(b"b" * 100_000)
    return vault


def status(mount: CryptfsMount) -> dict[str, object]:
    """Asked again while the machine is too busy for an answer in time."""
    while True:
        (found,) = json.loads(mount.cli("status", mount.path, "--json").stdout)["mounts"]
        assert isinstance(found, dict)
        if found["state"] != "not answering":
            return found


@contextmanager
def freezing(mount: CryptfsMount, timeout: str = "30m") -> Iterator[subprocess.Popen[str]]:
    """A freeze that lasts until `thaw` is called: no pipe, which forked writers would hold open."""
    (mount.base / "thaw").unlink(missing_ok=True)
    environment = os.environ | {"CRYPTFS_RUNTIME_DIR": str(mount.base / "run"), "PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "cryptfs", "freeze", mount.vault, "--timeout", timeout]
        + ["--", "sh", "-c", 'echo frozen; while [ ! -e "$0" ]; do sleep 0.1; done', mount.base / "thaw"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "frozen\n"
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


def write(path: Path) -> Callable[[], None]:
    def store() -> None:
        with path.open("wb") as file:
            file.write(b"during")
            file.flush()
            os.fsync(file.fileno())

    return store


def test_a_copy_made_while_frozen_was_unmounted_cleanly(
    mounted: CryptfsMount, make_mount: Callable[[], CryptfsMount]
) -> None:
    """Written and not synced before; the copy has it, and mounting it has nothing to repair."""
    (mounted.path / "folder").mkdir()
    (mounted.path / "folder" / "just written").write_bytes(b"w" * 300_000)
    with (mounted.path / "before").open("r+b", buffering=0) as file:
        file.write(b"overwritten")
        os.fsync(file.fileno())
        elsewhere = make_mount()
        mounted.cli("freeze", mounted.vault, "--", "cp", "-r", mounted.vault, elsewhere.vault)
        file.write(b" and again")
    assert not list((elsewhere.vault / "journal").glob("*.seg"))
    elsewhere.cli(
        *("mount", elsewhere.vault, elsewhere.path, "--log", elsewhere.log),
        *("--recovery-key-file", mounted.recovery_file),
    )
    assert (elsewhere.path / "folder" / "just written").read_bytes() == b"w" * 300_000
    assert (elsewhere.path / "before").read_bytes() == b"overwritten".ljust(100_000, b"b")
    assert "last session did not end cleanly" not in elsewhere.log.read_text()
    elsewhere.unmount()
    mounted.kill_daemon()
    mounted.recover()  # after the thaw the session counts as begun again
    assert "last session did not end cleanly" in mounted.log.read_text()


def test_writers_wait_and_readers_do_not(mounted: CryptfsMount) -> None:
    (mounted.path / "unwanted").touch()
    for number in range(60):
        (mounted.path / f"{number}").write_bytes(b"r" * 70_000)
    with freezing(mounted) as freeze:
        state = status(mounted)
        assert state["frozen"] is True and state["frozen_seconds_left"] > 0  # type: ignore[operator]
        # More than the daemon has tasks when nothing is frozen.
        writers = [Child(write(mounted.path / f"{number}")) for number in range(60)]
        remover = Child(lambda: os.unlink(mounted.path / "unwanted"))
        wait_until(lambda: status(mounted)["requests_held"] >= 30, "writers wait")  # type: ignore[operator]
        with open("/proc/sys/vm/drop_caches", "w") as caches:
            caches.write("1")
        assert (mounted.path / "before").read_bytes() == b"b" * 100_000
        assert "frozen for a backup" in mounted.cli("status").stdout
        (mounted.base / "thaw").touch()
        assert freeze.wait(240) == 0
    for child in [*writers, remover]:
        child.result()
    assert not (mounted.path / "unwanted").exists()
    assert all((mounted.path / f"{number}").read_bytes() == b"during" for number in range(60))
    assert status(mounted)["frozen"] is False


def test_the_time_limit_ends_the_freeze_and_the_command(mounted: CryptfsMount) -> None:
    done = mounted.cli("freeze", mounted.vault, "--timeout", "0.5s", "--", "sleep", "600", check=False)
    assert done.returncode == 25
    assert "longer --timeout" in done.stderr
    (mounted.path / "after").write_bytes(b"a")
    assert status(mounted)["frozen"] is False


def test_the_command_s_exit_code_is_passed_on(mounted: CryptfsMount) -> None:
    for script, code in (("exit 7", 7), ("kill -9 $$", 137)):
        done = mounted.cli("freeze", mounted.vault, "--", "sh", "-c", script, check=False)
        assert done.returncode == code
    (mounted.path / "after").write_bytes(b"a")


def test_the_daemon_asks_itself_nothing_that_only_it_can_answer(mounted: CryptfsMount) -> None:
    """The kernel has forgotten the mount's root and has to ask for it again."""
    with open("/proc/sys/vm/drop_caches", "w") as caches:
        caches.write("3")
    (mounted.path / "new").mkdir()  # the root's attributes are stale now
    mounted.cli("freeze", mounted.vault, "--", "true")


def test_a_killed_freeze_thaws(mounted: CryptfsMount) -> None:
    with freezing(mounted) as freeze:
        command = int(Path(f"/proc/{freeze.pid}/task/{freeze.pid}/children").read_text())
        freeze.kill()
        freeze.wait()
        (mounted.path / "after").write_bytes(b"a")
        wait_until(lambda: not is_alive(command), "the command was ended, too")


def test_a_signal_ends_the_command_and_the_freeze(mounted: CryptfsMount) -> None:
    with freezing(mounted) as freeze:
        freeze.send_signal(signal.SIGTERM)
        assert freeze.wait(240) == 128 + signal.SIGTERM
    (mounted.path / "after").write_bytes(b"a")


def test_only_one_freeze_at_a_time_and_no_unmount(mounted: CryptfsMount) -> None:
    with freezing(mounted):
        second = mounted.cli("freeze", mounted.vault, "--", "true", check=False)
        assert (second.returncode, "frozen already" in second.stderr) == (14, True)
        refused = mounted.cli("unmount", mounted.path, check=False)
        assert (refused.returncode, "frozen for a backup" in refused.stderr) == (15, True)
    wait_until(lambda: status(mounted)["frozen"] is False, "the daemon knows that who froze it is gone")
    mounted.cli("freeze", mounted.vault, "--", "true")


def test_a_daemon_killed_while_frozen_leaves_an_unmounted_vault(mounted: CryptfsMount) -> None:
    with freezing(mounted) as freeze:
        mounted.kill_daemon()
        assert freeze.wait(240) != 0
    mounted.recover()
    assert "last session did not end cleanly" not in mounted.log.read_text()
    assert (mounted.path / "before").read_bytes() == b"b" * 100_000


def test_a_daemon_told_to_end_thaws_first(mounted: CryptfsMount) -> None:
    with freezing(mounted) as freeze:
        writer = Child(write(mounted.path / "during"))
        wait_until(lambda: status(mounted)["requests_held"], "the writer waits")
        (pid,) = mounted.daemon_pids()
        os.kill(pid, signal.SIGTERM)
        assert freeze.wait(240) == 25
        writer.result()
    wait_until(lambda: not mounted.daemon_pids(), "the daemon has ended")
    mounted.recover()
    assert (mounted.path / "during").read_bytes() == b"during"


def test_a_vault_that_is_not_mounted_stays_so(vault: CryptfsMount) -> None:
    vault.mount()
    vault.unmount()
    with freezing(vault) as freeze:
        secret = ("--recovery-key-file", vault.recovery_file)
        assert vault.cli("mount", vault.vault, vault.path, *secret, check=False).returncode == 14
        (vault.base / "thaw").touch()
        assert freeze.wait(240) == 0
    vault.cli("mount", vault.vault, vault.path, *secret)

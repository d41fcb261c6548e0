"""`cryptfs unmount`: busy, lazily, and after the daemon was killed."""

from __future__ import annotations

import os
import signal

import pytest

from cryptfs.mount.runtime import process_started
from tests.cli.test_mount import Place, failed, place
from tests.waiting import wait_until

__all__ = ["place"]

pytestmark = pytest.mark.system


def test_the_daemon_has_ended_and_the_vault_is_free_when_it_returns(place: Place) -> None:
    for _ in range(3):
        assert place.mount().returncode == 0
        (mount,) = place.status()
        assert place.run("unmount", place.at).returncode == 0
        assert process_started(mount["pid"]) is None


def test_nothing_is_mounted(place: Place) -> None:
    failed(place.run("unmount", place.at), 17, "No vault is mounted")


def test_a_mount_in_use_is_named_with_its_user(place: Place) -> None:
    place.mount()
    with (place.at / "file").open("w"):
        failed(place.run("unmount", place.at, "--timeout", "0.1s"), 15, f"({os.getpid()})")
    assert place.run("unmount", place.at).returncode == 0


def test_lazily(place: Place) -> None:
    place.mount()
    (mount,) = place.status()
    with (place.at / "file").open("w") as file:
        done = place.run("unmount", place.at, "--lazy")
        assert done.returncode == 0 and "detached" in done.stdout
        file.write("late")
    wait_until(lambda: process_started(mount["pid"]) is None, "the daemon has ended")
    assert place.mount().returncode == 0
    assert place.at.joinpath("file").read_text() == "late"


def kill_daemon(place: Place) -> None:
    (mount,) = place.status()
    os.kill(mount["pid"], signal.SIGKILL)
    wait_until(lambda: process_started(mount["pid"]) is None, "the daemon is gone")


def test_what_a_killed_daemon_left_is_removed(place: Place) -> None:
    place.mount()
    kill_daemon(place)
    (mount,) = place.status()
    assert mount["state"] == "dead"
    done = place.run("unmount", place.at)
    assert done.returncode == 0 and "removed the dead mount" in done.stderr
    assert place.status() == []
    failed(place.run("unmount", place.at), 17, "No vault is mounted")


def test_the_next_mount_removes_what_a_killed_daemon_left(place: Place) -> None:
    place.mount()
    kill_daemon(place)
    assert place.mount().returncode == 0
    (place.at / "file").write_text("x")
    assert place.status()[0]["state"] == "mounted"


def test_from_another_runtime_directory(place: Place) -> None:
    place.mount()
    elsewhere = Place(place.vault, place.at, place.recovery, place.at.parent / "run2", place.log)
    assert elsewhere.status()[0]["state"] == "mounted by another user"
    assert elsewhere.run("unmount", place.at).returncode == 0

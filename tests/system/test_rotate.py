"""Keys are rotated on a mounted vault while images are stored; killed in the middle; nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from .mounts import CryptfsMount, Mount, wait_until
from .processes import Child
from .test_kill import IMAGES, check_images, noted, write_images

pytestmark = pytest.mark.system

OLD_FILES = 400


@pytest.fixture
def mount(make_mount: Callable[[], Mount]) -> CryptfsMount:
    mount = make_mount()
    if not isinstance(mount, CryptfsMount):
        pytest.skip("there are no keys on a plain folder")
    mount.mount()
    for number in range(OLD_FILES):
        folder = mount.path / f"old {number % 8}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number}").write_bytes(b"old %d" % number)
    return mount


def check_old(mount: CryptfsMount) -> None:
    for number in range(OLD_FILES):
        assert (mount.path / f"old {number % 8}" / f"{number}").read_bytes() == b"old %d" % number


def rotate(mount: CryptfsMount, *options: str) -> list[dict[str, object]]:
    out = mount.cli(
        "rotate", mount.vault, "--recovery-key-file", mount.recovery_file, "--json", *options
    ).stdout
    return [json.loads(line) for line in out.splitlines()]


def rotate_in_background(mount: CryptfsMount, limit: str) -> Child:
    """Its result is the exit code."""

    def rotate_slowly() -> int:
        mount._commands += 1000  # files of its own for what it prints
        unlock = ("--recovery-key-file", mount.recovery_file)
        return mount.cli("rotate", mount.vault, *unlock, "--limit", limit, check=False).returncode

    return Child(rotate_slowly)


def proof(mount: CryptfsMount) -> dict[str, object]:
    result = mount.cli(
        "verify", mount.vault, "--epochs", "--json", "--recovery-key-file", mount.recovery_file, check=False
    )
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def state(mount: CryptfsMount) -> dict[str, object]:
    found = json.loads(mount.cli("rotate", mount.vault, "--status", "--json").stdout)
    assert isinstance(found, dict)
    return found


def test_killed_in_the_middle_of_a_rotation_under_load(mount: CryptfsMount, tmp_path: Path) -> None:
    record = tmp_path / "synced"
    writer = Child(lambda: write_images(mount.path, record, 0))
    wait_until(lambda: len(noted(record)) > 20, "some images are synced", 120)
    before = mount.vault / "cryptfs.json"
    old_configuration = before.read_bytes()
    # So slowly that it is killed before the end.
    rotation = rotate_in_background(mount, "40")
    wait_until(lambda: int(str(state(mount).get("changed", 0))) > 50, "some headers are rewrapped", 120)
    mount.kill_daemon()
    writer.result()
    assert rotation.result() in (1, 17)
    synced = noted(record)
    assert len(synced) < IMAGES
    assert not proof(mount)["proved"]
    mount.remount_after_kill(by_unmount=False)
    check_old(mount)
    check_images(mount.path, synced, range(IMAGES))
    # Again while images are stored, and to the end.
    writer = Child(lambda: write_images(mount.path, record, IMAGES))
    wait_until(lambda: any(number >= IMAGES for number in noted(record)), "images are synced again", 120)
    end = rotate(mount)[-1]
    assert (end["event"], end["epoch"], end["destroyed"]) == ("finished", 2, [1])
    writer.kill()
    synced = noted(record)
    mount.remount()
    check_old(mount)
    check_images(mount.path, synced, range(2 * IMAGES))
    mount.unmount()
    assert proof(mount)["proved"]
    # The configuration of before opens nothing of what is there now.
    now = before.read_bytes()
    before.write_bytes(old_configuration)
    assert mount.cli(
        "mount", mount.vault, mount.path, "--recovery-key-file", mount.recovery_file, check=False
    ).returncode in (11, 18)
    before.write_bytes(now)
    mount._mount()
    check_old(mount)


def test_stopped_paused_and_resumed_on_a_mount(mount: CryptfsMount) -> None:
    rotation = rotate_in_background(mount, "20")
    wait_until(lambda: state(mount)["state"] == "running", "the rotation runs", 60)
    mount.cli("rotate", mount.vault, "--pause")
    assert state(mount)["state"] == "paused"
    mount.cli("rotate", mount.vault, "--resume")
    assert state(mount)["state"] == "running"
    mount.cli("rotate", mount.vault, "--stop")
    assert state(mount)["state"] == "stopped"
    assert rotation.result() == 130
    check_old(mount)
    assert rotate(mount)[-1]["epoch"] == 2
    check_old(mount)
    assert proof(mount)["proved"]

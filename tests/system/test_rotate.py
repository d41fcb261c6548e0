"""Keys are rotated on a mounted vault while images are stored; killed in the middle; nothing is lost."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from .mounts import CryptfsMount, Mount, wait_until
from .processes import Child
from .test_kill import check_images, noted, write_images

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


def rotate_in_background(mount: CryptfsMount, limit: str, *options: str) -> Child:
    """Its result is the exit code."""

    def rotate_slowly() -> int:
        mount._commands += 1000  # files of its own for what it prints
        unlock = ("--recovery-key-file", mount.recovery_file)
        return mount.cli("rotate", mount.vault, *unlock, "--limit", limit, *options, check=False).returncode

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


@pytest.mark.parametrize("options", [(), ("--reencrypt",)], ids=["rotation", "re-encryption"])
def test_killed_in_the_middle_under_load(
    mount: CryptfsMount, tmp_path: Path, options: tuple[str, ...]
) -> None:
    record = tmp_path / "synced"
    writer = Child(lambda: write_images(mount.path, record, 0, 0.02))
    wait_until(lambda: len(noted(record)) > 20, "some images are synced", 120)
    before = mount.vault / "cryptfs.json"
    old_configuration = before.read_bytes()
    # So slowly that it is killed before the end.
    rotation = rotate_in_background(mount, "40", *options)
    wait_until(lambda: int(str(state(mount).get("changed", 0))) > 50, "some objects are done", 120)
    mount.kill_daemon()
    writer.result()
    assert rotation.result() in (1, 17)
    synced = noted(record)
    assert not proof(mount)["proved"]
    mount.remount_after_kill(by_unmount=False)
    check_old(mount)
    check_images(mount.path, synced)
    # Again while images are stored, and to the end.
    first = max(synced) + 2
    writer = Child(lambda: write_images(mount.path, record, first, 0.03))
    wait_until(lambda: max(noted(record)) >= first, "images are synced again", 120)
    end = rotate(mount, *options)[-1]
    assert (end["event"], end["epoch"], end["destroyed"]) == ("finished", 2, [1])
    writer.kill()
    synced = noted(record)
    mount.remount()
    check_old(mount)
    check_images(mount.path, synced)
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


@pytest.mark.parametrize("options", [(), ("--reencrypt",)], ids=["rotation", "re-encryption"])
def test_stopped_paused_and_resumed_on_a_mount(mount: CryptfsMount, options: tuple[str, ...]) -> None:
    # At one object a second it cannot come to its end, however slow the commands are.
    rotation = rotate_in_background(mount, "1", *options)
    wait_until(lambda: state(mount)["state"] == "running", "the rotation runs", 120)
    mount.cli("rotate", mount.vault, "--pause")
    assert state(mount)["state"] == "paused"
    mount.cli("rotate", mount.vault, "--resume")
    assert state(mount)["state"] == "running"
    mount.cli("rotate", mount.vault, "--stop")
    assert state(mount)["state"] == "stopped"
    assert rotation.result() == 130
    check_old(mount)
    assert not proof(mount)["proved"]
    assert rotate(mount, *options)[-1]["epoch"] == 2
    check_old(mount)
    assert proof(mount)["proved"]


def test_what_programs_hold_survives_a_re_encryption(mount: CryptfsMount) -> None:
    """An open file, a mapped one, numbers of inodes, links, times of folders."""
    path = mount.path / "old 1" / "held"
    path.write_bytes(os.urandom(300_000))
    os.link(path, mount.path / "old 2" / "second name")
    single = mount.path / "old 3" / "single"
    single.write_bytes(b"x" * 200_000)
    os.utime(mount.path / "old 3", ns=(10**18, 10**18))
    numbers = {place: place.stat().st_ino for place in (path, single, mount.path / "old 3")}
    names = {place.name for place in (mount.vault / "tree").rglob("*") if place.name != "@dir"}
    with path.open("r+b") as held, single.open("r+b") as mapped:
        with mmap.mmap(mapped.fileno(), 0) as memory:
            assert rotate(mount, "--reencrypt")[-1]["event"] == "finished"
            memory[100:105] = b"later"
            memory.flush()
        held.write(b"written")
        held.flush()
        os.fsync(held.fileno())
        assert {place: place.stat().st_ino for place in numbers} == numbers
    assert (mount.path / "old 3").stat().st_mtime_ns == 10**18
    assert (mount.path / "old 2" / "second name").read_bytes()[:7] == b"written"
    assert not names & {place.name for place in (mount.vault / "tree").rglob("*")}
    check_old(mount)
    mount.remount()
    check_old(mount)
    assert single.read_bytes()[98:107] == b"xxlaterxx"
    assert path.read_bytes() == (mount.path / "old 2" / "second name").read_bytes()
    assert path.samefile(mount.path / "old 2" / "second name")
    assert proof(mount)["proved"]

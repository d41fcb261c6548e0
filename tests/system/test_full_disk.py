"""A disk below that is really full."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.waiting import wait_until

from .mounts import CryptfsMount, Mount

pytestmark = pytest.mark.system


@pytest.fixture
def on_small_disk(vault_on: Callable[[], CryptfsMount]) -> Iterator[CryptfsMount]:
    mount = vault_on()
    disk = mount.base / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "cryptfs-test", disk], check=True)
    mount.vault = disk / "vault"
    mount.init()
    mount.mount()
    yield mount
    mount.unmount()
    subprocess.run(["umount", disk], check=True)


@pytest.fixture
def vault_on(make_mount: Callable[[], Mount]) -> Callable[[], CryptfsMount]:
    def make() -> CryptfsMount:
        mount = make_mount()
        if not isinstance(mount, CryptfsMount):
            pytest.skip("a plain folder is not on a disk of its own")
        return mount

    return make


def fill(disk: Path) -> Path:
    """Take all room but some KiB; the file that has it."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        for size in (1 << 20, 1 << 14):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
                    file.flush()
    return filler


@pytest.mark.parametrize("synced", [True, False])
def test_what_was_refused_is_stored_when_there_is_room(on_small_disk: CryptfsMount, synced: bool) -> None:
    """The kernel has it in its cache and shows it; so nobody may build on it before it is there."""
    image = on_small_disk.path / "image"
    before, after = os.urandom(1 << 20), os.urandom(1 << 20)
    descriptor = os.open(image, os.O_RDWR | os.O_CREAT, 0o600)
    os.write(descriptor, before)
    os.fsync(descriptor)
    filler = fill(on_small_disk.vault.parent)
    os.pwrite(descriptor, after, 0)
    with pytest.raises(OSError) as refused:
        os.fsync(descriptor)
    assert refused.value.errno == errno.ENOSPC
    assert image.read_bytes() == after
    with pytest.raises(OSError):
        os.fsync(descriptor)
    filler.unlink()
    if synced:
        os.pwrite(descriptor, b"x", 5)
        os.fsync(descriptor)
        after = after[:5] + b"x" + after[6:]
    os.close(descriptor)
    if not synced:
        wait_until(lambda: journal_size(on_small_disk) > 1 << 20, "the background work has given it again")
    on_small_disk.kill_daemon()
    on_small_disk.remount_after_kill(by_unmount=True)
    assert image.read_bytes() == after


def journal_size(mount: CryptfsMount) -> int:
    return sum(path.stat().st_size for path in (mount.vault / "journal").glob("*.seg"))

"""What is found out about the file system below a vault."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.vault import lower
from cryptfs.vault.lower import file_system_type, names_keep_order


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def kernel(tmp_path: Path, folder: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the kernel would tell of the disk below `folder`: `journal_task` is what is to be told."""
    st = os.fstat(folder)
    disk = tmp_path / "devices" / "sdx1"
    disk.mkdir(parents=True)
    devices = tmp_path / "block"
    devices.mkdir()
    (devices / f"{os.major(st.st_dev)}:{os.minor(st.st_dev)}").symlink_to(disk)
    told = tmp_path / "ext4" / "sdx1"
    told.mkdir(parents=True)
    monkeypatch.setattr(lower, "_DEVICES", devices)
    monkeypatch.setattr(lower, "_EXT4", told.parent)
    return told / "journal_task"


@pytest.mark.parametrize(
    ("kind", "told", "keeps"),
    [
        ("ext4", "26757\n", True),
        ("ext3", "0\n", True),  # the journal's process is not in this container
        ("ext4", "<none>\n", False),
        ("ext4", "", False),
        ("ext4", None, False),
        ("xfs", None, True),
        ("ext2", "26757\n", False),
        ("btrfs", None, False),
        ("nfs4", None, False),
        ("", None, False),
    ],
)
def test_order_of_names(
    kind: str, told: str | None, keeps: bool, kernel: Path, folder: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if told is not None:
        kernel.write_text(told)
    monkeypatch.setattr(lower, "file_system_type", lambda fd: kind)
    assert names_keep_order(folder) is keeps


def test_a_disk_that_the_kernel_does_not_know(folder: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lower, "file_system_type", lambda fd: "ext4")
    monkeypatch.setattr(lower, "_DEVICES", Path("/proc/self/nothing"))
    assert not names_keep_order(folder)


def test_type() -> None:
    fd = os.open("/proc", os.O_RDONLY)
    try:
        assert file_system_type(fd) == "proc"
    finally:
        os.close(fd)

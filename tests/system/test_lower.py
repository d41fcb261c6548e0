"""Real file systems below a vault."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryptfs.vault.lower import file_system_type, names_keep_order

pytestmark = pytest.mark.system

Make = Callable[..., Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Make]:
    """Mounts a new ext4, made with the given options, from an image of 16 MiB."""
    mounted: list[Path] = []

    def make(*options: str) -> Path:
        image, folder = tmp_path / "image", tmp_path / "disk"
        with image.open("wb") as file:
            file.truncate(16 << 20)
        folder.mkdir()
        subprocess.run(["mkfs.ext4", "-q", *options, image], check=True)
        subprocess.run(["mount", "-o", "loop", image, folder], check=True)
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(("options", "keeps"), [((), True), (("-O", "^has_journal"), False)])
def test_ext4_keeps_the_order_of_names_with_its_journal_only(
    disk: Make, options: tuple[str, ...], keeps: bool
) -> None:
    fd = os.open(disk(*options), os.O_RDONLY)
    try:
        assert file_system_type(fd) == "ext4"
        assert names_keep_order(fd) is keeps
    finally:
        os.close(fd)

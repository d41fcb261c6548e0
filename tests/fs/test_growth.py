"""A filesystem in use for long holds no more than one in use for a while: objects are counted."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
from collections import Counter
from pathlib import Path

import pytest

from cryptfs.fs import FileSystem
from cryptfs.index.place import prepare
from tests.waiting import wait_until

from .support import ME, VAULT_ID, make_vault, open_fs

FILES = 40
SLACK = FILES
"""Objects of one type by which a count may differ."""


def use(fs: FileSystem, folder: int) -> None:
    """Everything that is done to files, and what fails, in a folder that is empty again at the end."""
    inos = []
    for number in range(FILES):
        name = b"image %d" % number
        with pytest.raises(FileNotFoundError):
            fs.lookup(folder, name)
        handle, attr = fs.create(folder, name, 0o644, ME, os.O_RDWR)
        inos.append(attr.ino)
        fs.write(handle, 0, b"content" * number)
        if number % 10 == 0:
            fs.fsync(handle)
        fs.release(handle)
        with pytest.raises(FileExistsError):
            fs.create(folder, name, 0o644, ME, os.O_RDWR | os.O_EXCL)
        fs.rename(folder, name, folder, name + b".dcm")
        handle = fs.open(attr.ino, os.O_RDONLY)
        assert len(fs.read(handle, 0, 4096)) == 7 * number
        fs.release(handle)
        with pytest.raises(OSError) as caught:
            fs.getattr(1 << 50)
        assert caught.value.errno == errno.ESTALE
    listing = fs.opendir(folder)
    listed = [attr.ino for _, attr, _ in fs.readdir(listing, 0)]
    fs.remember_listed(listing, listed)
    fs.releasedir(listing)
    assert len(listed) == FILES
    fs.forget_all((ino, 1) for ino in listed)
    for number, ino in enumerate(inos):
        fs.unlink(folder, b"image %d.dcm" % number)
        fs.forget(ino, 1)
    made = fs.mkdir(folder, b"folder", 0o755, ME)
    fs.rmdir(folder, b"folder")
    fs.forget(made.ino, 1)


def count(fs: FileSystem) -> Counter[str]:
    """Objects by their type, when all that waited was done."""
    fs.sync()
    gc.collect()
    return Counter(type(one).__name__ for one in gc.get_objects())


@pytest.mark.parametrize("remembers", [True, False], ids=["with what a host remembers", "without"])
def test_nothing_is_left_of_what_was_done(tmp_path: Path, remembers: bool) -> None:
    place = prepare(VAULT_ID, tmp_path / "state") if remembers else None
    fs = open_fs(make_vault(tmp_path / "vault"), place=place)
    folder = fs.mkdir(1, b"folder", 0o755, ME).ino
    for _ in range(2):
        use(fs, folder)
    before = count(fs)
    for _ in range(4):
        use(fs, folder)

    more: dict[str, int] = {}

    def nothing_more() -> bool:
        more.clear()
        more.update({name: number for name, number in (count(fs) - before).items() if number > SLACK})
        return not more

    # A thread may be at work in the background at any one count: what is kept is there at each.
    with contextlib.suppress(AssertionError):
        wait_until(nothing_more, seconds=60)
    assert more == {}
    assert fs.stats()["inodes"] == 2
    fs.close()

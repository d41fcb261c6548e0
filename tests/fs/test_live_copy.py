"""A backup of a vault in use, without a freeze: what docs/backup.md says of it is so."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from cryptfs.fs import FileSystem
from tests.fs.livecopy import Known, Programs, copying
from tests.fs.support import close_fs, make_vault, open_fs

SEEDS = range(int(os.environ.get("CRYPTFS_LIVE_COPIES", "10")))


def chunks_of(fs: FileSystem, name: bytes, size: int) -> list[bytes | None]:
    """The file in pieces of 4 KiB; None stands for one that is EIO."""
    attr = fs.lookup(1, name)
    found: list[bytes | None] = []
    try:
        handle = fs.open(attr.ino, os.O_RDONLY)
    except OSError as error:
        assert error.errno == errno.EIO
        return [None]
    for at in range(0, max(attr.size, 1), 4096):
        try:
            found.append(bytes(fs.read(handle, at, 4096)))
        except OSError as error:
            assert error.errno == errno.EIO
            found.append(None)
    fs.release(handle)
    return found


def check(name: bytes, known: Known, found: list[bytes | None], *, ordered: bool) -> None:
    """What a restored file may be."""
    if known.untouched:
        assert b"".join(b"?" if piece is None else piece for piece in found) == known.content, (
            f"{name!r} was not changed"
        )
        return
    if not ordered:
        pass  # the journal was read after the tree: nothing is invented, more is not promised
    elif not known.overwritten:
        assert None not in found, f"{name!r} was only appended to"
        content = b"".join(piece or b"" for piece in found)
        assert known.content.startswith(content), f"{name!r} is no beginning of what was written"
        return
    elif not known.torn:
        assert None not in found, f"{name!r} was not changed while it was read"
        content = b"".join(piece or b"" for piece in found)
        assert content in known.states, f"{name!r} is a mixture of what it was at different times"
        return
    for number, piece in enumerate(found):
        at = number * 4096
        assert piece is None or any(state[at:].startswith(piece) for state in known.history), (
            f"{name!r} has at {at} what it never had"
        )


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_copy_read_while_programs_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, backwards: bool
) -> None:
    rng = random.Random(seed)
    # The order of the ciphertext's names comes from keys that are random.
    monkeypatch.setattr(os, "urandom", random.Random(seed).randbytes)
    fs = open_fs(make_vault(tmp_path / "vault"))
    fs._committer.stop()  # what it does in the background is one of the programs' acts
    programs = Programs(fs, rng)
    for _ in range(40):
        programs.act()
    programs.begin_backup()
    before = None
    for path in copying(tmp_path / "vault", tmp_path / "copy", backwards=backwards):
        programs.being_read = os.fsencode(path.name) if path == before else None
        before = path
        if rng.random() < 0.3:
            programs.act()
    everything = programs.gone | programs.files
    restored = open_fs(tmp_path / "copy")
    dh = restored.opendir(1)
    names = [name for name, _, _ in restored.readdir(dh, 0)]
    restored.releasedir(dh)
    for name, known in programs.files.items():
        assert name in names or not known.untouched, f"{name!r} is missing"
    for name in names:
        if name in everything:
            check(name, everything[name], chunks_of(restored, name, 0), ordered=not backwards)
    close_fs(restored)
    close_fs(fs)

"""A backup tool reading a vault in use, step by step, and the programs that use it in between.

`copying` reads as restic, borg, rsync and tar do: a folder's entries are listed, then each file is opened
and read in pieces. It is a generator that stops after each step; whatever is done to the vault meanwhile is
what a tool meets in a backup without a freeze.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptfs.fs import FileSystem
from cryptfs.fs.types import SetAttr
from tests.fs.support import ME

PIECE = 7000
"""Bytes of a read: no multiple of anything in the format, so that chunks are met half."""


def copying(source: Path, target: Path, *, backwards: bool = False) -> Iterator[Path]:
    """Copies a folder; yields, before each step, what it will read next. What has vanished is left out."""
    target.mkdir()
    yield source
    try:
        names = sorted(os.listdir(source), reverse=backwards)
    except FileNotFoundError:
        return
    for name in names:
        if (source / name).is_dir():
            yield from copying(source / name, target / name, backwards=backwards)
            continue
        yield source / name
        try:
            fd = os.open(source / name, os.O_RDONLY)
        except FileNotFoundError:
            continue
        with (target / name).open("wb") as copy:
            while data := os.read(fd, PIECE):
                copy.write(data)
                yield source / name
        os.close(fd)


@dataclass
class Known:
    """A file as the programs know it."""

    handle: int
    content: bytearray
    synced: bool = False
    overwritten: bool = False
    """Whether something in it was changed since the backup began, other than by appending."""
    untouched: bool = False
    """Whether it was synced before the backup began and nothing was done to it since."""
    torn: bool = False
    """Whether it was changed while the backup had it open."""
    states: list[bytes] = field(default_factory=list)
    """Every content it had since the backup began."""
    history: list[bytes] = field(default_factory=list)
    """Every content it ever had."""


class Programs:
    """Random use of a vault's root directory, with a model of what is in it."""

    def __init__(self, fs: FileSystem, rng: random.Random) -> None:
        self.fs = fs
        self.rng = rng
        self.files: dict[bytes, Known] = {}
        self.gone: dict[bytes, Known] = {}
        self.being_read: bytes | None = None
        """The ciphertext name of what the backup has open."""
        self._number = 0

    def _is_read(self, name: bytes) -> bool:
        directory = self.fs._directories.get(self.fs._nodes.root)
        return self.being_read == directory.lower_name(name)[0]

    def begin_backup(self) -> None:
        """From here on it matters what is done."""
        for known in self.files.values():
            known.untouched = known.synced
            known.overwritten = False
            known.states = [bytes(known.content)]

    def act(self) -> None:
        """One change, or one thing that the background work does."""
        kinds = [self.create, self.append, self.append, self.overwrite, self.overwrite, self.overwrite]
        kinds += [
            self.sync,
            self.sync,
            self.rewrite,
            self.truncate,
            self.rename,
            self.remove,
            self.background,
        ]
        if not self.files:
            kinds = [self.create]
        self.rng.choice(kinds)()

    def _pick(self, *, any_of_them: bool = False) -> tuple[bytes, Known]:
        # Half of the files are left alone for ever once they are synced.
        names = [n for n, k in self.files.items() if any_of_them or not (k.synced and n[-1:] in b"02468")]
        name = self.rng.choice(names or list(self.files))
        return name, self.files[name]

    def _touched(self, known: Known, *, overwritten: bool = True) -> None:
        known.synced = known.untouched = False
        known.overwritten |= overwritten
        known.states.append(bytes(known.content))
        known.history.append(bytes(known.content))
        known.torn |= any(known is other and self._is_read(name) for name, other in self.files.items())

    def create(self) -> None:
        if len(self.files) > 14:
            return self.remove()
        self._number += 1
        suffix = self.rng.choice([b".dcm", b".db"])
        name = self.rng.choice([b"image", b"long name " * 20]) + suffix + b"%d" % self._number
        handle, _ = self.fs.create(1, name, 0o600, ME, os.O_RDWR)
        known = self.files[name] = Known(handle, bytearray())
        known.states.append(b"")
        if self.rng.random() < 0.8:
            self._append(known, self.rng.choice([1, 5000, 70_000, 150_000]))
            if self.rng.random() < 0.6:
                self.fs.fsync(handle)
                known.synced = True

    def append(self) -> None:
        self._append(self._pick()[1], self.rng.choice([1, 3000, 66_000]))

    def _append(self, known: Known, size: int) -> None:
        piece = self.rng.randbytes(size)
        self.fs.write(known.handle, len(known.content), piece)
        known.content += piece
        self._touched(known, overwritten=False)

    def overwrite(self) -> None:
        known = self._pick()[1]
        at = self.rng.randrange(len(known.content) + 1)
        piece = self.rng.randbytes(self.rng.choice([1, 4096, 9000]))
        self.fs.write(known.handle, at, piece)
        known.content[at : at + len(piece)] = piece
        self._touched(known)

    def sync(self) -> None:
        known = self._pick()[1]
        self.fs.fsync(known.handle)
        known.synced = True

    def truncate(self) -> None:
        name, known = self._pick()
        size = self.rng.choice([0, len(known.content) // 2, len(known.content) + 3000])
        self.fs.setattr(self.fs.lookup(1, name).ino, SetAttr(size=size), known.handle)
        del known.content[size:]
        known.content.extend(bytes(size - len(known.content)))
        self._touched(known)

    def rewrite(self) -> None:
        """As editors and many programs save: emptied, then written again."""
        name, known = self._pick()
        self.fs.setattr(self.fs.lookup(1, name).ino, SetAttr(size=0), known.handle)
        known.content.clear()
        self._touched(known)
        self._append(known, self.rng.choice([100, 80_000]))
        self.fs.fsync(known.handle)
        known.synced = True

    def rename(self) -> None:
        name, known = self._pick()
        self._number += 1
        new = self.rng.choice([b"renamed", b"renamed to a long name " * 8]) + b"%d" % self._number
        self.fs.rename(1, name, 1, new)
        del self.files[name]
        known.untouched = False
        self.files[new] = known

    def remove(self) -> None:
        name, known = self._pick()
        self.fs.unlink(1, name)
        self.fs.release(known.handle)
        self.gone[name] = self.files.pop(name)

    def background(self) -> None:
        committer = self.fs._committer
        self.rng.choice([committer.commit, committer.checkpoint_all, committer.settle])()

"""The common interface of repairs.

A repair is a function from a finding to a `Step`, or to the sentence that says why nothing is done. Steps
are shown before any is taken. Each is safe to cut at any instant and does nothing when done again: what it
replaces is kept first, then the change is one that the lower file system makes as a whole, or one of a
place that nothing valid stands in.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from cryptfs.check.context import Context
from cryptfs.check.directory import OPEN_DIR, DirectoryLook, look_at
from cryptfs.check.finding import Finding
from cryptfs.check.place import Place
from cryptfs.check.repair.keeper import Keeper

RDWR = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Unrepairable(Exception):
    """A step finds that it can do nothing; the message says why."""


@dataclass
class Workshop:
    """A vault that nobody else has open, and what a repair needs to work on it."""

    context: Context
    keeper: Keeper
    moved: list[str] = field(default_factory=list)
    """Plaintext paths of what is in lost+found now."""

    @contextlib.contextmanager
    def directory_of(self, place: bytes) -> Iterator[Opened]:
        """The directory that holds the entry at a ciphertext path `tree/…`, open.

        Unrepairable if the path leads nowhere, which is also so of one too long to be told in full.
        """
        steps = place.split(b"/")
        with self._walk(steps[1:-1]) as opened:
            opened.lname = steps[-1]
            yield opened

    @contextlib.contextmanager
    def directory_at(self, place: bytes) -> Iterator[Opened]:
        """The directory at a ciphertext path, open."""
        with self._walk(place.split(b"/")[1:]) as opened:
            yield opened

    @contextlib.contextmanager
    def _walk(self, steps: list[bytes]) -> Iterator[Opened]:
        fd, place, parent_id, above = os.dup(self.context.tree_fd), Place(None, b""), None, None
        try:
            for step in steps:
                above = look_at(self.context, place, fd, parent_id)
                try:
                    inner = os.open(step, OPEN_DIR, dir_fd=fd)
                except OSError as problem:
                    raise Unrepairable(f"its folder cannot be opened: {problem.strerror}") from None
                os.close(fd)
                fd, place = inner, Place(place, step)
                parent_id = above.header.object_id if above.header else None
            yield Opened(self.context, place, fd, parent_id, above)
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def folder(self, name: str) -> Iterator[int]:
        """One of the vault's own folders, or (with "") the vault itself, open."""
        fd = os.open(self.context.path / name, OPEN_DIR)
        try:
            yield fd
        finally:
            os.close(fd)


@dataclass
class Opened:
    """An open ciphertext directory, and the look at the one above it."""

    context: Context
    place: Place
    fd: int
    parent_id: bytes | None
    above: DirectoryLook | None
    lname: bytes = b""

    def look(self) -> DirectoryLook:
        return look_at(self.context, self.place, self.fd, self.parent_id)

    def path(self, lname: bytes | None = None) -> bytes:
        return self.place.path(lname)


@dataclass(frozen=True)
class Step:
    """What is done about a finding: a sentence for people, and the doing."""

    finding: Finding
    sentence: str
    do: Callable[[Workshop], None] = field(compare=False, repr=False)


Plan = Callable[[Workshop, Finding], "Step | str"]

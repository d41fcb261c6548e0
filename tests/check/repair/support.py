"""Repairing a vault that a test damaged, also with the power cut at every instant of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cryptfs.check.finding import Finding
from cryptfs.check.repair import run as repairs
from cryptfs.check.repair.run import Outcome
from cryptfs.check.run import Check
from cryptfs.vault import config, diskio
from tests.check.support import check, context_of, copy, damage
from tests.conftest import SEED
from tests.security.archive import Archive, Mounted


def repair(archive: Archive) -> Outcome:
    """Repair everything, as `verify --repair --yes` does."""
    unlocked = archive.unlock()
    with context_of(archive.path, unlocked.vault_id, unlocked.keyring) as context, repairs.alone(context):
        context.proves = lambda text: config.is_authentic(unlocked, text)
        context.live = False
        shop, steps, outcome = repairs.prepare(context, Check(context).run().tally.findings)
        return repairs.carry_out(shop, steps, outcome)


def repaired(archive: Archive) -> list[Finding]:
    """Repair, without a step that fails; the damage that is left."""
    outcome = repair(archive)
    assert [problem for _, problem in outcome.done if problem] == []
    return damage(check(archive))


def walk(mount: Mounted, path: str = "") -> dict[str, bytes | str | None]:
    """Every file with its content (or the error of reading it), every folder."""
    found: dict[str, bytes | str | None] = {}
    for name in mount.list(path):
        below = f"{path}/{name}".lstrip("/")
        try:
            attr = mount.fs.getattr(mount.ino(below))
            if attr.mode & 0o170000 == 0o040000:
                found[below] = None
                found.update(walk(mount, below))
            elif attr.mode & 0o170000 == 0o120000:
                found[below] = b"-> " + mount.fs.readlink(mount.ino(below))
            else:
                found[below] = mount.read(below)
        except OSError as error:
            found[below] = os.strerror(error.errno or 0)
    return found


def contents(archive: Archive) -> dict[str, bytes | str | None]:
    with archive.mounted(read_only=True) as mount:
        return walk(mount)


class PowerCut(BaseException):
    """The machine stops here. Nothing catches it but the test."""


CHANGES = ["rename", "ftruncate", "pwrite", "mkdir", "unlink", "fsync"]


class _Countdown:
    """Makes functions that raise PowerCut at the call with this number, whichever of them it is."""

    def __init__(self, number: int) -> None:
        self._left = number

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
            self._left -= 1
            if self._left == 0:
                raise PowerCut
            return function(*arguments, **named)

        return call


def cut_everywhere(
    archive: Archive, folder: Path, monkeypatch: pytest.MonkeyPatch, verdict: Callable[[Archive], None]
) -> int:
    """Repair copies of the archive, cut before the first, second, … change, then repair again and judge.

    Returns how many instants there were. Every fourth is tried, others with each seed; all of them if
    CRYPTFS_TEST_EXAMPLES is set. `archive` itself stays as it is.
    """
    stride = 1 if "CRYPTFS_TEST_EXAMPLES" in os.environ else 4
    for number in range(1 + SEED % stride, 1000, stride):
        victim = copy(archive, folder / f"cut {number}")
        with monkeypatch.context() as patch:
            counted = _Countdown(number)
            for name in CHANGES:
                patch.setattr(os, name, counted(getattr(os, name)))
            renamed = counted(diskio.renameat2)
            patch.setattr("cryptfs.check.repair.lostfound.renameat2", renamed)
            try:
                repair(victim)
            except PowerCut:
                pass
            else:
                return number - 1
        repair(victim)
        verdict(victim)
        assert [problem for _, problem in repair(victim).done if problem] == []
        shutil.rmtree(victim.path)
    raise AssertionError("it never came to an end")

"""What has no place in a vault is moved away: leftovers, orphans, strangers in the place of files.

The same for what stops a vault from mounting: a damaged session record, and journal segments from the first
damaged one on.
"""

from __future__ import annotations

import os
import stat

from cryptfs.check.finding import Finding
from cryptfs.check.repair.workshop import Step, Workshop
from cryptfs.vault.journal import SUFFIX
from cryptfs.vault.layout import JOURNAL


def away(shop: Workshop, finding: Finding) -> Step:
    """Move one entry into the folder with the originals."""

    def do(shop: Workshop) -> None:
        folder, _, name = finding.place.rpartition(b"/")
        if folder.split(b"/")[0] == b"tree":
            with shop.directory_of(finding.place) as opened:
                _move(shop, finding.place, opened.fd, name)
        else:
            with shop.folder(os.fsdecode(folder)) as fd:
                _move(shop, finding.place, fd, name)

    return Step(finding, "move it away", do)


def stranger(shop: Workshop, finding: Finding) -> Step | str:
    """A pipe, a link or a device in the place of a file; what stands there by now may be the right thing."""

    def do(shop: Workshop) -> None:
        path = os.path.join(os.fsencode(shop.context.path), finding.place)
        mode = os.lstat(path).st_mode
        in_tree = finding.place.startswith(b"tree/")
        if not stat.S_ISREG(mode) and not (in_tree and stat.S_ISDIR(mode)):
            away_step.do(shop)

    away_step = away(shop, finding)
    return Step(finding, away_step.sentence, do)


def _move(shop: Workshop, place: bytes, fd: int, name: bytes) -> None:
    try:
        shop.keeper.move(place, "moved away", fd, name)
    except FileNotFoundError:
        pass  # done already


def session_record(shop: Workshop, finding: Finding) -> Step | str:
    """`journal/state`: without it there are no unclean sessions, and files cut by one are errors."""
    sentence = "move the session record away; files that an unclean stop cut are damaged from then on"
    return Step(finding, sentence, away(shop, finding).do)


def journal(shop: Workshop, finding: Finding) -> Step | str:
    """A damaged or missing segment: what follows it must not go over what precedes it."""

    def do(shop: Workshop) -> None:
        first = os.path.basename(finding.place)
        with shop.folder(JOURNAL) as folder:
            names = sorted(
                name for name in map(os.fsencode, os.listdir(folder)) if name.endswith(SUFFIX.encode())
            )
            # The last first: cut in between, what is left still ends at the damage.
            for name in reversed([name for name in names if name >= first]):
                _move(shop, f"{JOURNAL}/".encode() + name, folder, name)

    return Step(
        finding,
        "move this segment and those after it away; the newest synced changes of files may be lost with them",
        do,
    )

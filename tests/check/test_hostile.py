"""Whatever somebody puts into the folder of a vault: a check ends, soon, and says what it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptfs.check.finding import Kind
from tests.check.support import check, damage, fill, kinds
from tests.security.archive import HEADER, Archive

MANY = 1 << 43
"""Bytes: reading them all would take hours."""


def a_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def a_link(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("strange", [a_pipe, a_link])
def test_pipes_and_links_in_the_place_of_everything(
    archive: Archive, strange: Callable[[Path], None]
) -> None:
    fill(archive)
    places = [
        archive.lower("anna/ct/1.dcm"),
        archive.lower("anna/ct") / "@dir",
        next(archive.lower("anna").glob("@l*.name")),
        archive.path / "journal/state",
        archive.path / "journal/0000000000000000.seg",
        archive.path / "dirs/0000000000000000.log",
        archive.path / "cryptfs.json.previous",
        next(path for path in (archive.path / "xattr").rglob("*") if path.is_file()),
    ]
    for place in places:
        strange(place)
    report = check(archive)
    assert Kind.WRONG_KIND in kinds(report)
    assert len(damage(report)) >= len(places)


def test_files_of_any_size(archive: Archive) -> None:
    fill(archive)
    os.truncate(archive.lower("anna/ct/1.dcm"), MANY)
    os.truncate(archive.lower("sparse"), MANY)
    os.truncate(archive.lower("link"), MANY)
    os.truncate(next(archive.lower("anna").glob("@l*.name")), MANY)
    os.truncate(archive.path / "dirs/0000000000000000.log", MANY)
    (archive.path / "journal/0000000000000000.seg").touch()
    os.truncate(archive.path / "journal/0000000000000000.seg", MANY)
    os.truncate(archive.path / "journal/state", MANY)
    found = {finding.kind for finding in damage(check(archive))}
    assert found >= {Kind.CONTENT, Kind.LINK_TARGET, Kind.LONG_NAME, Kind.STATE}


def test_a_tree_deeper_than_any_path(archive: Archive) -> None:
    fill(archive)
    fd = os.open(archive.path / "tree", os.O_RDONLY)
    top = os.dup(fd)
    depth = 200
    name = "A" * 24
    for _ in range(depth):
        os.mkdir(name, dir_fd=fd)
        inner = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    try:
        report = check(archive)
        assert report.tally.counts["directories"] == depth + 3
        assert kinds(report) == {Kind.NAME, Kind.DIRECTORY_LOST}
    finally:
        remove_chain(top, name)


def remove_chain(top: int, name: str) -> None:
    """Takes a chain of directories away from below, which shutil cannot at this depth."""
    fds = [top]
    while True:
        try:
            fds.append(os.open(name, os.O_RDONLY, dir_fd=fds[-1]))
        except FileNotFoundError:
            break
    for fd in reversed(fds[:-1]):
        os.rmdir(name, dir_fd=fd)
    for fd in fds:
        os.close(fd)


def test_a_tree_that_is_wide_and_deep_without_headers(archive: Archive) -> None:
    """Looking for a lost header below a directory must not visit every path there is."""
    fill(archive)
    anna = archive.lower("anna")
    for path in [anna / "@dir", archive.lower("anna/ct") / "@dir"]:
        path.unlink()
    for first in range(8):
        for second in range(8):
            for third in range(8):
                (anna / f"{first:024}" / f"{second:024}" / f"{third:024}").mkdir(parents=True)
    for log in (archive.path / "dirs").iterdir():
        log.unlink()
    assert Kind.DIRECTORY_LOST in kinds(check(archive))


def test_headers_and_content_of_random_bytes(archive: Archive) -> None:
    fill(archive)
    lower = archive.lower("index.db")
    for size in (1, 191, 192, HEADER - 1, HEADER, HEADER + 39, 100_000):
        lower.write_bytes(os.urandom(size))
        assert kinds(check(archive)) == {Kind.HEADER}
    for path in archive.lower("anna").iterdir():
        if path.is_file():
            path.write_bytes(os.urandom(500))
    assert damage(check(archive))

"""One of the two copies of a header is damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cryptfs.check.finding import Kind
from tests.check.repair.support import contents, cut_everywhere, repaired
from tests.check.support import check, damage, fill, kinds
from tests.golden import independent_reader as reader
from tests.security.archive import Archive


def tear(archive: Archive, path: str) -> int:
    """Damage the slot that does not count; where it is."""
    lower = archive.lower(path)
    file = lower / "@dir" if lower.is_dir() else lower
    data = file.read_bytes()
    newest = 0 if reader.parse_slot(data[:192], archive.keys()) == archive.header(path) else 4096
    other = 4096 - newest
    with file.open("r+b") as stream:
        stream.seek(other)
        stream.write(os.urandom(192))
    return other


@pytest.mark.parametrize("path", ["index.db", "anna", ""])
def test_it_is_written_anew(archive: Archive, path: str) -> None:
    fill(archive)
    before, generation = contents(archive), archive.header(path).generation
    at = tear(archive, path)
    assert kinds(check(archive)) == {Kind.HEADER_SLOT}
    assert repaired(archive) == []
    assert contents(archive) == before
    assert archive.header(path).generation == generation + 1
    (kept,) = archive.path.glob("repair-*")
    assert (kept / "000001").read_bytes()[at : at + 192] != bytes(192)
    assert "header slot" in (kept / "log.jsonl").read_text()


def test_cut_at_every_instant(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with archive.mounted() as mount:
        mount.write("image", b"pixels")
    tear(archive, "image")

    def verdict(victim: Archive) -> None:
        assert damage(check(victim)) == []
        assert contents(victim) == {"image": b"pixels"}

    assert cut_everywhere(archive, tmp_path, monkeypatch, verdict) >= 4


def test_both_copies_cannot_be_repaired_and_nothing_is_made_worse(archive: Archive) -> None:
    fill(archive)
    lower = archive.lower("anna/ct/1.dcm")
    lower.write_bytes(os.urandom(192) + lower.read_bytes()[192:])
    bad = lower.read_bytes()
    assert [found.kind for found in repaired(archive)] == [Kind.HEADER]
    assert lower.read_bytes() == bad

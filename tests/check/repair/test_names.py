"""An entry whose name cannot be read: its object is in lost+found afterwards."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cryptfs.check.finding import Kind
from tests.check.repair.support import contents, cut_everywhere, repaired
from tests.check.support import check, damage, fill
from tests.security.archive import Archive


def test_a_lost_long_name(archive: Archive) -> None:
    fill(archive)
    (sidecar,) = archive.lower("anna").glob("@l*.name")
    object_id = archive.header("anna/" + "n" * 250).object_id.hex()
    sidecar.write_bytes(b"?" * 300)
    assert repaired(archive) == []
    after = contents(archive)
    assert after[f"lost+found/anna/{object_id}"] == b"a long name"
    assert not sidecar.exists()
    assert sorted(path.read_bytes()[:1] for path in archive.path.glob("repair-*/0*")) == [b"?"]


def test_a_file_in_the_wrong_folder(archive: Archive) -> None:
    fill(archive)
    before = contents(archive)
    image = archive.lower("anna/ct/1.dcm")
    object_id = archive.header("anna/ct/1.dcm").object_id.hex()
    image.rename(archive.path / "tree" / image.name)
    assert repaired(archive) == []
    after = contents(archive)
    assert after[f"lost+found/root/{object_id}.dcm"] == before["anna/ct/1.dcm"]


def test_a_folder_in_the_wrong_folder_keeps_what_is_in_it(archive: Archive) -> None:
    fill(archive)
    before = contents(archive)
    ct = archive.lower("anna/ct")
    object_id = archive.header("anna/ct").object_id.hex()
    ct.rename(archive.path / "tree" / ct.name)
    assert repaired(archive) == []
    assert contents(archive)[f"lost+found/root/folder-{object_id}/1.dcm"] == before["anna/ct/1.dcm"]


def test_what_is_no_object_of_this_vault_is_moved_away(archive: Archive, tmp_path: Path) -> None:
    fill(archive)
    other = Archive(tmp_path / "other")
    fill(other)
    before = contents(archive)
    shutil.copy(other.lower("index.db"), archive.path / "tree" / other.lower("index.db").name)
    (archive.path / "tree" / ("B" * 24)).write_bytes(os.urandom(10_000))
    assert repaired(archive) == []
    assert contents(archive) == before
    assert len(list(archive.path.glob("repair-*/0*"))) == 2


def test_strangers_in_the_place_of_files_are_moved_away(archive: Archive) -> None:
    fill(archive)
    before = contents(archive)
    os.mkfifo(archive.path / "tree" / ("C" * 24))
    (archive.path / "tree" / ("D" * 24)).symlink_to("/etc/passwd")
    assert repaired(archive) == []
    assert contents(archive) == before


def test_a_doubled_object_is_left_to_a_person(archive: Archive) -> None:
    """Which patient it belongs to cannot be told from here."""
    fill(archive)
    first, second = archive.lower("anna/ct/1.dcm"), archive.lower("anna/ct/2.dcm")
    second.write_bytes(first.read_bytes())
    assert [found.kind for found in repaired(archive)] == [Kind.DUPLICATE]
    assert second.read_bytes() == first.read_bytes()
    assert second.stat().st_nlink == 1


def test_cut_at_every_instant(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with archive.mounted() as mount:
        mount.mkdir("anna")
        mount.write("anna/" + "n" * 250, b"pixels")
    (sidecar,) = archive.lower("anna").glob("@l*.name")
    sidecar.write_bytes(b"?" * 300)

    def verdict(victim: Archive) -> None:
        assert damage(check(victim)) == []
        found = contents(victim)
        assert [content for content in found.values() if content] == [b"pixels"]

    assert cut_everywhere(archive, tmp_path, monkeypatch, verdict) > 10

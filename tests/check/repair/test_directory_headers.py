"""`@dir` is lost: put back from a copy, or the names below it go to lost+found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cryptfs.check.finding import Kind
from tests.check.repair.support import contents, cut_everywhere, repair, repaired
from tests.check.support import DICOM_LIKE, check, damage, fill, kinds
from tests.security.archive import HEADER, Archive


def forget_copies(archive: Archive) -> None:
    """No copy in `dirs/`, and none carried by a file."""
    for log in (archive.path / "dirs").iterdir():
        log.unlink()
    for path in (archive.path / "tree").rglob("*"):
        if path.is_file() and path.stat().st_size >= HEADER:
            with path.open("r+b") as file:
                file.seek(256)
                file.write(bytes(4096 - 256))


@pytest.mark.parametrize("folder", ["", "anna", "anna/ct"])
@pytest.mark.parametrize("how", ["gone", "random", "a pipe"])
def test_a_copy_opens_it(archive: Archive, folder: str, how: str) -> None:
    fill(archive)
    before = contents(archive)
    file = archive.lower(folder) / "@dir"
    file.unlink()
    if how == "random":
        file.write_bytes(os.urandom(4096))
    if how == "a pipe":
        os.mkfifo(file)
    assert repaired(archive) == []
    assert contents(archive) == before
    assert archive.header(folder).kind == 2


def test_all_of_them_at_once(archive: Archive) -> None:
    fill(archive)
    before = contents(archive)
    for file in (archive.path / "tree").rglob("@dir"):
        file.unlink()
    assert repaired(archive) == []
    assert contents(archive) == before


def test_without_a_copy_the_files_go_to_lost_and_found(archive: Archive) -> None:
    fill(archive)
    before = contents(archive)
    ids = {path: archive.header(path).object_id.hex() for path in before if path.startswith("anna/")}
    (archive.lower("anna") / "@dir").unlink()
    forget_copies(archive)
    assert kinds(check(archive)) == {Kind.DIRECTORY_LOST}
    assert repaired(archive) == []
    after = contents(archive)
    assert after["anna"] is None
    place = "lost+found/anna"
    ct = f"{place}/folder-{ids['anna/ct']}"
    # What was below the folder in it kept its names.
    assert after[f"{ct}/1.dcm"] == before["anna/ct/1.dcm"]
    saved = {path: content for path, content in after.items() if path.startswith(f"{place}/")}
    long = next(path for path in before if path.startswith("anna/nnn"))
    assert saved[f"{place}/{ids[long]}"] == before[long]
    for path in before:
        if not path.startswith("anna/"):
            assert after[path] == before[path]


def test_images_keep_an_ending(archive: Archive) -> None:
    fill(archive)
    (archive.lower("anna/ct") / "@dir").unlink()
    forget_copies(archive)
    assert repaired(archive) == []
    after = contents(archive)
    images = [path for path in after if path.startswith("lost+found/anna_ct/")]
    assert len(images) == 2
    for path in images:
        assert path.endswith(".dcm")
        content = after[path]
        assert isinstance(content, bytes) and content.startswith(DICOM_LIKE)


def test_the_root_itself(archive: Archive) -> None:
    fill(archive)
    before = contents(archive)
    (archive.path / "tree/@dir").unlink()
    forget_copies(archive)
    assert repaired(archive) == []
    after = contents(archive)
    assert sorted(content for content in after.values() if isinstance(content, bytes)) == sorted(
        content for content in before.values() if isinstance(content, bytes)
    )


def test_cut_at_every_instant(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with archive.mounted() as mount:
        mount.mkdir("anna")
        mount.write("anna/1.dcm", b"pixels")
        mount.mkdir("anna/ct")
        mount.write("anna/ct/2.dcm", b"more")
    (archive.lower("anna") / "@dir").unlink()
    forget_copies(archive)

    def verdict(victim: Archive) -> None:
        assert damage(check(victim)) == []
        found = contents(victim)
        assert sorted(content for content in found.values() if content) == [b"more", b"pixels"]

    assert cut_everywhere(archive, tmp_path, monkeypatch, verdict) > 10


def test_nothing_is_done_twice(archive: Archive) -> None:
    fill(archive)
    (archive.lower("anna") / "@dir").unlink()
    assert repair(archive).done
    assert repair(archive).done == []

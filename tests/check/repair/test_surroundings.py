"""What lies around the tree: configuration, session record, journal, header copies, attributes, leftovers."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cryptfs.check.finding import Kind
from cryptfs.errors import IntegrityError
from cryptfs.keyslots import RecoveryKey
from cryptfs.vault import config
from tests.check.repair.support import contents, cut_everywhere, repair, repaired
from tests.check.support import check, damage, fill, notices
from tests.security.archive import Archive
from tests.security.test_integrity import NEW, OLD, crashed


def test_the_journal_is_put_in_place(archive: Archive, tmp_path: Path) -> None:
    copied = crashed(archive, tmp_path / "copy")
    assert repaired(copied) == []
    assert not list((copied.path / "journal").glob("*.seg"))
    assert contents(copied) == {"index.db": NEW}


def test_a_damaged_segment_no_longer_stops_the_mount(archive: Archive, tmp_path: Path) -> None:
    copied = crashed(archive, tmp_path / "copy")
    segment = max((copied.path / "journal").glob("*.seg"), key=lambda path: path.stat().st_size)
    data = bytearray(segment.read_bytes())
    data[20] ^= 1
    segment.write_bytes(data)
    with pytest.raises(IntegrityError), copied.mounted():
        pass
    assert repaired(copied) == []
    assert contents(copied) == {"index.db": OLD}
    kept = [path.read_bytes() for path in copied.path.glob("repair-*/0*")]
    assert bytes(data) in kept


def test_nothing_goes_over_a_journal_that_is_not_in_place(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer header would void what the journal holds for its object: a synced change would be lost."""
    copied = crashed(archive, tmp_path / "copy")
    root = copied.path / "tree/@dir"
    root.write_bytes(root.read_bytes()[:4096].ljust(4096, b"\0") + os.urandom(192))

    def full(vault: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("cryptfs.check.repair.run.recover", full)
        ((_, problem),) = repair(copied).done
    assert "journal" in problem
    assert repaired(copied) == []
    assert contents(copied) == {"index.db": NEW}


def test_a_missing_segment_and_what_follows_it(archive: Archive, tmp_path: Path) -> None:
    copied = crashed(archive, tmp_path / "copy")
    journal = copied.path / "journal"
    (segment,) = journal.glob("*.seg")
    after = journal / f"{int(segment.stem, 16) + 2:016x}.seg"
    after.write_bytes(segment.read_bytes())
    assert {found.kind for found in damage(check(copied))} == {Kind.JOURNAL}
    assert repaired(copied) == []
    assert contents(copied) == {"index.db": NEW}


def test_a_damaged_session_record(archive: Archive) -> None:
    fill(archive)
    before = contents(archive)
    state = archive.path / "journal/state"
    sealed = state.read_bytes()
    state.write_bytes(sealed[:-1] + bytes([sealed[-1] ^ 1]))
    with pytest.raises(IntegrityError), archive.mounted():
        pass
    assert repaired(archive) == []
    assert contents(archive) == before
    with archive.mounted() as mount:
        mount.write("new", b"works again")


def test_damaged_copies_of_headers(archive: Archive) -> None:
    fill(archive)
    for log in (archive.path / "dirs").glob("*.log"):
        log.write_bytes(os.urandom(256) + log.read_bytes())
    assert {found.kind for found in damage(check(archive))} == {Kind.COPIES}
    assert repaired(archive) == []
    (archive.lower("anna") / "@dir").unlink()
    assert repaired(archive) == []


def test_lost_attributes(archive: Archive) -> None:
    fill(archive)
    for path in ("anna", "index.db"):
        text = archive.header(path).object_id.hex()
        (archive.path / "xattr" / text[:2] / text).write_bytes(b"damaged")
    assert {found.kind for found in damage(check(archive))} == {Kind.ATTRIBUTES}
    assert repaired(archive) == []
    with archive.mounted(xattrs=True) as mount:
        for path in ("anna", "index.db"):
            assert mount.fs.listxattr(mount.ino(path)) == []
            mount.fs.setxattr(mount.ino(path), b"user.new", b"1")
            with pytest.raises(OSError) as caught:
                mount.fs.getxattr(mount.ino(path), b"user.a")
            assert caught.value.errno == errno.ENODATA
    assert damage(check(archive)) == []


def test_leftovers_and_orphans_go_and_foreign_files_stay(archive: Archive) -> None:
    fill(archive)
    before = contents(archive)
    left = [
        archive.path / "tree" / "@tmp-1",
        archive.path / "tree" / ("@l" + "A" * 43 + ".name"),
        archive.path / "journal" / "@tmp-2",
        archive.path / "xattr" / "00" / ("0" * 32),
    ]
    foreign = archive.path / "tree" / ".nfs0001"
    left[-1].parent.mkdir(exist_ok=True)
    for path in [*left, foreign]:
        path.write_bytes(b"x")
    assert repaired(archive) == []
    assert not [path for path in left if path.exists()]
    assert foreign.exists()
    assert contents(archive) == before
    assert notices(check(archive)) == {Kind.FOREIGN, Kind.KEPT}


def test_the_spare_of_the_configuration(archive: Archive) -> None:
    fill(archive)
    config.add_slot(archive.unlock(), RecoveryKey.new())
    previous = archive.path / "cryptfs.json.previous"
    previous.write_bytes(previous.read_bytes()[:-40])
    assert {found.kind for found in damage(check(archive))} == {Kind.CONFIGURATION}
    assert repaired(archive) == []
    assert previous.read_bytes() == (archive.path / "cryptfs.json").read_bytes()


def test_cut_at_every_instant(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with archive.mounted(xattrs=True) as mount:
        mount.write("image", b"pixels")
        mount.fs.setxattr(mount.ino("image"), b"user.a", b"1")
    text = archive.header("image").object_id.hex()
    (archive.path / "xattr" / text[:2] / text).write_bytes(b"damaged")
    (archive.path / "journal/state").write_bytes(b"damaged")
    (archive.path / "journal/0000000000000003.seg").write_bytes(os.urandom(9000))
    log = next((archive.path / "dirs").glob("*.log"))
    log.write_bytes(os.urandom(256) + log.read_bytes())

    def verdict(victim: Archive) -> None:
        assert damage(check(victim)) == []
        assert contents(victim) == {"image": b"pixels"}

    assert cut_everywhere(archive, tmp_path, monkeypatch, verdict) > 10


def test_a_mounted_vault_is_not_repaired(archive: Archive) -> None:
    from cryptfs.errors import VaultInUse

    with archive.mounted(), pytest.raises(VaultInUse):
        repair(archive)

"""Journal segments: what recovery believes, and in which order (docs/format.md section 10)."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from cryptfs.crypto.aead import Xaes
from cryptfs.vault import journal as module
from cryptfs.vault.header import SEGMENT, Header, HeaderCodec, HeaderInvalid
from cryptfs.vault.journal import Journal, Record, pending_records
from cryptfs.vault.keyring import Keyring

ONE, TWO = b"1" * 16, b"2" * 16


@pytest.fixture
def codec() -> HeaderCodec:
    return HeaderCodec(bytes(16), Keyring.new())


@pytest.fixture
def journal(tmp_path: Path, codec: HeaderCodec) -> Journal:
    return Journal(str(tmp_path), 7, codec, 0o600)


def record(object_id: bytes, text: bytes) -> Record:
    return Record(object_id, b"dir/file", [(8192, text)])


def texts(path: Path, codec: HeaderCodec) -> list[bytes]:
    return [bytes(data) for found in pending_records(str(path), codec) for _, data in found.extents]


def three_segments(journal: Journal) -> None:
    """A segment that could not be written to is followed by another, as on a full disk."""
    for text in (b"first", b"second", b"third"):
        journal._broken = True
        journal.append(record(ONE, text))
    journal.sync()


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.glob("*.seg"))


def test_segments_are_read_in_order(journal: Journal, tmp_path: Path, codec: HeaderCodec) -> None:
    three_segments(journal)
    assert names(tmp_path) == [f"{number:016x}.seg" for number in range(3)]
    assert texts(tmp_path, codec) == [b"first", b"second", b"third"]
    journal.append(record(TWO, b"other"))
    journal.settle(ONE)
    assert texts(tmp_path, codec) == [b"other"]


def test_other_files_in_the_folder_are_ignored(journal: Journal, tmp_path: Path, codec: HeaderCodec) -> None:
    journal.append(record(ONE, b"first"))
    for name in ("lock", "copy.seg", "0.seg", f"{5:016X}.seg.bak", "000000000000000A.seg", ".nfs0001"):
        (tmp_path / name).write_bytes(b"something")
    assert texts(tmp_path, codec) == [b"first"]


def test_the_first_number_need_not_be_0(journal: Journal, tmp_path: Path, codec: HeaderCodec) -> None:
    three_segments(journal)
    (tmp_path / names(tmp_path)[0]).unlink()
    assert texts(tmp_path, codec) == [b"second", b"third"]


def test_a_segment_missing_between_two_others_is_damage(
    journal: Journal, tmp_path: Path, codec: HeaderCodec
) -> None:
    three_segments(journal)
    (tmp_path / names(tmp_path)[1]).unlink()
    with pytest.raises(HeaderInvalid, match="missing"):
        pending_records(str(tmp_path), codec)


def test_no_record_of_a_renamed_segment_authenticates(
    journal: Journal, tmp_path: Path, codec: HeaderCodec
) -> None:
    three_segments(journal)
    first, second, third = names(tmp_path)
    (tmp_path / first).rename(tmp_path / "aside")
    (tmp_path / second).rename(tmp_path / first)
    (tmp_path / "aside").rename(tmp_path / second)
    assert texts(tmp_path, codec) == [b"third"]
    (tmp_path / first).unlink()
    (tmp_path / second).unlink()
    (tmp_path / third).rename(tmp_path / first)
    assert texts(tmp_path, codec) == []


def test_numbers_do_not_begin_again_while_a_session_lasts(
    journal: Journal, tmp_path: Path, codec: HeaderCodec
) -> None:
    journal.append(record(ONE, b"first"))
    journal.settle(ONE)
    journal.reset()
    journal.append(record(ONE, b"second"))
    assert names(tmp_path) == [f"{1:016x}.seg"]
    assert texts(tmp_path, codec) == [b"second"]


def test_a_record_longer_than_readers_accept_is_not_written(
    journal: Journal, tmp_path: Path, codec: HeaderCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_SEALED", 1000)
    journal.append(record(ONE, bytes(900)))
    with pytest.raises(OSError) as caught:
        journal.append(record(ONE, bytes(1000)))
    assert caught.value.errno == errno.EFBIG
    journal.append(record(ONE, b"after"))
    assert texts(tmp_path, codec) == [bytes(900), b"after"]
    assert len(names(tmp_path)) == 1


def by_hand(path: Path, codec: HeaderCodec, body: bytes) -> None:
    """A segment whose one record is authentic but made by no writer of version 1."""
    header = Header(
        SEGMENT, 12, 0, 1, 0, 1, os.urandom(16), 7, 0, 0, 0, 0, 0, 0, 0, os.urandom(32)
    )  # fmt: skip
    aad = b"cryptfs v1 journal" + header.object_id + struct.pack("<QQ", 3, 0)
    sealed = Xaes(header.key).encrypt(bytes(24), body, aad)
    data = codec.pack(header).ljust(8192, b"\0") + struct.pack("<I", len(sealed)) + sealed
    (path / f"{3:016x}.seg").write_bytes(data)


def test_a_record_sealed_by_the_specification_is_read(tmp_path: Path, codec: HeaderCodec) -> None:
    by_hand(tmp_path, codec, record(ONE, b"by hand").encode())
    assert texts(tmp_path, codec) == [b"by hand"]


@pytest.mark.parametrize("path", [b"", b"/etc/passwd", b"a//b", b"a/../../b", b".", b"..", b"a/"])
def test_a_path_never_leaves_the_tree(tmp_path: Path, codec: HeaderCodec, path: bytes) -> None:
    by_hand(tmp_path, codec, Record(ONE, path, [(8192, b"x")]).encode())
    with pytest.raises(HeaderInvalid, match="out of the tree"):
        pending_records(str(tmp_path), codec)


@pytest.mark.parametrize("body", [b"\0" * 40, b"\4" + bytes(30), b"\1" + ONE + b"\3\0abc\1\0\0"])
def test_records_of_no_known_form(tmp_path: Path, codec: HeaderCodec, body: bytes) -> None:
    by_hand(tmp_path, codec, body)
    with pytest.raises(HeaderInvalid, match="journal"):
        pending_records(str(tmp_path), codec)


@pytest.mark.parametrize("length", [3, 65534, 65535, 70000])
def test_long_paths(journal: Journal, tmp_path: Path, codec: HeaderCodec, length: int) -> None:
    path = b"p" * length
    journal.append(Record(ONE, path, [(0, b"data")], 10))
    assert pending_records(str(tmp_path), codec) == [Record(ONE, path, [(0, b"data")], 10)]


def test_zeros_are_written_ahead_of_small_appends_that_are_synced(
    journal: Journal, tmp_path: Path, codec: HeaderCodec
) -> None:
    journal.append(record(ONE, b"0"))
    journal.sync()
    (segment,) = tmp_path.glob("*.seg")
    assert segment.stat().st_size == journal.size
    journal.append(record(ONE, b"1"))
    length = segment.stat().st_size
    assert length > journal.size
    for text in (b"2", b"3"):
        journal.append(record(ONE, text))
        journal.sync()
    assert segment.stat().st_size == length, "a sync of what overwrites zeros changes no length"
    assert texts(tmp_path, codec) == [b"0", b"1", b"2", b"3"]
    large = bytes(1 << 20)
    for _ in range(2):
        journal.append(record(ONE, large))
        journal.sync()
    assert segment.stat().st_size == journal.size, "no zeros while much is written between two syncs"
    assert texts(tmp_path, codec) == [b"0", b"1", b"2", b"3", large, large]


def test_a_disk_without_room_for_the_zeros_has_room_for_the_record(
    journal: Journal, tmp_path: Path, codec: HeaderCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.append(record(ONE, b"0"))
    journal.sync()

    def full(fd: int, data: bytes, offset: int) -> None:
        if not any(data):
            raise OSError(errno.ENOSPC, "full")
        os.pwrite(fd, data, offset)

    monkeypatch.setattr(module, "pwrite_all", full)
    journal.append(record(ONE, b"1"))
    journal.sync()
    assert texts(tmp_path, codec) == [b"0", b"1"]


def refusing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The next call of a function of the system fails."""
    real = getattr(os, name)

    def call(*_args: object, **_kwargs: object) -> object:
        monkeypatch.setattr(os, name, real)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, name, call)


def test_a_segment_that_the_disk_refuses_to_remove_goes_on(
    journal: Journal, tmp_path: Path, codec: HeaderCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its descriptor must not be closed: the number could be that of a patient's image a moment later."""
    journal.append(record(ONE, b"first"))
    journal.settle(ONE)
    refusing(monkeypatch, "unlink")
    with pytest.raises(OSError, match="Input/output"):
        journal.reset()
    others = [os.open(tmp_path / f"image{number}", os.O_RDWR | os.O_CREAT) for number in range(3)]
    journal.append(record(TWO, b"second"))
    journal.sync()
    assert texts(tmp_path, codec) == [b"second"]
    journal.settle(TWO)
    journal.reset()
    assert names(tmp_path) == []
    for other in others:
        assert os.fstat(other).st_size == 0
        os.close(other)
    journal.close()


def test_a_newer_segment_goes_only_after_the_removal_of_an_older_is_durable(
    journal: Journal, tmp_path: Path, codec: HeaderCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the sync in between fails, and is tried again later."""
    three_segments(journal)
    journal.settle(ONE)
    journal.sync()
    calls: list[str] = []

    def sync(path: str) -> None:
        calls.append("sync")
        if calls.count("sync") == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    real = os.unlink
    monkeypatch.setattr(module, "fsync_path", sync)
    monkeypatch.setattr(os, "unlink", lambda path: (calls.append("remove"), real(path)))
    with pytest.raises(OSError, match="Input/output"):
        journal.reset()
    assert texts(tmp_path, codec) == []
    journal.reset()
    assert calls == ["remove", "sync", "sync", "remove", "sync", "remove"]
    assert names(tmp_path) == []


def test_a_segment_that_could_neither_be_made_nor_removed(
    journal: Journal, tmp_path: Path, codec: HeaderCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.append(record(ONE, b"first"))
    journal._broken = True
    refusing(monkeypatch, "pwrite")
    refusing(monkeypatch, "unlink")
    with pytest.raises(OSError, match="Input/output"):
        journal.append(record(ONE, b"lost"))
    assert len(names(tmp_path)) == 2
    journal.append(record(TWO, b"second"))
    journal.sync()
    assert texts(tmp_path, codec) == [b"first", b"second"]


def test_no_segment_with_records_makes_room_for_another(journal: Journal, tmp_path: Path) -> None:
    path = tmp_path / f"{0:016x}.seg"
    path.write_bytes(bytes(8192 + 1))
    with pytest.raises(FileExistsError):
        journal.append(record(ONE, b"first"))
    assert path.stat().st_size == 8192 + 1

"""What is lost of a file reads as an error, never as data; what is left can be read."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cryptfs.check.finding import Kind
from cryptfs.check.repair.content import MARK
from tests.check.repair.support import cut_everywhere, repair, repaired
from tests.check.support import check, damage
from tests.security.archive import HEADER, Archive
from tests.security.test_integrity import FILES, HARMS, content


@pytest.fixture(params=FILES)
def image(request: pytest.FixtureRequest, archive: Archive) -> str:
    with archive.mounted() as mount:
        mount.write(request.param, content(request.param))
    return str(request.param)


def readable(archive: Archive, path: str, chunk: int) -> dict[int, bytes]:
    """The chunks that a program can read, by number."""
    found = {}
    with archive.mounted(read_only=True) as mount:
        size = mount.fs.getattr(mount.ino(path)).size
        for at in range(0, size, chunk):
            try:
                found[at // chunk] = mount.read(path, at, min(chunk, size - at))
            except OSError as error:
                assert error.errno == errno.EIO
    return found


def reads_to_its_end(archive: Archive, path: str) -> bytes | None:
    """The whole file, as a program reads it; None if that ends with an error."""
    with archive.mounted(read_only=True) as mount:
        try:
            return mount.read(path)
        except OSError:
            return None


@pytest.mark.thorough
def test_no_harm_becomes_other_data(archive: Archive, image: str) -> None:
    """Afterwards the file is what it was, or reading it to its end is an error; all chunks are its own."""
    lower, stride = archive.lower(image), archive.stride(image)
    good, expected = lower.read_bytes(), content(image)
    for name, harm in HARMS.items():
        lower.write_bytes(good[:HEADER] + harm(good[HEADER:], stride))
        repair(archive)
        whole = reads_to_its_end(archive, image)
        assert whole in (None, expected), name
        if whole is None:
            assert [found.kind for found in damage(check(archive))] in ([Kind.CONTENT], [Kind.CUT]), name
            if lower.stat().st_size >= HEADER + 40:
                for number, data in readable(archive, image, stride - 40).items():
                    assert expected[number * (stride - 40) :].startswith(data), name
        before = lower.read_bytes()
        assert [step for step, _ in repair(archive).done] == [], name
        assert lower.read_bytes() == before, name


@pytest.mark.parametrize("cut", ["at a chunk", "with a piece too short to be one"])
def test_a_file_without_its_end_can_be_read_up_to_there(archive: Archive, image: str, cut: str) -> None:
    lower, stride = archive.lower(image), archive.stride(image)
    os.truncate(lower, HEADER + 2 * stride + (17 if cut != "at a chunk" else 0))
    tail = lower.read_bytes()[HEADER + 2 * stride :]
    assert [found.kind for found in repaired(archive)] == [Kind.CONTENT]
    chunk = stride - 40
    assert readable(archive, image, chunk) == {
        0: content(image)[:chunk],
        1: content(image)[chunk : 2 * chunk],
    }
    assert reads_to_its_end(archive, image) is None
    assert lower.read_bytes()[-len(MARK) :] == MARK
    (kept,) = archive.path.glob("repair-*/000001")
    assert kept.read_bytes() == tail


@pytest.mark.parametrize("more", [b"\0", b"x" * 100, bytes(1000), bytes(300_000), b"y" * 4136])
def test_what_was_put_behind_the_end_goes(archive: Archive, image: str, more: bytes) -> None:
    lower = archive.lower(image)
    good = lower.read_bytes()
    lower.write_bytes(good + more)
    assert repaired(archive) == []
    assert lower.read_bytes() == good
    (kept,) = archive.path.glob("repair-*/000001")
    assert kept.read_bytes() == more


def test_a_tail_that_may_be_the_rest_of_the_file_is_not_cut_off(archive: Archive, image: str) -> None:
    """An old last chunk in the middle of damaged newer ones: to cut there would make a shorter file of it."""
    with archive.mounted() as mount:
        mount.write("other", content("other", chunks=1.0))
        mount.write("other", b"!", offset=0)
    lower = archive.lower("other")
    good = lower.read_bytes()
    lower.write_bytes(good + os.urandom(3 * 65576 + 500))
    outcome = repair(archive)
    assert outcome.done == []
    assert lower.read_bytes().startswith(good)


def test_a_chunk_that_is_damaged_stays_an_error_and_the_rest_readable(archive: Archive, image: str) -> None:
    lower, stride = archive.lower(image), archive.stride(image)
    data = bytearray(lower.read_bytes())
    data[HEADER + stride + 5] ^= 1
    lower.write_bytes(data)
    outcome = repair(archive)
    assert outcome.done == []
    ((finding, reason),) = outcome.left
    assert finding.ranges == ((stride - 40, 2 * (stride - 40)),)
    assert "readable" in reason
    assert lower.read_bytes() == bytes(data)
    assert set(readable(archive, image, stride - 40)) >= {0, 2, 3}


def test_cut_at_every_instant(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with archive.mounted() as mount:
        mount.write("marked.db", content("marked.db", chunks=0.5))
        mount.write("cut.db", content("cut.db", chunks=0.2))
    os.truncate(archive.lower("marked.db"), HEADER + 3 * 4136 + 9)
    with archive.lower("cut.db").open("ab") as file:
        file.write(bytes(77))

    def verdict(victim: Archive) -> None:
        assert reads_to_its_end(victim, "cut.db") == content("cut.db", chunks=0.2)
        assert reads_to_its_end(victim, "marked.db") is None
        assert set(readable(victim, "marked.db", 4096)) == {0, 1, 2}

    assert cut_everywhere(archive, tmp_path, monkeypatch, verdict) >= 6

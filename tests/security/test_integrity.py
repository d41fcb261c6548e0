"""Somebody writes to the ciphertext: no read may return other data (docs/security.md G5 to G9, G11, G12).

Each test changes files of a locked vault and opens it anew.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptfs.errors import IntegrityError
from tests.golden import independent_reader as reader
from tests.security.archive import HEADER, Archive, Mounted

# One name for large chunks, one for the small ones of files that are overwritten in place.
FILES = ["image.dcm", "index.db"]


def content(name: str, chunks: float = 3.6) -> bytes:
    """That many chunks of 64 KiB, every 16 bytes of it different."""
    return b"".join(b"%-7s%08d\n" % (name.encode()[:7], i) for i in range(int(chunks * 4096)))


@pytest.fixture(params=FILES)
def image(request: pytest.FixtureRequest, archive: Archive) -> str:
    """A file to attack; beside it stands `neighbour`, which must never suffer."""
    with archive.mounted() as mount:
        mount.write(request.param, content(request.param))
        mount.write("neighbour", content("neighbour"))
    return str(request.param)


def fails(mount: Mounted, path: str, offset: int = 0, size: int | None = None) -> None:
    """Reading (or even opening or finding) it is EIO."""
    with pytest.raises(OSError) as caught:
        data = mount.read(path, offset, size)
        pytest.fail(f"read {len(data)} bytes of a damaged file")
    assert caught.value.errno == errno.EIO


def check_damaged(archive: Archive, path: str) -> None:
    with archive.mounted() as mount:
        fails(mount, path)
        assert mount.read("neighbour") == content("neighbour")
    with archive.mounted(read_only=True) as mount:
        fails(mount, path)


def test_a_flipped_bit_anywhere_in_a_chunk(archive: Archive, image: str) -> None:
    lower, stride = archive.lower(image), archive.stride(image)
    good = lower.read_bytes()
    last = len(good) - 1
    places = [HEADER, HEADER + 11, HEADER + 23, HEADER + 24, HEADER + stride // 2, HEADER + stride - 1]
    for place in [*places, HEADER + stride, last - 16, last]:
        changed = bytearray(good)
        changed[place] ^= 0x40
        lower.write_bytes(changed)
        check_damaged(archive, image)
    lower.write_bytes(good)
    with archive.mounted() as mount:
        assert mount.read(image) == content(image)


HARMS: dict[str, Callable[[bytes, int], bytes]] = {
    "cut at a chunk": lambda body, s: body[: 2 * s],
    "cut to one chunk": lambda body, s: body[:s],
    "cut within a chunk": lambda body, s: body[: 2 * s + 100],
    "cut by one byte": lambda body, s: body[:-1],
    "cut to a bare nonce and tag": lambda body, s: body[: s + 40],
    "cut to an empty chunk": lambda body, s: body[:40],
    "no content": lambda body, s: b"",
    "extended by a byte": lambda body, s: body + b"\0",
    "extended by a chunk of zeros": lambda body, s: body + bytes(s),
    "last chunk twice": lambda body, s: body + body[len(body) // s * s :],
    "first chunk at the end": lambda body, s: body[: len(body) // s * s] + body[:s],
    "two chunks swapped": lambda body, s: body[s : 2 * s] + body[:s] + body[2 * s :],
    "a chunk in two places": lambda body, s: body[:s] + body[:s] + body[2 * s :],
    "a chunk left out": lambda body, s: body[:s] + body[2 * s :],
    "a chunk of zeros": lambda body, s: bytes(s) + body[s:],
    "all zeros": lambda body, s: bytes(len(body)),
}


@pytest.mark.parametrize("harm", HARMS)
def test_cut_extended_swapped_repeated_or_zeroed(archive: Archive, image: str, harm: str) -> None:
    lower, stride = archive.lower(image), archive.stride(image)
    good = lower.read_bytes()
    changed = HARMS[harm](good[HEADER:], stride)
    assert changed != good[HEADER:]
    lower.write_bytes(good[:HEADER] + changed)
    check_damaged(archive, image)


def test_a_cut_that_leaves_a_whole_last_chunk_is_no_shorter_file(archive: Archive) -> None:
    """Whole chunks only, so that nothing but the final flag tells."""
    with archive.mounted() as mount:
        mount.write("image.dcm", content("image.dcm", chunks=3))
        mount.write("neighbour", content("neighbour"))
    lower, stride = archive.lower("image.dcm"), archive.stride("image.dcm")
    with lower.open("r+b") as file:
        file.truncate(HEADER + 2 * stride)
    check_damaged(archive, "image.dcm")


def test_an_empty_file_cannot_be_made_of_another(archive: Archive, image: str) -> None:
    with archive.mounted() as mount:
        mount.write("empty", b"")
        assert mount.read("empty") == b""
    empty, lower = archive.lower("empty").read_bytes(), archive.lower(image)
    assert len(empty) == HEADER + 40
    lower.write_bytes(lower.read_bytes()[:HEADER] + empty[HEADER:])
    check_damaged(archive, image)


@pytest.mark.parametrize(
    "harm", ["cut at a chunk", "cut to one chunk", "cut to an empty chunk", "no content"]
)
@pytest.mark.parametrize("where", ["at the end", "in the middle"])
def test_writing_to_a_damaged_file_does_not_make_it_whole(
    archive: Archive, image: str, harm: str, where: str
) -> None:
    """A program appends to a file that somebody cut: the new end must not seal the loss."""
    lower, stride = archive.lower(image), archive.stride(image)
    good = lower.read_bytes()
    lower.write_bytes(good[:HEADER] + HARMS[harm](good[HEADER:], stride))
    with archive.mounted() as mount:
        try:
            size = mount.fs.getattr(mount.ino(image)).size
            mount.write(image, b"appended", size if where == "at the end" else min(size, 100))
        except OSError as error:
            assert error.errno == errno.EIO
    check_damaged(archive, image)


def test_a_cut_link_is_not_another_link(archive: Archive) -> None:
    with archive.mounted() as mount:
        mount.symlink("link", b"/srv/archive/2026")
        mount.write("neighbour", content("neighbour"))
    lower = archive.lower("link")
    for data in (lower.read_bytes()[:-5], lower.read_bytes()[: HEADER + 40], lower.read_bytes()[:HEADER]):
        lower.write_bytes(data)
        with archive.mounted() as mount:
            with pytest.raises(OSError) as caught:
                pytest.fail(f"read {bytes(mount.fs.readlink(mount.ino('link')))!r}")
            assert caught.value.errno == errno.EIO


def test_chunks_of_another_file_do_not_fit(archive: Archive, image: str) -> None:
    with archive.mounted() as mount:
        mount.write(f"other {image}", content(image))
    lower, donor = archive.lower(image), archive.lower(f"other {image}").read_bytes()
    stride, good = archive.stride(image), lower.read_bytes()
    lower.write_bytes(
        good[: HEADER + stride] + donor[HEADER + stride : HEADER + 2 * stride] + good[HEADER + 2 * stride :]
    )
    check_damaged(archive, image)


def test_a_header_does_not_fit_another_files_content(archive: Archive, image: str) -> None:
    with archive.mounted() as mount:
        mount.write(f"other {image}", content(image))
    lower, donor = archive.lower(image), archive.lower(f"other {image}").read_bytes()
    lower.write_bytes(donor[:HEADER] + lower.read_bytes()[HEADER:])
    check_damaged(archive, image)


def test_damage_stays_in_its_chunk(archive: Archive, image: str) -> None:
    lower, stride = archive.lower(image), archive.stride(image)
    chunk = stride - 40
    data = bytearray(lower.read_bytes())
    data[HEADER + stride + 1000] ^= 1
    lower.write_bytes(data)
    expected = content(image)
    with archive.mounted() as mount:
        fails(mount, image, chunk, 1)
        fails(mount, image, 2 * chunk - 1, 1)
        assert mount.read(image, 0, chunk) == expected[:chunk]
        assert mount.read(image, 2 * chunk) == expected[2 * chunk :]
        assert mount.read("neighbour") == content("neighbour")


def test_every_byte_of_a_header_is_authentic(archive: Archive, image: str) -> None:
    lower = archive.lower(image)
    good = lower.read_bytes()
    slots = [at for at in (0, 4096) if any(good[at : at + 192])]
    for place in (0, 4, 5, 6, 8, 12, 16, 24, 40, 48, 52, 64, 72, 80, 88, 100, 144, 191):
        changed = bytearray(good)
        for slot in slots:
            changed[slot + place] ^= 1
        lower.write_bytes(changed)
        check_damaged(archive, image)


def test_a_torn_header_leaves_the_one_before_it(archive: Archive, image: str) -> None:
    lower = archive.lower(image)
    good = bytearray(lower.read_bytes())
    newest = 0 if reader.parse_slot(bytes(good[:192]), archive.keys()) == archive.header(image) else 4096
    other = 4096 - newest
    good[other : other + 192] = good[newest : newest + 100] + os.urandom(92)
    lower.write_bytes(good)
    with archive.mounted() as mount:
        assert mount.read(image) == content(image)


def folders(archive: Archive) -> None:
    with archive.mounted() as mount:
        for folder in ("anna", "bert"):
            mount.mkdir(folder)
            mount.write(f"{folder}/{folder}.dcm", content(folder))
        mount.write("neighbour", content("neighbour"))


def test_a_name_does_not_move_to_another_directory(archive: Archive) -> None:
    folders(archive)
    moved = archive.lower("anna/anna.dcm")
    shutil.copy(moved, archive.lower("bert") / moved.name)
    with archive.mounted() as mount:
        assert mount.list("bert") == ["bert.dcm"]
        with pytest.raises(FileNotFoundError):
            mount.read("bert/anna.dcm")
        assert mount.read("anna/anna.dcm") == content("anna")


def test_made_up_and_second_spellings_of_names_are_not_shown(archive: Archive) -> None:
    folders(archive)
    good = archive.lower("anna/anna.dcm")  # 8 + 16 bytes: no unused bits
    with archive.mounted() as mount:
        mount.write("anna/a.dcm", content("anna"))  # 5 + 16 bytes: none either
        mount.write("anna/ab.dcm", content("anna"))  # 6 + 16 bytes: four
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    named = archive.lower("anna/ab.dcm")
    spelling = named.name[:-1] + alphabet[alphabet.index(named.name[-1]) | 1]
    assert spelling != named.name
    for forged in (spelling, "A" * 24, good.name[:-1], good.name + "A", "@l" + "A" * 43, "plain.dcm"):
        shutil.copy(good, good.with_name(forged))
    with archive.mounted() as mount:
        assert mount.list("anna") == ["a.dcm", "ab.dcm", "anna.dcm"]
        assert mount.read("anna/ab.dcm") == content("anna")


def test_directory_headers_cannot_be_exchanged(archive: Archive) -> None:
    """Under another directory's header no name decrypts, so no entry appears under a wrong one."""
    folders(archive)
    anna, bert = archive.lower("anna") / "@dir", archive.lower("bert") / "@dir"
    first, second = anna.read_bytes(), bert.read_bytes()
    anna.write_bytes(second)
    bert.write_bytes(first)
    with archive.mounted() as mount:
        for folder in ("anna", "bert"):
            try:
                shown = mount.list(folder)
            except OSError as error:
                assert error.errno == errno.EIO
            else:
                assert shown in ([], [f"{folder}.dcm"])


def test_a_lost_directory_header_loses_no_name(archive: Archive) -> None:
    folders(archive)
    (archive.lower("anna") / "@dir").write_bytes(bytes(4096))
    with archive.mounted() as mount:
        assert mount.list("anna") == ["anna.dcm"]
        assert mount.read("anna/anna.dcm") == content("anna")
    (archive.path / "tree" / "@dir").unlink()
    with archive.mounted() as mount:
        assert mount.list("") == ["anna", "bert", "neighbour"]


def test_nothing_of_another_vault_fits(archive: Archive, image: str, tmp_path: Path) -> None:
    other = Archive(tmp_path / "other")
    with other.mounted() as mount:
        mount.write(image, content(image))
        mount.mkdir("folder")
        mount.write("folder/inside", content("inside"))
    shutil.copy(other.lower(image), archive.lower(image))
    check_damaged(archive, image)
    shutil.copytree(other.lower("folder"), archive.path / "tree" / other.lower("folder").name)
    with archive.mounted() as mount:
        assert mount.list("") == sorted([image, "neighbour"])


def test_the_session_state_of_another_vault_is_refused(archive: Archive, image: str, tmp_path: Path) -> None:
    other = Archive(tmp_path / "other")
    with other.mounted() as mount:
        mount.write("file", b"x")
        copy = (other.path / "journal" / "state").read_bytes()  # it says `open`
    (archive.path / "journal" / "state").write_bytes(copy)
    with pytest.raises(IntegrityError, match="journal/state"), archive.mounted():
        pass


# --- The journal ------------------------------------------------------------------------------------


def crashed(archive: Archive, target: Path) -> Archive:
    """A copy of a mounted vault after a power cut: what was synced is in the journal and nowhere else."""
    with archive.mounted() as mount:
        mount.fs._committer.stop()  # the journal is emptied by nobody
        mount.write("index.db", content("index.db"))
        mount.fs.sync()
        lower = archive.lower("index.db")
        before = lower.read_bytes()
        mount.write("index.db", b"overwritten", offset=100)
        shutil.copytree(archive.path, target)
    (target / lower.relative_to(archive.path)).write_bytes(before)
    assert list((target / "journal").glob("*.seg")), "the overwrite did not go through the journal"
    return Archive(target, copy_of=archive)


OLD = content("index.db")
NEW = OLD[:100] + b"overwritten" + OLD[111:]


def test_the_journal_brings_back_what_was_synced(archive: Archive, tmp_path: Path) -> None:
    with crashed(archive, tmp_path / "copy").mounted() as mount:
        assert mount.read("index.db") == NEW


def test_a_changed_or_cut_journal_gives_the_old_or_the_new(archive: Archive, tmp_path: Path) -> None:
    copy = crashed(archive, tmp_path / "copy")
    segment = max((copy.path / "journal").glob("*.seg"), key=lambda path: path.stat().st_size)
    size = segment.stat().st_size
    for number, place in enumerate((0, 5, 30, 150, HEADER, HEADER + 3, HEADER + 4, HEADER + 60, size - 1)):
        shutil.copytree(copy.path, tmp_path / f"turn {number}")
        turn = Archive(tmp_path / f"turn {number}", copy_of=archive)
        data = bytearray(segment.read_bytes())
        if number % 2:
            data[place] ^= 0x10
        else:
            del data[place:]
        (turn.path / "journal" / segment.name).write_bytes(data)
        try:
            with turn.mounted() as mount:
                assert mount.read("index.db") in (OLD, NEW)
        except IntegrityError as error:
            assert "journal" in str(error)
            assert place < 192, "only a segment whose header is damaged stops the mount"


def test_the_journal_of_another_vault_is_not_applied(archive: Archive, tmp_path: Path) -> None:
    foreign = crashed(Archive(tmp_path / "other"), tmp_path / "copy")
    with archive.mounted() as mount:
        mount.write("index.db", OLD)
    for segment in (foreign.path / "journal").glob("*.seg"):
        shutil.copy(segment, archive.path / "journal" / segment.name)
    with pytest.raises(IntegrityError, match="journal"), archive.mounted():
        pass
    for segment in (archive.path / "journal").glob("*.seg"):
        segment.unlink()
    with archive.mounted() as mount:
        assert mount.read("index.db") == OLD


def test_a_renamed_segment_is_not_applied_and_a_missing_one_is_noticed(
    archive: Archive, tmp_path: Path
) -> None:
    copy = crashed(archive, tmp_path / "copy")
    (segment,) = (copy.path / "journal").glob("*.seg")
    number = int(segment.stem, 16)
    renamed = segment.rename(segment.with_name(f"{number + 2:016x}.seg"))
    with copy.mounted(read_only=True) as mount:
        assert mount.read("index.db") == OLD
    shutil.copy(renamed, segment)
    for read_only in (True, False):
        with pytest.raises(IntegrityError, match="journal"), copy.mounted(read_only=read_only):
            pass


def test_a_journal_is_not_applied_to_another_object(archive: Archive, tmp_path: Path) -> None:
    """The object at the path is another one of the same vault: it stays what it is."""
    with archive.mounted() as mount:
        mount.write("second.db", content("second"))
    copy = crashed(archive, tmp_path / "copy")
    shutil.copy(copy.lower("second.db"), copy.lower("index.db"))
    with copy.mounted() as mount:
        assert mount.read("index.db") == content("second")

"""Each kind of damage is found, named for what it is, at its place, and nothing else with it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from cryptfs.check.finding import Finding, Kind
from cryptfs.errors import CryptfsError
from cryptfs.keyslots import RecoveryKey
from cryptfs.vault import config
from tests.check.support import check, copy, damage, fill, kinds, notices
from tests.conftest import SEED
from tests.golden import independent_reader as reader
from tests.security.archive import HEADER, Archive
from tests.security.test_integrity import FILES, HARMS, content, crashed


def place_of(archive: Archive, path: str) -> bytes:
    return os.fsencode(archive.lower(path).relative_to(archive.path))


def only(archive: Archive) -> Finding:
    """The one finding of damage there is."""
    (found,) = damage(check(archive))
    return found


# --- a random byte of a random file -----------------------------------------------------------------


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    archive = Archive(tmp_path_factory.mktemp("filled") / "vault")
    fill(archive)
    config.add_slot(archive.unlock(), RecoveryKey.new())  # now there is a cryptfs.json.previous, too
    return archive


def meaningful(archive: Archive) -> Iterator[tuple[Path, list[range]]]:
    """Every file with the bytes in it that mean something, by docs/format.md."""
    keys = archive.keys()
    for path in sorted(archive.path.rglob("*")):
        name = path.relative_to(archive.path).as_posix()
        if not path.is_file() or name in ("journal/lock", "cryptfs.lock"):
            continue
        data = path.read_bytes()
        if name.startswith("tree/") and not name.endswith(".name"):
            slots = [range(at, at + 192) for at in (0, 4096) if any(data[at : at + 192])]
            header = reader.parse_area(data[:HEADER], keys)
            assert header is not None
            body = [range(HEADER, len(data))] if header.kind in (reader.FILE, reader.SYMLINK) else []
            if header.flags & reader.SPARSE:
                stride = header.chunk + 40
                body = [  # in a hole, zeros that become something else are damage as well, but there are many
                    range(at, min(at + stride, len(data)))
                    for at in range(HEADER, len(data), stride)
                    if any(data[at : at + stride])
                ]
            yield path, slots + body
        elif name.startswith("dirs/"):
            # Not the parent's id, which is a hint and not authentic.
            yield path, [range(at, at + 192) for at in range(0, len(data), 256)]
        elif name.startswith("cryptfs.json"):
            yield path, [range(at, at + 1) for at, byte in enumerate(data) if chr(byte) not in " \n"]
        else:
            yield path, [range(len(data))]


@pytest.mark.thorough
@seed(SEED)
@settings(
    max_examples=int(os.environ.get("CRYPTFS_TEST_EXAMPLES", 50)), deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(data=st.data())
def test_a_changed_byte_anywhere_is_found(filled: Archive, data: st.DataObject) -> None:
    path, ranges = data.draw(st.sampled_from(list(meaningful(filled))))
    where = data.draw(st.sampled_from(ranges))
    at = data.draw(st.integers(where.start, where.stop - 1))
    good = path.read_bytes()
    bad = bytearray(good)
    bad[at] ^= data.draw(st.integers(1, 255))
    with in_place(path, bytes(bad)):
        try:
            report = check(filled)
        except CryptfsError:
            assert path.name == "cryptfs.json"
            return
        found = damage(report)
        assert found, f"{path} at {at}"
        ours = os.fsencode(path.relative_to(filled.path)).removesuffix(b".name")
        # A file with two names may be named by the other; attributes are named by their object.
        if path.stat().st_nlink == 1 and not ours.startswith(b"xattr/"):
            assert {finding.place for finding in found} <= {ours, ours.removesuffix(b"/@dir")}


@contextlib.contextmanager
def in_place(path: Path, data: bytes) -> Iterator[None]:
    good = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(good)


# --- files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", FILES)
def test_every_harm_to_content_is_found(archive: Archive, image: str) -> None:
    with archive.mounted() as mount:
        mount.write(image, content(image))
        mount.write("neighbour", content("neighbour"))
    lower, stride, place = archive.lower(image), archive.stride(image), place_of(archive, image)
    good = lower.read_bytes()
    for name, harm in HARMS.items():
        lower.write_bytes(good[:HEADER] + harm(good[HEADER:], stride))
        found = only(archive)
        assert (found.kind in (Kind.CONTENT, Kind.CUT), found.place) == (True, place), name
        assert found.ranges or found.kind is Kind.CUT, name
    lower.write_bytes(good)
    assert damage(check(archive)) == []


def test_the_ranges_that_are_lost_are_told(archive: Archive) -> None:
    with archive.mounted() as mount:
        mount.write("image.dcm", content("image.dcm", chunks=5))
    lower, stride = archive.lower("image.dcm"), archive.stride("image.dcm")
    data = bytearray(lower.read_bytes())
    for chunk in (1, 2, 4):
        data[HEADER + chunk * stride + 77] ^= 1
    lower.write_bytes(data)
    found = only(archive)
    assert found.ranges == ((65536, 3 * 65536), (4 * 65536, 5 * 65536))
    assert found.size == 5 * 65536
    assert found.object_id == archive.header("image.dcm").object_id


def test_a_lost_header_and_a_torn_one(archive: Archive) -> None:
    fill(archive)
    lower = archive.lower("index.db")
    good = lower.read_bytes()
    lower.write_bytes(bytes(HEADER) + good[HEADER:])
    assert {found.kind for found in damage(check(archive))} == {Kind.HEADER}
    newest = 0 if any(good[:192]) else 4096
    other = 4096 - newest
    torn = bytearray(good)
    torn[other : other + 192] = os.urandom(192)
    lower.write_bytes(torn)
    assert {found.kind for found in damage(check(archive))} == {Kind.HEADER_SLOT}


def test_a_cut_link(archive: Archive) -> None:
    fill(archive)
    lower = archive.lower("link")
    lower.write_bytes(lower.read_bytes()[:-1])
    assert only(archive).kind is Kind.LINK_TARGET


# --- directories and names --------------------------------------------------------------------------


def test_a_directory_header_is_lost_with_and_without_copies(archive: Archive) -> None:
    fill(archive)
    anna = archive.lower("anna")
    (anna / "@dir").unlink()
    assert only(archive).kind is Kind.DIRECTORY_HEADER
    shutil.rmtree(archive.path / "dirs")
    for path in (archive.path / "tree").rglob("*"):
        if path.is_file() and path.stat().st_size >= HEADER:
            with path.open("r+b") as file:  # what it may carry of the directories above it
                file.seek(256)
                file.write(bytes(4096 - 256))
    found = only(archive)
    assert found.kind is Kind.DIRECTORY_LOST
    assert found.place == os.fsencode(anna.relative_to(archive.path))


def test_names_that_do_not_belong(archive: Archive) -> None:
    fill(archive)
    image = archive.lower("anna/ct/1.dcm")
    image.rename(archive.lower("anna") / image.name)
    assert only(archive).kind is Kind.NAME
    (archive.lower("anna") / image.name).rename(image)
    (sidecar,) = archive.lower("anna").glob("@l*.name")
    text = sidecar.read_bytes()
    sidecar.unlink()
    assert only(archive).kind is Kind.LONG_NAME
    sidecar.write_bytes(text[:-1])
    assert only(archive).kind is Kind.LONG_NAME


def test_an_object_that_was_copied_over_another(archive: Archive) -> None:
    """Patient A's image under patient B's name, which no read can tell."""
    fill(archive)
    first, second = archive.lower("anna/ct/1.dcm"), archive.lower("anna/ct/2.dcm")
    second.write_bytes(first.read_bytes())
    found = only(archive)
    assert found.kind is Kind.DUPLICATE
    assert found.facts["places"] == sorted(place_of(archive, f"anna/ct/{n}.dcm") for n in (1, 2))


# --- around the tree --------------------------------------------------------------------------------


def test_lost_attributes_and_orphaned_ones(archive: Archive) -> None:
    fill(archive)
    ours = archive.header("anna").object_id.hex()
    file = archive.path / "xattr" / ours[:2] / ours
    file.rename(file.with_name("0" * 32))
    report = check(archive)
    assert kinds(report) == {Kind.ATTRIBUTES}
    # Where the folder is another one by its first digits, it is no attribute file at all.
    assert notices(report) <= {Kind.ORPHANED_ATTRIBUTES, Kind.FOREIGN} and notices(report)


def test_a_damaged_journal_and_state(archive: Archive, tmp_path: Path) -> None:
    copied = crashed(archive, tmp_path / "copy")
    assert damage(check(copied)) == []
    segment = max((copied.path / "journal").glob("*.seg"), key=lambda path: path.stat().st_size)
    data = bytearray(segment.read_bytes())
    data[20] ^= 1
    segment.write_bytes(data)
    assert Kind.JOURNAL in kinds(check(copied))
    state = copied.path / "journal/state"
    state.write_bytes(state.read_bytes()[:-1])
    assert Kind.STATE in kinds(check(copied))


def test_what_is_not_part_of_the_vault_is_told_and_no_damage(archive: Archive) -> None:
    fill(archive)
    (archive.path / "tree" / ".nfs0001").write_bytes(b"x")
    (archive.path / "tree" / "@tmp-1").write_bytes(b"x")
    (archive.path / "tree" / ("@l" + "A" * 43 + ".name")).write_bytes(b"x")
    (archive.path / "journal" / "@tmp-2").write_bytes(b"x")
    (archive.path / "notes.txt").write_bytes(b"x")
    os.link(archive.lower("empty"), archive.path.parent / "outside")
    report = check(archive)
    assert damage(report) == []
    assert report.verdict == "clean"
    assert notices(report) == {Kind.FOREIGN, Kind.LEFTOVER, Kind.EXTRA_LINK}


def test_a_restored_copy_without_its_hard_links_says_so(archive: Archive, tmp_path: Path) -> None:
    fill(archive)
    assert damage(check(copy(archive, tmp_path / "with links"))) == []
    shutil.copytree(archive.path, tmp_path / "without")
    assert only(Archive(tmp_path / "without", copy_of=archive)).kind is Kind.DUPLICATE

"""What the ciphertext says to somebody without a secret (docs/security.md G1, G3, G13, G14)."""

from __future__ import annotations

import base64
import logging
import os
from pathlib import Path

import pytest

from cryptfs.crypto.kdf import floor
from cryptfs.keyslots import Passphrase
from cryptfs.vault import config
from tests.golden import independent_reader as reader
from tests.security.archive import HEADER, Archive

NAME = "Müller^Zoë^19540321"
MARK = b"PATIENT-MARK-7F31"  # 17 bytes that random ciphertext does not hold by chance
PASSPHRASE = "drei Röntgenbilder im Schrank"
LONG = "Befund " + "sehr lang " * 20


def fill(archive: Archive) -> dict[str, bytes]:
    """A tree whose content, names, link targets and attributes all hold marks; returns its files."""
    files = {
        f"{NAME}/image.dcm": MARK * 20_000,
        f"{NAME}/index.db": b"SQLite format 3\0" + MARK * 1000,
        f"{NAME}/{LONG}": MARK,
        "empty": b"",
    }
    with archive.mounted(xattrs=True) as mount:
        mount.mkdir(NAME)
        for path, data in files.items():
            mount.write(path, data)
        mount.symlink("link", b"target/" + MARK)
        mount.fs.setxattr(mount.ino("empty"), b"user.mark", MARK, 0)
        mount.write(f"{NAME}/index.db", MARK * 3, offset=5000)  # through the journal
        files[f"{NAME}/index.db"] = (
            files[f"{NAME}/index.db"][:5000] + MARK * 3 + files[f"{NAME}/index.db"][5000 + 3 * len(MARK) :]
        )
        check_nothing_shows(archive)  # while it is mounted
    return files


def check_nothing_shows(archive: Archive) -> None:
    needles = [
        MARK,
        NAME.encode(),
        "Zoë^19540321".encode(),  # nothing so short that ciphertext holds it by chance
        b"image.dcm",
        b"index.db",
        LONG.encode()[:60],
        b"user.mark",
    ]
    needles += [b"SQLite format 3"]
    needles += [base64.b64encode(b"\0" * shift + MARK)[4:-4] for shift in range(3)]
    for path, data in archive.ciphertext():
        for needle in needles:
            assert needle not in data, f"{needle!r} shows in {path}"
            assert needle not in os.fsencode(path), f"{needle!r} shows in the name {path}"


def test_no_plaintext_anywhere_in_the_vault(archive: Archive) -> None:
    fill(archive)
    check_nothing_shows(archive)


def test_the_search_for_plaintext_finds_it_where_it_is(archive: Archive) -> None:
    """The test above must be able to fail."""
    fill(archive)
    (archive.path / "tree" / "leak").write_bytes(b"x" + MARK)
    with pytest.raises(AssertionError, match="shows in"):
        check_nothing_shows(archive)


def test_only_the_owner_may_read_the_ciphertext(archive: Archive) -> None:
    fill(archive)
    assert archive.path.stat().st_mode & 0o077 == 0
    for place in archive.path.rglob("*"):
        if place.is_file() and place.stat().st_size == 0:
            continue  # a lock
        assert place.stat().st_mode & 0o077 == 0, place


def test_equal_plaintexts_have_different_ciphertexts(archive: Archive) -> None:
    data = b"\0" * 200_000
    with archive.mounted() as mount:
        for folder in ("a", "b"):
            mount.mkdir(folder)
            mount.write(f"{folder}/image", data)
    first, second = archive.lower("a/image"), archive.lower("b/image")
    assert first.name != second.name
    blocks = [
        body[at : at + 16]
        for body in (first.read_bytes()[HEADER:], second.read_bytes()[HEADER:])
        for at in range(0, len(body) - 15, 16)
    ]
    assert len(set(blocks)) == len(blocks), "a block of ciphertext comes twice"


def test_no_nonce_comes_twice_under_a_key(archive: Archive) -> None:
    """One place is overwritten with other bytes again and again, in one opening and in new ones."""
    nonces: list[bytes] = []
    with archive.mounted() as mount:
        mount.write("index.db", b"x" * 100)
    lower = archive.lower("index.db")
    for turn in range(8):
        with archive.mounted() as mount:
            mount.fs._committer.stop()  # the journal is emptied by nobody
            handle = mount.fs.open(mount.ino("index.db"), os.O_RDWR)
            for part in range(3):
                mount.fs.write(handle, 0, b"%d %d" % (turn, part))
                mount.fs.fsync(handle, False)
                nonces += [data[:24] for data in journal_writes(archive)]
            mount.fs.release(handle)
        nonces.append(lower.read_bytes()[HEADER : HEADER + 24])
    distinct = set(nonces)
    assert len(distinct) >= 8 * 3, "an overwrite was sealed under a nonce that had been used"


def journal_writes(archive: Archive) -> list[bytes]:
    """The chunks of the first place that the journal holds, as they will be written to the file."""
    records = reader.Extractor(archive.path, archive.keys()).pending()
    return [data for record in records for offset, data in record.writes if offset == HEADER]


def test_logs_of_use_and_damage_hold_no_names_content_or_keys(
    archive: Archive, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        fill(archive)
        lower = archive.lower(f"{NAME}/image.dcm")
        data = bytearray(lower.read_bytes())
        data[-1] ^= 1
        lower.write_bytes(data)
        with archive.mounted() as mount, pytest.raises(OSError) as caught:
            mount.read(f"{NAME}/image.dcm")
    text = caplog.text + str(caught.value)
    assert MARK.decode() not in text
    assert "Zoë" not in text
    assert archive.header(f"{NAME}/image.dcm").key.hex() not in text


def test_the_independent_reader_decrypts_all_of_it(archive: Archive, tmp_path: Path) -> None:
    files = fill(archive)
    out = tmp_path / "out"
    assert reader.extract(archive.path, archive.keys(), out) == []
    for path, data in files.items():
        assert (out / path).read_bytes() == data, path
    assert (out / "link").readlink() == Path("target") / MARK.decode()
    config.add_slot(archive.unlock(), Passphrase(PASSPHRASE, cost=floor()))
    text = (archive.path / "cryptfs.json").read_bytes()
    assert reader.unlock(text, "passphrase", PASSPHRASE.encode()) == archive.keys()
    found = [path for path in out.rglob("*")]
    assert len(found) == len(files) + 2
    header = archive.header("empty")
    assert header.flags & reader.XATTR
    assert reader.Extractor(archive.path, archive.keys()).xattrs(header) == {b"user.mark": MARK}


def test_the_independent_reader_sees_what_a_running_mount_synced(archive: Archive, tmp_path: Path) -> None:
    """A copy taken while mounted, journal and all, is what was made durable before."""
    with archive.mounted() as mount:
        mount.fs._committer.stop()  # it is read at one instant
        mount.write("index.db", b"a" * 40_000)
        mount.fs.sync()
        for turn in range(5):
            mount.write("index.db", b"%d" % turn * 5000, offset=3000 * turn)
        expected = mount.read("index.db")
        assert reader.extract(archive.path, archive.keys(), tmp_path / "out") == []
    assert (tmp_path / "out" / "index.db").read_bytes() == expected

"""Every golden vault opens and reads the same for ever: with the package and with the independent reader."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cryptfs.fs import FileSystem, FsOptions
from cryptfs.keyslots import KeyFile, Passphrase, RecoveryKey, Secret
from cryptfs.vault import Vault, config
from tests.golden import independent_reader as reader
from tests.golden.make_golden import KEY_FILE, PASSPHRASE, RECOVERY, Tree, main

HERE = Path(__file__).parent
GOLDEN = ["v1", "v1-unclean", "v1-tpm2", "v1-reencryption"]
ROOT = os.geteuid() == 0
Expected = dict[str, dict[str, Any]]


def unpack(name: str, folder: Path) -> Path:
    with tarfile.open(HERE / f"{name}.tar") as archive:
        # Our own archive is trusted. Python before 3.11.4 has no filters and ignores the attribute.
        archive.extraction_filter = lambda member, _: member  # type: ignore[assignment]
        archive.extractall(folder)
    return folder


@pytest.fixture(params=GOLDEN)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Expected]:
    text = (HERE / f"{request.param}.expected.json").read_text()
    return unpack(request.param, tmp_path / "vault"), json.loads(text)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextlib.contextmanager
def opened(path: Path, *, read_only: bool) -> Iterator[Tree]:
    unlocked = config.unlock(config.load(path), RECOVERY)
    vault = Vault(path, unlocked.vault_id, unlocked.keyring, read_only=read_only)
    with contextlib.closing(FileSystem(vault, FsOptions(xattrs=True))) as fs:
        yield Tree(fs)


def extracted(folder: Path) -> Expected:
    """What the independent reader made, as the expectation describes it."""
    found: Expected = {}
    links: dict[int, int] = {}
    for path in [folder, *folder.rglob("*")]:
        about = path.lstat()
        entry: dict[str, Any] = {"mode": oct(about.st_mode), "uid": about.st_uid, "gid": about.st_gid}
        entry |= {"mtime_ns": about.st_mtime_ns}
        if not path.is_dir() or path.is_symlink():
            entry["nlink"] = about.st_nlink
            links[about.st_ino] = links.get(about.st_ino, 0) + 1
        if stat.S_ISREG(about.st_mode):
            data = path.read_bytes()
            entry |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if stat.S_ISLNK(about.st_mode):
            entry["target"] = os.readlink(path)
        if stat.S_ISCHR(about.st_mode):
            entry["rdev"] = [os.major(about.st_rdev), os.minor(about.st_rdev)]
        found[str(path.relative_to(folder))] = entry
    return found


def test_the_package_reads_it_without_changing_it(golden: tuple[Path, Expected]) -> None:
    path, expected = golden
    before = snapshot(path)
    with opened(path, read_only=True) as tree:
        assert tree.describe() == expected
    assert snapshot(path) == before


def test_the_package_repairs_it_and_reads_the_same(golden: tuple[Path, Expected]) -> None:
    """The first mount puts in place what the journal holds, the second finds nothing to do."""
    path, expected = golden
    for _ in range(2):
        with opened(path, read_only=False) as tree:
            found = tree.describe()
        found["."]["mtime_ns"] = expected["."]["mtime_ns"]  # removing remnants touches the folder
        assert found == expected
    assert not list((path / "journal").glob("*.seg"))


@pytest.mark.parametrize("mounted_before", [False, True])
def test_the_independent_reader_reads_it(
    golden: tuple[Path, Expected], tmp_path: Path, mounted_before: bool
) -> None:
    path, expected = golden
    if mounted_before:
        with opened(path, read_only=False):
            pass
    before = snapshot(path)
    keys = reader.unlock((path / "cryptfs.json").read_bytes(), "keyfile", hashlib.sha256(KEY_FILE).digest())
    extractor = reader.Extractor(path, keys)
    extractor.run(tmp_path / "out")
    devices = [name for name, entry in expected.items() if "rdev" in entry]
    assert [problem.split(":")[0] for problem in extractor.problems] == (
        [] if ROOT else [f"/{name}" for name in devices]
    )
    found = extracted(tmp_path / "out")
    for name, entry in expected.items():
        if name in devices and not ROOT:
            continue
        here = found.pop(name)
        # Not everybody may set owners, not every file system takes attributes: see the next test.
        for field in () if ROOT else ("uid", "gid"):
            entry[field] = here[field]
        if name == "." and mounted_before:
            entry["mtime_ns"] = here["mtime_ns"]
        entry.pop("xattrs", None)
        assert here == entry, name
    assert found == {}
    assert snapshot(path) == before


def test_the_independent_reader_reads_attributes(tmp_path: Path) -> None:
    path = unpack("v1", tmp_path / "vault")
    expected: Expected = json.loads((HERE / "v1.expected.json").read_text())
    keys = reader.unlock((path / "cryptfs.json").read_bytes(), "keyfile", hashlib.sha256(KEY_FILE).digest())
    extractor = reader.Extractor(path, keys)
    found = []
    for object_file in sorted((path / "tree").rglob("*")):
        if object_file.is_file():
            header = reader.parse_area(object_file.read_bytes()[: reader.AREA], keys)
            if header and header.flags & reader.XATTR:
                found.append({name.decode(): value.hex() for name, value in extractor.xattrs(header).items()})
    wanted = [entry["xattrs"] for entry in expected.values() if "xattrs" in entry]
    assert len(wanted) == 2
    assert sorted(found, key=str) == sorted(wanted, key=str)


@pytest.mark.parametrize(
    "secret",
    [lambda: Passphrase(PASSPHRASE), lambda: RecoveryKey.parse(RECOVERY.text), lambda: KeyFile(KEY_FILE)],
    ids=["passphrase", "recovery key", "key file"],
)
def test_every_secret_opens_it(golden: tuple[Path, Expected], secret: Callable[[], Secret]) -> None:
    path, _ = golden
    unlocked = config.unlock(config.load(path), secret())
    assert unlocked.keyring == config.unlock(config.load(path), RECOVERY).keyring


def test_the_secrets_are_in_the_readme_and_the_reader_takes_them(tmp_path: Path) -> None:
    readme = (HERE / "README.md").read_text()
    path = unpack("v1-unclean", tmp_path / "vault")
    for number, (option, text) in enumerate(
        {
            "--passphrase-file": PASSPHRASE + "\n",
            "--recovery-key-file": RECOVERY.text,
            "--key-file": KEY_FILE.decode(),
        }.items()
    ):
        assert text.strip() in readme
        (tmp_path / "secret").write_text(text)
        out = tmp_path / str(number)
        assert reader.main([str(path), option, str(tmp_path / "secret"), str(out)]) == 0
        assert (out / "whole.dcm").stat().st_size == 10_000


def test_what_the_golden_vaults_are_for_is_in_them(tmp_path: Path) -> None:
    """Sizes, a sparse file, both header slots, long names, a live segment that is not number 0."""
    path = unpack("v1", tmp_path / "v1")
    keys = reader.unlock((path / "cryptfs.json").read_bytes(), "keyfile", hashlib.sha256(KEY_FILE).digest())
    headers = [
        (reader.parse_slot(data[:192], keys), reader.parse_slot(data[4096:4288], keys), data)
        for data in (place.read_bytes() for place in (path / "tree").rglob("*") if place.is_file())
    ]
    assert any(first and second and second.generation > first.generation for first, second, _ in headers)
    assert any(
        first
        and first.flags & reader.SPARSE
        and first.chunk == 4096
        and bytes(4136) == data[8192 + 4136 :][:4136]
        for first, _, data in headers
    )
    kinds = {first.kind for first, _, _ in headers if first}
    assert kinds == {reader.FILE, reader.DIRECTORY, reader.SYMLINK, reader.FIFO, reader.CHARACTER}
    assert len(list((path / "tree").rglob("@l*.name"))) == 1
    unclean = unpack("v1-unclean", tmp_path / "unclean")
    keys = reader.unlock(
        (unclean / "cryptfs.json").read_bytes(), "keyfile", hashlib.sha256(KEY_FILE).digest()
    )
    (segment,) = (unclean / "journal").glob("*.seg")
    assert int(segment.stem, 16) > 0
    records = reader.Extractor(unclean, keys).pending()
    assert {record.length is None for record in records} == {True, False}
    assert reader.unclean_sessions((unclean / "journal" / "state").read_bytes(), keys)


def test_a_golden_vault_was_cut_in_the_middle_of_a_re_encryption(tmp_path: Path) -> None:
    """Directories with two keys, with names under both; attributes of a folder under the former key."""
    path = unpack("v1-reencryption", tmp_path / "vault")
    keys = reader.unlock((path / "cryptfs.json").read_bytes(), "keyfile", hashlib.sha256(KEY_FILE).digest())
    extractor = reader.Extractor(path, keys)
    mixed = attributes = 0
    for old in (path / "tree").rglob("@old"):
        header = extractor.directory_header(old.parent, [], "")
        (former,) = extractor.former_key(old.parent, header)
        assert former != header.key
        under = {"new": 0, "old": 0}
        for entry in old.parent.iterdir():
            if not entry.name.startswith("@"):
                name_key = reader.expand(header.key, "cryptfs v1 names", 64)
                try:
                    reader.siv_open(name_key, reader.unbase64url(entry.name), [header.object_id])
                    under["new"] += 1
                except reader.Damage:
                    under["old"] += 1
        mixed += all(under.values())
        if header.flags & reader.XATTR:
            with pytest.raises(reader.Damage):
                extractor.xattrs(header)
            attributes += bool(extractor.xattrs(header, [header.key, former]))
    assert mixed
    assert attributes == 1


def test_a_golden_vault_is_never_written_again() -> None:
    before = (HERE / "v1.tar").read_bytes()
    with pytest.raises(SystemExit, match="never written again"):
        main("v1", HERE)
    assert (HERE / "v1.tar").read_bytes() == before

"""Backups of the ciphertext: taken without a key, opened elsewhere with a passphrase or the recovery key."""

from __future__ import annotations

import base64
import os
import shutil
import sqlite3
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .dicom import PATIENT_NAME, made_set
from .mounts import CryptfsMount, new_mount
from .processes import run

pytestmark = pytest.mark.system

MARKER = "the quick marker of this content"
# What must not be found anywhere in ciphertext: names of files and folders, of patients, and content.
SECRETS = [
    MARKER,
    PATIENT_NAME,
    "ZWEISTEIN",
    "PID-00001",
    "archive-folder",
    "Schädel-MRT",
    "unremarkable. unre",
]


def fill(root: Path) -> None:
    """A small archive with one of everything that a vault can hold."""
    images = root / "archive-folder"
    images.mkdir()
    made_set(images)
    for image in sorted(images.iterdir())[::2]:
        image.rename(images / f"{PATIENT_NAME}-{image.name}")
    named = root / f"Schädel-MRT {'very ' * 40}long name"
    named.mkdir(mode=0o750)
    (named / "notes.txt").write_text(MARKER * 5000)
    (named / "notes.txt").chmod(0o640)
    (named / "empty").touch()
    (named / "link").symlink_to(f"../archive-folder/{PATIENT_NAME}")
    os.link(named / "notes.txt", root / "archive-folder" / "hard-link")
    os.mkfifo(root / "fifo")
    with (root / "sparse").open("wb") as file:
        file.write(MARKER.encode())
        file.truncate(50 << 20)
        file.seek(30 << 20)
        file.write(MARKER.encode())
    with sqlite3.connect(root / "index") as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE patients(name)")
        database.executemany(
            "INSERT INTO patients VALUES(?)", [(f"{PATIENT_NAME}^{n}",) for n in range(2000)]
        )
    database.close()
    for path in root.rglob("*"):
        os.utime(path, ns=(10**18, 10**18 + 7), follow_symlinks=False)


def inventory(root: Path) -> dict[str, tuple[object, ...]]:
    """All that can be seen of a tree, but the times of directories: they are those of the ciphertext's."""
    found: dict[str, tuple[object, ...]] = {}
    for path in root.rglob("*"):
        status = path.lstat()
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        mtime = None if path.is_dir() else status.st_mtime_ns
        found[str(path.relative_to(root))] = (status.st_mode, status.st_uid, mtime, content)
    return found


def rsync(source: Path, target: Path, scratch: Path) -> None:
    # neither owners nor modes nor times nor hard links nor holes: only names and content are needed
    # (24: in a mounted vault something was gone by the time it was to be read)
    run("rsync", "-rl", f"{source}/", f"{target}/", allowed=(0, 24))


def restic(source: Path, target: Path, scratch: Path) -> None:
    environment = os.environ | {"RESTIC_PASSWORD": "backup", "RESTIC_REPOSITORY": str(scratch / "restic")}
    for command in (
        ["init"],
        ["backup", str(source)],
        ["check", "--read-data"],
        ["restore", "latest", "--target", str(scratch / "restored")],
    ):
        subprocess.run(
            ["restic", "-q", "--no-cache", *command], env=environment, check=True, capture_output=True
        )
    shutil.move(f"{scratch}/restored/{source}", target)


def borg(source: Path, target: Path, scratch: Path) -> None:
    environment = os.environ | {"BORG_BASE_DIR": str(scratch), "BORG_REPO": str(scratch / "borg")}
    target.mkdir()
    for command, place in (
        (["init", "--encryption=none"], source),
        (["create", "::first", "."], source),
        (["check", "--verify-data"], source),
        (["extract", "::first"], target),
    ):
        subprocess.run(["borg", *command], cwd=place, env=environment, check=True, capture_output=True)


@pytest.fixture(scope="module")
def archive() -> Iterator[tuple[CryptfsMount, dict[str, tuple[object, ...]]]]:
    """A vault with content, unmounted, and what is in it."""
    mount = new_mount()
    try:
        if not isinstance(mount, CryptfsMount):
            pytest.skip("a plain folder has no ciphertext")
        mount.mount()
        fill(mount.path)
        mount.remount()
        seen = inventory(mount.path)
        mount.unmount()
        yield mount, seen
    finally:
        mount.close()


Archive = tuple[CryptfsMount, dict[str, tuple[object, ...]]]


@pytest.mark.parametrize("tool", [rsync, restic, borg])
def test_backup_is_opened_elsewhere(
    archive: Archive, make_mount: Callable[[], CryptfsMount], tmp_path: Path, tool: Callable[..., None]
) -> None:
    """With the passphrase, then with the recovery key: nothing but the ciphertext came along."""
    mount, expected = archive
    elsewhere = make_mount()
    tool(mount.vault, elsewhere.vault, tmp_path)
    for option, key in (
        ("--passphrase-file", mount.passphrase_file),
        ("--recovery-key-file", mount.recovery_file),
    ):
        elsewhere.cli("mount", elsewhere.vault, elsewhere.path, option, key)
        assert inventory(elsewhere.path) == expected
        assert (elsewhere.path / "sparse").stat().st_size == 50 << 20
        (elsewhere.path / f"written with {option}").write_text(MARKER)
        elsewhere.unmount()
        expected = expected | {f"written with {option}": None}
        elsewhere.cli("mount", elsewhere.vault, elsewhere.path, option, key)
        found = inventory(elsewhere.path)
        assert found.keys() == expected.keys()
        assert found[f"written with {option}"][3] == MARKER.encode()
        expected = found
        elsewhere.unmount()


def test_copy_of_a_mounted_vault(make_mount: Callable[[], CryptfsMount], vault: CryptfsMount) -> None:
    """Taken while mounted, after a sync and with nobody writing: it opens like one after a power cut."""
    vault.mount()
    fill(vault.path)
    run("sync", "-f", vault.path)
    expected = inventory(vault.path)
    elsewhere = make_mount()
    rsync(vault.vault, elsewhere.vault, vault.base)
    (vault.path / "later").write_text("not in the backup")
    elsewhere.cli("mount", elsewhere.vault, elsewhere.path, "--recovery-key-file", vault.recovery_file)
    assert inventory(elsewhere.path) == expected
    elsewhere.unmount()


def test_incremental_backup_is_small(make_mount: Callable[[], CryptfsMount], vault: CryptfsMount) -> None:
    """One changed image makes one changed ciphertext file; reading and mounting makes none in the tree."""
    vault.mount()
    fill(vault.path)
    vault.unmount()
    copy = vault.base / "copy"
    run("rsync", "-a", f"{vault.vault}/", f"{copy}/")
    changes = ("rsync", "-anic", "--omit-dir-times", "--delete", f"{vault.vault}/tree/", f"{copy}/tree/")
    vault.mount()
    inventory(vault.path)
    vault.unmount()
    assert run(*changes) == ""
    vault.mount()
    image = next((vault.path / "archive-folder").glob("*.dcm"))
    with image.open("ab") as file:
        file.write(b"x")
    vault.unmount()
    assert len([line for line in run(*changes).splitlines() if line[1] == "f"]) == 1


def test_nothing_in_ciphertext_is_plaintext(archive: Archive) -> None:
    mount, seen = archive
    plaintext = "\0".join(seen).encode() + b"".join(e[3] for e in seen.values() if isinstance(e[3], bytes))
    for secret in SECRETS:
        assert secret.encode() in plaintext, "the search would prove nothing"
    needles = {}
    for secret in SECRETS:
        for encoded in (secret.encode(), secret.encode("latin-1"), secret.encode("utf-16-le")):
            needles[encoded] = secret
            needles[encoded.hex().encode()] = secret
            # base64 of it at each of the three alignments, without the characters that depend on neighbours
            for shift in range(3):
                needles[base64.urlsafe_b64encode(bytes(shift) + encoded)[4:-4]] = secret
    needles = {needle: secret for needle, secret in needles.items() if len(needle) >= 8}  # no chance hits
    looked_at = 0
    for top in (mount.vault, mount.base / "run", mount.log):
        for path in [top, *top.rglob("*")]:
            data = os.fsencode(path.relative_to(mount.base)) + (path.read_bytes() if path.is_file() else b"")
            found = {secret for needle, secret in needles.items() if needle in data}
            assert not found, f"{path} shows {found}"
            looked_at += len(data)
    assert looked_at > 10_000_000

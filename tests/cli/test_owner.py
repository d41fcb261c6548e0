"""What root makes in a vault belongs to whom the vault belongs: the service can go on with it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.vault.layout import modes
from tests.check.support import fill
from tests.cli.conftest import Cryptfs, secret_file
from tests.security.archive import Archive

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")

OWNER = 65534, 65533


def paths(vault: Path) -> Iterator[Path]:
    yield vault
    yield from vault.rglob("*")


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    monkeypatch.setenv("CRYPTFS_RUNTIME_DIR", str(tmp_path / "run"))
    archive = Archive(tmp_path / "vault")
    fill(archive)
    return archive


@pytest.fixture
def key(archive: Archive, tmp_path: Path) -> tuple[str, Path]:
    return "--recovery-key-file", secret_file(tmp_path / "recovery", archive.recovery.text)


def give_away(vault: Path) -> None:
    for path in paths(vault):
        os.chown(path, *OWNER, follow_symlinks=False)


def check(vault: Path) -> None:
    found = {path: path.lstat() for path in paths(vault)}
    assert not [path for path, st in found.items() if (st.st_uid, st.st_gid) != OWNER]
    allowed = modes(False)
    for path, st in found.items():
        most = allowed.directory if path.is_dir() else allowed.file
        # The lock of the configuration may be read by a group, and says nothing.
        assert path == vault or path.name == "cryptfs.lock" or not stat.S_IMODE(st.st_mode) & ~most, path


def test_commands_of_root_leave_everything_to_the_owner(
    cryptfs: Cryptfs, archive: Archive, key: tuple[str, Path], tmp_path: Path
) -> None:
    vault = archive.path
    for path in (vault / "cryptfs.lock", vault / "journal" / "lock", vault / "journal" / "state"):
        path.unlink(missing_ok=True)  # so that they are made anew
    give_away(vault)
    new = secret_file(tmp_path / "new", "acht blaue Fenster\n")
    added = ("--label", "office", "--new-passphrase-file", new)
    commands: list[tuple[str | Path, ...]] = [
        ("rotate", vault),
        ("rotate", vault, "--reencrypt"),
        ("key", "add", vault, "passphrase", *added),
        ("index", "rebuild", vault),
        ("accept-restore", vault, "--yes"),
    ]
    for command in commands:
        done = cryptfs(*command, *key)
        assert done.code == 0, (command, done)
        check(vault)
    assert list((vault / "journal").iterdir())
    office = next(
        slot["id"]
        for slot in cryptfs("key", "list", vault, "--json").json["slots"]
        if slot["label"] == "office"
    )
    assert cryptfs("key", "remove", vault, office, "--yes", *key).code == 0
    check(vault)


def test_a_repair_of_root_leaves_everything_to_the_owner(
    cryptfs: Cryptfs, archive: Archive, key: tuple[str, Path]
) -> None:
    (archive.lower("anna") / "@dir").write_bytes(os.urandom(4096))
    give_away(archive.path)
    assert cryptfs("verify", archive.path, "--repair", "--yes", *key).code == 0
    assert list(archive.path.glob("repair-*/log.jsonl"))
    check(archive.path)


def test_a_vault_made_in_somebodys_folder_is_theirs(cryptfs: Cryptfs, tmp_path: Path) -> None:
    vault = tmp_path / "vault"
    vault.mkdir()
    os.chown(vault, *OWNER)
    secret = secret_file(tmp_path / "password", "sieben gelbe Zähne\n")
    made = cryptfs(
        "init", vault, "--passphrase-file", secret, "--recovery-key-file", tmp_path / "paper"
    )  # fmt: skip
    assert made.code == 0, made
    check(vault)


def test_a_link_to_a_file_of_root_is_not_given_away(
    cryptfs: Cryptfs, archive: Archive, key: tuple[str, Path], tmp_path: Path
) -> None:
    """An owner who put it there would get, for example, a password file."""
    victim = tmp_path / "victim"
    victim.touch(0o600)
    give_away(archive.path)
    lock = archive.path / "cryptfs.lock"
    lock.unlink(missing_ok=True)
    os.link(victim, lock)
    cryptfs("rotate", archive.path, *key)
    assert (victim.stat().st_uid, victim.stat().st_size) == (0, 0)

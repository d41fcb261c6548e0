"""`cryptfs rotate` on a vault that is not mounted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cryptfs.cli import rotating
from cryptfs.cli.mount import remembered_at
from cryptfs.errors import (
    EpochNeeded,
    IntegrityError,
    Interrupted,
    NotMounted,
    StorageError,
    UnsupportedFormat,
    UsageError,
    VaultInUse,
)
from cryptfs.fs import FileSystem
from cryptfs.practice.service import StudyService
from cryptfs.vault import Vault, config, rotation
from cryptfs.vault.config import Unlocked
from cryptfs.vault.layout import create_tree
from tests.fs.support import ME, get, put
from tests.keyslots.material import RECOVERY

from .conftest import Cryptfs, secret_file


def unlock(vault: Path) -> Unlocked:
    return config.unlock(config.load(vault), RECOVERY)


def open_fs(vault: Path, unlocked: Unlocked | None = None) -> FileSystem:
    unlocked = unlocked or unlock(vault)
    return FileSystem(Vault(vault, unlocked.vault_id, unlocked.keyring))


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CRYPTFS_RUNTIME_DIR", str(tmp_path / "run"))
    path = tmp_path / "vault"
    path.mkdir()
    made = config.create(path, [(RECOVERY, "paper")])
    create_tree(path, made.vault_id, made.keyring, backup_group=False, mode=0o755, uid=ME.uid, gid=ME.gid)
    fs = open_fs(path)
    folder = fs.mkdir(1, b"patient", 0o755, ME).ino
    for number in range(5):
        put(fs, folder, b"slice %d" % number, b"image %d" % number)
    fs.close()
    return path


@pytest.fixture
def paper(tmp_path: Path) -> tuple[str, str]:
    return "--recovery-key-file", str(secret_file(tmp_path / "paper", RECOVERY.text))


def check(vault: Path) -> None:
    fs = open_fs(vault)
    folder = fs.lookup(1, b"patient").ino
    for number in range(5):
        assert get(fs, folder, b"slice %d" % number) == b"image %d" % number
    fs.close()


def test_rotate(cryptfs: Cryptfs, vault: Path, paper: tuple[str, str]) -> None:
    before = unlock(vault)
    done = cryptfs("rotate", vault, *paper)
    assert (done.code, done.err) == (0, "")
    assert "epoch 2" in done.out
    assert [epoch.number for epoch in unlock(vault).keyring] == [2]
    check(vault)
    # With the old epoch alone, nothing opens any more.
    fs = None
    try:
        fs = open_fs(vault, before)
    except IntegrityError:
        pass
    assert fs is None


def test_for_programs(cryptfs: Cryptfs, vault: Path, paper: tuple[str, str]) -> None:
    lines = [json.loads(line) for line in cryptfs("rotate", vault, *paper, "--json").out.splitlines()]
    assert {line["event"] for line in lines[:-1]} == {"progress"}
    end = lines[-1]
    assert (end["event"], end["epoch"], end["destroyed"], end["needs"]) == ("finished", 2, [1], 0)
    # five files, two directories
    assert end["rewrapped"] == 7


def test_a_rotation_that_was_begun_goes_on(cryptfs: Cryptfs, vault: Path, paper: tuple[str, str]) -> None:
    rotation.begin(unlock(vault))
    assert cryptfs("rotate", vault, *paper).code == 0
    assert [epoch.number for epoch in unlock(vault).keyring] == [2]
    check(vault)


def test_interrupted(
    cryptfs: Cryptfs, vault: Path, paper: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: rotating.Alone, seconds: float) -> None:
        raise KeyboardInterrupt

    # So slow that it cannot be done before it is interrupted.
    monkeypatch.setattr("cryptfs.fs.throttle.SLICE_SECONDS", 0.0)
    monkeypatch.setattr(rotating.Alone, "wait", interrupt)
    stopped = cryptfs("rotate", vault, *paper, "--limit", "0.001")
    assert stopped.code == Interrupted.exit_code
    assert len(unlock(vault).keyring) == 2
    monkeypatch.undo()
    check(vault)


def test_damage_keeps_the_old_epoch(cryptfs: Cryptfs, vault: Path, paper: tuple[str, str]) -> None:
    victim = max((vault / "tree").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    with victim.open("r+b") as file:
        file.seek(150)
        file.write(b"\xff" * 8)
    refused = cryptfs("rotate", vault, *paper)
    assert refused.code == IntegrityError.exit_code
    assert victim.name in refused.err and "--despite-damage" in refused.err
    assert len(unlock(vault).keyring) == 2
    assert cryptfs("rotate", vault, *paper, "--despite-damage").code == 0
    assert len(unlock(vault).keyring) == 1


def test_in_use_elsewhere(cryptfs: Cryptfs, vault: Path, paper: tuple[str, str]) -> None:
    fs = open_fs(vault)
    try:
        refused = cryptfs("rotate", vault, *paper)
        assert refused.code == VaultInUse.exit_code
        assert len(unlock(vault).keyring) == 1
    finally:
        fs.close()


@pytest.mark.parametrize("option", ["--status", "--stop", "--pause", "--resume"])
def test_nothing_to_control(cryptfs: Cryptfs, vault: Path, option: str) -> None:
    assert cryptfs("rotate", vault, option).code == NotMounted.exit_code


def test_a_full_disk_keeps_everything(
    cryptfs: Cryptfs, vault: Path, paper: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: bytes, offset: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("cryptfs.fs.rewrap.pwrite_all", full)
    failed = cryptfs("rotate", vault, *paper)
    assert failed.code == StorageError.exit_code and "No space left" in failed.err
    monkeypatch.undo()
    check(vault)


def test_the_proof(cryptfs: Cryptfs, vault: Path, paper: tuple[str, str]) -> None:
    assert cryptfs("verify", vault, "--epochs", *paper).code == 0
    rotation.begin(unlock(vault))
    needed = cryptfs("verify", vault, "--epochs", *paper)
    assert needed.code == EpochNeeded.exit_code and "cryptfs rotate" in needed.err
    older = next(path for path in (vault / "tree").iterdir() if path.is_dir()) / "@dir"
    saved = older.read_bytes()
    assert cryptfs("rotate", vault, *paper).code == 0
    proof = cryptfs("verify", vault, "--epochs", *paper, "--json")
    assert proof.code == 0
    assert proof.json["proved"] and list(proof.json["headers"]) == ["2"] and proof.json["objects"] > 7
    # A header out of a backup from before the rotation.
    older.write_bytes(saved)
    gone = cryptfs("verify", vault, "--epochs", *paper, "--json")
    assert gone.code == EpochNeeded.exit_code
    assert gone.json["key_gone"] == [str(older.relative_to(vault))] == gone.json["damaged"]


class TestReencrypt:
    def test_it(self, cryptfs: Cryptfs, vault: Path, paper: tuple[str, str]) -> None:
        before = {path.name for path in (vault / "tree").rglob("*") if path.name != "@dir"}
        done = cryptfs("rotate", vault, "--reencrypt", *paper)
        assert (done.code, done.err) == (0, "")
        assert "epoch 2" in done.out and "content" in done.out
        unlocked = unlock(vault)
        assert [epoch.number for epoch in unlocked.keyring] == [2]
        assert unlocked.config.document.features == []
        after = {path.name for path in (vault / "tree").rglob("*") if path.name != "@dir"}
        assert len(after) == len(before) and not after & before
        assert not (vault / "journal" / "reencryption").exists()
        check(vault)
        assert cryptfs("verify", vault, "--epochs", *paper).code == 0
        lines = cryptfs("rotate", vault, "--reencrypt", *paper, "--json").out.splitlines()
        end = json.loads(lines[-1])
        assert (end["event"], end["epoch"], end["destroyed"], end["damaged"]) == ("finished", 3, [2], 0)
        assert end["reencrypted"] >= 7
        check(vault)

    def test_interrupted_it_goes_on_and_nothing_else_comes_between(
        self, cryptfs: Cryptfs, vault: Path, paper: tuple[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(self: rotating.Alone, seconds: float) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("cryptfs.fs.throttle.SLICE_SECONDS", 0.0)
        monkeypatch.setattr(rotating.Alone, "wait", interrupt)
        stopped = cryptfs("rotate", vault, "--reencrypt", *paper, "--limit", "0.001")
        assert stopped.code == Interrupted.exit_code and "--reencrypt" in stopped.err
        monkeypatch.undo()
        monkeypatch.setenv("CRYPTFS_RUNTIME_DIR", str(vault.parent / "run"))
        assert unlock(vault).config.document.features == ["reencryption"]
        check(vault)
        refused = cryptfs("rotate", vault, *paper)
        assert refused.code == UsageError.exit_code and "--reencrypt" in refused.err
        assert len(unlock(vault).keyring) == 2
        assert cryptfs("verify", vault, *paper).code == 0
        monkeypatch.setattr("cryptfs.vault.document.KNOWN_FEATURES", frozenset())
        assert cryptfs("verify", vault, *paper).code == UnsupportedFormat.exit_code
        monkeypatch.undo()
        monkeypatch.setenv("CRYPTFS_RUNTIME_DIR", str(vault.parent / "run"))
        assert cryptfs("rotate", vault, "--reencrypt", *paper).code == 0
        assert [epoch.number for epoch in unlock(vault).keyring] == [2]
        check(vault)

    def test_killed_before_the_configuration_knows(
        self, cryptfs: Cryptfs, vault: Path, paper: tuple[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def killed(unlocked: Unlocked) -> Unlocked:
            raise KeyboardInterrupt

        monkeypatch.setattr(rotation, "destroy_old", killed)
        assert cryptfs("rotate", vault, "--reencrypt", *paper).code == Interrupted.exit_code
        monkeypatch.undo()
        monkeypatch.setenv("CRYPTFS_RUNTIME_DIR", str(vault.parent / "run"))
        names = {path.name for path in (vault / "tree").rglob("*")}
        assert cryptfs("rotate", vault, "--reencrypt", *paper).code == 0
        assert {path.name for path in (vault / "tree").rglob("*")} == names  # nothing was done twice
        assert len(unlock(vault).keyring) == 1
        check(vault)

    def test_damage_keeps_the_old_keys(self, cryptfs: Cryptfs, vault: Path, paper: tuple[str, str]) -> None:
        victim = next(path for path in sorted((vault / "tree").rglob("*")) if _is_file(path))
        with victim.open("r+b") as file:
            file.seek(8192 + 30)
            file.write(b"\xff" * 8)
        refused = cryptfs("rotate", vault, "--reencrypt", *paper)
        assert refused.code == IntegrityError.exit_code
        assert victim.name in refused.err and "--reencrypt" in refused.err
        assert len(unlock(vault).keyring) == 2
        assert cryptfs("rotate", vault, "--reencrypt", *paper, "--despite-damage").code == 0
        assert len(unlock(vault).keyring) == 1

    def test_a_full_disk_keeps_everything(
        self, cryptfs: Cryptfs, vault: Path, paper: tuple[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(fd: int, data: bytes, offset: int) -> None:
            raise OSError(28, os.strerror(28))

        monkeypatch.setattr("cryptfs.fs.recopying.pwrite_all", full)
        failed = cryptfs("rotate", vault, "--reencrypt", *paper)
        assert failed.code == StorageError.exit_code and "No space left" in failed.err
        monkeypatch.undo()
        monkeypatch.setenv("CRYPTFS_RUNTIME_DIR", str(vault.parent / "run"))
        check(vault)
        assert not list(vault.rglob("@tmp*"))


def _is_file(path: Path) -> bool:
    """Whether it is an object file."""
    return path.is_file() and path.parent.parent.name == "tree" and not path.name.startswith("@")


def test_the_study_index_stays(cryptfs: Cryptfs, vault: Path, paper: tuple[str, str]) -> None:
    def count_reads() -> int:
        unlocked, reads = unlock(vault), 0
        place, why_not = remembered_at(unlocked.vault_id, None, (vault,))
        assert place is not None, why_not
        service = StudyService(open_fs(vault, unlocked), place, unlocked.keyring)

        def progress(read: int, left: int) -> None:
            nonlocal reads
            reads = max(reads, read)

        service.complete(progress)
        service.close()
        return reads

    assert count_reads() == 5
    assert count_reads() == 0
    assert cryptfs("rotate", vault, *paper).code == 0
    assert count_reads() == 0

"""`cryptfs key backup`, `restore`, `recover`, `destroy` and `sheet`, as on a bad day."""

from __future__ import annotations

import json
import re
import shutil
import stat
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from cryptfs.errors import ConfigDamaged, CryptfsError, WrongSecret
from cryptfs.keyslots import KeyFile, Passphrase, RecoveryKey
from cryptfs.vault import Vault, belongs, config, configfile, emergency
from tests.keyslots.material import RECOVERY

from .conftest import Cryptfs, secret_file
from .terminal import Terminal
from .vaults import CONTENT, content, make

STICK = b"a key file of more than 32 bytes, on a stick"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pristine") / "vault"
    make(path)
    return path


@pytest.fixture
def vault(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "vault", symlinks=True))


@pytest.fixture
def paper(tmp_path: Path) -> tuple[str, str]:
    return "--recovery-key-file", str(secret_file(tmp_path / "paper", RECOVERY.text))


@pytest.fixture
def new(tmp_path: Path) -> tuple[str, str]:
    return "--new-passphrase-file", str(secret_file(tmp_path / "new", "neue lange Wörter\n"))


def unlock(vault: Path, secret: config.Secret = RECOVERY) -> config.Unlocked:
    return config.unlock(config.load(vault), secret)


def test_backup_and_restore(cryptfs: Cryptfs, vault: Path, tmp_path: Path, paper: tuple[str, str]) -> None:
    copy = tmp_path / "copy"
    made = cryptfs("key", "backup", vault, copy)
    assert (made.code, made.err) == (0, "")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert copy.read_bytes() == (vault / "cryptfs.json").read_bytes()
    assert cryptfs("key", "backup", vault, copy).code == 2
    assert cryptfs("key", "backup", vault, vault / "copy").code == 2

    (vault / "cryptfs.json").write_text("{ damaged")
    restored = cryptfs("key", "restore", vault, copy, *paper)
    assert restored.code == 0
    assert content(vault, unlock(vault)) == CONTENT
    assert (vault / "cryptfs.json.replaced").read_text() == "{ damaged"
    # What was kept is never written over.
    (vault / "cryptfs.json").write_text("{ again")
    assert cryptfs("key", "restore", vault, copy, *paper).code == 0
    assert (vault / "cryptfs.json.replaced").read_text() == "{ damaged"
    assert (vault / "cryptfs.json.replaced.2").read_text() == "{ again"


def test_a_copy_of_another_vault_is_refused(
    cryptfs: Cryptfs, vault: Path, tmp_path: Path, paper: tuple[str, str]
) -> None:
    make(tmp_path / "other")
    copy = tmp_path / "copy"
    cryptfs("key", "backup", tmp_path / "other", copy)
    before = (vault / "cryptfs.json").read_bytes()
    refused = cryptfs("key", "restore", vault, copy, *paper)
    assert (refused.code, "another vault" in refused.err) == (11, True)
    assert (vault / "cryptfs.json").read_bytes() == before
    # Also where nothing is left to compare with: its keys open none of the files.
    (vault / "cryptfs.json").unlink()
    refused = cryptfs("key", "restore", vault, copy, *paper)
    assert (refused.code, "open none of the files" in refused.err) == (11, True)
    assert not (vault / "cryptfs.json").exists()
    copy.write_text("{}")
    assert cryptfs("key", "restore", vault, copy, *paper).code == 11


def test_a_copy_from_before_a_rotation_is_refused(
    cryptfs: Cryptfs, vault: Path, tmp_path: Path, paper: tuple[str, str]
) -> None:
    copy = tmp_path / "copy"
    cryptfs("key", "backup", vault, copy)
    unlocked = unlock(vault)
    two = config.replace_keyring(unlocked, unlocked.keyring.with_new_epoch())
    fs_vault = Vault(vault, two.vault_id, two.keyring)
    header = fs_vault.codec.read((vault / "tree" / "@dir").read_bytes())[0].copy()
    header.epoch = 2
    (vault / "tree" / "@dir").write_bytes(fs_vault.codec.pack(header))
    fs_vault.close()
    refused = cryptfs("key", "restore", vault, copy, *paper)
    assert (refused.code, "epoch 2" in refused.err) == (11, True)
    belongs.check(vault, unlock(vault))


def test_slots_that_come_back_are_named(
    cryptfs: Cryptfs, vault: Path, tmp_path: Path, paper: tuple[str, str]
) -> None:
    added = config.add_slot(unlock(vault), KeyFile(STICK), "lost stick")
    copy = tmp_path / "copy"
    cryptfs("key", "backup", vault, copy)
    config.remove_slot(added, added.config.slots[-1].id)
    asked = cryptfs("key", "restore", vault, copy, *paper)
    assert (asked.code, "lost stick" in asked.err) == (2, True)
    assert cryptfs("key", "restore", vault, copy, "--yes", *paper).code == 0
    assert unlock(vault, KeyFile(STICK))


def test_recover_replaces_the_lost_passphrase(
    cryptfs: Cryptfs, vault: Path, paper: tuple[str, str], new: tuple[str, str]
) -> None:
    first = cryptfs("key", "recover", vault, *paper, *new)
    assert (first.code, "Added the passphrase slot" in first.out) == (0, True)
    (slot,) = [slot for slot in config.load(vault).slots if slot.type == "passphrase"]
    Path(new[1]).write_text("und noch einmal andere\n")
    again = cryptfs("key", "recover", vault, *paper, *new)
    assert (again.code, "old one opens nothing any more" in again.out) == (0, True)
    assert unlock(vault, Passphrase("und noch einmal andere")).slot_id == slot.id
    with pytest.raises(WrongSecret):
        unlock(vault, Passphrase("neue lange Wörter"))
    assert content(vault, unlock(vault)) == CONTENT


@pytest.mark.parametrize("loss", ["missing", "damaged"])
def test_recover_where_the_configuration_is_lost(
    cryptfs: Cryptfs, vault: Path, paper: tuple[str, str], new: tuple[str, str], loss: str
) -> None:
    config.add_slot(unlock(vault), KeyFile(STICK))
    if loss == "missing":
        (vault / "cryptfs.json").unlink()
    else:
        (vault / "cryptfs.json").write_bytes(b"\0" * 4096)
    previous = vault / configfile.PREVIOUS
    refused = cryptfs("key", "recover", vault, *paper, *new)
    assert (refused.code, f"--from {previous}" in refused.err) == (11, True)
    assert cryptfs("key", "recover", vault, "--from", previous, *paper, *new).code == 0
    assert content(vault, unlock(vault, Passphrase("neue lange Wörter"))) == CONTENT


def test_recover_from_a_copy_elsewhere(
    cryptfs: Cryptfs, vault: Path, tmp_path: Path, paper: tuple[str, str], new: tuple[str, str]
) -> None:
    cryptfs("key", "backup", vault, tmp_path / "copy")
    (vault / "cryptfs.json").unlink()
    assert cryptfs("key", "recover", vault, *paper, *new).code == 13
    wrong = secret_file(tmp_path / "wrong", RecoveryKey(bytes(32)).text)
    options = ("--from", tmp_path / "copy", *new)
    assert cryptfs("key", "recover", vault, "--recovery-key-file", wrong, *options).code == 10
    assert not (vault / "cryptfs.json").exists(), "a wrong key changes nothing"
    assert cryptfs("key", "recover", vault, *paper, *options).code == 0
    assert content(vault, unlock(vault)) == CONTENT


def test_key_test_proves_that_the_files_open(
    cryptfs: Cryptfs, vault: Path, tmp_path: Path, paper: tuple[str, str]
) -> None:
    assert cryptfs("key", "test", vault, *paper).code == 0
    make(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "cryptfs.json", vault / "cryptfs.json")
    assert cryptfs("key", "test", vault, *paper).code == 11


def test_destroy(cryptfs: Cryptfs, vault: Path, tmp_path: Path, paper: tuple[str, str]) -> None:
    config.add_slot(unlock(vault), KeyFile(STICK))
    cryptfs("key", "backup", vault, tmp_path / "copy")
    (vault / "@tmp-config-0123").write_bytes((vault / "cryptfs.json").read_bytes())
    before = {path: path.read_bytes()[:8192] for path in (vault / "tree").rglob("*") if path.is_file()}
    assert cryptfs("key", "destroy", vault).code == 2
    wrong = cryptfs("key", "destroy", vault, "--confirm", "valut")
    assert (wrong.code, "nothing was changed" in wrong.err) == (130, True)
    assert content(vault, unlock(vault)) == CONTENT

    done = cryptfs("key", "destroy", vault, "--confirm", "vault")
    assert done.code == 0
    assert "3 copies of the key slots" in done.out
    assert "backups and snapshots" in done.out
    assert not [path for path in vault.iterdir() if "json" in path.name or "config" in path.name]
    for path, area in before.items():
        assert path.read_bytes()[:192] != area[:192]
    # Not even a copy of the configuration, with its secret, opens the files.
    shutil.copy(tmp_path / "copy", vault / "cryptfs.json")
    assert cryptfs("key", "restore", vault, tmp_path / "copy", *paper).code == 11
    with pytest.raises(ConfigDamaged):
        belongs.check(vault, unlock(vault))
    # Called again, it goes on where it was.
    assert cryptfs("key", "destroy", vault, "--confirm", "vault").code == 0
    assert not (vault / "cryptfs.json").exists()


def test_destroy_of_the_slots_only_says_what_opens_it_still(
    cryptfs: Cryptfs, vault: Path, tmp_path: Path, paper: tuple[str, str]
) -> None:
    cryptfs("key", "backup", vault, tmp_path / "copy")
    done = cryptfs("key", "destroy", vault, "--confirm", "vault", "--slots-only")
    assert "with a copy of cryptfs.json" in done.out
    assert cryptfs("key", "restore", vault, tmp_path / "copy", *paper).code == 0
    assert content(vault, unlock(vault)) == CONTENT


def test_a_vault_in_use_is_not_destroyed(cryptfs: Cryptfs, vault: Path) -> None:
    unlocked = unlock(vault)
    mounted = Vault(vault, unlocked.vault_id, unlocked.keyring)
    try:
        refused = cryptfs("key", "destroy", vault, "--confirm", "vault")
        assert (refused.code, "unmount it" in refused.err) == (14, True)
    finally:
        mounted.close()
    assert content(vault, unlock(vault)) == CONTENT
    assert cryptfs("key", "destroy", vault.parent, "--confirm", vault.parent.name).code == 13


def test_the_key_slots_are_overwritten_before_they_are_removed(
    vault: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that keeps the blocks of a removed file must not keep the slots."""
    secret = (vault / "cryptfs.json").read_bytes()
    at_removal = []
    real = Path.unlink
    monkeypatch.setattr(
        Path, "unlink", lambda path, **more: (at_removal.append(path.read_bytes()), real(path, **more))[1]
    )
    emergency.destroy(vault, headers=False, progress=lambda done: None)
    assert len(at_removal) == 1
    assert len(at_removal[0]) == len(secret)
    assert not any(at_removal[0][at : at + 16] in secret for at in range(0, len(secret) - 16, 16))


@pytest.mark.parametrize("suffix", [".html", ".txt"])
def test_sheet(cryptfs: Cryptfs, vault: Path, tmp_path: Path, paper: tuple[str, str], suffix: str) -> None:
    file = tmp_path / f"sheet{suffix}"
    made = cryptfs("key", "sheet", vault, file, *paper)
    assert (made.code, made.err) == (0, "")
    assert RECOVERY.text.split("-")[0] not in made.out
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text()
    for group in RECOVERY.text.split("-"):
        assert group in text
    assert str(vault) in text
    assert unlock(vault).vault_id.hex() in text
    assert "cryptfs key recover FOLDER" in text
    assert cryptfs("key", "sheet", vault, file, *paper).code == 2
    if suffix == ".txt":
        assert len(text.splitlines()) < 60, "one page"
        assert max(map(len, text.splitlines())) <= 90
        assert RecoveryKey.parse(next(line for line in text.splitlines() if RECOVERY.text in line)).text
    else:
        assert not re.search(r"<script|https?://(?!www\.w3\.org)|url\(|@import", text)
        picture = ET.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
        assert picture.tag.endswith("svg")


def test_a_sheet_with_a_key_that_opens_nothing_is_not_made(
    cryptfs: Cryptfs, vault: Path, tmp_path: Path, paper: tuple[str, str]
) -> None:
    wrong = secret_file(tmp_path / "wrong", RecoveryKey(bytes(32)).text)
    file = tmp_path / "sheet.txt"
    refused = cryptfs("key", "sheet", vault, file, "--recovery-key-file", wrong)
    assert (refused.code, file.exists()) == (10, False)
    assert cryptfs("key", "sheet", vault, tmp_path / "sheet.pdf", *paper).code == 2
    assert cryptfs("key", "sheet", vault, vault / "sheet.txt", *paper).code == 2
    assert cryptfs("key", "sheet", vault, file).code == 2


def test_init_makes_a_sheet(cryptfs: Cryptfs, tmp_path: Path) -> None:
    file = tmp_path / "sheet.txt"
    new = tmp_path / "new vault"
    made = cryptfs("init", new, "--no-passphrase", "--recovery-sheet", file)
    assert made.code == 0, made.err
    key = next(line for line in file.read_text().splitlines() if line.count("-") == 8)
    assert unlock(new, RecoveryKey.parse(key))
    assert key.strip() not in made.out + made.err
    inside = cryptfs("init", tmp_path / "x", "--no-passphrase", "--recovery-sheet", tmp_path / "x/s.txt")
    assert inside.code == 2
    assert not (tmp_path / "x").exists()


def test_a_person_confirms_with_the_name(vault: Path) -> None:
    terminal = Terminal("key", "destroy", str(vault))
    terminal.expect("Type the name of the vault's folder (vault): ")
    terminal.type("yes")
    assert terminal.end() == 130
    assert unlock(vault)


def test_every_prefix_of_a_restore_leaves_a_whole_configuration(
    vault: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    first = unlock(vault)
    text = (vault / "cryptfs.json").read_bytes()
    config.add_slot(first, KeyFile(STICK))
    later = (vault / "cryptfs.json").read_bytes()
    finished, step = False, 0
    while not finished:
        step += 1
        work = tmp_path / str(step)
        shutil.copytree(vault, work)
        calls = 0
        with monkeypatch.context() as patch:
            for owner, name in ((os, "open"), (os, "fsync"), (Path, "rename")):
                real = getattr(owner, name)

                def call(*args: object, real: object = real, at: int = step, **more: object) -> object:
                    nonlocal calls
                    calls += 1
                    if calls == at:
                        raise OSError(5, "Input/output error")
                    return real(*args, **more)  # type: ignore[operator]

                patch.setattr(owner, name, call)
            try:
                emergency.restore(work, text, first)
                finished = True
            except (OSError, CryptfsError):
                pass
        assert (work / "cryptfs.json").read_bytes() in (text, later)
        json.loads((work / "cryptfs.json").read_bytes())
    assert step > 8
    assert (work / "cryptfs.json").read_bytes() == text
    assert (work / "cryptfs.json.replaced").read_bytes() == later

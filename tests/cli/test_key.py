"""`cryptfs key`: slots as an administrator sees them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cryptfs.cli import key, slot_use
from cryptfs.errors import CryptfsError
from cryptfs.keyslots import KeyFile, RecoveryKey
from cryptfs.vault import config, configfile
from cryptfs.vault.config import Unlocked
from tests.keyslots.material import PASSPHRASE, RECOVERY, make, passphrase

from .conftest import Cryptfs, secret_file
from .terminal import Terminal


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pristine") / "vault"
    make(path)
    return path


@pytest.fixture
def vault(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "vault"))


@pytest.fixture
def paper(tmp_path: Path) -> tuple[str, str]:
    """Unlock with the recovery key, which costs nothing."""
    return "--recovery-key-file", str(secret_file(tmp_path / "paper", RECOVERY.text))


def slot_of(vault: Path, kind: str) -> str:
    return next(slot.id for slot in config.load(vault).slots if slot.type == kind)


def unlock(vault: Path, secret: config.Secret) -> Unlocked:
    return config.unlock(config.load(vault), secret)


def test_list(cryptfs: Cryptfs, vault: Path) -> None:
    lines = cryptfs("key", "list", vault).out.splitlines()
    slots = config.load(vault).slots
    assert lines[0].split() == ["SLOT", "TYPE", "CREATED", "LAST", "USED", "COST", "LABEL"]
    for line, slot in zip(lines[1:], slots, strict=True):
        assert line.split()[:3] == [slot.id, slot.type, slot.created]
        assert line.endswith(slot.label)
    assert "64 MiB, 3 passes" in lines[3]


def test_list_for_programs(cryptfs: Cryptfs, vault: Path) -> None:
    listed = cryptfs("key", "list", vault, "--json").json
    loaded = config.load(vault)
    assert (listed["vault"], listed["generation"]) == (loaded.vault_id.hex(), 1)
    assert listed["slots"][0] == {
        "id": loaded.slots[0].id,
        "type": "recovery",
        "label": "paper",
        "created": loaded.slots[0].created,
        "kdf": {"name": "hkdf-sha256"},
        "last_used_here": None,
    }
    assert listed["slots"][2]["kdf"] == {"name": "argon2id", "time": 3, "memory_kib": 65536, "lanes": 4}


def test_a_hostile_label_cannot_write_on_the_terminal(cryptfs: Cryptfs, vault: Path) -> None:
    file = vault / configfile.NAME
    file.write_text(file.read_text().replace('"paper"', '"\\u001b]0;title\\u0007"'))
    assert "\x1b" not in cryptfs("key", "list", vault).out


def test_add_each_type(cryptfs: Cryptfs, vault: Path, tmp_path: Path, paper: tuple[str, str]) -> None:
    new = secret_file(tmp_path / "new", "neue Wörter\n")
    result = cryptfs(
        "key", "add", vault, "passphrase", "--label", "office", *paper, "--new-passphrase-file", new
    )
    assert (result.code, result.err) == (0, "")
    assert config.load(vault).slots[-1].id in result.out
    assert config.load(vault).slots[-1].label == "office"
    unlock(vault, passphrase("neue Wörter"))

    second = tmp_path / "second paper"
    assert cryptfs("key", "add", vault, "recovery", *paper, "--new-recovery-key-file", second).code == 0
    unlock(vault, RecoveryKey.parse(second.read_text()))

    stick = secret_file(tmp_path / "stick", bytes(range(40)))
    assert cryptfs("key", "add", vault, "keyfile", *paper, "--new-key-file", stick).code == 0
    unlock(vault, KeyFile(bytes(range(40))))
    assert len(config.load(vault).slots) == 6


def test_options_that_do_not_fit(
    cryptfs: Cryptfs, vault: Path, tmp_path: Path, paper: tuple[str, str]
) -> None:
    new = secret_file(tmp_path / "new", "word\n")
    before = (vault / configfile.NAME).read_bytes()
    for kind, options, message in (
        (
            "recovery",
            ("--new-passphrase-file", new),
            "--new-passphrase-file does not fit a slot of type recovery",
        ),
        ("passphrase", ("--new-key-file", new), "--new-key-file does not fit"),
        ("passphrase", ("--new-passphrase-file", new, "--new-passphrase-fd", 9), "exclude each other"),
        ("passphrase", (), "no terminal"),
        ("recovery", (), "no terminal"),
        ("keyfile", (), "Name the key file"),
        ("keyfile", ("--new-key-file", new), "32 bytes to 1 MiB"),
        ("fido2", (), "is not one of"),
        ("tpm2", (), "no terminal"),
    ):
        result = cryptfs("key", "add", vault, kind, *paper, *options)
        assert result.code == 2, result
        assert message in result.err
    assert (vault / configfile.NAME).read_bytes() == before


def test_change(cryptfs: Cryptfs, vault: Path, tmp_path: Path, paper: tuple[str, str]) -> None:
    slot_id = slot_of(vault, "passphrase")
    new = secret_file(tmp_path / "new", "neue Wörter\n")
    assert cryptfs("key", "change", vault, slot_id[:6], *paper, "--new-passphrase-file", new).code == 0
    assert unlock(vault, passphrase("neue Wörter")).slot_id == slot_id
    with pytest.raises(CryptfsError, match="Wrong passphrase"):
        unlock(vault, passphrase())


def test_remove(cryptfs: Cryptfs, vault: Path, paper: tuple[str, str]) -> None:
    stick, desk, first = (slot_of(vault, kind) for kind in ("keyfile", "passphrase", "recovery"))
    refused = cryptfs("key", "remove", vault, stick, *paper)
    assert refused.code == 2
    assert "confirm with --yes" in refused.err
    for slot_id in (stick, desk):
        assert cryptfs("key", "remove", vault, slot_id, "--yes", *paper).code == 0
    assert [slot.id for slot in config.load(vault).slots] == [first]
    last = cryptfs("key", "remove", vault, first, "--yes", *paper)
    assert last.code == 20
    assert "last slot that a person can type" in last.err
    assert cryptfs("key", "remove", vault, "ffff", "--yes", *paper).code == 20
    unlock(vault, RECOVERY)


def test_removal_says_what_it_does_not_revoke(cryptfs: Cryptfs) -> None:
    for name in ("remove", "change"):
        text = " ".join(cryptfs("key", name, "--help").out.split())
        assert "kept a copy of the old cryptfs.json (a backup has one) can still read every file" in text


def test_wrong_secret_and_damaged_configuration(cryptfs: Cryptfs, vault: Path, tmp_path: Path) -> None:
    wrong = secret_file(tmp_path / "wrong", RecoveryKey(bytes(32)).text)
    result = cryptfs("key", "add", vault, "recovery", "--recovery-key-file", wrong)
    assert (result.code, result.err) == (
        10,
        "cryptfs: Wrong recovery key: it opens no key slot of this vault.\n",
    )
    (vault / configfile.NAME).write_text("{")
    assert cryptfs("key", "list", vault).code == 11
    (vault / configfile.NAME).unlink()
    assert cryptfs("key", "list", vault).code == 13


def test_a_failed_change_leaves_no_useless_recovery_key(
    cryptfs: Cryptfs, vault: Path, tmp_path: Path, paper: tuple[str, str]
) -> None:
    new = tmp_path / "new paper"
    with configfile.locked(vault):
        assert cryptfs("key", "add", vault, "recovery", *paper, "--new-recovery-key-file", new).code == 14
    assert not new.exists()


def test_a_change_that_was_made_keeps_its_recovery_key(
    cryptfs: Cryptfs, vault: Path, tmp_path: Path, paper: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails after the commit: the new key may be the only one, so its file must stay."""
    new = tmp_path / "new paper"
    real, calls = configfile.sync_folder, []

    def fail_the_second_time(folder: Path) -> None:
        calls.append(folder)
        if calls.count(vault) == 2:
            raise OSError(5, "Input/output error")
        real(folder)

    monkeypatch.setattr(configfile, "sync_folder", fail_the_second_time)
    slot_id = slot_of(vault, "recovery")
    result = cryptfs("key", "change", vault, slot_id, *paper, "--new-recovery-key-file", new)
    assert result.code == 19
    assert "was changed, but the disk did not confirm it" in result.err
    unlock(vault, RecoveryKey.parse(new.read_text()))


def test_a_person_is_asked_again_after_a_typing_error(vault: Path) -> None:
    terminal = Terminal("key", "add", str(vault), "recovery")
    for _ in range(2):
        terminal.expect(f"Passphrase of {vault}: ")
        terminal.type("falsch")
        terminal.expect("Try again.")
    terminal.expect(f"Passphrase of {vault}: ")
    terminal.type(PASSPHRASE)
    terminal.expect("from your paper: ")
    words = terminal.shown.partition("away from this computer:")[2].split()
    groups = [word for word in words if len(word) == 7 and word.isalnum() and word == word.upper()][:9]
    terminal.type(groups[int(terminal.shown.rpartition("type group ")[2].split()[0]) - 1])
    assert terminal.end() == 0
    assert PASSPHRASE not in terminal.shown
    unlock(vault, RecoveryKey.parse("-".join(groups)))


def test_three_wrong_passphrases(vault: Path) -> None:
    terminal = Terminal("key", "add", str(vault), "recovery")
    for _ in range(3):
        terminal.expect(f"Passphrase of {vault}: ")
        terminal.type("falsch")
    assert terminal.end() == 10


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("", 130), ("n", 130)])
def test_removal_is_confirmed(vault: Path, paper: tuple[str, str], answer: str, code: int) -> None:
    slot_id = slot_of(vault, "keyfile")
    terminal = Terminal("key", "remove", str(vault), slot_id, *paper)
    terminal.expect(f"Remove the keyfile slot {slot_id} (stick) for good? [y/N] ")
    terminal.type(answer)
    assert terminal.end() == code
    assert any(slot.id == slot_id for slot in config.load(vault).slots) == (code != 0)


def test_the_last_use_is_kept_on_this_machine_and_never_in_the_way(
    cryptfs: Cryptfs, vault: Path, state_directory: Path, paper: tuple[str, str]
) -> None:
    before = {path.name: path.read_bytes() for path in vault.iterdir()}
    assert cryptfs("key", "list", vault).out.count("never here") == 3
    unlocked = unlock(vault, RECOVERY)
    slot_use.record(unlocked.vault_id, unlocked.slot_id)
    shown = cryptfs("key", "list", vault, "--json").json["slots"]
    assert [slot["last_used_here"] is None for slot in shown] == [False, True, True]
    assert {path.name: path.read_bytes() for path in vault.iterdir()} == before
    # A state directory that cannot be used, or holds nonsense, changes nothing.
    (file,) = state_directory.glob("*/slots.json")
    for nonsense in ("", "[1]", '{"x": 1}', "\xff"):
        file.write_text(nonsense, encoding="latin-1")
        assert cryptfs("key", "list", vault).out.count("never here") == 3
        slot_use.record(unlocked.vault_id, unlocked.slot_id)
        assert unlocked.slot_id in slot_use.last_used(unlocked.vault_id)
    shutil.rmtree(state_directory)
    state_directory.write_text("a file")
    slot_use.record(unlocked.vault_id, unlocked.slot_id)
    assert slot_use.last_used(unlocked.vault_id) == {}


def test_groups_have_help() -> None:
    assert all(command.help for command in key.command.commands.values())
    assert {"list", "add", "change", "remove", "test", "reseal", "lockout", "sheet", "backup"} <= set(
        key.command.commands
    )

"""`cryptfs init`: a whole vault or nothing."""

from __future__ import annotations

import errno
import os
import signal
import stat
from pathlib import Path

import pytest

from cryptfs.cli import init
from cryptfs.keyslots import KeyFile, Passphrase, RecoveryKey
from cryptfs.vault import config, layout

from .conftest import Cryptfs, secret_file
from .terminal import Terminal


def entries(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_a_vault_that_both_secrets_open(cryptfs: Cryptfs, tmp_path: Path, password: Path) -> None:
    vault, paper = tmp_path / "vault", tmp_path / "paper"
    result = cryptfs(
        "init", vault, "--passphrase-file", password, "--recovery-key-file", paper, "--label", "practice"
    )
    assert (result.code, result.err) == (
        0,
        "Measuring this machine, so that guessing the passphrase stays slow …\n",
    )
    assert "sieben" not in result.out
    assert paper.read_text().strip() not in result.out
    assert stat.S_IMODE(paper.stat().st_mode) == 0o600
    assert stat.S_IMODE(vault.stat().st_mode) == 0o700
    assert entries(vault) == {"cryptfs.json", "cryptfs.lock", "tree", "dirs", "journal", "xattr"}
    assert (vault / "tree/@dir").stat().st_size > 0
    loaded = config.load(vault)
    assert [(slot.type, slot.label) for slot in loaded.slots] == [
        ("passphrase", "practice"),
        ("recovery", "recovery key"),
    ]
    by_passphrase = config.unlock(loaded, Passphrase("sieben gelbe Zähne"))
    by_recovery = config.unlock(loaded, RecoveryKey.parse(paper.read_text()))
    assert by_passphrase.keyring == by_recovery.keyring


def test_key_files_and_no_passphrase(cryptfs: Cryptfs, tmp_path: Path) -> None:
    key_file = secret_file(tmp_path / "key", bytes(range(64)))
    result = cryptfs(
        "init",
        tmp_path / "vault",
        "--no-passphrase",
        "--key-file",
        key_file,
        "--recovery-key-file",
        tmp_path / "paper",
    )
    assert (result.code, result.err) == (0, "")
    loaded = config.load(tmp_path / "vault")
    assert [(slot.type, slot.label) for slot in loaded.slots] == [
        ("recovery", "recovery key"),
        ("keyfile", "key"),
    ]
    config.unlock(loaded, KeyFile(bytes(range(64))))


def test_backup_group(cryptfs: Cryptfs, tmp_path: Path, password: Path) -> None:
    vault = tmp_path / "vault"
    args = ("--passphrase-file", password, "--recovery-key-file", tmp_path / "paper")
    assert cryptfs("init", vault, "--backup-group", *args).code == 0
    assert config.load(vault).backup_group
    for path in [vault, *vault.rglob("*")]:
        assert path.stat().st_mode & stat.S_IRGRP
        assert not path.stat().st_mode & (stat.S_IRWXO | stat.S_IWGRP)


def test_an_empty_folder_is_used(cryptfs: Cryptfs, tmp_path: Path, password: Path) -> None:
    vault = tmp_path / "vault"
    (vault / "lost+found").mkdir(parents=True)
    args = ("--passphrase-file", password, "--recovery-key-file", tmp_path / "paper")
    assert cryptfs("init", vault, *args).code == 0
    assert "lost+found" in entries(vault)
    again = cryptfs("init", vault, *args)
    assert again.code == 14
    assert "is a vault already" in again.err


def test_refusals_change_nothing(cryptfs: Cryptfs, tmp_path: Path, password: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    key = ("--passphrase-file", password)
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    for arguments, message in (
        ((tmp_path / "full", *key, "--recovery-key-file", tmp_path / "paper"), "is not empty"),
        ((password, *key, "--recovery-key-file", tmp_path / "paper"), "is not a folder"),
        ((tmp_path / "link", *key, "--recovery-key-file", tmp_path / "paper"), "symbolic link to nothing"),
        ((tmp_path / "a/b", *key, "--recovery-key-file", tmp_path / "paper"), "There is no folder"),
        ((tmp_path / "new", *key, "--recovery-key-file", tmp_path / "new/paper"), "must not be stored"),
        ((tmp_path / "new", *key, "--recovery-key-file", password), "exists already"),
        ((tmp_path / "new", *key, "--no-passphrase"), "exclude each other"),
        ((tmp_path / "new", *key), "no terminal"),
        ((tmp_path / "new",), "no terminal"),
    ):
        result = cryptfs("init", *arguments)
        assert result.code == 2, result
        assert message in result.err
    assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("folder", ["new", "empty"])
@pytest.mark.parametrize(
    ("step", "failure", "code"),
    [
        ((layout, "create_tree"), OSError(errno.ENOSPC, "full"), 19),
        ((config, "write_new"), KeyboardInterrupt(), 130),
        ((config, "load"), RuntimeError("defect"), 70),
    ],
    ids=["full disk", "Ctrl-C", "defect"],
)
def test_a_failure_leaves_nothing(
    cryptfs: Cryptfs,
    tmp_path: Path,
    password: Path,
    folder: str,
    step: tuple[object, str],
    failure: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vault = tmp_path / "vault"
    if folder == "empty":
        (vault / "lost+found").mkdir(parents=True)
        vault.chmod(0o755)
    owner, name = step
    real = getattr(owner, name)

    def fail(*args: object, **kwargs: object) -> None:
        real(*args, **kwargs)
        raise failure

    monkeypatch.setattr(owner, name, fail)
    args = ("--passphrase-file", password, "--recovery-key-file", tmp_path / "paper")
    assert cryptfs("init", vault, "--backup-group", *args).code == code
    assert not (tmp_path / "paper").exists()
    if folder == "empty":
        assert entries(vault) == {"lost+found"}
        assert stat.S_IMODE(vault.stat().st_mode) == 0o755
    else:
        assert not vault.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_nothing(
    cryptfs: Cryptfs, tmp_path: Path, password: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "write_new", lambda unlocked: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    args = ("--passphrase-file", password, "--recovery-key-file", tmp_path / "paper")
    result = cryptfs("init", tmp_path / "vault", *args)
    assert (result.code, result.err.splitlines()[-1]) == (130, "cryptfs: Interrupted: no vault was made.")
    assert entries(tmp_path) == {"password"}
    assert signal.getsignal(number) == before


def test_a_person_makes_a_vault(tmp_path: Path) -> None:
    vault = tmp_path / "vault"
    terminal = Terminal("init", str(vault))
    terminal.expect("New passphrase: ")
    terminal.type("kurz")
    terminal.expect("Weak: ")
    terminal.expect("The same again: ")
    terminal.type("kurz")
    terminal.expect("nine groups on paper")
    table = terminal.expect("To be sure, type group ")
    groups = [word for word in table.split() if len(word) == 7 and not word.endswith(":")]
    assert len(groups) == 9
    terminal.expect(" from your paper: ")
    number = int(terminal.shown.rpartition("type group ")[2].split()[0])
    terminal.type("0000000")
    terminal.expect("not what is shown")
    terminal.expect(" from your paper: ")
    terminal.type(groups[number - 1].lower())
    terminal.expect("is ready")
    assert terminal.end() == 0
    assert "kurz" not in terminal.shown
    config.unlock(config.load(vault), RecoveryKey.parse("-".join(groups)))


@pytest.mark.parametrize("typed", [["one", "two"], ["", ""]])
def test_two_different_passphrases_or_none(tmp_path: Path, typed: list[str]) -> None:
    terminal = Terminal("init", str(tmp_path / "vault"))
    terminal.expect("New passphrase: ")
    terminal.type(typed[0])
    if typed[0]:
        terminal.expect("The same again: ")
        terminal.type(typed[1])
    assert terminal.end() == 2
    assert ("differ" if typed[0] else "is empty") in terminal.shown
    assert entries(tmp_path) == set()


@pytest.mark.parametrize("when", ["New passphrase: ", "from your paper: "])
def test_ctrl_c_at_a_question(tmp_path: Path, when: str) -> None:
    terminal = Terminal("init", str(tmp_path / "vault"))
    if when != "New passphrase: ":
        for question in ("New passphrase: ", "The same again: "):
            terminal.expect(question)
            terminal.type("a passphrase")
    terminal.expect(when)
    terminal.interrupt()
    assert terminal.end() == 130
    assert "Interrupted" in terminal.shown
    assert entries(tmp_path) == set()


def test_recovery_key_not_confirmed(tmp_path: Path) -> None:
    key_file = secret_file(tmp_path / "key", bytes(64))
    terminal = Terminal("init", str(tmp_path / "vault"), "--no-passphrase", "--key-file", str(key_file))
    for _ in range(3):
        terminal.expect("from your paper: ")
        terminal.type("wrong")
    assert terminal.end() == 2
    assert "not confirmed" in terminal.shown
    assert entries(tmp_path) == {"key"}


def test_what_is_in_the_way_by_then_is_seen(
    cryptfs: Cryptfs, tmp_path: Path, password: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody fills the folder while the person writes down the key: nothing of theirs is touched."""
    vault = tmp_path / "vault"
    vault.mkdir()
    real = init.secrets.new_recovery_key

    def meanwhile(file: Path | None) -> RecoveryKey:
        (vault / "file").touch()
        return real(file)

    monkeypatch.setattr(init.secrets, "new_recovery_key", meanwhile)
    args = ("--passphrase-file", password, "--recovery-key-file", tmp_path / "paper")
    assert cryptfs("init", vault, *args).code == 2
    assert entries(vault) == {"file"}
    assert not (tmp_path / "paper").exists()

"""Where secrets come from."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest

from cryptfs.cli import secrets
from cryptfs.cli.main import run
from cryptfs.cli.secrets import SecretSource, strength_hint
from cryptfs.crypto.kdf import HkdfSha256
from cryptfs.errors import UsageError
from cryptfs.keyslots import Passphrase, RecoveryKey
from tests.keyslots.material import RECOVERY, make

from .conftest import Cryptfs, secret_file
from .terminal import Terminal

CHEAP = HkdfSha256(bytes(16))


def same(first: Passphrase, second: str) -> bool:
    return first.slot_key(CHEAP, {}) == Passphrase(second).slot_key(CHEAP, {})


@pytest.mark.parametrize(
    ("content", "passphrase"),
    [
        (b"word", "word"),
        (b"word\n", "word"),
        (b"word\r\n", "word"),
        (b" two words \n", " two words "),
        ("Zähne\n".encode(), "Zähne"),
    ],
)
def test_a_passphrase_file_is_one_line(tmp_path: Path, content: bytes, passphrase: str) -> None:
    assert same(secrets.read_passphrase_file(secret_file(tmp_path / "f", content)), passphrase)
    reader, writer = os.pipe()
    os.write(writer, content)
    os.close(writer)
    assert same(secrets.read_passphrase_fd(reader), passphrase)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"one\ntwo\n", "more than one line"),
        (b"word\n\n", "more than one line"),
        (b"\xff\xfe", "not UTF-8"),
        (b"x" * 2000, "longer than 1024"),
    ],
)
def test_unusable_passphrase_files(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        secrets.read_passphrase_file(secret_file(tmp_path / "f", content))


def test_a_descriptor_that_is_not_open(cryptfs: Cryptfs, tmp_path: Path) -> None:
    make(tmp_path / "vault")
    result = cryptfs("key", "add", tmp_path / "vault", "recovery", "--passphrase-fd", "987")
    assert (result.code, result.err) == (
        2,
        "cryptfs: File descriptor 987 cannot be read: Bad file descriptor.\n",
    )


@pytest.mark.parametrize("option", ["--passphrase-file", "--recovery-key-file", "--key-file"])
def test_a_missing_file(cryptfs: Cryptfs, tmp_path: Path, option: str) -> None:
    make(tmp_path / "vault")
    result = cryptfs("key", "remove", tmp_path / "vault", "", option, tmp_path / "none")
    assert result.code == 20  # the slot is looked at first
    slot = cryptfs("key", "list", tmp_path / "vault", "--json").json["slots"][1]["id"]
    result = cryptfs("key", "remove", tmp_path / "vault", slot, "--yes", option, tmp_path / "none")
    assert (result.code, result.err) == (
        19,
        f"cryptfs: There is no such file or folder ({tmp_path / 'none'}).\n",
    )


def test_a_file_that_everybody_can_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = secret_file(tmp_path / "f", RECOVERY.text)
    SecretSource(recovery_key_file=file).secret(tmp_path)
    assert capfd.readouterr().err == ""
    file.chmod(0o604)
    SecretSource(recovery_key_file=file).secret(tmp_path)
    assert capfd.readouterr().err == (
        f"cryptfs: warning: every user of this machine can read {file}: chmod 600 it.\n"
    )


def test_ways_that_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--passphrase-fd and --key-file exclude each other"):
        SecretSource(passphrase_fd=0, key_file=tmp_path)
    assert SecretSource().asks
    assert SecretSource(recovery_key=True).asks
    assert not SecretSource(passphrase_fd=0).asks


def test_nobody_to_ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cryptfs.cli.terminal.available", lambda: False)
    for source in (SecretSource(), SecretSource(recovery_key=True)):
        with pytest.raises(UsageError, match="no terminal to ask on: use --"):
            source.secret(tmp_path)


def test_the_decorator_hands_over_one_source(capfd: pytest.CaptureFixture[str]) -> None:
    @click.command()
    @click.argument("name")
    @secrets.secret_options
    def command(name: str, source: SecretSource) -> None:
        click.echo(f"{name} {source.passphrase_fd} {source.key_file} {source.asks}")

    command.main(["x", "--passphrase-fd", "3"], standalone_mode=False)
    assert capfd.readouterr().out == "x 3 None False\n"
    assert "--recovery-key-file FILE" in command.get_help(click.Context(command))


def test_secrets_are_not_taken_from_the_command_line_or_the_environment() -> None:
    for option in (*secrets.secret_options(click.command()(lambda: None)).params,):
        assert option.envvar is None
        if option.name not in ("recovery_key", "passphrase_fd"):
            assert isinstance(option.type, click.Path)


def test_no_secret_is_shown_when_something_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not even in the traceback that debugging shows."""
    monkeypatch.setenv("CRYPTFS_DEBUG", "1")
    make(tmp_path / "vault")
    file = secret_file(tmp_path / "f", "unmistakable\n")
    monkeypatch.setattr("cryptfs.vault.config._open_private", lambda *args: 1 // 0)
    assert run(["key", "add", str(tmp_path / "vault"), "recovery", "--passphrase-file", str(file)]) == 70
    shown = capfd.readouterr().err
    assert "ZeroDivisionError" in shown
    assert "unmistakable" not in shown


def test_a_new_secret_file_is_private_and_new(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        secrets.write_new_secret(tmp_path / "f", "text")
    finally:
        os.umask(old)
    assert (tmp_path / "f").read_text() == "text\n"
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="exists already"):
        secrets.write_new_secret(tmp_path / "f", "other")
    assert (tmp_path / "f").read_text() == "text\n"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("short", "Weak"),
        ("aaaaaaaaaaaaaaaaaaaa", "Weak"),
        ("abcdefghijklmnopqrst", "Weak"),
        ("Praxis-2026!", "Fair"),
        ("sieben gelbe Zähne im Schrank", ""),
    ],
)
def test_strength(text: str, hint: str) -> None:
    assert strength_hint(text).startswith(hint)
    assert (strength_hint(text) == "") == (hint == "")


def test_recovery_key_at_the_terminal(tmp_path: Path) -> None:
    """A typing error is named and can be made good; what is typed is not shown."""
    make(tmp_path / "vault")
    groups = RECOVERY.text.split("-")
    mistyped = "-".join([*groups[:3], groups[4], groups[3], *groups[5:]])
    new = tmp_path / "new"
    terminal = Terminal(
        "key",
        "add",
        str(tmp_path / "vault"),
        "recovery",
        "--recovery-key",
        "--new-recovery-key-file",
        str(new),
    )
    terminal.expect("Recovery key of ")
    terminal.type(mistyped)
    terminal.expect("Group 4 of the recovery key was mistyped")
    terminal.expect("Recovery key of ")
    terminal.type(RECOVERY.text.lower())
    assert terminal.end() == 0
    assert groups[0].lower() not in terminal.shown.lower()
    assert RecoveryKey.parse(new.read_text()).text != RECOVERY.text

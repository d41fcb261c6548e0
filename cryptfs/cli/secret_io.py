"""Secrets in files, from descriptors and from programs that ask: reading and writing them."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cryptfs.errors import UsageError

if TYPE_CHECKING:
    from cryptfs.keyslots import KeyFile, Passphrase, RecoveryKey

_MAX_FILE = (1 << 20) + 1


def read_passphrase_file(file: Path) -> Passphrase:
    """The one line of a file."""
    with file.open("rb") as stream:
        warn_if_readable(stream.fileno(), file)
        return _passphrase(stream.read(_MAX_FILE), f"{file}")


def read_passphrase_fd(descriptor: int) -> Passphrase:
    """The one line that comes from an open file descriptor, which is closed."""
    return _passphrase(read_descriptor(descriptor), f"file descriptor {descriptor}")


def read_descriptor(descriptor: int) -> bytes:
    """All that comes from an open file descriptor, which is closed; UsageError if that fails."""
    try:
        with os.fdopen(descriptor, "rb") as stream:
            return stream.read(_MAX_FILE)
    except OSError as error:
        raise UsageError(f"File descriptor {descriptor} cannot be read: {error.strerror}.") from None


def read_recovery_key_file(file: Path) -> RecoveryKey:
    """The recovery key that is the text of a file."""
    from cryptfs.keyslots import RecoveryKey

    with file.open("rb") as stream:
        warn_if_readable(stream.fileno(), file)
        return RecoveryKey.parse(stream.read(4096).decode("utf-8", "replace"))


def read_key_file(file: Path) -> KeyFile:
    """The key file; not larger than 1 MiB."""
    from cryptfs.keyslots import KeyFile

    with file.open("rb") as stream:
        warn_if_readable(stream.fileno(), file)
        return KeyFile(stream.read(_MAX_FILE))


def write_new_secret(file: Path, text: str) -> None:
    """Write a line to a file that must not exist yet, for its owner only, durably."""
    from cryptfs.vault import configfile

    configfile.write_new(file, (text + "\n").encode())


def warn_if_readable(descriptor: int, file: Path) -> None:
    """Say so if every user of this machine can read the secret."""
    if os.fstat(descriptor).st_mode & stat.S_IROTH:
        click.echo(f"cryptfs: warning: every user of this machine can read {file}: chmod 600 it.", err=True)


def _passphrase(content: bytes, where: str) -> Passphrase:
    from cryptfs.keyslots import Passphrase

    return Passphrase(one_line(content, where, "passphrase"))


def one_line(content: bytes, where: str, what: str) -> str:
    """The text without the newline at its end; UsageError if there are more lines, or it is no text."""
    line = content.removesuffix(b"\r\n") if content.endswith(b"\r\n") else content.removesuffix(b"\n")
    if b"\n" in line:
        raise UsageError(f"The {what} in {where} has more than one line.")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"The {what} in {where} is not UTF-8 text.") from None


def ask_with(program: str, question: str) -> str:
    """The line that a program prints which asks a person (systemd-ask-password, ssh-askpass)."""
    words = shlex.split(program)
    try:
        done = subprocess.run([*words, question], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    except OSError as error:
        raise UsageError(f"The program {words[0]} that is to ask cannot be run: {error.strerror}.") from None
    if done.returncode != 0 or not done.stdout:
        raise UsageError(f"The program {words[0]} gave no answer to: {question.rstrip(': ')}.")
    return one_line(done.stdout, f"the answer of {words[0]}", "secret")

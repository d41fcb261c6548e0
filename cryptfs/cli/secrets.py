"""Where secrets come from: the terminal, a file or a file descriptor; never argv or the environment.

`secret_options` gives a command the options to unlock a vault, `new_secret_options`
those to choose the secret of a new slot.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from cryptfs.cli import terminal
from cryptfs.cli.secret_io import (
    ask_with,
    read_key_file,
    read_passphrase_fd,
    read_passphrase_file,
    read_recovery_key_file,
    write_new_secret,
)
from cryptfs.cli.tpm import TpmSource
from cryptfs.errors import TpmRefused, TpmUnavailable, UsageError, WrongSecret

if TYPE_CHECKING:
    from cryptfs.keyslots import Passphrase, RecoveryKey, Secret
    from cryptfs.vault.config import Config, Unlocked

R = TypeVar("R")

ATTEMPTS = 3
_STOPPING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
_FILE = click.Path(dir_okay=False, readable=False, path_type=Path)
_NEW_FILE = click.Path(readable=False, path_type=Path)


@dataclass(frozen=True)
class SecretSource:
    """How a person chose to unlock a vault. Without any choice, they are asked for the passphrase."""

    passphrase_file: Path | None = None
    passphrase_fd: int | None = None
    recovery_key: bool = False
    recovery_key_file: Path | None = None
    key_file: Path | None = None
    tpm: TpmSource | None = None
    or_ask: bool = False
    """Where the TPM does not unlock, ask for the passphrase."""
    ask_with: str | None = None
    """The program that asks, where there is no terminal: it gets the question and prints the answer."""

    def __post_init__(self) -> None:
        at_most_one(
            {
                "--tpm": self.tpm is not None,
                "--passphrase-file": self.passphrase_file is not None,
                "--passphrase-fd": self.passphrase_fd is not None,
                "--recovery-key": self.recovery_key,
                "--recovery-key-file": self.recovery_key_file is not None,
                "--key-file": self.key_file is not None,
            }
        )

    @property
    def asks(self) -> bool:
        """Whether a person will be asked to type."""
        if self.tpm is not None:
            return self.tpm.asks
        return not (
            self.passphrase_file or self.passphrase_fd is not None or self.recovery_key_file or self.key_file
        )

    @property
    def kind(self) -> str:
        """The type of slot that is meant."""
        if self.tpm is not None:
            return "tpm2"
        if self.key_file is not None:
            return "keyfile"
        return "recovery" if self.recovery_key or self.recovery_key_file else "passphrase"

    def secret(self, vault: Path) -> Secret:
        """Read or ask for the secret; UsageError if it is not one, or nobody can be asked."""
        if self.passphrase_file:
            return read_passphrase_file(self.passphrase_file)
        if self.passphrase_fd is not None:
            return read_passphrase_fd(self.passphrase_fd)
        if self.recovery_key_file:
            return read_recovery_key_file(self.recovery_key_file)
        if self.key_file:
            return read_key_file(self.key_file)
        if self.recovery_key:
            from cryptfs.keyslots import RecoveryKey

            return RecoveryKey.parse(self._ask(f"Recovery key of {vault}: ", "--recovery-key-file"))
        from cryptfs.keyslots import Passphrase

        instead = "--passphrase-file, --passphrase-fd or --key-file"
        return Passphrase(self._ask(f"Passphrase of {vault}: ", instead))

    def unlock(self, config: Config, slot_id: str | None = None) -> Unlocked:
        """Unlock a loaded configuration; a person may mistype twice.

        With `slot_id` only that slot is tried.
        """
        from cryptfs.cli import slot_use

        if self.tpm is not None and self.or_ask:
            try:
                return replace(self, or_ask=False).unlock(config, slot_id)
            except (TpmRefused, TpmUnavailable, WrongSecret) as error:
                click.echo(f"cryptfs: {error} Asking for the passphrase instead.", err=True)
                return replace(self, tpm=None, or_ask=False).unlock(config)
        unlocked = self._unlock(config, slot_id)
        slot_use.record(unlocked.vault_id, unlocked.slot_id)
        return unlocked

    def _unlock(self, config: Config, slot_id: str | None) -> Unlocked:
        from cryptfs.vault.config import unlock

        for _ in range(ATTEMPTS - 1 if self.asks else 0):
            try:
                return unlock(config, self._secret_for(config, slot_id), slot_id)
            except (WrongSecret, UsageError) as error:
                # Only what was mistyped can be typed again.
                if not self._can_ask or not any(slot.type == self.kind for slot in config.slots):
                    raise
                click.echo(f"{error} Try again.", err=True)
        return unlock(config, self._secret_for(config, slot_id), slot_id)

    def _secret_for(self, config: Config, slot_id: str | None) -> Secret:
        if self.tpm is not None:
            return self.tpm.secret(config, lambda text: self._ask(text, "--pin-file or --pin-fd"), slot_id)
        return self.secret(config.path)

    @property
    def _can_ask(self) -> bool:
        return self.ask_with is not None or terminal.available()

    def _ask(self, question: str, instead: str) -> str:
        """What a person types, unseen; UsageError if there is nobody to ask."""
        if self.ask_with is not None:
            return ask_with(self.ask_with, question)
        _need_terminal(instead)
        return terminal.ask_secret(question)


def secret_options(command: Callable[..., R]) -> Callable[..., R]:
    """Options that say how to unlock; the command gets them as `source`."""
    return _secret_options(command, makes_tpm_slot=False)


def secret_and_tpm_options(command: Callable[..., R]) -> Callable[..., R]:
    """The same for a command that makes a TPM slot, whose device and PIN it gets as `tpm_source`."""
    return _secret_options(command, makes_tpm_slot=True)


def _secret_options(command: Callable[..., R], *, makes_tpm_slot: bool) -> Callable[..., R]:

    @click.option(
        "--passphrase-file", type=_FILE, help="Read the passphrase from FILE (one line).", metavar="FILE"
    )
    @click.option(
        "--passphrase-fd", type=click.IntRange(min=0), help="Read the passphrase from descriptor N."
    )
    @click.option("--recovery-key", is_flag=True, help="Ask for the recovery key instead of the passphrase.")
    @click.option("--recovery-key-file", type=_FILE, help="Read the recovery key from FILE.", metavar="FILE")
    @click.option("--key-file", type=_FILE, help="Unlock with this key file.", metavar="FILE")
    @click.option("--tpm", is_flag=True, help="Unlock with this machine's TPM, and its PIN if it has one.")
    @_tpm_options
    @functools.wraps(command)
    def wrapper(
        *args: object,
        passphrase_file: Path | None,
        passphrase_fd: int | None,
        recovery_key: bool,
        recovery_key_file: Path | None,
        key_file: Path | None,
        tpm: bool,
        tpm_source: TpmSource,
        **kwargs: object,
    ) -> R:
        if makes_tpm_slot:
            kwargs["tpm_source"] = tpm_source
            if tpm and tpm_source.pin_fd is not None:
                raise UsageError(
                    "--pin-fd can be read once only, not to unlock and for the new slot: use a file."
                )
        elif not tpm and tpm_source != TpmSource():
            raise UsageError("--tpm-device, --pin-file and --pin-fd need --tpm beside them.")
        kwargs["source"] = SecretSource(
            passphrase_file,
            passphrase_fd,
            recovery_key,
            recovery_key_file,
            key_file,
            tpm_source if tpm else None,
        )
        return command(*args, **kwargs)

    return wrapper


def _tpm_options(command: Callable[..., R]) -> Callable[..., R]:

    @click.option("--tpm-device", metavar="DEVICE", help="The TPM's device file. Default: /dev/tpmrm0.")
    @click.option("--pin-file", type=_FILE, help="Read the TPM's PIN from FILE (one line).", metavar="FILE")
    @click.option("--pin-fd", type=click.IntRange(min=0), help="Read the TPM's PIN from descriptor N.")
    @functools.wraps(command)
    def wrapper(
        *args: object,
        tpm_device: str | None,
        pin_file: Path | None,
        pin_fd: int | None,
        **kwargs: object,
    ) -> R:
        at_most_one({"--pin-file": pin_file is not None, "--pin-fd": pin_fd is not None})
        kwargs["tpm_source"] = TpmSource(tpm_device, pin_file, pin_fd)
        return command(*args, **kwargs)

    return wrapper


_FITTING = {
    "passphrase": ("passphrase_file", "passphrase_fd"),
    "recovery": ("recovery_key_file",),
    "keyfile": ("key_file",),
}


@dataclass(frozen=True)
class NewSecretSource:
    """How a person chose the secret of a new slot."""

    passphrase_file: Path | None = None
    passphrase_fd: int | None = None
    recovery_key_file: Path | None = None
    key_file: Path | None = None

    def __post_init__(self) -> None:
        at_most_one(
            {
                "--new-passphrase-file": self.passphrase_file is not None,
                "--new-passphrase-fd": self.passphrase_fd is not None,
            }
        )

    def secret(self, kind: str) -> Secret:
        """The new secret for a slot of this type; a recovery key is made, and shown or written to a file."""
        for type_, names in _FITTING.items():
            for name in names:
                if type_ != kind and getattr(self, name) is not None:
                    raise UsageError(f"--new-{name.replace('_', '-')} does not fit a slot of type {kind}.")
        if kind == "passphrase":
            return new_passphrase(self.passphrase_file, self.passphrase_fd)
        if kind == "keyfile":
            if self.key_file is None:
                raise UsageError(
                    "Name the key file: --new-key-file FILE (make one: head -c 64 /dev/urandom)."
                )
            return read_key_file(self.key_file)
        return new_recovery_key(self.recovery_key_file)

    @contextlib.contextmanager
    def chosen(self, kind: str) -> Iterator[Secret]:
        """`secret`, while the slot is being made: if that fails, no file with a useless key stays."""
        from cryptfs.vault.configfile import NotDurable

        secret = self.secret(kind)
        try:
            # A Ctrl-C after the commit must not make us throw away a key that is in use.
            signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
            yield secret
        except NotDurable:
            raise
        except BaseException:
            if self.recovery_key_file is not None:
                self.recovery_key_file.unlink(missing_ok=True)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)


def new_secret_options(command: Callable[..., R]) -> Callable[..., R]:
    """Options that choose the secret of a new slot; the command gets them as `new`."""

    @click.option(
        "--new-passphrase-file", type=_FILE, help="Read the new passphrase from FILE.", metavar="FILE"
    )
    @click.option("--new-passphrase-fd", type=click.IntRange(min=0), help="Read it from descriptor N.")
    @click.option(
        "--new-recovery-key-file",
        type=_NEW_FILE,
        help="Write the new recovery key to FILE instead of showing it.",
        metavar="FILE",
    )
    @click.option("--new-key-file", type=_FILE, help="The new key file, which must exist.", metavar="FILE")
    @functools.wraps(command)
    def wrapper(
        *args: object,
        new_passphrase_file: Path | None,
        new_passphrase_fd: int | None,
        new_recovery_key_file: Path | None,
        new_key_file: Path | None,
        **kwargs: object,
    ) -> R:
        kwargs["new"] = NewSecretSource(
            new_passphrase_file, new_passphrase_fd, new_recovery_key_file, new_key_file
        )
        return command(*args, **kwargs)

    return wrapper


def new_passphrase(file: Path | None, descriptor: int | None) -> Passphrase:
    """A passphrase for a new slot; typed twice if a person is asked."""
    from cryptfs.keyslots import Passphrase

    if file is not None:
        return read_passphrase_file(file)
    if descriptor is not None:
        return read_passphrase_fd(descriptor)
    _need_terminal("a passphrase file or descriptor")
    text = terminal.ask_secret("New passphrase: ")
    passphrase = Passphrase(text)
    hint = strength_hint(text)
    if hint:
        terminal.say(hint)
    if terminal.ask_secret("The same again: ") != text:
        raise UsageError("The two passphrases differ: nothing was changed.")
    return passphrase


def new_recovery_key(file: Path | None) -> RecoveryKey:
    """A random recovery key, written to a new file of mode 0600 or shown once on the terminal."""
    from cryptfs.keyslots import RecoveryKey

    key = RecoveryKey.new()
    if file is not None:
        write_new_secret(file, key.text)
    else:
        _need_terminal("a file for the recovery key")
        show_recovery_key(key)
    return key


def show_recovery_key(key: RecoveryKey) -> None:
    """Show it once, and let the person type one group of it back."""
    groups = key.text.split("-")
    lines = ["  ".join(f"{i + 1}: {groups[i]}" for i in range(row, row + 3)) for row in (0, 3, 6)]
    terminal.say(
        "\nRecovery key. It opens the vault when the passphrase is lost, and is shown only now.\n"
        "Write all nine groups on paper and keep it away from this computer:\n\n    "
        + "\n    ".join(lines)
        + "\n"
    )
    number = os.urandom(1)[0] % len(groups)
    for _ in range(ATTEMPTS):
        typed = terminal.ask(f"To be sure, type group {number + 1} from your paper: ")
        if typed.upper().translate(str.maketrans("ILO", "110")) == groups[number]:
            return
        terminal.say("That is not what is shown above.")
    raise UsageError("The recovery key was not confirmed: nothing was changed.")


def strength_hint(text: str) -> str:
    """What to think of a passphrase, or nothing if it is long enough.

    Only length and variety are judged: a well-known sentence is weaker than it looks.
    """
    steps = {(ord(b) - ord(a)) for a, b in itertools.pairwise(text)}
    if len(text) < 10 or len(set(text)) < 6 or len(steps) < 5:
        return "Weak: whoever gets a copy of the vault could guess it. Six random words are strong."
    if len(text) < 16:
        return "Fair. Longer is better: six random words are strong."
    return ""


def _need_terminal(instead: str) -> None:
    if not terminal.available():
        raise UsageError(f"There is no terminal to ask on: use {instead}.")


def at_most_one(given: dict[str, bool]) -> None:
    """UsageError if two of these options were given."""
    names = [name for name, is_given in given.items() if is_given]
    if len(names) > 1:
        raise UsageError(f"{names[0]} and {names[1]} exclude each other.")

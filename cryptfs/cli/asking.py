"""Whom to ask about the images of a vault: the mount that serves it, or the vault itself."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

from cryptfs.errors import NotAVault, VaultInUse

if TYPE_CHECKING:
    from cryptfs.cli.secrets import SecretSource
    from cryptfs.index.studysearch import Query
    from cryptfs.mount.runtime import Record
    from cryptfs.practice.service import Completeness, FindAnswer, StatsAnswer, StudyService

_ANSWER_SECONDS = 120.0

state_dir_option = click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False, readable=False),
    metavar="FOLDER",
    help="Where this computer keeps its indexes, for a vault that is not mounted.",
)


class Answers(Protocol):
    """What can be asked. Errors are CryptfsError."""

    prefix: bytes
    """Comes before each path: the mountpoint and a slash, or nothing."""

    def find(self, query: Query, *, studies: bool, after: bytes) -> FindAnswer: ...
    def stats(self) -> StatsAnswer: ...


class _Mounted:
    """The daemon of a mount."""

    def __init__(self, record: Record) -> None:
        from cryptfs.mount import runtime

        self.prefix = os.fsencode(record.mountpoint.rstrip("/")) + b"/"
        self._socket = runtime.socket_path(record.mountpoint)

    def find(self, query: Query, *, studies: bool, after: bytes) -> FindAnswer:
        import msgspec

        from cryptfs.mount import control
        from cryptfs.practice.service import FindAnswer, FindArguments

        arguments = msgspec.to_builtins(FindArguments(query, studies, after))
        answer = control.ask(
            self._socket, control.Request("find", arguments=arguments), timeout=_ANSWER_SECONDS
        )
        return msgspec.convert(answer, FindAnswer)

    def stats(self) -> StatsAnswer:
        import msgspec

        from cryptfs.mount import control
        from cryptfs.practice.service import StatsAnswer

        answer = control.ask(self._socket, control.Request("stats"), timeout=_ANSWER_SECONDS)
        return msgspec.convert(answer, StatsAnswer)


class _Unmounted:
    """A vault opened by this command."""

    prefix = b""

    def __init__(self, service: StudyService) -> None:
        self._service = service

    def find(self, query: Query, *, studies: bool, after: bytes) -> FindAnswer:
        return self._service.find(query, studies=studies, after=after)

    def stats(self) -> StatsAnswer:
        return self._service.stats()


@contextlib.contextmanager
def answers_of(place: Path, source: SecretSource, state_dir: Path | None) -> Iterator[Answers]:
    """Whoever answers for a vault or a mountpoint; a vault that is not mounted is unlocked and read.

    Raises NotAVault for any other folder, and what unlocking raises.
    """
    from cryptfs.mount import runtime

    where = os.path.realpath(place)
    for record in runtime.records():
        if where in (record.mountpoint, record.vault) and runtime.is_alive(record):
            yield _Mounted(record)
            return
    with _opened(Path(where), source, state_dir) as service:
        yield _Unmounted(service)


@contextlib.contextmanager
def _opened(vault: Path, source: SecretSource, state_dir: Path | None) -> Iterator[StudyService]:
    from cryptfs.fs import FileSystem, FsOptions
    from cryptfs.index import place
    from cryptfs.mount import mountpoint
    from cryptfs.practice.service import StudyService
    from cryptfs.vault import Vault
    from cryptfs.vault.config import load

    for mount in mountpoint.mounts():
        if mount.fstype == mountpoint.FSTYPE and str(vault) in (mount.mountpoint, mount.source):
            raise VaultInUse(f"{vault} is mounted by another user: only that user, and root, may ask.")
    try:
        config = load(vault)
    except NotAVault:
        raise NotAVault(f"{vault} is neither a vault nor the mountpoint of one.") from None
    unlocked = source.unlock(config)
    folder = place.prepare(unlocked.vault_id, state_dir, outside=(vault,))
    opened = Vault.of(vault, unlocked, read_only=True)
    fs = FileSystem(opened, FsOptions())
    try:
        service = StudyService(fs, folder, unlocked.keyring)
    except BaseException:
        fs.close()
        raise
    try:
        with _progress() as progress:
            service.complete(progress)
        yield service
    finally:
        service.close()


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda read, left: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("Reading whose images they are"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda read, left: bar.update(task, completed=read, total=read + left or None)


def warn_if_incomplete(left: Completeness) -> None:
    """Say so if the answer may lack something."""
    if not left.is_complete:
        click.echo(f"cryptfs: the index is not complete yet: {what_is_left(left)}.", err=True)


def what_is_left(left: Completeness) -> str:
    """In words, for people."""
    parts = []
    if left.files:
        parts.append(f"{left.files:,} {'file is' if left.files == 1 else 'files are'} still to be read")
    if left.folders:
        parts.append(
            f"{left.folders:,} {'folder is' if left.folders == 1 else 'folders are'} still to be listed"
        )
    return " and ".join(parts)

"""Every command explains itself, and the documents use only commands and options that exist."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cryptfs.cli.main import cli

from .project import documents, label
from .test_documents import shell_commands


def walk(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """A command and all below it, each with the words that call it."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None, f"{' '.join([*path, name])} is listed but cannot be loaded"
            yield from walk(below, (*path, name))


COMMANDS = dict(walk(cli))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_command_has_help(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    assert command.help
    undocumented = [
        option.opts[0]
        for option in command.params
        if isinstance(option, click.Option) and not option.hidden and not option.help
    ]
    assert not undocumented


def unknown_words(words: list[str]) -> list[str]:
    """What of a command line names no command or option there is."""
    path: tuple[str, ...] = ()
    unknown = []
    for word in words:
        command = COMMANDS[path]
        options = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
        if word.startswith("-"):
            if word.partition("=")[0] not in options | {"-h", "--help"}:
                unknown.append(word)
        elif isinstance(command, click.Group):
            if (*path, word) not in COMMANDS:
                return [*unknown, word]
            path = (*path, word)
    return unknown


def test_unknown_words_are_found() -> None:
    assert unknown_words(["mount", "a", "b", "--owner", "orthanc"]) == []
    assert unknown_words(["mount", "a", "b", "--faster"]) == ["--faster"]
    assert unknown_words(["defragment"]) == ["defragment"]


@pytest.mark.parametrize("document", documents(), ids=label)
def test_documents_use_what_exists(document: Path) -> None:
    wrong = {
        " ".join(words): unknown
        for words in shell_commands(document.read_text())
        # What follows "--" is another program's.
        if (unknown := unknown_words(words[: words.index("--")] if "--" in words else words))
    }
    assert wrong == {}

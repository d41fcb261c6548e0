"""What is tracked works on any machine: no package registry, no path of somebody's computer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .project import label, tracked_files

# Where packages come from is the machine's configuration (apt's sources, pip.conf, the environment).
REGISTRY = re.compile(
    rb"pypi\.org|pythonhosted\.org|deb\.debian\.org|snapshot\.debian\.org|registry\.npmjs|crates\.io"
    rb"|--(extra-)?index-url|--find-links|--trusted-host"
)
MACHINE_PATH = re.compile(rb"(?<![\w.$}])(/work/|/tmp/venv|/opt/|/home/[a-z]|/Users/[a-z])|/\.pyenv/")


@pytest.mark.parametrize(
    "text", [b"pip install --index-url http://x", b"curl https://files.pythonhosted.org/x"]
)
def test_a_registry_would_be_noticed(text: bytes) -> None:
    assert REGISTRY.search(text)


@pytest.mark.parametrize("text", [b"cd /work/x", b'"/home/anna/x"', b"/root/.pyenv/shims/python3"])
def test_a_machine_path_would_be_noticed(text: bytes) -> None:
    assert MACHINE_PATH.search(text)


@pytest.mark.parametrize("pattern", [REGISTRY, MACHINE_PATH], ids=["registries", "machine paths"])
def test_nothing_of_the_kind_is_tracked(pattern: re.Pattern[bytes]) -> None:
    found = {
        label(path): [match.group().decode() for match in pattern.finditer(path.read_bytes())]
        for path in tracked_files()
        if path != Path(__file__)
    }
    assert {path: matches for path, matches in found.items() if matches} == {}

"""The README and the documents say what is there: links, tools, commands and options."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from .project import PROJECT, documents, label

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+?)\s*$", re.MULTILINE)
FENCE = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
TOOL = re.compile(r"\btools/[a-z][\w.-]*\b(?!/)")


def anchors(document: str) -> set[str]:
    """The anchors that GitHub and its kin make of a document's headings."""
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(FENCE.sub("", document)))
    return {heading.replace(" ", "-") for heading in kept}


def test_anchors_are_those_of_headings() -> None:
    assert anchors("# One: two\n```\n# no heading\n```\n## 3. `four`\n") == {"one-two", "3-four"}


@pytest.mark.parametrize("document", documents(), ids=label)
def test_links_resolve(document: Path) -> None:
    broken = []
    for link in LINK.findall(FENCE.sub("", document.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("document", documents(), ids=label)
def test_tools_named_exist(document: Path) -> None:
    missing = [name for name in TOOL.findall(document.read_text()) if not (PROJECT / name).exists()]
    assert not missing


def test_every_document_is_in_the_table_of_contents() -> None:
    table = (PROJECT / "docs" / "README.md").read_text()
    listed = {(PROJECT / "docs" / link.partition("#")[0]).resolve() for link in LINK.findall(table)}
    present = {path for path in (PROJECT / "docs").glob("*.md") if path.name != "README.md"}
    assert present <= listed


@pytest.mark.parametrize("command", ["tools/demo", "tools/check", ".ci/run"])
def test_the_commands_can_be_run(command: str) -> None:
    assert os.access(PROJECT / command, os.X_OK)


def test_the_readme_gives_the_two_commands() -> None:
    blocks = "\n".join(FENCE.findall((PROJECT / "README.md").read_text()))
    lines = {line.partition("#")[0].strip() for line in blocks.splitlines()}
    assert {"tools/demo", "tools/check"} <= lines


def shell_commands(document: str) -> list[list[str]]:
    """The `cryptfs …` commands in a document's code blocks, as words; continued lines are joined."""
    found = []
    for block in FENCE.findall(document):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if re.match(r"\s*(\$ )?(sudo )?cryptfs ", line) else []
            while words and words[0] in ("$", "sudo"):
                words.pop(0)
            if words:
                found.append(words[1:])
    return found


def test_shell_commands_are_found() -> None:
    block = "sudo cryptfs mount a b \\\n  --owner orthanc   # as a service\nls\n$ cryptfs status\n"
    document = f"cryptfs no\n```\n{block}```\ncryptfs no\n"
    assert shell_commands(document) == [["mount", "a", "b", "--owner", "orthanc"], ["status"]]

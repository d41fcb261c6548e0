"""The checkout as its own tests see it: the tracked files and the documents."""

from __future__ import annotations

import subprocess
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def tracked_files() -> list[Path]:
    """All files that a clone would contain."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, check=True).stdout
    return [PROJECT / name for name in listing.decode().split("\0") if name and (PROJECT / name).is_file()]


def documents() -> list[Path]:
    """All Markdown files, the README first."""
    found = [path for path in tracked_files() if path.suffix == ".md"]
    return sorted(found, key=lambda path: (path != PROJECT / "README.md", path))


def label(path: Path) -> str:
    """A path as a test's name: relative to the checkout."""
    return str(path.relative_to(PROJECT))

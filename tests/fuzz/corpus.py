"""The corpus: one file for each target, one input a line in base64."""

from __future__ import annotations

import base64
from pathlib import Path

FOLDER = Path(__file__).parent / "inputs"


def inputs(target: str) -> list[bytes]:
    path = FOLDER / f"{target}.txt"
    return [base64.b64decode(line) for line in path.read_text().split()] if path.exists() else []


def save(target: str, found: list[bytes]) -> None:
    FOLDER.mkdir(exist_ok=True)
    lines = sorted({base64.b64encode(data).decode() for data in found}, key=lambda line: (len(line), line))
    (FOLDER / f"{target}.txt").write_text("".join(f"{line}\n" for line in lines))

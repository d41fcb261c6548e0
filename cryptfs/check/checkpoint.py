"""How far a check has come, kept on the host so that it can be resumed.

One file: a line of JSON, then the raw array of `Tally.objects`. It is replaced as a whole and holds
ciphertext paths only.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from cryptfs.check.finding import Finding, Kind
from cryptfs.check.tally import Tally
from cryptfs.check.walk import Position

_VERSION = 1
_ITEM = 8


class _Finding(msgspec.Struct):
    kind: str
    place: bytes
    object_id: bytes | None
    detail: str
    ranges: list[tuple[int, int]]
    size: int | None


class _Saved(msgspec.Struct):
    version: int
    vault: str
    request: dict[str, Any]
    started: str
    seconds: float
    directories: list[bytes]
    last: bytes
    counts: dict[str, int]
    epochs: dict[str, int]
    kinds: dict[str, int]
    findings: list[_Finding]


class Checkpoint(msgspec.Struct):
    """What is resumed: the request as it was, when it began, the seconds it took up to here."""

    request: dict[str, Any]
    started: str
    seconds: float
    reached: Position
    tally: Tally


def save(file: Path, vault_id: bytes, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint. Not synced: to lose one costs a part of the work."""
    tally = checkpoint.tally
    saved = _Saved(
        _VERSION,
        vault_id.hex(),
        checkpoint.request,
        checkpoint.started,
        checkpoint.seconds,
        checkpoint.reached[0],
        checkpoint.reached[1],
        dict(tally.counts),
        {str(number): count for number, count in tally.epochs.items()},
        {kind.value: count for kind, count in tally.kinds.items()},
        [
            _Finding(f.kind.value, f.place, f.object_id, f.detail, list(f.ranges), f.size)
            for f in tally.findings
        ],
    )
    temporary = file.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(msgspec.json.encode(saved) + b"\n" + tally.objects.tobytes())
    temporary.replace(file)


def load(file: Path, vault_id: bytes) -> Checkpoint | None:
    """The checkpoint of this vault, or None if there is none that this version can go on with."""
    try:
        line, _, rest = file.read_bytes().partition(b"\n")
        saved = msgspec.json.decode(line, type=_Saved)
        if saved.version != _VERSION or saved.vault != vault_id.hex() or len(rest) % (3 * _ITEM):
            return None
        tally = Tally(
            Counter(saved.counts),
            Counter({int(number): count for number, count in saved.epochs.items()}),
            Counter({Kind(kind): count for kind, count in saved.kinds.items()}),
            [
                Finding(Kind(f.kind), f.place, f.object_id, f.detail, tuple(f.ranges), f.size)
                for f in saved.findings
            ],
            array("Q", rest),
        )
    except (FileNotFoundError, msgspec.MsgspecError, ValueError):
        return None
    return Checkpoint(saved.request, saved.started, saved.seconds, (saved.directories, saved.last), tally)

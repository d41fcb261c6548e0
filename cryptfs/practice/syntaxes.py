"""Transfer syntaxes: what they are called, and whether they keep every pixel."""

from __future__ import annotations

from typing import NamedTuple

from pydicom.uid import UID

_PREFIX = "1.2.840.10008.1.2"
_NONE = {"", ".1", ".2", ".1.98"}
_LOSSLESS = {
    ".5", ".1.99", ".4.57", ".4.70", ".4.80", ".4.90", ".4.92", ".4.201", ".4.202", ".4.110",
}  # fmt: skip


class Syntax(NamedTuple):
    """`compression`: none, lossless, lossy (or either, which the syntax alone does not tell), unknown."""

    name: str
    compression: str


def syntax(uid: str) -> Syntax:
    """What is known of a transfer syntax."""
    if not uid:
        return Syntax("not stated", "unknown")
    name = UID(uid).name
    if not uid.startswith(_PREFIX) or name == uid:
        return Syntax(uid, "unknown")
    rest = uid.removeprefix(_PREFIX)
    if rest in _NONE:
        return Syntax(name, "none")
    return Syntax(name, "lossless" if rest in _LOSSLESS else "lossy")

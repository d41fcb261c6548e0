"""How what is found under a name compares with what is remembered of it (cryptfs/index/witness.py)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum

from cryptfs.fs.nodes import Node
from cryptfs.index.witness import Held, WitnessStore
from cryptfs.vault.header import DIRECTORY, Header

ROOT_PLACE = bytes(16), b""
"""The directory id and the name under which the root directory itself is recorded."""


class Verdict(Enum):
    """How an object compares with the record of its name."""

    SAME = "same"
    NEW = "new"
    NEWER = "newer"
    OLDER = "older"
    OTHER = "other"

    @classmethod
    def of(cls, record: Held | None, header: Header) -> Verdict:
        """Compare the object with this header with the record of its name."""
        if record is None:
            return cls.NEW
        if record.object_id != header.object_id:
            return cls.OTHER
        if header.generation < record.generation:
            return cls.OLDER
        return cls.SAME if header.generation == record.generation else cls.NEWER


def record_of(header: Header, lname: bytes) -> Held:
    """What is to be recorded of an object found under a name."""
    return Held(header.object_id, header.generation, header.kind == DIRECTORY, lname)


def missing(
    store: WitnessStore, directory_id: bytes, lnames: Iterable[bytes]
) -> Iterator[tuple[bytes, Held]]:
    """The recorded names of a directory that are not among its entries. Raises Unavailable."""
    recorded = store.keys_below(directory_id)
    if recorded:
        there = {store.key(directory_id, lname) for lname in lnames}
        for key in recorded:
            if key not in there:
                record = store.get(key)
                if record is not None:
                    yield key, record


def lower_path(parent: Node | None, lname: bytes) -> str:
    """Where an object lies in the vault, in ciphertext names."""
    try:
        above = parent.path() if parent is not None else b"\xe2\x80\xa6" if lname else b""
    except OSError:
        above = b"\xe2\x80\xa6"
    return "/".join(part.decode("utf-8", "replace") for part in (b"tree", above, lname) if part)

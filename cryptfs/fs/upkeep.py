"""Long work on the metadata index of an open filesystem: making it anew, comparing it with the ciphertext.

Requests are served meanwhile: the namespace lock is given back after every few entries.
"""

from __future__ import annotations

import itertools
import stat
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from cryptfs.errors import CryptfsError
from cryptfs.fs.comparison import record_of
from cryptfs.fs.directory import Directory
from cryptfs.fs.metadata import IndexedKnowledge
from cryptfs.fs.nodes import ROOT, Node
from cryptfs.fs.types import Attr
from cryptfs.index import records

if TYPE_CHECKING:
    from cryptfs.fs.filesystem import FileSystem

SLICE = 64
"""Entries between two moments at which others get their turn."""

Read = Callable[[int, int], Generator[tuple[bytes, Attr, int], None, None]]
"""Lists an open directory from an offset on."""

Progress = Callable[[int], None]
"""Called with the number of entries done so far."""


@dataclass
class Outcome:
    """What was found: entries by what the index says of them."""

    directories: int = 0
    entries: int = 0
    recorded: int = 0
    """With a record that holds."""
    unrecorded: int = 0
    """Without a record, or with one that says that they must be looked up."""
    outdated: int = 0
    """With a record that the ciphertext shows to be out of date: it would not be believed."""
    wrong: int = 0
    """With a record that would be believed and is wrong."""
    damaged: int = 0
    """That cannot be read themselves."""
    wrong_directories: list[str] = field(default_factory=list)
    """Object ids of directories in which something was wrong, 100 at the most."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def index_of(fs: FileSystem) -> IndexedKnowledge:
    """The index of a filesystem. Raises CryptfsError where it has none that it may change."""
    if fs.vault.read_only:
        raise CryptfsError("This mount has no metadata index of its own: mounted read-only.")
    if not isinstance(fs.knowledge, IndexedKnowledge) or fs.knowledge.is_off:
        raise CryptfsError(f"This mount has no metadata index: {fs.knowledge.why_not}.")
    return fs.knowledge


def rebuild(fs: FileSystem, progress: Progress) -> Outcome:
    """Forget all that is in the index, and read the whole tree into it."""
    knowledge = index_of(fs)
    with knowledge.lock:
        knowledge.forget_everything()
    outcome = Outcome()
    for _, entries in _walk(fs, fs.learn):
        if entries is None:
            outcome.directories += 1
            index_of(fs)  # or the disk of the index is full meanwhile
            continue
        for attr in entries:
            outcome.entries += 1
            if not attr.ino:
                outcome.damaged += 1
            elif stat.S_ISDIR(attr.mode) or attr.nlink == 1:
                outcome.recorded += 1
            else:
                outcome.unrecorded += 1
        progress(outcome.entries)
    knowledge.catalog.flush()
    progress(outcome.entries)
    return outcome


def verify(fs: FileSystem, progress: Progress) -> Outcome:
    """Compare every record with the ciphertext; what was out of date or wrong is then read anew."""
    knowledge = index_of(fs)
    outcome = Outcome()
    for ino, entries in _walk(fs, fs.readdir):
        if entries is not None:
            continue
        outcome.directories += 1
        with knowledge.lock:
            lnames = knowledge.directories.get(knowledge.nodes.get(ino)).entries()
        bad = False
        for begin in range(0, len(lnames), SLICE):
            with knowledge.lock:
                node = knowledge.nodes.get(ino)
                directory = knowledge.directories.get(node)
                for lname in lnames[begin : begin + SLICE]:
                    worth = judge(knowledge, node, directory, lname)
                    if worth is not None:
                        outcome.entries += 1
                        setattr(outcome, worth.value, getattr(outcome, worth.value) + 1)
                        bad = bad or worth is Worth.WRONG
            progress(outcome.entries)
        if bad and len(outcome.wrong_directories) < 100:
            outcome.wrong_directories.append(directory.header.object_id.hex())
    progress(outcome.entries)
    return outcome


class Worth(Enum):
    """What a record is worth: the fields of `Outcome`."""

    RECORDED = "recorded"
    UNRECORDED = "unrecorded"
    OUTDATED = "outdated"
    WRONG = "wrong"
    DAMAGED = "damaged"


def judge(knowledge: IndexedKnowledge, parent: Node, directory: Directory, lname: bytes) -> Worth | None:
    """Compare the record of an entry with its ciphertext; None if the entry is gone.

    A record that the next listing would find out of date is not wrong: nobody would believe it.
    """
    shelf = knowledge.shelf_of(parent, directory)
    value = knowledge.get(shelf, knowledge.catalog.key(shelf.prefix, lname))
    try:
        found = knowledge.objects.inspect(parent, directory, lname)
        if found is None and value is None:
            knowledge.objects.look(parent, directory, lname)  # a remnant of a power cut is not there
    except FileNotFoundError:
        return Worth.WRONG if value is not None and shelf.complete else None
    except OSError:
        return Worth.DAMAGED
    if value is None:
        return Worth.WRONG if shelf.complete else Worth.UNRECORDED
    kind = records.kind_of(value)
    if found is None:  # a directory, or in use: nothing but the name is believed
        return Worth.RECORDED
    if kind != records.FILE:
        return Worth.UNRECORDED if kind == records.OPAQUE or not shelf.complete else Worth.WRONG
    header, st, size = found
    old = records.file_of(value)
    true = record_of(knowledge.number(st.st_ino), header, st, size, records.name_of(value))
    # Blocks are allocated late; the change time of the ciphertext is not shown to anybody.
    if records.kind_of(true) == records.FILE and records.file_of(true)._replace(
        blocks=0, changed=0
    ) == old._replace(blocks=0, changed=0):
        return Worth.RECORDED
    same = old.changed == st.st_ctime_ns and old.ino == knowledge.number(st.st_ino) and st.st_nlink == 1
    return Worth.WRONG if same or shelf.complete else Worth.OUTDATED


def _walk(fs: FileSystem, read: Read) -> Iterator[tuple[int, list[Attr] | None]]:
    """Every directory, each before those in it: first alone, then with its entries, some at a time.

    Holds a reference on the directories that are still to come.
    """
    todo = [ROOT]
    try:
        while todo:
            ino = todo.pop()
            try:
                yield ino, None
                for part in _listed(fs, read, ino, todo):
                    yield ino, part
            except OSError:
                continue  # removed meanwhile, or damaged
            finally:
                if ino != ROOT:
                    fs.forget(ino, 1)
    finally:
        for ino in todo:
            fs.forget(ino, 1)


def _listed(fs: FileSystem, read: Read, ino: int, found: list[int]) -> Iterator[list[Attr]]:
    """The entries of a directory; those that are directories are added to `found`, with a reference."""
    handle = fs.opendir(ino)
    try:
        offset = 0
        while True:
            part = []
            with closing(read(handle, offset)) as listing:
                for entry in itertools.islice(listing, SLICE):
                    attr, offset = entry[1], entry[2]
                    if attr.ino and stat.S_ISDIR(attr.mode):
                        fs.remember(attr.ino)
                        found.append(attr.ino)
                    part.append(attr)
            if not part:
                return
            yield part
    finally:
        fs.releasedir(handle)

"""The study index: which file is whose image, kept true while files come, change, move and go.

It follows what happened in the tree (`named`, `moved`, `removed`, `written`) and keeps two lists of what is
still to be done: files to be read, directories to be listed. While both are empty it is complete.
Everything can be found again from the vault, so what a power cut takes costs time only; but whoever
cannot tell what happened since calls `doubt`, and every directory is compared again.
"""

from __future__ import annotations

from typing import NamedTuple

from cryptfs.index.environment import Environment
from cryptfs.index.studycontent import Content
from cryptfs.index.studyrows import (
    HASH,
    Entry,
    FileRow,
    Place,
    StudyBatch,
    Totals,
)
from cryptfs.index.tags import Kind, Tags

FORMAT = 1
_TOTALS = b"m"


class State(NamedTuple):
    """A file as it was when it was read: size in bytes, times in nanoseconds."""

    size: int
    mtime: int
    ctime: int


class StudyIndex:
    """The index in one environment. Methods may be called from several threads.

    Changes are committed by `flush`, which the caller calls now and then. Whatever reads or writes may
    raise Unavailable, and ValueDamaged if a record was tampered with.
    """

    def __init__(self, environment: Environment, root: bytes) -> None:
        """`root` is the object id of the root directory."""
        self.batch = StudyBatch(environment)
        self.root = self.directory_key(root)
        totals = self.batch.row(_TOTALS, Totals)
        if totals is not None and totals.format != FORMAT:
            environment.clear()
            totals = None
        self.totals = totals or Totals()
        self._content = Content(self.batch, self.totals)
        self._paths: dict[bytes, tuple[bytes, ...] | None] = {}
        if totals is None:
            self.doubt()

    # -- keys ------------------------------------------------------------------------------------

    def file_key(self, object_id: bytes) -> bytes:
        return self.batch.hashed(b"file", object_id)

    def directory_key(self, object_id: bytes) -> bytes:
        return self.batch.hashed(b"directory", object_id)

    def name_key(self, name: bytes) -> bytes:
        return self.batch.hashed(b"name", name)

    def term(self, kind: bytes, text: str) -> bytes:
        """The key of a term; `text` as `text.fold` made it."""
        return self._content.term(kind, text)

    @property
    def generation(self) -> int:
        """Grows whenever a patient or a name comes or goes."""
        return self._content.generation

    # -- the tree --------------------------------------------------------------------------------

    def named(self, parent: bytes, name: bytes, child: bytes, *, is_dir: bool) -> None:
        """An object has a name now; all ids are object ids."""
        with self.batch.lock:
            directory = self.directory_key(parent)
            key = self.directory_key(child) if is_dir else self.file_key(child)
            self._enter(Place(directory, self.name_key(name)), Entry(is_dir, key, name))

    def _enter(self, place: Place, entry: Entry) -> None:
        batch = self.batch
        key = batch.key(b"p", place.directory, place.name)
        old = batch.row(key, Entry)
        if old is not None and (old.is_dir, old.child) != (entry.is_dir, entry.child):
            self._leave(place, old)
            old = None
        batch.save(key, entry)
        if entry.is_dir:
            at = batch.key(b"d", entry.child)
            before = batch.row(at, Place)
            if before != place:
                batch.save(at, place)
                self._paths.clear()
            return
        at = batch.key(b"f", entry.child)
        row = batch.row(at, FileRow)
        if row is None:
            row = FileRow([])
            self.totals.files += 1
        if place not in row.places:
            row.places.append(place)
            batch.save(at, row)

    def removed(self, parent: bytes, name: bytes) -> None:
        """A name is gone."""
        with self.batch.lock:
            place = Place(self.directory_key(parent), self.name_key(name))
            entry = self.batch.row(self.batch.key(b"p", place.directory, place.name), Entry)
            if entry is not None:
                self._leave(place, entry)

    def _leave(self, place: Place, entry: Entry) -> None:
        """Forget an entry, and what is at no other place."""
        batch = self.batch
        batch.delete(batch.key(b"p", place.directory, place.name))
        if not entry.is_dir:
            self._lose(entry.child, place)
            return
        at = batch.key(b"d", entry.child)
        if batch.row(at, Place) == place:
            batch.delete(at)
            self._paths.clear()
            self._unlist(entry.child)
            for name, inner in self._entries(entry.child):
                self._leave(Place(entry.child, name), inner)

    def _lose(self, file: bytes, place: Place) -> None:
        at = self.batch.key(b"f", file)
        row = self.batch.row(at, FileRow)
        if row is None or place not in row.places:
            return
        row.places.remove(place)
        if row.places:
            self.batch.save(at, row)
            return
        self._forget_content(file, row)
        self._read(file)
        self.batch.delete(at)
        self.totals.files -= 1

    def moved(self, old_parent: bytes, old: bytes, new_parent: bytes, new: bytes, *, exchange: bool) -> None:
        """A name was changed, as by rename(2)."""
        with self.batch.lock:
            batch = self.batch
            source = Place(self.directory_key(old_parent), self.name_key(old))
            target = Place(self.directory_key(new_parent), self.name_key(new))
            entry = batch.row(batch.key(b"p", source.directory, source.name), Entry)
            other = batch.row(batch.key(b"p", target.directory, target.name), Entry)
            if entry is None or (exchange and other is None):
                # What lies there was never listed: it will be found where it is now.
                self._want_listed(target.directory, deep=False)
                self._want_listed(source.directory, deep=False)
                return
            if source == target or (other is not None and entry.child == other.child):
                return  # two names of one file: nothing happens
            # The new place first: an object must not lose its last name on the way.
            if other is not None and not exchange:
                self._leave(target, other)
            moved = Entry(entry.is_dir, entry.child, new)
            if exchange:
                assert other is not None
                for place, arriving, leaving in (
                    (target, moved, other),
                    (source, Entry(other.is_dir, other.child, old), entry),
                ):
                    batch.delete(batch.key(b"p", place.directory, place.name))
                    self._enter(place, arriving)
                    if not leaving.is_dir:
                        self._drop_place(leaving.child, place)
                return
            self._enter(target, moved)
            batch.delete(batch.key(b"p", source.directory, source.name))
            if not entry.is_dir:
                self._lose(entry.child, source)

    def _drop_place(self, file: bytes, place: Place) -> None:
        """One place less, without asking whether it was the last."""
        at = self.batch.key(b"f", file)
        row = self.batch.row(at, FileRow)
        if row is not None and place in row.places:
            row.places.remove(place)
            self.batch.save(at, row)

    def _entries(self, directory: bytes) -> list[tuple[bytes, Entry]]:
        """What is known to be in a directory: hashed name and entry."""
        found = []
        for key in self.batch.entries(self.batch.key(b"p", directory)):
            entry = self.batch.row(key, Entry)
            if entry is not None:
                found.append((key[-HASH:], entry))
        return found

    def entry(self, directory: bytes, name: bytes) -> Entry | None:
        """What is known of a name in a directory (by its key)."""
        return self.batch.row(self.batch.key(b"p", directory, self.name_key(name)), Entry)

    def keep_only(self, directory: bytes, names: set[bytes]) -> None:
        """Nothing but these (hashed names) is in a directory."""
        with self.batch.lock:
            for key in self.batch.entries(self.batch.key(b"p", directory)):
                if key[-HASH:] not in names:
                    self._gone(Place(directory, key[-HASH:]))

    def lost_directory(self, directory: bytes) -> None:
        """A directory is not where it was."""
        with self.batch.lock:
            place = self.batch.row(self.batch.key(b"d", directory), Place)
            if place is not None:
                self._gone(place)

    def _gone(self, place: Place) -> None:
        entry = self.batch.row(self.batch.key(b"p", place.directory, place.name), Entry)
        if entry is not None:
            self._leave(place, entry)

    def path_of(self, place: Place) -> tuple[bytes, ...] | None:
        """The names from the root to a place, None if it is not under the root."""
        with self.batch.lock:
            entry = self.batch.row(self.batch.key(b"p", place.directory, place.name), Entry)
            above = self.directory_path(place.directory)
            return None if entry is None or above is None else (*above, entry.name)

    def directory_path(self, directory: bytes) -> tuple[bytes, ...] | None:
        """The names from the root to a directory."""
        names: list[bytes] = []
        at = directory
        with self.batch.lock:
            while at != self.root:
                known = self._paths.get(at)
                if known is not None:
                    names[:0] = known
                    break
                place = self.batch.row(self.batch.key(b"d", at), Place)
                if place is None or len(names) > 4096:
                    return None
                entry = self.batch.row(self.batch.key(b"p", place.directory, place.name), Entry)
                if entry is None:
                    return None
                names.insert(0, entry.name)
                at = place.directory
            if len(self._paths) > 10_000:
                self._paths.clear()
            self._paths[directory] = tuple(names)
            return tuple(names)

    # -- what is to be done ------------------------------------------------------------------------

    @property
    def to_read(self) -> int:
        return self.totals.unread

    @property
    def to_list(self) -> int:
        return self.totals.unlisted

    def doubt(self) -> None:
        """Compare the whole tree again: something may have happened unseen."""
        with self.batch.lock:
            self._want_listed(self.root, deep=True)

    def _want_listed(self, directory: bytes, *, deep: bool) -> None:
        key = self.batch.key(b"r", directory)
        known = self.batch.get(key)
        if known is None:
            self.totals.unlisted += 1
        if known is None or (deep and known != b"\1"):
            self.batch.put(key, b"\1" if deep else b"\0")

    def want_listed(self, object_id: bytes, *, deep: bool = True) -> None:
        """A directory is to be compared with what is known of it; `deep`: and all below it."""
        with self.batch.lock:
            self._want_listed(self.directory_key(object_id), deep=deep)

    def list_again(self, directory: bytes, *, deep: bool) -> None:
        """As `want_listed`, for a directory by its key."""
        with self.batch.lock:
            self._want_listed(directory, deep=deep)

    def _unlist(self, directory: bytes) -> None:
        key = self.batch.key(b"r", directory)
        if self.batch.has(key):
            self.batch.delete(key)
            self.totals.unlisted -= 1

    def listed(self, directory: bytes) -> None:
        """A directory was compared."""
        with self.batch.lock:
            self._unlist(directory)

    def next_listings(self, limit: int) -> list[tuple[bytes, bool]]:
        """Directories to be listed, and for each whether with all below it."""
        return [(key[1:], deep == b"\1") for key, deep in self.batch.pick(b"r", limit)]

    def written(self, object_id: bytes) -> None:
        """The content of a file may have changed."""
        with self.batch.lock:
            self.want_read(self.file_key(object_id))

    def want_read(self, file: bytes) -> None:
        """A file is to be read, if it is known."""
        with self.batch.lock:
            key = self.batch.key(b"t", file)
            if not self.batch.has(key) and self.batch.has(self.batch.key(b"f", file)):
                self.batch.put(key)
                self.totals.unread += 1

    def _read(self, file: bytes) -> None:
        key = self.batch.key(b"t", file)
        if self.batch.has(key):
            self.batch.delete(key)
            self.totals.unread -= 1

    def next_reads(self, limit: int) -> list[bytes]:
        """Files to be read."""
        return [key[1:] for key, _ in self.batch.pick(b"t", limit)]

    # -- content -------------------------------------------------------------------------------------

    def file(self, file: bytes) -> FileRow | None:
        return self.batch.row(self.batch.key(b"f", file), FileRow)

    def is_current(self, file: bytes, state: State) -> bool:
        """Whether the file was read, and is since what it was then."""
        row = self.file(file)
        return row is not None and row.kind is not None and state == (row.size, row.mtime, row.ctime)

    def skip(self, file: bytes) -> None:
        """A file is off the list: it needs no reading, or is being read."""
        with self.batch.lock:
            self._read(file)

    def found(self, file: bytes, state: State, kind: Kind, tags: Tags) -> None:
        """A file was read; it is off the list already (`skip`)."""
        with self.batch.lock:
            at = self.batch.key(b"f", file)
            row = self.batch.row(at, FileRow)
            if row is None:
                return  # deleted meanwhile
            self._forget_content(file, row)
            row.kind = kind
            row.size, row.mtime, row.ctime = state
            self.totals.kinds[kind] = self.totals.kinds.get(kind, 0) + 1
            if kind == Kind.INSTANCE:
                self._content.add(file, row, tags)
            self.batch.save(at, row)

    def _forget_content(self, file: bytes, row: FileRow) -> None:
        """A file is not the image that it was."""
        if row.kind is not None:
            self.totals.kinds[row.kind] = self.totals.kinds.get(row.kind, 0) - 1
        if row.kind == Kind.INSTANCE:
            self._content.subtract(file, row)
        row.kind, row.series, row.instance, row.transfer_syntax = None, b"", "", ""

    # -- the whole ------------------------------------------------------------------------------------

    def clear(self) -> None:
        """Forget everything, and compare the whole tree again."""
        with self.batch.lock:
            self.batch.drop()
            self.batch.environment.clear()
            self._paths.clear()
            self.totals = Totals()
            generation = self.generation
            self._content = Content(self.batch, self.totals)
            self._content.generation = generation + 1
            self.doubt()

    # -- committing ------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Commit what happened so far."""
        with self.batch.lock:
            if len(self.batch):
                self.batch.save(_TOTALS, self.totals)
                self.batch.flush()

    def close(self, session: str) -> None:
        """Commit, and remember which session of the vault the index is true for ("" if for none)."""
        with self.batch.lock:
            self.totals.session = session
            self.batch.save(_TOTALS, self.totals)
            self.batch.flush()

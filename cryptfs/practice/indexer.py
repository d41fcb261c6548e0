"""Keeping the study index true to the files, in a thread that works when nobody else does.

It takes events from the queue, lists directories and has files read. While requests come in it takes at most
a twentieth of the time, in pieces shorter than a request; when none came for a moment it goes on as fast as
it can. Reading the tags, by far the most of the work, is another process's (`worker`).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator

from cryptfs.errors import CryptfsError
from cryptfs.fs import FileSystem
from cryptfs.fs.types import Attr
from cryptfs.index.environment import ValueDamaged
from cryptfs.index.studies import State, StudyIndex
from cryptfs.practice.reader import Reader, Stopped
from cryptfs.practice.tags import START, START_MAX, Kind, Reading, Tags
from cryptfs.practice.watching import Moved, Named, Queue, Removed, Written

log = logging.getLogger(__name__)

ROOT = 1
_QUIET_SECONDS = 0.2
"""So long without a request, and nobody is waiting."""
_TURN_SECONDS, _REST_SECONDS = 0.02, 0.4
"""While requests come in: so long at a time, and so long a rest in between."""
_PAUSE_SECONDS = 0.25
_COMMIT_SECONDS, _COMMIT_CHANGES = 5.0, 3000
_LISTINGS, _READS = 32, 256
"""So many are taken from the lists at a time."""
_ENTRIES = 32
"""Entries taken from a directory at a time, during which the filesystem's lock is held."""
_RETRY_SECONDS = 30.0


class Indexer:
    """Follows one filesystem. `requests` counts those of the mount, None where there is none."""

    def __init__(
        self,
        fs: FileSystem,
        index: StudyIndex,
        queue: Queue,
        requests: Callable[[], int] | None = None,
    ) -> None:
        self.index = index
        self.failed = ""
        """Why the index is not kept any more, or nothing."""
        self._fs = fs
        self._queue = queue
        self._requests = requests
        self._stop = threading.Event()
        self._reader = Reader(self._stop, idle=requests is not None)
        self._thread: threading.Thread | None = None
        self._taking = threading.Lock()
        self._reading = self._listing = 0  # off the lists, and not done yet
        self._read_count = 0
        self._seen = -1
        self._quiet_since = 0.0
        self._ends = 0.0
        self._committed = time.monotonic()

    # -- the thread ------------------------------------------------------------------------------

    def start(self) -> None:
        """Work in the background from now on."""
        self._thread = threading.Thread(target=self._run, name="cryptfs-studies", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the work. What happened in the tree is taken over; what is to be read stays to be read."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._reader.close()
        if not self.failed:
            self._guarded(self.catch_up)
        self._queue.closed = True

    def _run(self) -> None:
        rest = 0.0
        while not self._stop.wait(rest):
            rest = self._guarded(self._work)
            if self.failed:
                return

    def _guarded(self, step: Callable[[], float]) -> float:
        """A step of work and its errors: this thread must not end because of a file."""
        try:
            return step()
        except Stopped:
            return 0.0
        except ValueDamaged:
            log.error("the study index was tampered with: it is made again")
            self._guarded(self._begin_anew)
        except CryptfsError as error:
            log.error("the study index is not kept any more: %s", error)
            self.failed, self._queue.closed = str(error), True
        except OSError as error:
            log.warning("the study index waits: %s", error.strerror)
            return _RETRY_SECONDS
        except Exception as error:
            log.error("the study index is not kept any more: %s", type(error).__name__)
            self.failed, self._queue.closed = f"Internal error ({type(error).__name__}).", True
        return _PAUSE_SECONDS

    def _begin_anew(self) -> float:
        self.index.clear()
        return 0.0

    def _work(self) -> float:
        """Work for a while; how long to rest."""
        busy = self._is_busy()
        self._ends = time.monotonic() + (_TURN_SECONDS if busy else 1.0)
        if self._turn_of_work():
            return _REST_SECONDS if self._is_busy() else 0.0
        self._reader.rest()
        return _PAUSE_SECONDS

    def _is_busy(self) -> bool:
        """Whether requests came in lately."""
        if self._requests is None:
            return False
        count, now = self._requests(), time.monotonic()
        if count != self._seen:
            self._seen, self._quiet_since = count, now
        return now - self._quiet_since < _QUIET_SECONDS

    def _over(self) -> bool:
        """Whether this turn is over: its time, or somebody came."""
        if self._stop.is_set():
            raise Stopped
        now = time.monotonic()
        if now >= self._ends:
            return True
        if self._requests is not None and self._requests() != self._seen:
            self._ends = min(self._ends, now + _TURN_SECONDS)
            self._is_busy()
        return False

    def _turn_of_work(self) -> bool:
        """Do what is to be done until the turn is over; whether anything was, or still is."""
        worked = False
        while self._one():
            worked = True
            if self._over():
                break
        else:
            self._commit()
            return worked
        if time.monotonic() - self._committed > _COMMIT_SECONDS or len(self.index.batch) > _COMMIT_CHANGES:
            self._commit()
        return True

    def _commit(self) -> None:
        self.index.flush()
        self._committed = time.monotonic()

    # -- the work --------------------------------------------------------------------------------

    def left(self) -> tuple[int, int]:
        """How many files are to be read, and how many folders to be listed."""
        return self.index.to_read + self._reading, self.index.to_list + self._listing

    def complete(self, progress: Callable[[int, int], None] = lambda read, left: None) -> None:
        """Do all there is to do now, telling how many files were read and how many are known to be left.

        Raises Unavailable, ValueDamaged, OSError, Stopped.
        """
        self._ends = float("inf")
        read = 0
        while True:
            before = self._read_count
            if not self._one():
                break
            read += self._read_count - before
            progress(read, self.index.to_read)
            if len(self.index.batch) > _COMMIT_CHANGES:
                self._commit()
        self._commit()

    def catch_up(self) -> float:
        """Take over what happened in the tree so far."""
        self._take_events(1 << 30)
        return 0.0

    def _one(self) -> bool:
        """The next piece of work; False if there is none."""
        if self._take_events(16):
            return True
        if self.index.to_list:
            for directory, deep in self.index.next_listings(_LISTINGS):
                self._list(directory, deep)
                if self._over() or len(self._queue):
                    break
            if not (self.index.to_list or self._queue.overflowed):
                self._queue.ids_changed = False  # everything was compared since
            return True
        if self.index.to_read:
            for file in self.index.next_reads(_READS):
                self._read(file)
                if self._over() or len(self._queue):
                    break
            return True
        return False

    def _take_events(self, limit: int) -> bool:
        with self._taking:
            return self._take_in_order(limit)

    def _take_in_order(self, limit: int) -> bool:
        index = self.index
        if self._queue.overflowed:
            self._queue.overflowed = False
            index.doubt()
        event = None
        for _ in range(limit):
            event = self._queue.take()
            if event is None:
                break
            match event:
                case Named(parent, name, child, is_dir):
                    index.named(parent, name, child, is_dir=is_dir)
                case Removed(parent, name):
                    index.removed(parent, name)
                case Moved(old_parent, old, new_parent, new, exchange):
                    index.moved(old_parent, old, new_parent, new, exchange=exchange)
                case Written(object_id):
                    index.written(object_id)
        return event is not None

    @contextlib.contextmanager
    def _at(self, path: tuple[bytes, ...]) -> Iterator[int]:
        """The inode at a path, held until the end. OSError if there is none."""
        held: list[int] = []
        try:
            ino = ROOT
            for name in path:
                ino = self._fs.lookup(ino, name).ino
                held.append(ino)
            yield ino
        finally:
            for number in held:
                self._fs.forget(number, 1)

    # -- directories -----------------------------------------------------------------------------

    def _list(self, directory: bytes, deep: bool) -> None:
        """Compare a directory with what is known of it."""
        index = self.index
        path = index.directory_path(directory)
        # Off the list first: what happens from now on puts it there again.
        self._listing = 1
        index.listed(directory)
        try:
            if path is None:
                return
            with self._at(path) as ino:
                object_id = self._fs.identity(ino)
                if index.directory_key(object_id) != directory:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
                seen = self._compare(ino, object_id, directory, deep)
            index.keep_only(directory, seen)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
                log.warning("a folder cannot be listed for the study index: %s", error.strerror)
            elif directory != index.root:
                index.lost_directory(directory)
        except BaseException:
            index.list_again(directory, deep=deep)
            raise
        finally:
            self._listing = 0

    def _compare(self, ino: int, object_id: bytes, directory: bytes, deep: bool) -> set[bytes]:
        """Tell the index of every entry; the hashed names."""
        seen: set[bytes] = set()
        handle = self._fs.opendir(ino)
        try:
            offset = 0
            while True:
                # The generator holds the filesystem's lock: a few entries, and it is let go.
                entries = self._fs.readdir(handle, offset)
                part = list(itertools.islice(entries, _ENTRIES))
                if hasattr(entries, "close"):
                    entries.close()
                for name, attr, _ in part:
                    seen.add(self.index.name_key(name))
                    with contextlib.suppress(OSError):  # removed meanwhile, or damaged
                        self._entry(object_id, directory, name, attr, deep)
                if len(part) < _ENTRIES:
                    return seen
                offset = part[-1][2]
                self._over()
                if self._requests is not None and self._is_busy():
                    self._stop.wait(_TURN_SECONDS)
        finally:
            self._fs.releasedir(handle)

    def _entry(self, parent: bytes, directory: bytes, name: bytes, attr: Attr, deep: bool) -> None:
        index = self.index
        is_dir = stat.S_ISDIR(attr.mode)
        if not attr.nlink or not (is_dir or stat.S_ISREG(attr.mode)):
            return
        known = index.entry(directory, name)
        if known is not None and known.is_dir == is_dir:
            if is_dir and not deep:
                return
            if not is_dir and not self._queue.ids_changed and index.is_current(known.child, _state(attr)):
                return
        self._fs.remember(attr.ino)
        try:
            child = self._fs.identity(attr.ino)
        finally:
            self._fs.forget(attr.ino, 1)
        index.named(parent, name, child, is_dir=is_dir)
        if is_dir:
            index.want_listed(child)
        elif not index.is_current(index.file_key(child), _state(attr)):
            index.written(child)

    # -- files -----------------------------------------------------------------------------------

    def _read(self, file: bytes) -> None:
        """Have a file read."""
        # Off the list first: what is written from now on puts it there again.
        self._reading = 1
        self.index.skip(file)
        try:
            self._find_out(file)
        except BaseException:
            self.index.want_read(file)
            raise
        finally:
            self._reading = 0

    def _find_out(self, file: bytes) -> None:
        index = self.index
        row = index.file(file)
        path = index.path_of(row.places[0]) if row is not None and row.places else None
        if path is None:
            return
        state = State(0, 0, 0)
        try:
            with self._at(path) as ino:
                if index.file_key(self._fs.identity(ino)) != file:
                    return  # another file by now: events tell of it, or the next comparison
                state = _state(self._fs.getattr(ino))
                if index.is_current(file, state):
                    return
                self._read_count += 1
                kind, tags = self._judge(ino, state.size)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
                return
            if error.errno != errno.EIO:
                raise
            kind, tags = Kind.DAMAGED, Tags()
        index.found(file, state, kind, tags)

    def _judge(self, ino: int, size: int) -> Reading:
        if size == 0:
            return Reading(Kind.NOT_DICOM)
        handle = self._fs.open(ino, os.O_RDONLY)
        try:
            for length in (START, START_MAX):
                start = bytes(self._fs.read(handle, 0, length))
                reading = self._reader.read(start, len(start) >= size)
                if reading.kind != Kind.NEEDS_MORE:
                    break
            return reading
        finally:
            self._fs.release(handle)


def _state(attr: Attr) -> State:
    return State(attr.size, attr.mtime_ns, attr.ctime_ns)

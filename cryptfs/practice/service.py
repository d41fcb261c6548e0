"""The study index of one opened vault: made, followed, asked, and closed with it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from cryptfs.errors import CryptfsError, UsageError
from cryptfs.fs import FileSystem
from cryptfs.index.environment import Damaged, Environment, discard, reseal
from cryptfs.index.place import Unavailable
from cryptfs.index.studies import StudyIndex
from cryptfs.index.studysearch import FoundFile, FoundStudy, Query, Search, Summary
from cryptfs.practice.indexer import ROOT, Indexer
from cryptfs.practice.watching import Queue, WatchedFileSystem
from cryptfs.vault.header import KeyringLike

log = logging.getLogger(__name__)

PURPOSE = "studies"


class Completeness(msgspec.Struct):
    """How much is still to be read: files known to be, and folders whose files are not known yet."""

    files: int = 0
    folders: int = 0

    @property
    def is_complete(self) -> bool:
        return not self.files and not self.folders


class FindAnswer(msgspec.Struct):
    """A page of what was found; `after`, given back, brings the next, and is empty at the end."""

    files: list[FoundFile]
    studies: list[FoundStudy]
    after: bytes
    left: Completeness


class StatsAnswer(msgspec.Struct):
    summary: Summary
    left: Completeness


class FindArguments(msgspec.Struct):
    query: Query = Query()
    studies: bool = False
    after: bytes = b""


class StudyService:
    """Follows `fs` from `start` on. Use `fs` of this object instead of the one given, and close that."""

    def __init__(self, fs: FileSystem, place: Path, keyring: KeyringLike) -> None:
        """`place` is the vault's folder in the state directory. Raises Unavailable."""
        vault = fs.vault
        try:
            self._environment = Environment.open(place, PURPOSE, vault.vault_id, keyring, durable=True)
        except Damaged as error:
            log.warning("%s The study index is made again.", error)
            discard(place, PURPOSE)
            self._environment = Environment.open(place, PURPOSE, vault.vault_id, keyring, durable=True)
        self._inner = fs
        try:
            self._index = StudyIndex(self._environment, fs.identity(ROOT))
            last = vault.state.last
            self._last = "" if last is None or vault.state.found_open else f"{last:016x}"
            if not self._last or self._index.totals.session != self._last:
                self._index.doubt()
            # Whoever finds it like this knows that it was not closed.
            self._index.close("")
        except BaseException:
            self._environment.close()
            raise
        fs.on_rewrapped = self._keep_under
        self._search = Search(self._index)
        self._queue = Queue()
        self._indexer = Indexer(fs, self._index, self._queue)
        self.fs = WatchedFileSystem(fs, self._queue, self.close)

    @property
    def commands(self) -> Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        """The mount's control commands."""
        return {"find": self._find_command, "stats": self._stats_command}

    def start(self, requests: Callable[[], int]) -> None:
        """Work in the background; `requests` counts those that must not be kept waiting."""
        self._indexer = Indexer(self._inner, self._index, self._queue, requests)
        self._indexer.start()

    def complete(self, progress: Callable[[int, int], None]) -> None:
        """Read all there is to read now, for an index that nobody started. Errors as the indexer's."""
        self._indexer.complete(progress)

    def close(self) -> None:
        """Close the filesystem, then the index, to be believed next time. Errors are the filesystem's."""
        self._indexer.stop()
        session = ""
        try:
            read_only = self._inner.vault.read_only
            written = f"{self._inner.vault.session:016x}"
            self._inner.close()
            session = self._last if read_only else written
        finally:
            try:
                if not self._indexer.failed:
                    self._index.close(session)
            except CryptfsError as error:
                log.warning("the study index was not kept: %s", error)
            finally:
                self._environment.close()

    def _keep_under(self, keyring: KeyringLike) -> None:
        """The former epoch goes: the index must open without it."""
        try:
            self._environment.use_keyring(keyring)
        except Unavailable as error:
            log.warning("the study index is not kept: %s", error)

    def status(self) -> dict[str, Any]:
        """What `cryptfs status` shows of it: how much is still to be read, or why nothing is kept."""
        if self._indexer.failed:
            return _status("none", reason=self._indexer.failed.rstrip("."))
        files, folders = self._indexer.left()
        return _status("reading" if files or folders else "complete", files, folders)

    # -- answers ---------------------------------------------------------------------------------

    def _left(self) -> Completeness:
        if self._indexer.failed:
            raise CryptfsError(f"There is no study index: {self._indexer.failed}")
        # What happened a moment ago belongs to the answer, or is counted as not read yet.
        self._indexer.catch_up()
        return Completeness(*self._indexer.left())

    def find(self, query: Query, *, studies: bool = False, after: bytes = b"") -> FindAnswer:
        """A page of files, or of studies. Raises CryptfsError where there is no index."""
        left = self._left()
        if studies:
            found_studies, behind = self._search.studies(query, after)
            return FindAnswer([], found_studies, behind, left)
        found, behind = self._search.files(query, after)
        return FindAnswer(found, [], behind, left)

    def stats(self) -> StatsAnswer:
        """Counts of everything. Raises CryptfsError where there is no index."""
        left = self._left()
        return StatsAnswer(self._search.summary(), left)

    def _find_command(self, arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            asked = msgspec.convert(arguments, FindArguments)
        except msgspec.ValidationError:
            raise UsageError("The daemon does not understand the search: is it of another version?") from None
        answer: dict[str, Any] = msgspec.to_builtins(
            self.find(asked.query, studies=asked.studies, after=asked.after)
        )
        return answer

    def _stats_command(self, arguments: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = msgspec.to_builtins(self.stats())
        return answer


def keep_under(keyring: KeyringLike, place: Path, vault_id: bytes) -> None:
    """The same for the index of a vault that is not mounted."""
    try:
        reseal(place, PURPOSE, vault_id, keyring)
    except Unavailable as error:
        log.warning("the study index is not kept: %s", error)


class NoStudies:
    """In the place of a `StudyService` where there is none: says why to whoever asks."""

    def __init__(self, fs: FileSystem, reason: str) -> None:
        self.fs = fs
        self._reason = reason.rstrip(".")

    @property
    def commands(self) -> Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        return {"find": self._refuse, "stats": self._refuse}

    def start(self, requests: Callable[[], int]) -> None:
        """There is nothing to be done."""

    def status(self) -> dict[str, Any]:
        """What `cryptfs status` shows: why there is none."""
        return _status("none", reason=self._reason)

    def _refuse(self, arguments: dict[str, Any]) -> dict[str, Any]:
        raise CryptfsError(f"This mount has no index of studies: {self._reason}.")


def _status(state: str, files: int = 0, folders: int = 0, reason: str = "") -> dict[str, Any]:
    """`state` is "complete", "reading" or "none"; docs/mounting.md describes the fields."""
    return {"studies": {"state": state, "to_read": files, "to_list": folders, "reason": reason}}

"""Comparing the vault with what this host remembers of it (cryptfs/index/witness.py), and remembering.

Two rules make it never raise a false alarm, whatever is killed or loses power at any instant:

* The vault first. What is to be recorded (`placed`, `gone`, `moved`) waits in memory until a settle of the
  committer has made durable all that was in the vault when the settle began (`cut`), and is then recorded
  in one durable transaction (`commit`). A record is a lower bound: the vault has that, or something newer.
* A warning before. A recorded name whose object changes (it is removed, renamed, replaced) might come back
  from a power cut as it was or as it became. So before such a change `changing` marks the directory, durably,
  unless it is marked already; once the new state is recorded, the mark is taken away. If the session is
  killed in between, other objects than the recorded ones are accepted in that directory, once.

So storing new files costs nothing but memory; the first removal in a directory costs one sync of one
sector on the host's disk, and more than 16 directories between two settles cost no more than the 16.

The caller holds the namespace lock, except for `commit` and `give_back`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

from cryptfs.errors import IntegrityError
from cryptfs.fs.directory import eio
from cryptfs.fs.nodes import Node
from cryptfs.fs.verdicts import ROOT_PLACE, Verdict, lower_path, missing, record_of
from cryptfs.index.environment import Unavailable
from cryptfs.index.marks import EVERYWHERE
from cryptfs.index.witness import Found, Held, KeysTooOld, WitnessStore
from cryptfs.vault.header import DIRECTORY, Header, KeyringLike
from cryptfs.vault.vault import Vault

log = logging.getLogger(__name__)

CROWDED = 8192
"""So many names wait to be recorded that the next settle is due at once."""
_LEARN_MAX = 32768
"""With so many waiting, names seen for the first time are left for another time."""
_PENDING_MAX = 1_000_000
"""With so many waiting, there is no hope that they will ever be recorded."""
_SURVEY_MAX = 100_000
"""Directories with more entries are not searched for missing ones when they are listed."""
_SURVEYED_MAX = 200_000
"""So many directories are remembered as searched."""
_AHEAD_MAX = 20_000
"""Of a directory with more entries, records are read one by one (about 250 bytes each)."""
_TOLD_MAX = 10_000
"""So many refused and missing names are told apart; further ones are counted each time."""


class Batch(NamedTuple):
    """What a settle will have made durable."""

    number: int
    records: dict[bytes, Held | None]
    sessions: set[int]


class Witness:
    """The rollback witness of one filesystem; without a store it does nothing."""

    def __init__(
        self,
        store: WitnessStore | None = None,
        *,
        read_only: bool = False,
        compares: bool = True,
        why: str = "",
    ) -> None:
        """With `compares` off nothing is refused or reported: for `survey`, which compares by itself."""
        self._store = store
        self._read_only = read_only
        self._compares = compares
        self.why = why
        """Why there is none."""
        self._pending: dict[bytes, Held | None] = {}
        self._committing: dict[bytes, Held | None] = {}
        self._batch = 1
        self._sessions: set[int] = set()
        self._new_sessions: set[int] = set()
        self._ahead: dict[bytes, Held] = {}
        self._surveyed: set[bytes] = set()
        self._refused: set[bytes] = set()
        self._replaced: set[bytes] = set()
        self._missing: set[bytes] = set()
        self._events = {"refused": 0, "missing": 0, "vault": 0}
        self.told: list[str] = []
        """What is wrong with the vault as a whole: sentences."""

    @classmethod
    def open(cls, place: Path | None, vault: Vault, *, compares: bool = True) -> Witness:
        """The witness below `place`; where there can be none, one that does nothing."""
        if place is None:
            return cls(why="no state directory")
        try:
            store = WitnessStore.open(place, vault.path, vault.vault_id, vault.keyring)
        except KeysTooOld as error:
            log.error("%s", error)
            witness = cls(why="older keys")
            witness._events["vault"] += 1
            return witness
        except Unavailable as error:
            log.warning("without a rollback witness: %s", error)
            return cls(why=str(error))
        return cls(store, read_only=vault.read_only, compares=compares)

    @property
    def store(self) -> WitnessStore | None:
        """What it remembers, if it can."""
        return self._store

    # -- the session -----------------------------------------------------------------------------

    def begin(self, found: Found, session: int) -> None:
        """Before the first change of a session, and before anything is compared."""
        if self._store is None:
            return
        try:
            for sentence in self._store.look_at(found):
                self._events["vault"] += 1
                self.told.append(sentence)
                log.error("rollback witness: %s", sentence)
            if not self._read_only:
                self._store.begin(found, session)
        except (Unavailable, OSError) as error:
            self._give_up(error)

    def confirm(self) -> None:
        """The vault knows of the session now."""
        if self._store is not None and not self._read_only:
            try:
                self._store.confirm()
            except Unavailable as error:
                self._give_up(error)

    def end(self) -> None:
        """The session ended in order, and the vault says so."""
        if self._store is not None and not self._read_only and not self._pending:
            try:
                self._store.end()
            except (Unavailable, OSError) as error:
                self._give_up(error)

    def use_keyring(self, keyring: KeyringLike) -> None:
        """There is a new epoch: the one before may be destroyed some time after this."""
        if self._store is not None:
            try:
                self._store.use_keyring(keyring)
            except Unavailable as error:
                self._give_up(error)

    def close(self) -> None:
        """Close the files."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def _give_up(self, error: Exception) -> None:
        """Go on without. What is recorded stays right only if everything counts as changing from now on."""
        store, self._store = self._store, None
        if store is None:
            return
        self.why = str(error)
        log.error("the rollback witness is switched off until the next mount: %s", error)
        self._pending.clear()
        try:
            if not self._read_only:
                store.marks.add(EVERYWHERE, store.state.number, 1 << 62)
            store.close()
        except OSError:
            try:
                store.abandon()
            except OSError as problem:
                log.error("the rollback witness cannot be taken away: %s", problem.strerror)

    # -- comparing -------------------------------------------------------------------------------

    def check(self, parent: Node | None, directory_id: bytes, lname: bytes, header: Header) -> None:
        """Compare an object found under a name with what was there. EIO if it must not be served."""
        store = self._store
        if store is None or not self._compares:
            return
        key = store.key(directory_id, lname)
        if key in self._pending or key in self._committing:
            return
        record = self._ahead.get(key)
        verdict = Verdict.of(record, header)
        if verdict is not Verdict.SAME:  # nor was it read ahead, or it has changed since
            try:
                record = store.get(key, named=False)
            except Unavailable as error:
                return self._give_up(error)
            verdict = Verdict.of(record, header)
        if record is None or verdict is Verdict.NEW or verdict is Verdict.NEWER:
            return self._learn(key, header, lname)
        if verdict is Verdict.SAME:
            if store.expects_the_unexpected(key, record):
                self._learn(key, header, lname)
            return
        if verdict is Verdict.OTHER and store.expects_the_unexpected(key, record):
            if self._first(key, self._replaced):
                log.warning(
                    "rollback witness: %s is another object than before: it was replaced in a session that "
                    "was killed, or by another computer",
                    lower_path(parent, lname),
                )
            return self._learn(key, header, lname)
        self._refuse(key, parent, lname, record, header, verdict)

    def read_ahead(self, directory_id: bytes, entries: int) -> None:
        """Every object in a directory of so many entries is about to be checked: read all records at once."""
        self._ahead = {}
        if self._store is None or not self._compares or entries > _AHEAD_MAX:
            return
        try:
            self._ahead = self._store.all_below(directory_id)
        except Unavailable as error:
            self._give_up(error)

    def _learn(self, key: bytes, header: Header, lname: bytes) -> None:
        if self._read_only or len(self._pending) >= _LEARN_MAX:
            return
        self._pending[key] = record_of(header, lname)
        if header.session not in self._sessions:
            self._sessions.add(header.session)
            self._new_sessions.add(header.session)

    def _refuse(
        self, key: bytes, parent: Node | None, lname: bytes, record: Held, header: Header, verdict: Verdict
    ) -> None:
        # An older header of a directory returns its mode and owner alone: its entries are compared, too.
        served = header.kind == DIRECTORY and verdict is Verdict.OLDER
        if self._first(key, self._refused):
            self._events["refused"] += 1
            if verdict is Verdict.OLDER:
                what = f"an older version (generation {header.generation}, it was {record.generation})"
            else:
                what = f"another object ({header.object_id.hex()}, it was {record.object_id.hex()})"
            log.error(
                "rollback witness: %s is %s and is %s; if it was restored on purpose, cryptfs accept-restore "
                "accepts it",
                lower_path(parent, lname),
                what,
                "served, with the mode and owner of that time" if served else "refused",
            )
        if not served:
            raise eio()

    @staticmethod
    def _first(key: bytes, told: set[bytes]) -> bool:
        if key in told:
            return False
        if len(told) < _TOLD_MAX:
            told.add(key)
        return True

    def check_root(self, header: Header) -> None:
        """Compare the root directory. IntegrityError if it is another one."""
        try:
            self.check(None, *ROOT_PLACE, header)
        except OSError:
            raise IntegrityError(
                "the root directory is another one than this computer last saw in this vault; if it was "
                "restored on purpose, cryptfs accept-restore accepts it"
            ) from None

    def lacks(self, parent: Node | None, directory_id: bytes, lname: bytes) -> None:
        """A name was looked up and is not there, or only as a remnant. EIO if a remnant is not plausible."""
        store = self._store
        if store is None or not self._compares:
            return
        key = store.key(directory_id, lname)
        if key in self._pending or key in self._committing:
            return
        try:
            record = store.get(key)
        except Unavailable as error:
            return self._give_up(error)
        if record is not None:
            self._is_missing(store, key, record, parent)

    def was_durable(self, parent: Node, directory_id: bytes, lname: bytes) -> bool:
        """Whether the object of this name was durable, so that what is there cannot be a remnant."""
        self.lacks(parent, directory_id, lname)
        return self._store is not None and self._store.key(directory_id, lname) in self._missing

    def _is_missing(self, store: WitnessStore, key: bytes, record: Held, parent: Node | None) -> None:
        if store.expects_the_unexpected(key, record):
            if not self._read_only:
                self._pending[key] = None
            return
        if self._first(key, self._missing):
            self._events["missing"] += 1
            log.error(
                "rollback witness: %s was there and is missing; if it was deleted on purpose, cryptfs "
                "accept-restore accepts it",
                lower_path(parent, record.lname),
            )

    def listed(self, node: Node, directory_id: bytes, lnames: list[bytes]) -> None:
        """All entries of a directory were read: is one missing? Once a session for each directory."""
        store = self._store
        if store is None or not self._compares:
            return
        prefix = store.prefix(directory_id)
        if prefix in self._surveyed or len(lnames) > _SURVEY_MAX:
            return
        if len(self._surveyed) >= _SURVEYED_MAX:
            self._surveyed.clear()
        self._surveyed.add(prefix)
        try:
            for key, record in missing(store, directory_id, lnames):
                if key not in self._pending and key not in self._committing:
                    self._is_missing(store, key, record, node)
        except Unavailable as error:
            self._give_up(error)

    def accepted(self) -> None:
        """All that differed was accepted: count and search anew."""
        for told in (self._refused, self._missing, self._replaced, self._surveyed):
            told.clear()
        self.told.clear()
        self._ahead = {}
        self._events = dict.fromkeys(self._events, 0)

    # -- remembering -----------------------------------------------------------------------------

    def changing(self, directory_id: bytes, lname: bytes) -> None:
        """A name is about to get another object, or none. Durable if the name is recorded."""
        store = self._store
        if store is None or self._read_only:
            return
        key = store.key(directory_id, lname)
        try:
            if self._committing.get(key) is None and store.get(key) is None:
                return
            # `cut` holds the namespace lock, so no settle can begin between this and the change.
            store.marks.add(store.prefix(directory_id), store.state.number, self._batch)
        except (Unavailable, OSError) as error:
            self._give_up(error)

    def placed(self, directory_id: bytes, lname: bytes, record: Held) -> None:
        """An object is under a name, with this generation at least in place."""
        if self._store is not None and not self._read_only:
            self._pending[self._store.key(directory_id, lname)] = record

    def gone(self, directory_id: bytes, lname: bytes) -> None:
        """There is nothing under a name any more."""
        store = self._store
        if store is None or self._read_only:
            return
        key = store.key(directory_id, lname)
        try:
            if self._committing.get(key) is None and store.get(key) is None:
                self._pending.pop(key, None)
            else:
                self._pending[key] = None
        except Unavailable as error:
            self._give_up(error)

    def moved(self, old: tuple[bytes, bytes], new: tuple[bytes, bytes], *, exchange: bool = False) -> None:
        """The object at `old` (directory id, name) is at `new` now, and the other way with `exchange`."""
        store = self._store
        if store is None or self._read_only:
            return
        held = self._recorded(store.key(*old))
        self._put(old, self._recorded(store.key(*new)) if exchange else None)
        self._put(new, held)

    def _put(self, place: tuple[bytes, bytes], record: Held | None) -> None:
        if record is None:
            self.gone(*place)
        else:
            self.placed(*place, record._replace(lname=place[1]))

    def directory_gone(self, directory_id: bytes) -> None:
        """An empty directory was removed: nothing is missing in it."""
        store = self._store
        if store is None or self._read_only:
            return
        try:
            for key, _ in store.below(directory_id):
                self._pending[key] = None
        except Unavailable as error:
            self._give_up(error)

    def _recorded(self, key: bytes) -> Held | None:
        """What is known of a name, recorded or waiting to be."""
        for waiting in (self._pending, self._committing):
            if key in waiting:
                return waiting[key]
        try:
            return self._store.get(key) if self._store is not None else None
        except Unavailable as error:
            self._give_up(error)
            return None

    # -- in the background -----------------------------------------------------------------------

    def is_waiting(self, key: bytes) -> bool:
        """Whether this session changed what is under a name, and it is not recorded yet."""
        return key in self._pending or key in self._committing

    @property
    def crowded(self) -> bool:
        """Whether so much waits to be recorded that a settle is due."""
        return len(self._pending) > CROWDED

    @property
    def waiting(self) -> bool:
        """Whether anything waits to be recorded."""
        return bool(self._pending)

    def cut(self) -> Batch | None:
        """What is to be recorded when all that is in the vault now is durable; None for nothing."""
        store = self._store
        if store is None or not (self._pending or store.marks.now):
            return None
        if len(self._pending) > _PENDING_MAX:
            # Nothing could be made durable for long: the disk fails.
            self._give_up(Unavailable("too much waits to be recorded"))
            return None
        batch = Batch(self._batch, self._pending, self._new_sessions)
        self._committing, self._pending, self._new_sessions = batch.records, {}, set()
        self._batch += 1
        return batch

    def commit(self, batch: Batch) -> None:
        """All of a batch is durable in the vault: record it. Without a lock held."""
        store = self._store
        if store is None:
            return
        try:
            store.commit(batch.records.items(), batch.sessions)
            self._committing = {}
            store.marks.remove(batch.number)
        except (Unavailable, OSError) as error:
            self._committing = {}
            self._give_up(error)

    def give_back(self, batch: Batch) -> None:
        """A settle failed: what it should have made durable waits for the next."""
        self._pending = {**batch.records, **self._pending}
        self._new_sessions |= batch.sessions
        self._committing = {}

    def stats(self) -> dict[str, Any]:
        """For status reports: names recorded, and how many were refused or missing in this session."""
        if self._store is None:
            return {"state": self.why or "off", **self._events}
        return {"state": "on", "names": self._store.count(), **self._events}

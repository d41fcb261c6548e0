"""What the rollback witness holds, read: records of names, sessions, and what may differ though nobody told.

`witness` describes the records and writes them; `WitnessView` reads them beside the mount that writes them,
and changes nothing.
"""

from __future__ import annotations

import hashlib
import logging
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import lmdb

from cryptfs.index.marks import EVERYWHERE, PREFIX_SIZE, read_marks
from cryptfs.index.place import Unavailable
from cryptfs.index.reading import Reading
from cryptfs.index.sealing import ValueDamaged
from cryptfs.vault.header import KeyringLike
from cryptfs.vault.names import pack_text

log = logging.getLogger(__name__)

PURPOSE = "witness"
MARKS = "marks"
RECORD = struct.Struct("<16sQIB")
IS_DIRECTORY, AS_IT_IS = 1, 2
NUMBER = struct.Struct("<I")
STATE = struct.Struct("<IBQQI")
CLEAN, CONFIRMED = 1, 2
_NAME_SIZE = 14
_KNOWN_DIRECTORIES = 1024


class Held(NamedTuple):
    """The record of a name: what is under it, and the session of this host in which that was confirmed."""

    object_id: bytes
    generation: int
    is_directory: bool
    lname: bytes
    number: int = 0


class State(NamedTuple):
    """What is remembered of sessions. `number` counts the sessions of this host."""

    number: int = 0
    clean: bool = True
    confirmed: bool = True
    session: int = 0
    before: int = 0
    others: int = 0
    """The host's session after which another computer wrote to the vault; 0 for never."""


class Found(NamedTuple):
    """What the vault says of the last session; `session` is None where it says nothing."""

    session: int | None
    open: bool


class Records(Protocol):
    """An environment that is read."""

    def get(self, key: bytes) -> bytes | None: ...
    def scan(self, prefix: bytes, limit: int = ..., after: bytes = ...) -> list[tuple[bytes, bytes]]: ...
    def hashed(self, size: int, *parts: bytes) -> bytes: ...


class Remembered:
    """The records of one vault, and how far they are to be believed.

    Reads may come from any thread, one at a time.
    """

    def __init__(self, records: Records, marked: Callable[[bytes], dict[bytes, int] | None]) -> None:
        """`marked` gives, by the key of the marks, what sessions marked; None if that is damaged."""
        self._records = records
        key = records.hashed(32, b"witness names")
        self._directory_hash = hashlib.blake2b(key=key, person=b"directories", digest_size=PREFIX_SIZE)
        self._last = (b"", b"", b"")
        self._name_hash = hashlib.blake2b(key=key, person=b"names", digest_size=_NAME_SIZE)
        self._directories: dict[bytes, tuple[bytes, hashlib.blake2b]] = {}
        self.state = self._load_state()
        self._left = {key[1:]: NUMBER.unpack(value)[0] for key, value in records.scan(b"m")}
        """Marks of sessions that were killed."""
        marks = marked(records.hashed(32, b"witness marks"))
        if marks is None:
            self._left[EVERYWHERE] = self.state.number
        for prefix, number in (marks or {}).items():
            self._left[prefix] = max(number, self._left.get(prefix, 0))
        self._everywhere = self._left.get(EVERYWHERE, 0)

    # -- keys ------------------------------------------------------------------------------------

    def prefix(self, directory_id: bytes) -> bytes:
        """The hash of a directory's id."""
        return self._directory(directory_id)[0]

    def key(self, directory_id: bytes, lname: bytes) -> bytes:
        """The key of a name, given as ciphertext, in a directory."""
        directory, name, key = self._last
        if name != lname or directory != directory_id:
            prefix, base = self._directory(directory_id)
            state = base.copy()
            state.update(lname)
            key = b"r" + prefix + state.digest()
            self._last = directory_id, lname, key
        return key

    def _directory(self, directory_id: bytes) -> tuple[bytes, hashlib.blake2b]:
        known = self._directories.get(directory_id)
        if known is None:
            if len(self._directories) >= _KNOWN_DIRECTORIES:
                self._directories.clear()
            hashed, base = self._directory_hash.copy(), self._name_hash.copy()
            hashed.update(directory_id)
            base.update(directory_id)
            known = self._directories[directory_id] = hashed.digest(), base
        return known

    # -- records ---------------------------------------------------------------------------------

    def get(self, key: bytes, *, named: bool = True) -> Held | None:
        """The record of a name. A damaged one counts as none. Raises Unavailable.

        Without `named` the name is left out of it, which is cheaper.
        """
        try:
            value = self._records.get(key)
        except ValueDamaged:
            log.error("a record of the rollback witness is damaged and counts for nothing")
            return None
        except lmdb.Error as error:
            raise Unavailable(f"LMDB says {type(error).__name__}.") from None
        return None if value is None else decode(value, named)

    def all_below(self, directory_id: bytes) -> dict[bytes, Held]:
        """All records of names in a directory, without the names; none if one is damaged. Unavailable."""
        try:
            items = self._records.scan(b"r" + self.prefix(directory_id))
        except ValueDamaged:
            return {}  # `get` finds the others
        except lmdb.Error as error:
            raise Unavailable(f"LMDB says {type(error).__name__}.") from None
        return {key: decode(value, named=False) for key, value in items}

    def below(self, directory_id: bytes) -> Iterator[tuple[bytes, Held]]:
        """All records of names in a directory. Raises Unavailable."""
        prefix, after = b"r" + self.prefix(directory_id), b""
        while True:
            try:
                part = self._records.scan(prefix, 1000, after)
            except (ValueDamaged, lmdb.Error) as error:
                raise Unavailable(f"Its records are damaged ({type(error).__name__}).") from None
            for key, value in part:
                yield key, decode(value)
            if len(part) < 1000:
                return
            after = part[-1][0]

    def expects_the_unexpected(self, key: bytes, record: Held) -> bool:
        """Whether another object under this name may be right, though nobody told.

        So it is when the name was last confirmed before a session that was killed while names changed
        there, or before another computer wrote to the vault.
        """
        number = record.number
        return (
            number <= self.state.others
            or number <= self._everywhere
            or number <= self._left.get(key[1 : 1 + PREFIX_SIZE], 0)
        )

    def look_at(self, found: Found) -> list[str]:
        """Compare what the vault says of its last session with what was seen; sentences for the log.

        Nothing is written: for a vault that is only read, too.
        """
        state = self.state
        if state.number == 0:
            return []
        if found.session is None:
            return [
                "the vault's record of its last session (journal/state) is gone: "
                "was only a part of the vault restored?"
            ]
        if found.session == state.session:
            if state.clean and found.open:
                return [
                    "the vault's record of its last session (journal/state) is an older one: "
                    "that session ended in order"
                ]
            return []
        if found.session == state.before and not state.confirmed:
            return []
        if self._records.get(self._session_key(found.session)) is not None:
            return [
                "the vault as a whole is older than this computer last saw it: files that changed since are "
                "refused; if it was restored on purpose, cryptfs accept-restore accepts it"
            ]
        self.state = state._replace(others=state.number)
        log.info("another computer has written to this vault since it was last used here")
        return []

    def _session_key(self, session: int) -> bytes:
        return b"s" + self._records.hashed(16, b"session", session.to_bytes(8, "little"))

    def _load_state(self) -> State:
        value = self._records.get(b"S")
        if value is None:
            return State()
        number, flags, session, before, others = STATE.unpack(value)
        return State(number, bool(flags & CLEAN), bool(flags & CONFIRMED), session, before, others)


class WitnessView(Remembered):
    """The witness of a vault, beside the mount that may be writing it. Close it."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._marks = reading.folder / MARKS
        self._marks_key = b""
        super().__init__(reading, self._marks_with)

    @classmethod
    def open(cls, folder: Path, vault_id: bytes, keyring: KeyringLike, *, in_use: bool) -> WitnessView | None:
        """The witness in its folder (`witness.folder_of`); None if there is none. Raises Unavailable."""
        reading = Reading.open(folder, PURPOSE, vault_id, keyring, in_use=in_use)
        if reading is None:
            return None
        try:
            return cls(reading)
        except (OSError, ValueDamaged, struct.error, lmdb.Error) as error:
            reading.close()
            raise Unavailable(f"The rollback witness cannot be read ({type(error).__name__}).") from None

    def _marks_with(self, key: bytes) -> dict[bytes, int] | None:
        self._marks_key = key
        # Those of a session that goes on say what is changing, not what was when one was killed.
        return {} if self._reading.in_use else read_marks(self._marks, key)

    def is_changing(self, directory_id: bytes) -> bool:
        """Whether the mount is changing names in a directory: what is recorded of them may be out of date."""
        marks = read_marks(self._marks, self._marks_key)
        return marks is None or EVERYWHERE in marks or self.prefix(directory_id) in marks

    def reload(self) -> None:
        """What is recorded of sessions by now."""
        self._reading.renew()
        self.state = self._load_state()

    def renew(self) -> None:
        """Let the next read show what is recorded by then."""
        self._reading.renew()

    def close(self) -> None:
        """Close the files."""
        self._reading.close()


def decode(value: bytes, named: bool = True) -> Held:
    object_id, generation, number, flags = RECORD.unpack_from(value)
    if not named:
        return Held(object_id, generation, bool(flags & IS_DIRECTORY), b"", number)
    name = value[RECORD.size :]
    lname = name if flags & AS_IT_IS else pack_text(name)
    return Held(object_id, generation, bool(flags & IS_DIRECTORY), lname, number)

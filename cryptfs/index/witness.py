"""The rollback witness: which object, of which generation, was durable under which name.

Ciphertext cannot tell whether it is what was there last: an older version of a file, or another file of
the vault under its name, is authentic. This host remembers, per name, the object's id and the generation of
its header, and every session that ever wrote to the vault as far as it saw them. It is the one thing on the
host that cannot be made again from the vault.

Only lower bounds are kept: what was durable in the vault when it was recorded. What is there later may be
newer, never older.

Records by the first byte of their keys, which are keyed hashes; values are sealed by the environment:

* `r` ‖ hash of the directory's id (10) ‖ hash of it and the name (14): object id (16) ‖ u64 generation ‖ u32
  number of the host's session that confirmed it ‖ u8 (1: a directory, 2: the name as it stands) ‖ the name's
  ciphertext (without 2: decoded);
* `s` ‖ hash of a session that wrote to the vault (16): u32 number of the host's session at that time;
* `m` ‖ hash of a directory's id (10), zeros for the whole vault: u32 number of the host's session that was
  killed while names were changing there;
* `S`: u32 number of the host's last session ‖ u8 (1: it ended in order, 2: the vault knows of it) ‖ u64 that
  session ‖ u64 the one before ‖ u32 number of the host's session after which another computer wrote;
* `P`: the folder of the vault.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import lmdb

from cryptfs.index.environment import Damaged, Environment, Unavailable, ValueDamaged, discard
from cryptfs.index.marks import EVERYWHERE, PREFIX_SIZE, Marks
from cryptfs.vault.diskio import fsync_path
from cryptfs.vault.header import KeyringLike
from cryptfs.vault.names import is_long, pack_text, unpack_text

log = logging.getLogger(__name__)

PURPOSE = "witness"
_MARKS = "marks"
_SEAL = "seal"

_RECORD = struct.Struct("<16sQIB")
_DIRECTORY, _AS_IT_IS = 1, 2
_NUMBER = struct.Struct("<I")
_STATE = struct.Struct("<IBQQI")
_CLEAN, _CONFIRMED = 1, 2
_NAME_SIZE = 14
_KNOWN_DIRECTORIES = 1024
_OLD_MARKS = 1000
"""With more marks than this left by sessions that were killed, the whole vault is marked."""


class KeysTooOld(Unavailable):
    """The witness is sealed under an epoch that the vault's keyring does not have yet."""


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


class WitnessStore:
    """The witness of one vault. Reads may come from any thread, one at a time; writes likewise."""

    def __init__(self, environment: Environment) -> None:
        self._env = environment
        key = environment.hashed(32, b"witness names")
        self._directory_hash = hashlib.blake2b(key=key, person=b"directories", digest_size=PREFIX_SIZE)
        self._name_hash = hashlib.blake2b(key=key, person=b"names", digest_size=_NAME_SIZE)
        self._directories: dict[bytes, tuple[bytes, hashlib.blake2b]] = {}
        self.marks = Marks(environment.folder / _MARKS, environment.hashed(32, b"witness marks"))
        self.state = self._load_state()
        self._left = {key[1:]: _NUMBER.unpack(value)[0] for key, value in environment.scan(b"m")}
        """Marks of sessions that were killed."""
        if self.marks.damaged:
            self._left[EVERYWHERE] = self.state.number
        for prefix, number in self.marks.found.items():
            self._left[prefix] = max(number, self._left.get(prefix, 0))
        self._everywhere = self._left.get(EVERYWHERE, 0)

    @classmethod
    def open(cls, place: Path, vault: Path, vault_id: bytes, keyring: KeyringLike) -> WitnessStore:
        """Open the witness of the vault in a folder; a new one if there is none, or it was damaged.

        A copy of the vault in another folder has a witness of its own; that of a vault that was moved goes
        with it. Raises KeysTooOld if it is sealed under a key that comes after those of the vault,
        Unavailable where there can be none now.
        """
        folder = folder_of(place, vault)
        fresh = not folder.exists()
        if fresh:
            moved = _moved(place, vault_id, keyring)
            try:
                if moved is not None:
                    os.rename(moved, folder)
                    fresh = False
                folder.mkdir(mode=0o700, exist_ok=True)
                fsync_path(str(place))
            except OSError as error:
                raise Unavailable(f"The folder {folder} cannot be made: {error.strerror}.") from None
        _refuse_old_keys(folder, keyring)
        try:
            environment = Environment.open(folder, PURPOSE, vault_id, keyring, durable=True)
        except Damaged as error:
            log.error(
                "the rollback witness begins anew, and cannot tell whether what is there now is older than "
                "it was: %s",
                error,
            )
            discard(folder, PURPOSE)
            environment = Environment.open(folder, PURPOSE, vault_id, keyring, durable=True)
        if fresh:
            log.info("the rollback witness begins: it knows what is in the vault from now on")
        try:
            if environment.get(b"P") != _path_of(vault):
                environment.write([(b"P", _path_of(vault))])
        except (Unavailable, ValueDamaged, lmdb.Error):
            environment.close()
            raise Unavailable(f"The rollback witness in {folder} cannot be used.") from None
        try:
            return cls(environment)
        except (OSError, ValueDamaged, struct.error, lmdb.Error) as error:
            environment.close()
            raise Unavailable(f"The rollback witness cannot be used: {error}.") from None
        except BaseException:
            environment.close()
            raise

    # -- keys ------------------------------------------------------------------------------------

    def prefix(self, directory_id: bytes) -> bytes:
        """The hash of a directory's id."""
        return self._directory(directory_id)[0]

    def key(self, directory_id: bytes, lname: bytes) -> bytes:
        """The key of a name, given as ciphertext, in a directory."""
        prefix, base = self._directory(directory_id)
        state = base.copy()
        state.update(lname)
        return b"r" + prefix + state.digest()

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

    def get(self, key: bytes) -> Held | None:
        """The record of a name. A damaged one counts as none. Raises Unavailable."""
        try:
            value = self._env.get(key)
        except ValueDamaged:
            log.error("a record of the rollback witness is damaged and counts for nothing")
            return None
        except lmdb.Error as error:
            raise Unavailable(f"LMDB says {type(error).__name__}.") from None
        return None if value is None else _decode(value)

    def below(self, directory_id: bytes) -> Iterator[tuple[bytes, Held]]:
        """All records of names in a directory. Raises Unavailable."""
        prefix, after = b"r" + self.prefix(directory_id), b""
        while True:
            try:
                part = self._env.scan(prefix, 1000, after)
            except (ValueDamaged, lmdb.Error) as error:
                raise Unavailable(f"Its records are damaged ({type(error).__name__}).") from None
            for key, value in part:
                yield key, _decode(value)
            if len(part) < 1000:
                return
            after = part[-1][0]

    def count(self) -> int:
        """How many names are recorded, about: its own few records are counted as well."""
        return self._env.count()

    def commit(self, records: Iterable[tuple[bytes, Held | None]], sessions: Iterable[int] = ()) -> None:
        """Held durably what was confirmed in this session; None forgets a name. Raises Unavailable.

        `sessions` are some that objects say they are of: a vault that ended in one of them is an old one.
        """
        number = self.state.number
        items: list[tuple[bytes, bytes | None]] = [
            (key, None if record is None else _encode(record, number)) for key, record in records
        ]
        items += [(self._session_key(session), _NUMBER.pack(number)) for session in sessions]
        self._env.write(items)

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

    # -- sessions --------------------------------------------------------------------------------

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
        if self._env.get(self._session_key(found.session)) is not None:
            return [
                "the vault as a whole is older than this computer last saw it: files that changed since are "
                "refused; if it was restored on purpose, cryptfs accept-restore accepts it"
            ]
        self.state = state._replace(others=state.number)
        log.info("another computer has written to this vault since it was last used here")
        return []

    def begin(self, found: Found, session: int) -> None:
        """A session of this host is about to write. Durable. Raises Unavailable, OSError."""
        before = found.session or 0
        self.state = State(
            self.state.number + 1, False, False, session, before, self.state.others
        )  # `look_at` has set others
        number = _NUMBER.pack(self.state.number)
        items: list[tuple[bytes, bytes | None]] = [
            (self._session_key(session), number),
            (self._session_key(before), number),
        ]
        if len(self._left) > _OLD_MARKS:
            items += [(b"m" + prefix, None) for prefix in self._left]
            self._left = {EVERYWHERE: max(self._left.values())}
            self._everywhere = self._left[EVERYWHERE]
        items += [(b"m" + prefix, _NUMBER.pack(of)) for prefix, of in self._left.items()]
        self._env.write([*items, self._state_item()])
        self.marks.adopted()

    def confirm(self) -> None:
        """The vault has recorded the session that began."""
        self.state = self.state._replace(confirmed=True)
        self._env.write([self._state_item()])

    def end(self) -> None:
        """The session ended: everything is durable in the vault and recorded here."""
        self.state = self.state._replace(clean=True)
        self._env.write([self._state_item()])
        self.marks.remove(1 << 62)

    def forget_doubts(self) -> None:
        """All of the vault was looked at and confirmed: no other object is to be expected anywhere."""
        self.state = self.state._replace(others=0)
        self._env.write([(b"m" + prefix, None) for prefix in self._left] + [self._state_item()])
        self._left, self._everywhere = {}, 0

    def _session_key(self, session: int) -> bytes:
        return b"s" + self._env.hashed(16, b"session", session.to_bytes(8, "little"))

    def _state_item(self) -> tuple[bytes, bytes]:
        state = self.state
        flags = (_CLEAN if state.clean else 0) | (_CONFIRMED if state.confirmed else 0)
        return b"S", _STATE.pack(state.number, flags, state.session, state.before, state.others)

    def _load_state(self) -> State:
        value = self._env.get(b"S")
        if value is None:
            return State()
        number, flags, session, before, others = _STATE.unpack(value)
        return State(number, bool(flags & _CLEAN), bool(flags & _CONFIRMED), session, before, others)

    def use_keyring(self, keyring: KeyringLike) -> None:
        """Seal it under the current epoch of another keyring, durably. Raises Unavailable."""
        self._env.use_keyring(keyring)

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the files."""
        self.marks.close()
        self._env.close()

    def abandon(self) -> None:
        """Close, and have the next session begin anew: what is recorded may be wrong from now on."""
        self.close()
        (self._env.folder / _SEAL).unlink(missing_ok=True)


def folder_of(place: Path, vault: Path) -> Path:
    """Where the witness of the vault in a folder is, below this host's place for the vault."""
    return place / ("at-" + hashlib.blake2b(_path_of(vault), digest_size=8).hexdigest())


def begin_anew(place: Path, vault: Path) -> None:
    """Forget everything. Raises Unavailable if it is in use, or the disk refuses."""
    discard(folder_of(place, vault), PURPOSE)


def _path_of(vault: Path) -> bytes:
    return os.fsencode(os.path.realpath(vault))


def _moved(place: Path, vault_id: bytes, keyring: KeyringLike) -> Path | None:
    """The folder of the witness of this vault where it was before it was moved; None if it was not."""
    for folder in sorted(place.glob("at-*")):
        try:
            environment = Environment.open(folder, PURPOSE, vault_id, keyring, durable=True)
        except Unavailable:
            continue  # in use, so it is that of another copy; or damaged
        try:
            path = environment.get(b"P")
        except (Unavailable, ValueDamaged, lmdb.Error):
            path = None
        finally:
            environment.close()
        if path and not os.path.isdir(path + b"/tree"):
            return folder
    return None


def _refuse_old_keys(folder: Path, keyring: KeyringLike) -> None:
    try:
        with open(folder / PURPOSE / _SEAL, "rb") as file:
            head = file.read(8)
    except OSError:
        return
    if len(head) == 8 and int.from_bytes(head[4:], "little") > keyring.current.number:
        raise KeysTooOld(
            "The rollback witness is sealed under a newer key than the vault has: cryptfs.json is older than "
            "this computer last saw it. If it was restored on purpose, cryptfs accept-restore accepts it."
        )


def _encode(record: Held, number: int) -> bytes:
    flags = _DIRECTORY if record.is_directory else 0
    if is_long(record.lname):
        flags |= _AS_IT_IS
        name = record.lname
    else:
        name = unpack_text(record.lname)
    return _RECORD.pack(record.object_id, record.generation, number, flags) + name


def _decode(value: bytes) -> Held:
    object_id, generation, number, flags = _RECORD.unpack_from(value)
    name = value[_RECORD.size :]
    lname = name if flags & _AS_IT_IS else pack_text(name)
    return Held(object_id, generation, bool(flags & _DIRECTORY), lname, number)

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
from collections.abc import Iterable
from pathlib import Path

import lmdb

from cryptfs.index.environment import Damaged, Environment, Unavailable, ValueDamaged, discard
from cryptfs.index.marks import EVERYWHERE, Marks
from cryptfs.index.remembered import (
    AS_IT_IS,
    CLEAN,
    CONFIRMED,
    IS_DIRECTORY,
    MARKS,
    NUMBER,
    PURPOSE,
    RECORD,
    STATE,
    Found,
    Held,
    Remembered,
    State,
)
from cryptfs.vault.diskio import fsync_path
from cryptfs.vault.header import KeyringLike
from cryptfs.vault.names import is_long, unpack_text

__all__ = ["PURPOSE", "Found", "Held", "KeysTooOld", "WitnessStore", "begin_anew", "folder_of"]

log = logging.getLogger(__name__)

_SEAL = "seal"
_OLD_MARKS = 1000
"""With more marks than this left by sessions that were killed, the whole vault is marked."""


class KeysTooOld(Unavailable):
    """The witness is sealed under an epoch that the vault's keyring does not have yet."""


class WitnessStore(Remembered):
    """The witness of one vault. Reads may come from any thread, one at a time; writes likewise."""

    def __init__(self, environment: Environment) -> None:
        self._env = environment
        super().__init__(environment, self._open_marks)

    def _open_marks(self, key: bytes) -> dict[bytes, int] | None:
        self.marks = Marks(self._env.folder / MARKS, key)
        return None if self.marks.damaged else self.marks.found

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

    def keys_below(self, directory_id: bytes) -> list[bytes]:
        """The keys of all records of names in a directory. Raises Unavailable."""
        try:
            return self._env.keys(b"r" + self.prefix(directory_id))
        except lmdb.Error as error:
            raise Unavailable(f"LMDB says {type(error).__name__}.") from None

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
        items += [(self._session_key(session), NUMBER.pack(number)) for session in sessions]
        self._env.write(items)

    # -- sessions --------------------------------------------------------------------------------

    def begin(self, found: Found, session: int) -> None:
        """A session of this host is about to write. Durable. Raises Unavailable, OSError."""
        before = found.session or 0
        self.state = State(
            self.state.number + 1, False, False, session, before, self.state.others
        )  # `look_at` has set others
        number = NUMBER.pack(self.state.number)
        items: list[tuple[bytes, bytes | None]] = [
            (self._session_key(session), number),
            (self._session_key(before), number),
        ]
        if len(self._left) > _OLD_MARKS:
            items += [(b"m" + prefix, None) for prefix in self._left]
            self._left = {EVERYWHERE: max(self._left.values())}
            self._everywhere = self._left[EVERYWHERE]
        items += [(b"m" + prefix, NUMBER.pack(of)) for prefix, of in self._left.items()]
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

    def _state_item(self) -> tuple[bytes, bytes]:
        state = self.state
        flags = (CLEAN if state.clean else 0) | (CONFIRMED if state.confirmed else 0)
        return b"S", STATE.pack(state.number, flags, state.session, state.before, state.others)

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
    if is_of_newer_keys(folder, keyring):
        raise KeysTooOld(
            "The rollback witness is sealed under a newer key than the vault has: cryptfs.json is older than "
            "this computer last saw it. If it was restored on purpose, cryptfs accept-restore accepts it."
        )


def is_of_newer_keys(folder: Path, keyring: KeyringLike) -> bool:
    """Whether the witness in a folder is sealed under an epoch that the vault's keyring does not have yet."""
    try:
        with open(folder / PURPOSE / _SEAL, "rb") as file:
            head = file.read(8)
    except OSError:
        return False
    return len(head) == 8 and int.from_bytes(head[4:], "little") > keyring.current.number


def _encode(record: Held, number: int) -> bytes:
    flags = IS_DIRECTORY if record.is_directory else 0
    name = None if is_long(record.lname) else _unpacked(record.lname)
    if name is None:
        flags |= AS_IT_IS
        name = record.lname
    return RECORD.pack(record.object_id, record.generation, number, flags) + name


def _unpacked(lname: bytes) -> bytes | None:
    """What a name's text stands for; None for one that nobody wrote so, but somebody may have put there."""
    try:
        return unpack_text(lname)
    except ValueError:
        return None

"""How far a re-encryption of the whole vault has come (docs/format.md section 13).

`journal/reencryption` is a small sealed record, replaced as a whole. The marks that say what is still to be
done are the names themselves (an entry under the old key of its directory); the record says which of
three phases it is, so that a directory without `@old` is not taken for one that was not begun, and it names
the file of which several names are being replaced.
"""

from __future__ import annotations

import errno
import os
import re
from enum import StrEnum

import msgspec

from cryptfs.crypto.aead import InvalidTag, open_sealed, seal
from cryptfs.crypto.derive import expand
from cryptfs.errors import IntegrityError
from cryptfs.vault.diskio import NotRegular, open_regular, replace_file
from cryptfs.vault.header import KeyringLike
from cryptfs.vault.names import OLD_HEADER

RECORD_NAME = "reencryption"
_MAGIC = b"CFR1"
_LABEL = b"cryptfs v1 reencryption"
_ID = re.compile(r"[0-9a-f]{32}")
_MAX_FILE = 1 << 26


class Phase(StrEnum):
    """What the record says is under way."""

    NONE = "none"
    """There is no record: no re-encryption was begun."""
    SWITCHING = "switching"
    """Objects get new keys; what stands under an old name is still to be done."""
    CLEANING = "cleaning"
    """All objects have new keys; the old headers of directories are removed."""
    DONE = "done"
    """Nothing is left but to change the configuration."""


class Links(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of which every name is being replaced by a copy under a new key.

    Object ids as 32 hexadecimal digits; `copy` and `names` are paths relative to the vault and to `tree/`.
    """

    old: str
    new: str
    copy: str
    names: list[str]


class _Record(msgspec.Struct, forbid_unknown_fields=True):
    phase: str
    links: Links | None


class Reencryption:
    """The record of one vault. Not safe for several threads at once."""

    def __init__(
        self, directory: str, vault_id: bytes, keyring: KeyringLike, file_mode: int, tree_fd: int
    ) -> None:
        """Reads it. IntegrityError if it does not authenticate."""
        self._directory = directory
        self._vault_id = vault_id
        self._keyring = keyring
        self._mode = file_mode
        self._epoch = 0
        self.phase = Phase.NONE
        self.links: Links | None = None
        self._load()
        if self.phase is Phase.NONE and _has_old_header(tree_fd):
            # The record was lost, by a backup that left it out. The root keeps `@old` to the very end, so
            # something is still to be done, and to do more of it than need be does no harm.
            self.phase = Phase.SWITCHING

    @property
    def active(self) -> bool:
        """Whether directories may have two keys."""
        return self.phase is Phase.SWITCHING or self.phase is Phase.CLEANING

    def _load(self) -> None:
        try:
            with open(open_regular(f"{self._directory}/{RECORD_NAME}"), "rb") as file:
                data = file.read(_MAX_FILE)
        except FileNotFoundError:
            return
        except NotRegular:
            data = b""
        self._epoch = int.from_bytes(data[4:8], "little")
        epoch = self._keyring.get(self._epoch)
        if data[:4] == _MAGIC and epoch is None:
            return  # of one that ended: its epoch has gone with the next rotation
        try:
            if data[:4] != _MAGIC or epoch is None:
                raise InvalidTag
            plain = open_sealed(_key(epoch.key), data[8:], _LABEL + self._vault_id + data[4:8])
            record = msgspec.json.decode(plain, type=_Record)
            links = record.links
            if links is not None and not (_ID.fullmatch(links.old) and _ID.fullmatch(links.new)):
                raise InvalidTag
            self.phase, self.links = Phase(record.phase), links
        except (InvalidTag, msgspec.MsgspecError, ValueError, RecursionError):
            raise IntegrityError(
                "journal/reencryption is damaged or was tampered with: it does not authenticate; restore it "
                "from a backup, or move it away to mount without it"
            ) from None

    def use(self, keyring: KeyringLike) -> None:
        """Go on with another keyring."""
        self._keyring = keyring

    def begin(self) -> Phase:
        """Begin the re-encryption of the current epoch, durably, or go on with it; how far it is."""
        current = self._keyring.current.number
        if self.phase is Phase.NONE or (self._epoch != current and not self.active):
            self.phase, self.links = Phase.SWITCHING, None
        if self._epoch != current:
            self._save()
        return self.phase

    def enter(self, phase: Phase) -> None:
        """The next phase begins, durably."""
        self.phase = phase
        self._save()

    def replacing(self, links: Links | None) -> None:
        """Record durably which file's names are about to be replaced, or that they all were."""
        before, self.links = self.links, links
        try:
            self._save()
        except BaseException:
            self.links = before
            raise

    def end(self) -> None:
        """The configuration knows that it ended: the record goes."""
        if self.phase is not Phase.DONE:
            return
        try:
            os.unlink(f"{self._directory}/{RECORD_NAME}")
        except FileNotFoundError:
            pass
        self.phase = Phase.NONE

    def _save(self) -> None:
        epoch = self._keyring.current
        number = epoch.number.to_bytes(4, "little")
        links = None if self.links is None else msgspec.to_builtins(self.links)
        plain = msgspec.json.encode({"links": links, "phase": self.phase.value}, order="sorted")
        sealed = seal(_key(epoch.key), plain, _LABEL + self._vault_id + number)
        if len(sealed) > _MAX_FILE - 8:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            replace_file(directory, RECORD_NAME, _MAGIC + number + sealed, self._mode)
        finally:
            os.close(directory)
        self._epoch = epoch.number


def _key(epoch_key: bytes) -> bytes:
    return expand(epoch_key, "cryptfs v1 reencryption", 32)


def _has_old_header(tree_fd: int) -> bool:
    try:
        os.stat(OLD_HEADER, dir_fd=tree_fd, follow_symlinks=False)
    except OSError:
        return False
    return True

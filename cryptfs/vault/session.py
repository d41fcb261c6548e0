"""Mount sessions and how the last one ended (docs/format.md section 9)."""

from __future__ import annotations

import os
import re
import threading
from typing import Any

import msgspec

from cryptfs.crypto.aead import InvalidTag, open_sealed, seal
from cryptfs.crypto.derive import expand
from cryptfs.errors import IntegrityError
from cryptfs.vault.diskio import NotRegular, open_regular, replace_file
from cryptfs.vault.header import Header, KeyringLike

STATE_NAME = "state"
_MAGIC = b"CFS1"
_LABEL = b"cryptfs v1 state"
_HEX = re.compile(r"[0-9a-f]{16}")


class _Unclean(msgspec.Struct, forbid_unknown_fields=True):
    session: str
    phase: int


class _State(msgspec.Struct, forbid_unknown_fields=True):
    session: str
    phase: int
    open: bool
    unclean: list[_Unclean]


class SessionState:
    """The sealed record of which session is, or was, writing.

    `unclean` are sessions that did not end with a sync, each with the last of its phases that was
    synced whole: files begun in a later phase may have lost something that was never synced.
    """

    def __init__(self, directory: str, vault_id: bytes, keyring: KeyringLike, file_mode: int) -> None:
        self._directory = directory
        self._vault_id = vault_id
        self._keyring = keyring
        self._mode = file_mode
        self.session = int.from_bytes(os.urandom(8), "little") or 1
        self.phase = 0
        """The last phase of this session that was synced whole."""
        self.unclean: dict[int, int] = {}
        self.found_open = False
        self.last: int | None = None
        """The session that wrote last, None if there was none."""
        self._begun = False
        self._lock = threading.Lock()
        self._load()

    def _load(self) -> None:
        try:
            with open(open_regular(f"{self._directory}/{STATE_NAME}"), "rb") as file:
                data = file.read(1 << 20)
        except FileNotFoundError:
            return
        except NotRegular:
            data = b""
        state = self._decode(data)
        self.unclean = {int(item.session, 16): item.phase for item in state.unclean}
        self.last = int(state.session, 16)
        if state.open:
            self.found_open = True
            self.unclean[int(state.session, 16)] = state.phase

    def _decode(self, data: bytes) -> _State:
        epoch = self._keyring.get(int.from_bytes(data[4:8], "little")) if data[:4] == _MAGIC else None
        try:
            if epoch is None:
                raise InvalidTag
            associated = _LABEL + self._vault_id + data[4:8]
            state = msgspec.json.decode(open_sealed(_key(epoch.key), data[8:], associated), type=_State)
            sessions = [state.session, *(item.session for item in state.unclean)]
            if not all(_HEX.fullmatch(text) for text in sessions):
                raise InvalidTag
        except (InvalidTag, msgspec.MsgspecError, ValueError, RecursionError):
            raise IntegrityError(
                "journal/state is damaged or was tampered with: it does not authenticate; "
                "restore it from a backup, or move it away to mount without the record of the last stop"
            ) from None
        return state

    def use(self, keyring: KeyringLike) -> None:
        """Go on with another keyring; the record is rewritten under its current epoch."""
        with self._lock:
            self._keyring = keyring
        if self._begun:
            self._write(True)

    def _write(self, is_open: bool) -> None:
        with self._lock:
            self._begun = is_open
            self._replace(is_open)

    def _replace(self, is_open: bool) -> None:
        epoch = self._keyring.current
        state: dict[str, Any] = {
            "open": is_open,
            "phase": self.phase,
            "session": f"{self.session:016x}",
            "unclean": [
                {"phase": phase, "session": f"{number:016x}"}
                for number, phase in sorted(self.unclean.items())
            ],
        }
        number = epoch.number.to_bytes(4, "little")
        # Sorted keys and msgspec's compact output are the canonical form of section 3.
        sealed = seal(
            _key(epoch.key), msgspec.json.encode(state, order="sorted"), _LABEL + self._vault_id + number
        )
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            replace_file(directory, STATE_NAME, _MAGIC + number + sealed, self._mode)
        finally:
            os.close(directory)

    def begin(self) -> None:
        """Record durably that this session is writing; before the first change."""
        self._write(True)

    def completed(self, phase: int) -> None:
        """Record durably that everything begun in this session up to a phase was synced."""
        if phase > self.phase:
            self.phase = phase
            self._write(True)

    def suspects(self, header: Header) -> bool:
        """Whether content with this header may have been cut before it was ever synced."""
        phase = self.unclean.get(header.session)
        return phase is not None and header.phase > phase

    def end(self) -> None:
        """Record durably that everything was synced; after the last change."""
        self._write(False)


def _key(epoch_key: bytes) -> bytes:
    return expand(epoch_key, "cryptfs v1 state", 32)

"""Holding the ciphertext still while a copy of it is made.

On disk: before the freeze, a vault in use. Then, with nobody changing anything, everything is synced,
the journal is emptied and removed, and last the session state says that the session ended cleanly: a
copy made now is that of an unmounted vault. At the thaw the session state says, durably, that the
session goes on, before the first change is let in. A process that dies in between leaves a vault that
was unmounted.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from cryptfs.fs.gate import Gate
from cryptfs.vault.diskio import syncfs
from cryptfs.vault.vault import Vault

log = logging.getLogger(__name__)

_ATTEMPTS = 3


class Freezer:
    """Freezes and thaws one mounted vault; `sync` makes everything durable."""

    def __init__(self, vault: Vault, sync: Callable[[], None]) -> None:
        self.gate = Gate()
        self._vault = vault
        self._sync = sync
        self._lock = threading.Lock()

    @property
    def is_frozen(self) -> bool:
        return self._vault.frozen

    def freeze(self) -> None:
        """Returns when the ciphertext is as after an unmount and nothing changes it any more.

        The caller holds back those who do not pass the gate. OSError if not everything could be
        synced: nothing is frozen then. A vault that is read-only is always still.
        """
        if self._vault.read_only:
            return
        with self._lock:
            if self._vault.frozen:
                return
            self.gate.close()
            try:
                for _ in range(_ATTEMPTS):
                    self._sync()
                    if not self._vault.journal.size:
                        break
                # For those who copy the disk and not the files.
                syncfs(self._vault.tree_fd)
                self._vault.state.end()
            except BaseException:
                self.gate.open()
                raise
            self._vault.frozen = True

    def thaw(self) -> None:
        """Let changes go on. It never fails: a state that cannot be written now is written later."""
        with self._lock:
            if not self._vault.frozen:
                return
            try:
                self._vault.state.begin()
            except OSError as error:
                # The next settled phase writes it again. Until then a power cut would find files that
                # were being written damaged, instead of shortening them.
                log.error("cannot record that the vault is in use again: %s", error.strerror)
            self._vault.frozen = False
            self.gate.open()

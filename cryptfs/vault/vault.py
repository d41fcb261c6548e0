"""One vault, opened with its keyring: the parts of the format, put together."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Self

from cryptfs.errors import NotAVault, StorageError
from cryptfs.vault.dirlog import DirLog
from cryptfs.vault.diskio import make_folder
from cryptfs.vault.header import HeaderCodec, KeyringLike
from cryptfs.vault.journal import Journal
from cryptfs.vault.layout import DIRS, JOURNAL, TREE, XATTR, modes
from cryptfs.vault.lock import take_lock
from cryptfs.vault.reencryption import Reencryption
from cryptfs.vault.session import SessionState
from cryptfs.vault.xattrs import XattrStore

if TYPE_CHECKING:
    from cryptfs.vault.config import Unlocked


class Vault:
    """The ciphertext below `path`, locked for this process unless `read_only`.

    Raises NotAVault if the folders are not there, VaultInUse if another process on this
    machine writes to it, StorageError where the disk refuses.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        vault_id: bytes,
        keyring: KeyringLike,
        *,
        read_only: bool = False,
        backup_group: bool = False,
    ) -> None:
        self.path = Path(path)
        self.vault_id = vault_id
        self.keyring = keyring
        self.read_only = read_only
        self.frozen = False
        """Whether it is held still for a copy."""
        self.modes = modes(backup_group)
        self.codec = HeaderCodec(vault_id, keyring)
        try:
            self.tree_fd = os.open(self.path / TREE, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise StorageError(f"cannot read {self.path}: {error.strerror}") from None
            raise NotAVault(
                f"{self.path} has no folder {TREE}: it is not a vault, or a part of it is missing"
            ) from None
        self._lock_fd = -1
        try:
            if not read_only:
                for name in (DIRS, JOURNAL, XATTR):  # a backup tool may have left empty folders out
                    make_folder(self.path / name, self.modes.directory, exist_ok=True)
                self._lock()
            journal = str(self.path / JOURNAL)
            self.state = SessionState(journal, vault_id, keyring, self.modes.file)
            self.reencryption = Reencryption(journal, vault_id, keyring, self.modes.file, self.tree_fd)
        except OSError as error:
            self.close()
            raise StorageError(f"cannot write to {self.path}: {error.strerror}") from None
        except BaseException:
            self.close()
            raise
        self.session = self.state.session
        self.journal = Journal(journal, self.session, self.codec, self.modes.file)
        self.dirlog = DirLog(str(self.path / DIRS), self.session, self.codec, self.modes.file)
        self.xattrs = XattrStore(str(self.path / XATTR), self.modes.file, self.modes.directory)

    @classmethod
    def of(cls, path: str | os.PathLike[str], unlocked: Unlocked, *, read_only: bool = False) -> Self:
        """The vault whose configuration was unlocked. Raises as the constructor does."""
        return cls(
            path,
            unlocked.vault_id,
            unlocked.keyring,
            read_only=read_only,
            backup_group=unlocked.config.backup_group,
        )

    def _lock(self) -> None:
        self._lock_fd = take_lock(self.path, self.modes.file)

    @property
    def changeable(self) -> bool:
        """Whether what is read may be repaired on the way."""
        return not self.read_only and not self.frozen

    def use_keyring(self, keyring: KeyringLike) -> None:
        """Go on with another keyring: new headers are sealed under its current epoch.

        The caller sees to it that nobody packs a header meanwhile, and that every epoch still needed
        is in it. OSError if `journal/state` cannot be rewritten under the current epoch.
        """
        self.keyring = keyring
        self.codec.use(keyring)
        self.reencryption.use(keyring)
        self.state.use(keyring)

    @property
    def journal_path(self) -> str:
        return str(self.path / JOURNAL)

    def close(self) -> None:
        """Give up the lock and close files; writes nothing."""
        for name in ("journal", "dirlog"):
            if hasattr(self, name):
                getattr(self, name).close()
        for name in ("tree_fd", "_lock_fd"):
            fd = getattr(self, name, -1)
            if fd >= 0:
                os.close(fd)
                setattr(self, name, -1)

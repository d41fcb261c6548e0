"""What all parts of one check share: keys, the snapshot, what was asked for."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptfs.check import snapshot
from cryptfs.check.copies import Copies
from cryptfs.check.host import Host
from cryptfs.check.hostindex import HostIndex
from cryptfs.check.throttle import Throttle
from cryptfs.errors import NotAVault
from cryptfs.vault.header import Header, HeaderCodec
from cryptfs.vault.keyring import Keyring
from cryptfs.vault.layout import TREE, XATTR, modes
from cryptfs.vault.xattrs import XattrStore

LIVE_DELAYS = (0.3, 0.5, 1.0, 2.0, 3.0, 4.0)
"""Seconds between looks at something that seems damaged while the vault is in use."""
IDLE_DELAYS = (0.0, 0.01, 0.1, 0.5)
"""The same where nobody seems to write: a copy or a sync tool may still be at it."""


@dataclass(frozen=True)
class CheckOptions:
    """What is checked, and how fast.

    `since_ns`: content only of files changed at or after this time; `sample`: content only of this share
    (0 to 1) of the files, chosen by `seed`. `from_disk`: what the system holds of a file in memory is
    dropped before it is read. `rate` is in bytes a second.
    """

    since_ns: int | None = None
    sample: float | None = None
    seed: bytes = b""
    from_disk: bool = False
    rate: float | None = None
    jobs: int = 0


@dataclass
class Context:
    """One vault that is being checked. Safe to use from several threads."""

    path: Path
    vault_id: bytes
    keyring: Keyring
    options: CheckOptions = field(default_factory=CheckOptions)
    backup_group: bool = False
    live: bool = False
    """Whether somebody has it mounted, as far as is known."""
    reload_keys: Callable[[], Keyring | None] = lambda: None
    """The keyring as it is on the disk now, if it can still be opened."""
    proves: Callable[[bytes], bool] = lambda text: True
    """Whether a configuration's text is authentic under the keys that opened the vault."""
    host: Host | None = None
    """What this host remembers of the vault, if it is to be compared. Closed with the context."""
    index: HostIndex | None = None
    """Its metadata index, likewise."""

    def __post_init__(self) -> None:
        self.codec = HeaderCodec(self.vault_id, self.keyring)
        self.modes = modes(self.backup_group)
        self.stop = threading.Event()
        self.throttle = Throttle(self.options.rate, sleep=lambda seconds: void(self.stop.wait(seconds)))
        self.xattrs = XattrStore(str(self.path / XATTR), self.modes.file, self.modes.directory)
        self._lock = threading.Lock()
        self._copies: Copies | None = None
        try:
            self.tree_fd = os.open(self.path / TREE, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise NotAVault(
                f"{self.path} has no folder {TREE}: it is not a vault, or a part of it is missing."
            ) from None
        self.snapshot = snapshot.take(self.path, self.vault_id, self.codec, self.keyring)
        self.live = self.live or self.snapshot.is_open

    @property
    def delays(self) -> tuple[float, ...]:
        return LIVE_DELAYS if self.live else IDLE_DELAYS

    def copies(self) -> Copies:
        """The copies of directory headers, read when they are first needed."""
        with self._lock:
            if self._copies is None:
                self._copies = Copies(self.path, self.codec, self.keyring)
            return self._copies

    def forget_copies(self) -> None:
        """Have them read anew."""
        with self._lock:
            self._copies = None

    def renew(self) -> None:
        """Read journal, state and keys anew, before something is looked at again."""
        with self._lock:
            keyring = self.reload_keys()
            if keyring is not None and keyring != self.keyring:
                self.keyring = keyring
                self.codec = HeaderCodec(self.vault_id, keyring)
                self._copies = None
            elif snapshot.mark(self.path) == self.snapshot.mark:
                return
            self.snapshot = snapshot.take(self.path, self.vault_id, self.codec, self.keyring)
            if self.live:
                self._copies = None  # a directory may have been made since

    def pause(self, seconds: float) -> None:
        """Wait, but not when the check is stopped."""
        if seconds:
            self.stop.wait(seconds)

    def suspects(self, header: Header) -> bool:
        return self.snapshot.suspects(header)

    def remembered(self) -> dict[str, str]:
        """What this host remembers and was compared, for reports."""
        return {
            **({} if self.host is None else {"witness": self.host.status}),
            **({} if self.index is None else {"index": self.index.status}),
        }

    def close(self) -> None:
        for one in (self.host, self.index):
            if one is not None:
                one.close()
        if self.tree_fd >= 0:
            os.close(self.tree_fd)
            self.tree_fd = -1


def void(_: object) -> None:
    """For callbacks that return nothing."""

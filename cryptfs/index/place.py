"""Where this host keeps what it remembers of a vault.

root: `/var/lib/cryptfs/VAULT-ID/`; others: `$XDG_STATE_HOME/cryptfs/VAULT-ID/`, or below
`~/.local/state`. `CRYPTFS_STATE_DIR` or an option replace the part before the vault's id.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from cryptfs.errors import StorageError
from cryptfs.vault.lower import file_system_type

OVERRIDE = "CRYPTFS_STATE_DIR"

# LMDB maps its file and coordinates by memory that only this machine shares.
_REMOTE_TYPES = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "ceph",
        "9p",
        "afs",
        "coda",
        "gfs2",
        "ocfs2",
        "lustre",
        "glusterfs",
    }
)
_CACHE_TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# What is in this folder is made again by cryptfs: it need not be backed up.\n"
)


class Unavailable(StorageError):
    """There can be no index here; the message says why. A mount serves on without it."""


def base(chosen: str | os.PathLike[str] | None = None) -> Path:
    """The folder in which each vault has its own; `chosen` by an option."""
    if chosen:
        return Path(os.path.abspath(chosen))
    if override := os.environ.get(OVERRIDE):
        return Path(os.path.abspath(override))
    if os.geteuid() == 0:
        return Path("/var/lib/cryptfs")
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if os.path.isabs(state) else Path.home() / ".local/state") / "cryptfs"


def of_vault(vault_id: bytes, chosen: str | os.PathLike[str] | None = None) -> Path:
    """Where this host's knowledge of a vault is, whether it is there or not."""
    return base(chosen) / vault_id.hex()


def prepare(
    vault_id: bytes,
    chosen: str | os.PathLike[str] | None = None,
    *,
    outside: Iterable[str | os.PathLike[str]] = (),
) -> Path:
    """Make the folder of a vault (mode 0700) and check it; its path.

    `outside` are folders that it must not be in: the vault, the mountpoint. Raises Unavailable: in one
    of these, on a network file system, owned or writable by others, or where the disk refuses.
    """
    path = of_vault(vault_id, chosen)
    real = Path(os.path.realpath(path))
    for folder in outside:
        if real.is_relative_to(os.path.realpath(folder)):
            raise Unavailable(
                f"The state directory {path} is inside {os.fspath(folder)}: choose another one (--state-dir)."
            )
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise Unavailable(f"The state directory {path} is not a folder.")
        if found.st_uid != os.geteuid():
            raise Unavailable(f"The state directory {path} belongs to another user.")
        if found.st_mode & 0o077:
            path.chmod(0o700)
        refuse_remote(path)
        if not os.access(path, os.W_OK | os.X_OK) or os.statvfs(path).f_flag & os.ST_RDONLY:
            raise Unavailable(f"The state directory {path} is read-only.")
    except OSError as error:
        raise Unavailable(f"The state directory {path} cannot be used: {error.strerror}.") from None
    return path


def refuse_remote(path: Path) -> None:
    """Raise Unavailable if the folder is on a file system that LMDB cannot be on."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        kind = file_system_type(fd)
    finally:
        os.close(fd)
    if kind in _REMOTE_TYPES or kind.startswith("fuse"):
        raise Unavailable(
            f"The state directory {path} is on a {kind} file system, where LMDB does not work: "
            "choose one on a local disk (--state-dir)."
        )


def tag_as_cache(folder: Path) -> None:
    """Tell backup programs that the folder need not be backed up (CACHEDIR.TAG)."""
    with contextlib.suppress(FileExistsError), open(folder / "CACHEDIR.TAG", "x", encoding="ascii") as tag:
        tag.write(_CACHE_TAG)

"""What is mounted: a record and a control socket for each live mount, in a directory of this user.

root: `/run/cryptfs`; others: `$XDG_RUNTIME_DIR/cryptfs`, or `~/.cache/cryptfs/run` without a session.
`CRYPTFS_RUNTIME_DIR` overrides both. A mount has two files there, named by a hash of its mountpoint:
`HASH.json`, a record of what was mounted, and `HASH.sock`, the control socket. A record whose daemon
was killed stays until the next mount, unmount or status removes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path

import msgspec

from cryptfs.errors import CryptfsError

_LONGEST_SOCKET_PATH = 107


class Record(msgspec.Struct, frozen=True):
    """A mount, as its daemon wrote it down."""

    mountpoint: str
    vault: str
    vault_id: str
    pid: int
    pid_started: int  # field 22 of /proc/PID/stat: tells two lives of a process number apart
    since: str  # RFC 3339, UTC
    read_only: bool
    cipher: str
    slot: str


def directory() -> Path:
    """The runtime directory, made if need be. Raises CryptfsError if it is not ours alone."""
    path = _place()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CryptfsError(f"The runtime directory {path} cannot be made: {error.strerror}.") from None
    found = path.lstat()
    if found.st_uid != os.geteuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o022:
        raise CryptfsError(f"The runtime directory {path} must belong to you and be writable by nobody else.")
    return path


def _place() -> Path:
    if override := os.environ.get("CRYPTFS_RUNTIME_DIR"):
        return Path(override)
    if os.geteuid() == 0:
        return Path("/run/cryptfs")
    if session := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(session) / "cryptfs"
    return Path.home() / ".cache/cryptfs/run"


def _file(mountpoint: str, suffix: str) -> Path:
    return directory() / (hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:24] + suffix)


def socket_path(mountpoint: str) -> Path:
    """Where the daemon of this mountpoint listens. Raises CryptfsError if no socket can be there."""
    path = _file(mountpoint, ".sock")
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        raise CryptfsError(f"The path of the runtime directory {path.parent} is too long for a socket.")
    return path


def write(record: Record) -> None:
    path = _file(record.mountpoint, ".json")
    temporary = path.with_suffix(".new")
    temporary.write_bytes(msgspec.json.encode(record))
    temporary.replace(path)


def find(mountpoint: str) -> Record | None:
    """The record of this mountpoint, whether its daemon lives or not."""
    return _read(_file(mountpoint, ".json"))


def records() -> list[Record]:
    """All records, by mountpoint."""
    found = [record for path in directory().glob("*.json") if (record := _read(path)) is not None]
    return sorted(found, key=lambda record: record.mountpoint)


def _read(path: Path) -> Record | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except (FileNotFoundError, msgspec.DecodeError, ValueError, RecursionError):
        return None


def remove(mountpoint: str) -> None:
    for suffix in (".json", ".sock"):
        with contextlib.suppress(FileNotFoundError):
            _file(mountpoint, suffix).unlink()


def is_alive(record: Record) -> bool:
    """Whether the very process that wrote the record still runs."""
    return process_started(record.pid) == record.pid_started


def process_started(pid: int) -> int | None:
    """When a process began, in clock ticks since the boot; None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == b"Z" else int(fields[19])

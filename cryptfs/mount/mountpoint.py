"""Mountpoints: whether one can be used, what is mounted there, taking it away, and who holds it open."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import NamedTuple

from cryptfs.errors import FuseUnavailable, MountpointUnusable
from cryptfs.mount import libc

FSTYPE = "fuse.cryptfs"
# A daemon that died leaves its mount behind, and every access ends with one of these.
_DEAD = (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)
_FUSE = Path("/dev/fuse")
_FUSE_CONF = Path("/etc/fuse.conf")


class Mount(NamedTuple):
    """A line of /proc/self/mountinfo."""

    device: str  # major:minor
    mountpoint: str
    fstype: str
    source: str


def mounts() -> list[Mount]:
    """All mounts that this process sees, the topmost of a place last."""
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        before, _, after = line.partition(b" - ")
        fields, tail = before.split(), after.split()
        found.append(Mount(fields[2].decode(), _unescape(fields[4]), tail[0].decode(), _unescape(tail[1])))
    return found


def _unescape(field: bytes) -> str:
    plain = re.sub(rb"\\([0-3][0-7]{2})", lambda match: bytes([int(match[1], 8)]), field)
    return os.fsdecode(plain)


def mounted_at(path: str) -> Mount | None:
    """What is mounted at exactly this place, topmost."""
    return next((mount for mount in reversed(mounts()) if mount.mountpoint == path), None)


def is_dead(path: str) -> bool:
    """Whether a cryptfs mount is left there without its daemon."""
    mount = mounted_at(path)
    if mount is None or mount.fstype != FSTYPE:
        return False
    try:
        # Not stat(2): the kernel still answers that from its cache.
        os.statvfs(path)
    except OSError as error:
        return error.errno in _DEAD
    return False


def check_fuse(*, allow_other: bool) -> None:
    """Raises FuseUnavailable if this user cannot mount at all, or not with allow_other."""
    if not _FUSE.exists():
        raise FuseUnavailable(
            "There is no /dev/fuse: load the kernel module (modprobe fuse), or give the container the device."
        )
    if not os.access(_FUSE, os.R_OK | os.W_OK):
        raise FuseUnavailable("This user may not open /dev/fuse: correct its permissions (chmod 666).")
    if os.geteuid() == 0:
        return
    if shutil.which("fusermount3") is None:
        raise FuseUnavailable("There is no fusermount3: install the package fuse3, or mount as root.")
    if allow_other and not _user_allow_other():
        raise FuseUnavailable(
            f"Other users may be let in only if {_FUSE_CONF} has the line user_allow_other: "
            "have the administrator add it, or mount as root."
        )


def _user_allow_other() -> bool:
    try:
        lines = _FUSE_CONF.read_text().splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def prepare(path: Path, vault: Path) -> str:
    """The real path of a mountpoint that can be used; a dead mount there is taken away.

    Raises MountpointUnusable.
    """
    place = os.path.realpath(path)
    mount = mounted_at(place)
    if mount is not None and mount.fstype == FSTYPE:
        if not is_dead(place):
            raise MountpointUnusable(f"A vault is already mounted at {place}: unmount it first.")
        remove_dead(place)
    try:
        found = os.stat(place)
    except FileNotFoundError:
        raise MountpointUnusable(f"The mountpoint {place} does not exist: make it (mkdir).") from None
    except OSError as error:
        raise MountpointUnusable(f"The mountpoint {place} cannot be used: {error.strerror}.") from None
    if not stat.S_ISDIR(found.st_mode):
        raise MountpointUnusable(f"The mountpoint {place} is not a folder.")
    if _is_within(place, str(vault)):
        raise MountpointUnusable(f"The mountpoint {place} is inside the vault: choose one elsewhere.")
    if _is_within(os.path.realpath(vault), place):
        raise MountpointUnusable(
            f"The vault is inside the mountpoint {place}, which would hide it: choose another mountpoint."
        )
    try:
        empty = next(os.scandir(place), None) is None
    except OSError as error:
        raise MountpointUnusable(f"The mountpoint {place} cannot be read: {error.strerror}.") from None
    if not empty:
        raise MountpointUnusable(
            f"The mountpoint {place} is not empty: the mount would hide that. Choose an empty folder."
        )
    if os.geteuid() != 0 and not os.access(place, os.W_OK):
        raise MountpointUnusable(f"The mountpoint {place} is not yours to write: choose your own folder.")
    return place


def _is_within(path: str, folder: str) -> bool:
    """Whether `path` is `folder` or below it, also by another name (a bind mount)."""
    outer = os.stat(folder)
    while True:
        if os.path.samestat(os.stat(path), outer):
            return True
        if path == "/":
            return False
        path = os.path.dirname(path)


def unmount(path: str, *, lazy: bool = False) -> None:
    """Unmount what is topmost at `path`. Raises OSError: EBUSY while something is open below it.

    Lazily it disappears from the tree at once and ends when the last file is closed.
    """
    if os.geteuid() == 0:
        libc.umount(path, libc.UMOUNT_NOFOLLOW | (libc.MNT_DETACH if lazy else 0))
        return
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", path]
    try:
        done = subprocess.run(
            command, capture_output=True, check=False, env={"PATH": os.defpath, "LC_ALL": "C"}
        )
    except FileNotFoundError:
        raise FuseUnavailable("There is no fusermount3: install the package fuse3.") from None
    if done.returncode != 0:
        busy = b"busy" in done.stderr
        number = errno.EBUSY if busy else errno.EPERM
        text = done.stderr.decode("utf-8", "replace").strip().replace("\n", "; ")
        raise OSError(number, text or os.strerror(number), path)


def remove_dead(path: str) -> None:
    """Take away the mount of a daemon that is gone. Raises MountpointUnusable if this user may not."""
    try:
        # Nothing can be lost: what was open there answers with errors already.
        unmount(path, lazy=True)
    except OSError as error:
        raise MountpointUnusable(
            f"A dead mount is left at {path} and cannot be removed ({error.strerror}): umount -l it as root."
        ) from None


def holders(path: str) -> list[str]:
    """Who has something open below `path`, as "name (pid)"; of other users' processes only root knows."""
    prefix = path.rstrip("/") + "/"
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            links = [f"/proc/{entry.name}/{link}" for link in ("cwd", "root", "exe")]
            with contextlib.suppress(OSError):
                links += [fd.path for fd in os.scandir(f"/proc/{entry.name}/fd")]
            if any(_leads_below(link, path, prefix) for link in links) or _maps_below(entry.name, prefix):
                name = Path(f"/proc/{entry.name}/comm").read_text().strip()
                found.append(f"{name} ({entry.name})")
    return found


def _leads_below(link: str, path: str, prefix: str) -> bool:
    try:
        target = os.readlink(link)
    except OSError:
        return False
    return target == path or target.startswith(prefix)


def _maps_below(pid: str, prefix: str) -> bool:
    try:
        return any(
            os.fsencode(prefix) in line for line in Path(f"/proc/{pid}/maps").read_bytes().splitlines()
        )
    except OSError:
        return False

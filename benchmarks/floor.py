"""The floor: what a mount costs that is served through pyfuse3 and has nothing to do.

Names and attributes are in dictionaries, and it waits for requests as cryptfs does (`cryptfs.mount.poll`).
What this takes is Python's and pyfuse3's; the rest of what cryptfs takes is its own. Contents are in the
kernel's cache alone, so it is for the workloads of names:
`--only small-files,folders --systems floor,cryptfs,gocryptfs`.

`python3 -m benchmarks.floor MOUNTPOINT` mounts it, and goes to the background.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Sequence
from typing import Any

import pyfuse3
import trio

from benchmarks.machine import package_version
from benchmarks.systems import CHECKOUT, FuseSystem
from cryptfs.mount import poll

_FOR_LONG = 300.0
_Base: Any = pyfuse3.Operations


class Nothing(_Base):  # type: ignore[misc]
    """The least that answers: folders of files that are always empty."""

    supports_dot_lookup = False
    enable_writeback_cache = True

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[int, dict[bytes, int]] = {}
        self.attributes: dict[int, pyfuse3.EntryAttributes] = {}
        self._next = pyfuse3.ROOT_INODE
        self._new(stat.S_IFDIR | 0o755)
        self._absent = pyfuse3.EntryAttributes()
        self._absent.st_ino = 0

    def _new(self, mode: int) -> pyfuse3.EntryAttributes:
        ino, self._next = self._next, self._next + 1
        attributes = self.attributes[ino] = pyfuse3.EntryAttributes()
        attributes.st_ino, attributes.st_mode, attributes.st_nlink = ino, mode, 1
        attributes.entry_timeout = attributes.attr_timeout = _FOR_LONG
        if stat.S_ISDIR(mode):
            self.names[ino] = {}
        return attributes

    def _make(self, parent: int, name: bytes, mode: int) -> pyfuse3.EntryAttributes:
        attributes = self._new(mode)
        self.names[parent][name] = attributes.st_ino
        return attributes

    async def lookup(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self.attributes.get(self.names[parent].get(name, 0), self._absent)

    async def getattr(self, ino: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self.attributes[ino]

    async def setattr(self, ino: int, *arguments: object) -> pyfuse3.EntryAttributes:
        return self.attributes[ino]

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        attributes = self._make(parent, name, mode)
        return pyfuse3.FileInfo(attributes.st_ino), attributes

    async def open(self, ino: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(ino)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return len(buf)

    async def flush(self, fh: int) -> None:
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def release(self, fh: int) -> None:
        """Nothing is to be released."""

    async def unlink(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        del self.names[parent][name]

    async def mkdir(
        self, parent: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._make(parent, name, mode)

    async def rmdir(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        del self.names[parent][name]

    async def opendir(self, ino: int, ctx: pyfuse3.RequestContext) -> int:
        return ino

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        entries = list(self.names[fh].items())
        for number, (name, ino) in enumerate(entries[start_id:], start_id + 1):
            if not pyfuse3.readdir_reply(token, name, self.attributes[ino], number):
                return

    async def releasedir(self, fh: int) -> None:
        """Nothing is to be released."""

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, _ in inode_list:
            self.names.pop(ino, None)
            self.attributes.pop(ino, None)

    async def getxattr(self, ino: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        raise pyfuse3.FUSEError(errno.ENOSYS)


class Floor(FuseSystem):
    """It as one of the systems to be measured."""

    name = "floor"

    def version(self) -> str:
        return f"pyfuse3 {pyfuse3.__version__}, libfuse {package_version('libfuse3-3') or 'of this system'}"

    def create_command(self) -> list[str]:
        return ["true"]

    def mount_command(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks.floor", str(self.root)]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(CHECKOUT)}


def main(mountpoint: str) -> None:
    """Mount, and serve in the background until the unmount."""
    poll.install()
    pyfuse3.init(Nothing(), mountpoint, {*pyfuse3.default_options, "fsname=floor"})
    if os.fork():
        os._exit(0)
    os.setsid()
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main(sys.argv[1])

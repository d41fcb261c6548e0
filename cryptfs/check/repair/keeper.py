"""What a repair replaces is kept: a folder in the vault with the originals, and a log of every step.

`VAULT/repair-TIME/` holds `log.jsonl` and numbered files. It is no part of the vault (docs/format.md
section 2) and holds ciphertext only, so it can stay, be backed up, or be deleted.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable
from pathlib import Path

from cryptfs.check.finding import printable_place
from cryptfs.vault.diskio import create, fsync_path, make_folder, open_regular, pwrite_all

PREFIX = "repair-"
LOG = "log.jsonl"
_RUN = 1 << 20


class Keeper:
    """Keeps originals; the folder is made with the first. What it returned from is durable."""

    def __init__(self, vault: Path, folder_mode: int) -> None:
        self._vault = vault
        self._mode = folder_mode
        self._folder: Path | None = None
        self._count = 0

    @property
    def folder(self) -> Path | None:
        """Where the originals are; None if nothing had to be kept."""
        return self._folder

    def _open(self) -> Path:
        if self._folder is None:
            stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
            folder, number = self._vault / f"{PREFIX}{stamp}", 1
            while folder.exists():
                number += 1
                folder = self._vault / f"{PREFIX}{stamp}-{number}"
            make_folder(folder, self._mode)
            fsync_path(str(self._vault))
            self._folder = folder
        return self._folder

    def _next(self) -> str:
        self._count += 1
        return f"{self._count:06}"

    def note(self, place: bytes, action: str, kept: str = "", **more: object) -> None:
        """A line in the log: done, or about to be done."""
        line = {"place": printable_place(place), "action": action, **({"kept": kept} if kept else {}), **more}
        fd = open_regular(self._open() / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(fd, json.dumps(line).encode() + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        fsync_path(str(self._open()))

    def data(self, place: bytes, action: str, data: bytes, offset: int = 0) -> None:
        """Keep some bytes of a file that are about to be changed."""
        name = self._write(lambda fd: pwrite_all(fd, data, 0) if data else None)
        self.note(place, action, name, offset=offset, size=len(data))

    def part(self, place: bytes, action: str, fd: int, offset: int, size: int) -> None:
        """Keep `size` bytes from `offset` of the file open as `fd`."""

        def write(out: int) -> None:
            done = 0
            while done < size:
                piece = os.pread(fd, min(_RUN, size - done), offset + done)
                if not piece:
                    break
                pwrite_all(out, piece, done)
                done += len(piece)

        self.note(place, action, self._write(write), offset=offset, size=size)

    def _write(self, write: Callable[[int], object]) -> str:
        folder, name = self._open(), self._next()
        fd = create(folder / name, 0o600)
        try:
            write(fd)
            os.fsync(fd)
        finally:
            os.close(fd)
        fsync_path(str(folder))
        return name

    def move(self, place: bytes, action: str, dir_fd: int, name: bytes) -> None:
        """Move an entry out of the vault's tree into the folder, as it is.

        First the log says where from and where to, then it is moved: cut in between, the line is the
        only trace, and the next repair moves it.
        """
        folder, kept = self._open(), self._next()
        self.note(place, action, kept)
        target = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.rename(name, kept, src_dir_fd=dir_fd, dst_dir_fd=target)
            os.fsync(target)
            os.fsync(dir_fd)
        finally:
            os.close(target)

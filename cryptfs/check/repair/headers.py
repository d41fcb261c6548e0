"""Writing headers: the damaged slot of two, a lost `@dir` from its copy, a new one where no copy is left."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from cryptfs.check.finding import Finding
from cryptfs.check.headers import Slots, judge
from cryptfs.check.repair.workshop import RDWR, Opened, Step, Unrepairable, Workshop
from cryptfs.vault.dirlog import RECORD_SIZE
from cryptfs.vault.diskio import make_folder, pread_all, pwrite_all, replace_file
from cryptfs.vault.header import DIRECTORY, READ_SIZE, SLOT_OFFSETS, Header
from cryptfs.vault.layout import DIRS
from cryptfs.vault.names import DIR_HEADER

_ROOT_MODE = 0o755


def slot(shop: Workshop, finding: Finding) -> Step | str:
    """One of two slots is damaged: the good header is written over it, one generation on.

    On disk: the good slot stays as it is, so a header is there at every instant.
    """

    def do(shop: Workshop) -> None:
        with shop.directory_of(finding.place) as opened:
            rewrite(shop, opened, opened.lname, lambda header: False)

    return Step(finding, "write the damaged copy of the header anew from the good one", do)


def rewrite(shop: Workshop, opened: Opened, lname: bytes, change: Callable[[Header], bool]) -> None:
    """Write a changed header into the slot that does not hold the good one, after keeping the area.

    `change` says whether it changed anything; if not, only a damaged slot is a reason to write.
    """
    context = shop.context
    fd = os.open(lname, RDWR, dir_fd=opened.fd)
    try:
        area = pread_all(fd, READ_SIZE, 0)
        slots: Slots = judge(area, context.codec, context.keyring)
        if slots.header is None:
            raise Unrepairable("its header is damaged in both copies")
        header = slots.header.copy()
        if not change(header) and not slots.bad:
            return  # done already
        header.generation += 1
        header.epoch = context.codec.current_epoch
        shop.keeper.data(opened.path(lname), "a header slot is written", area)
        pwrite_all(fd, context.codec.pack(header), SLOT_OFFSETS[1 - slots.slot])
        os.fsync(fd)
    finally:
        os.close(fd)


def from_copy(shop: Workshop, finding: Finding) -> Step | str:
    """`@dir` is lost and a copy opens the directory: it is put back, as a mount would do."""

    def do(shop: Workshop) -> None:
        with shop.directory_at(finding.place) as opened:
            look = opened.look()
            if look.slot < 0 and look.header is not None:
                put(shop, opened, look.header)

    return Step(finding, "put the directory's header back from its copy", do)


def put(shop: Workshop, opened: Opened, header: Header) -> None:
    """Make `header` the directory's `@dir`: the old one is kept, the new one appears as a whole."""
    place = opened.path(DIR_HEADER)
    try:
        os.stat(DIR_HEADER, dir_fd=opened.fd, follow_symlinks=False)
    except FileNotFoundError:
        shop.keeper.note(place, "a directory header is written")
    else:
        shop.keeper.move(place, "a damaged directory header is moved away", opened.fd, DIR_HEADER)
    packed = shop.context.codec.pack(header)
    replace_file(
        opened.fd, DIR_HEADER.decode(), packed.ljust(SLOT_OFFSETS[1], b"\0"), shop.context.modes.file
    )


def record_copy(shop: Workshop, header: Header, parent_id: bytes | None) -> None:
    """A copy of a new header in `dirs/`, in a log of its own, durably."""
    record = shop.context.codec.pack(header) + (parent_id or bytes(16))
    with shop.folder("") as vault:
        make_folder(DIRS, shop.context.modes.directory, dir_fd=vault, exist_ok=True)
    with shop.folder(DIRS) as folder:
        name = f"{os.urandom(8).hex()}.log"
        replace_file(folder, name, record.ljust(RECORD_SIZE, b"\0"), shop.context.modes.file)


def new_directory_header(shop: Workshop, like: Header | None) -> Header:
    """A header with a new id and a new key; mode and owner are those of the directory above."""
    now = time.time_ns()
    owner = os.stat(shop.context.path)
    return Header(
        DIRECTORY, 0, 0, shop.context.codec.current_epoch,
        like.mode if like else _ROOT_MODE, 1, os.urandom(16), 0,
        like.uid if like else owner.st_uid, like.gid if like else owner.st_gid, 0,
        now, now, now, now, os.urandom(32),
    )  # fmt: skip

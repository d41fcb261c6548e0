"""Whether a configuration and a vault's files belong together: the proof that a secret is of use.

That a secret opens `cryptfs.json` says nothing about the files beside it: the configuration may come from a
backup, of another vault or of a time before the keys were rotated.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cryptfs.errors import ConfigDamaged, NotAVault
from cryptfs.vault.config import Unlocked
from cryptfs.vault.dirlog import DirLog
from cryptfs.vault.header import AREA_SIZE, HeaderCodec, HeaderInvalid, HeaderMissing
from cryptfs.vault.layout import DIRS, TREE
from cryptfs.vault.names import DIR_HEADER

SAMPLE = 1000
"""So many objects are looked at: enough to notice a rotation, few enough for a slow disk."""


def check(vault: Path, unlocked: Unlocked) -> None:
    """NotAVault if there are no files; ConfigDamaged if the keys do not open the files that are there."""
    tree = os.fsencode(vault / TREE)
    if not os.path.isdir(tree):
        raise NotAVault(f"{vault} has no folder {TREE}: the vault's files are missing.")
    codec = HeaderCodec(unlocked.vault_id, unlocked.keyring)
    found = False
    for area in _areas(tree):
        try:
            codec.read(area)
            found = True
        except HeaderMissing:
            continue  # never became durable
        except HeaderInvalid:
            epoch = int.from_bytes(area[8:12], "little")
            if area[:4] == b"CFH1" and unlocked.keyring.get(epoch) is None:
                raise ConfigDamaged(
                    f"The configuration has no key for some of the files of {vault} (epoch {epoch}): "
                    "it is of "
                    "another time than the files, or of another vault."
                ) from None
    if not found and not any(_copies(vault, codec)):
        raise ConfigDamaged(
            f"The keys of the configuration open none of the files of {vault}: it belongs to another "
            "vault, or "
            "the files are damaged."
        )


def _copies(vault: Path, codec: HeaderCodec) -> Iterator[object]:
    """The root directory's header may be lost; its copies are as good a proof."""
    log = DirLog(str(vault / DIRS), 0, codec, 0o600)
    try:
        yield from log.candidates()
    finally:
        log.close()


def _areas(tree: bytes) -> Iterator[bytes]:
    """The header areas of the root directory and of the first objects below it, breadth first."""
    folders, seen = [tree], 0
    while folders and seen < SAMPLE:
        folder = folders.pop(0)
        try:
            entries = list(os.scandir(folder))
        except OSError:
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
                continue
            name = entry.name
            is_header = name == DIR_HEADER
            if not entry.is_file(follow_symlinks=False) or (name.startswith(b"@") and not is_header):
                continue
            seen += 1
            try:
                with open(entry.path, "rb") as file:
                    yield file.read(AREA_SIZE)
            except OSError:
                continue
            if seen >= SAMPLE:
                return

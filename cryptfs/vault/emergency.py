"""When keys are lost, copied or to be destroyed: backup, restore and crypto-erase of the configuration.

What is on the disk at each instant of `restore`: the configuration that is replaced is kept first, under a
name of its own and synced; then the backup becomes `cryptfs.json` as any change does (configfile.replace): a
cut leaves the one or the other, whole.

`destroy` overwrites in place, syncs, and only then removes: the configuration first, because without it
nothing opens. A cut leaves less than there was; the next call goes on where the last one ended.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptfs.errors import ConfigDamaged, CryptfsError, NotAVault, UsageError
from cryptfs.vault import belongs, configfile
from cryptfs.vault.config import Config, Unlocked
from cryptfs.vault.document import parse
from cryptfs.vault.header import AREA_SIZE, SLOT_OFFSETS, SLOT_SIZE
from cryptfs.vault.layout import DIRS, TREE
from cryptfs.vault.lock import take_lock

REPLACED = "cryptfs.json.replaced"


def read_backup(vault: Path, file: Path) -> Config:
    """A copy of a configuration, to be unlocked; ConfigDamaged, UnsupportedFormat, OSError."""
    try:
        return Config(vault, parse(configfile.read(file)))
    except CryptfsError as error:
        raise type(error)(f"{file} is no copy of a configuration that can be used: {error}.") from None


def restore(vault: Path, text: bytes, unlocked: Unlocked) -> Path | None:
    """Make a copy of the configuration, which was unlocked, the configuration; where the replaced one is.

    ConfigDamaged if its keys do not open the vault's files; nothing is changed then.
    """
    belongs.check(vault, unlocked)
    with configfile.locked(vault):
        current = vault / configfile.NAME
        kept = None
        if current.exists() and configfile.read(current) != text:
            kept = _free_name(vault)
            configfile.copy_aside(current, kept)

        def prove(again: bytes) -> None:
            if again != text:
                raise CryptfsError("The configuration could not be read back: nothing was changed.")

        configfile.replace(vault, text, prove)
    return kept


def _free_name(vault: Path) -> Path:
    for number in range(1, 1000):
        path = vault / (REPLACED if number == 1 else f"{REPLACED}.{number}")
        if not path.exists():
            return path
    raise UsageError(f"There are too many replaced configurations in {vault}: remove those you do not need.")


def copies(vault: Path) -> list[Path]:
    """Every file in the vault's folder that holds key slots, the configuration first."""
    found = [path for path in vault.glob("cryptfs.json*") if path.is_file() and not path.is_symlink()]
    found += [path for path in vault.glob("@tmp-config-*") if path.is_file()]
    return sorted(found, key=lambda path: (path.name != configfile.NAME, path.name))


def destroy(vault: Path, *, headers: bool, progress: Callable[[int], None]) -> tuple[int, int]:
    """Overwrite every key slot and, with `headers`, the wrapped key of every object. How many of each.

    VaultInUse if it is mounted; NotAVault if there is none. `progress` gets the number of objects done.
    """
    if not (vault / TREE).is_dir():
        raise NotAVault(f"{vault} is not a vault: it has no folder {TREE}.")
    (vault / "journal").mkdir(mode=0o700, exist_ok=True)
    lock = take_lock(vault, 0o600)
    try:
        with configfile.locked(vault, keep_leftovers=True):
            found = copies(vault)
            for path in found:
                _overwrite(path, 0, max(path.stat().st_size, 1))
                path.unlink()
                configfile.sync_folder(vault)
        done = 0
        for path in _objects(vault) if headers else ():
            _destroy_headers(path)
            done += 1
            progress(done)
        return len(found), done
    finally:
        os.close(lock)


def _objects(vault: Path) -> Iterator[Path]:
    """Every file with headers: objects, directory headers and their copies, journal segments."""
    for folder in (TREE, DIRS, "journal"):
        for parent, _, names in os.walk(vault / folder):
            for name in names:
                path = Path(parent) / name
                if path.is_file() and not path.is_symlink() and path != vault / "journal" / "lock":
                    yield path


def _destroy_headers(path: Path) -> None:
    """The wrapped object keys; of a log of directory headers all of it."""
    size = path.stat().st_size
    if path.suffix == ".log" or path.name == "state":
        _overwrite(path, 0, size)
        return
    # Directory headers may be carried in the area of an object file: all of it goes.
    _overwrite(path, 0, min(size, max(AREA_SIZE, SLOT_OFFSETS[1] + SLOT_SIZE)))


def _overwrite(path: Path, offset: int, size: int) -> None:
    """Random bytes over these, on the disk when it returns; a file that is not writable is made so."""
    with contextlib.suppress(PermissionError):
        path.chmod(path.stat().st_mode | 0o200)
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        # Once: more passes do nothing on any disk of this century.
        left, at = size, offset
        while left:
            written = os.pwrite(descriptor, os.urandom(min(left, 1 << 20)), at)
            left, at = left - written, at + written
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_copy(file: Path, text: bytes) -> None:
    """Write a copy of the configuration to a new file (mode 0600), durably; UsageError if it exists."""
    configfile.write_new(file, text)
    if configfile.read(file) != text:
        file.unlink(missing_ok=True)
        raise ConfigDamaged(f"{file} could not be read back: the disk fails.")

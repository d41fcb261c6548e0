"""The two files of the configuration: each is the other's spare."""

from __future__ import annotations

import os
from pathlib import Path

from cryptfs.check.finding import Finding
from cryptfs.check.repair.keeper import Keeper
from cryptfs.check.repair.workshop import Step, Workshop
from cryptfs.errors import ConfigDamaged, CryptfsError, NotAVault
from cryptfs.keyslots import Secret
from cryptfs.vault import configfile, document
from cryptfs.vault.config import Config, Unlocked, unlock
from cryptfs.vault.diskio import replace_file

_MODE = 0o600


def previous(shop: Workshop, finding: Finding) -> Step | str:
    """`.previous` is damaged: a copy of the current one takes its place."""

    def do(shop: Workshop) -> None:
        with shop.folder("") as vault:
            name = os.fsencode(configfile.PREVIOUS)
            try:
                shop.keeper.move(finding.place, "moved away", vault, name)
            except FileNotFoundError:
                pass
            text = configfile.read(shop.context.path / configfile.NAME)
            mode = (shop.context.path / configfile.NAME).stat().st_mode & 0o7777
            replace_file(vault, configfile.PREVIOUS, text, mode)

    return Step(finding, "make it a copy of cryptfs.json", do)


def spare(vault: Path) -> Config | None:
    """What `cryptfs.json.previous` holds, if it is within bounds."""
    try:
        text = configfile.read(vault / configfile.PREVIOUS)
        return Config(vault, document.parse(text))
    except (OSError, CryptfsError):
        return None


def open_spare(vault: Path, secret: Secret) -> Unlocked:
    """Unlock with `.previous`; NotAVault, ConfigDamaged, WrongSecret if it does not open either."""
    config = spare(vault)
    if config is None:
        raise ConfigDamaged(
            f"{configfile.PREVIOUS} cannot be used either: take {configfile.NAME} from a backup."
        )
    return unlock(config, secret)


def restore(vault: Path, unlocked: Unlocked, keeper: Keeper) -> None:
    """Make the configuration that was opened the current one.

    On disk: the damaged file is kept, then the new one takes its place, as a whole; `.previous` stays.
    """
    if not vault.is_dir():
        raise NotAVault(f"There is no folder {vault}.")
    fd = os.open(vault, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        mode = _MODE
        try:
            mode = os.stat(configfile.NAME, dir_fd=fd, follow_symlinks=False).st_mode & 0o777
            name = configfile.NAME.encode()
            keeper.move(name, "the damaged configuration is moved away", fd, name)
        except FileNotFoundError:
            pass
        replace_file(fd, configfile.NAME, configfile.read(vault / configfile.PREVIOUS), mode)
    finally:
        os.close(fd)

"""The VAULT of a command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from cryptfs.errors import NotAVault


class VaultFolder(click.Path):
    """A folder, which may yet turn out to be no vault; NotAVault if it is where a vault is mounted."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, readable=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:  # noqa: ANN401
        from cryptfs.mount import mountpoint
        from cryptfs.vault import configfile

        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        mount = mountpoint.mounted_at(os.path.realpath(path))
        if mount is None or mount.fstype != mountpoint.FSTYPE or os.path.lexists(path / configfile.NAME):
            return path
        raise NotAVault(f"{path} is where the vault is mounted; the vault itself is {mount.source}.")


vault_argument = click.argument("vault", type=VaultFolder())

"""The on-disk format: configuration, headers, names, chunks, journal (docs/format.md)."""

from cryptfs.vault.vault import Vault

__all__ = ["Vault"]

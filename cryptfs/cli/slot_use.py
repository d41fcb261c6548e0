"""When each key slot was last used on this machine.

Kept in the host's state directory: to write it into the vault would mean to change the configuration,
and authenticate it anew, at each unlock.
"""

from __future__ import annotations

from cryptfs.cli import notes

_NAME = "slots.json"


def record(vault_id: bytes, slot_id: str) -> None:
    """Note that a slot was used now. Never fails: an unlock must not depend on it."""
    from cryptfs.vault.document import now

    notes.add(vault_id, _NAME, slot_id, now())


def last_used(vault_id: bytes) -> dict[str, str]:
    """The times by slot id, as far as this machine knows them."""
    return notes.read(vault_id, _NAME)


def forget(vault_id: bytes) -> None:
    """The vault is no more."""
    notes.forget(vault_id, _NAME)

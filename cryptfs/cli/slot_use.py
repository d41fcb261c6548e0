"""When each key slot was last used on this machine.

Kept in the host's state directory: to write it into the vault would mean to change the configuration,
and authenticate it anew, at each unlock. It is a note for people, not evidence: whoever may write
there may change it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from pathlib import Path

_NAME = "slots.json"
_MAX_SIZE = 1 << 16


def record(vault_id: bytes, slot_id: str) -> None:
    """Note that a slot was used now. Never fails: an unlock must not depend on it."""
    from cryptfs.index import place
    from cryptfs.vault.document import now

    with contextlib.suppress(OSError, ValueError, RuntimeError):
        file = place.of_vault(vault_id) / _NAME
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = json.dumps(_read(file) | {slot_id: now()}, indent=1, sort_keys=True)
        temporary = file.with_name(f"{_NAME}.{secrets.token_hex(4)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as stream:
                stream.write(text + "\n")
            temporary.rename(file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def last_used(vault_id: bytes) -> dict[str, str]:
    """The times by slot id, as far as this machine knows them."""
    from cryptfs.index import place

    try:
        return _read(place.of_vault(vault_id) / _NAME)
    except (OSError, RuntimeError):
        return {}


def forget(vault_id: bytes) -> None:
    """The vault is no more."""
    from cryptfs.index import place

    with contextlib.suppress(OSError, RuntimeError):
        (place.of_vault(vault_id) / _NAME).unlink(missing_ok=True)


def _read(file: Path) -> dict[str, str]:
    try:
        with file.open("rb") as stream:
            value = json.loads(stream.read(_MAX_SIZE))
    except (FileNotFoundError, ValueError):
        return {}
    if not isinstance(value, dict):
        return {}
    return {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, str)}

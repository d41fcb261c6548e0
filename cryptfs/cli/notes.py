"""What commands note down of a vault on this machine: small files in the host's state directory.

They are notes and not evidence: whoever may write there may change them, and they may be gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from pathlib import Path

_MAX_SIZE = 1 << 16


def read(vault_id: bytes, name: str) -> dict[str, str]:
    """The notes in the file `name`; none if there is no such file, or nonsense in it."""
    try:
        with _file(vault_id, name).open("rb") as stream:
            value = json.loads(stream.read(_MAX_SIZE))
    except (OSError, ValueError, RuntimeError):
        return {}
    if not isinstance(value, dict):
        return {}
    return {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, str)}


def add(vault_id: bytes, name: str, key: str, value: str) -> bool:
    """Write down one more, or another value for a key. Never fails: whether it is written down."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        file = _file(vault_id, name)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = json.dumps(read(vault_id, name) | {key: value}, indent=1, sort_keys=True)
        temporary = file.with_name(f"{name}.{secrets.token_hex(4)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as stream:
                stream.write(text + "\n")
            temporary.rename(file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return True
    return False


def forget(vault_id: bytes, name: str) -> None:
    """The vault is no more."""
    with contextlib.suppress(OSError, RuntimeError):
        _file(vault_id, name).unlink(missing_ok=True)


def _file(vault_id: bytes, name: str) -> Path:
    from cryptfs.index import place

    return place.of_vault(vault_id) / name

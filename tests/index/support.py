"""Environments for the tests of this layer."""

from __future__ import annotations

from pathlib import Path

from cryptfs.index.environment import Environment

from ..fs.support import VAULT_ID, FakeEpoch, FakeKeyring

__all__ = ["VAULT_ID", "FakeEpoch", "FakeKeyring", "OtherKeyring", "open_environment"]


class OtherKeyring(FakeKeyring):
    """The same vault after a rotation: both epochs, or the new one alone."""

    current = FakeEpoch(2, b"f" * 32)

    def __init__(self, both: bool) -> None:
        self.both = both

    def get(self, number: int) -> FakeEpoch | None:
        return {1: FakeEpoch() if self.both else None, 2: self.current}.get(number)


def open_environment(
    place: Path,
    *,
    durable: bool = False,
    vault_id: bytes = VAULT_ID,
    keyring: FakeKeyring | None = None,
    subject: bytes = bytes(16),
) -> Environment:
    return Environment.open(
        place, "test", vault_id, keyring or FakeKeyring(), durable=durable, subject=subject
    )

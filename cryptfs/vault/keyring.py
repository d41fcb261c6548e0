"""The keyring: the epoch keys under which every object's own key is wrapped (docs/format.md section 3)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
from msgspec import Meta

from cryptfs.crypto import aead
from cryptfs.vault.document import RootKeys, Time, canonical, now, parse_json

EPOCH_KEY_SIZE = 32
MAX_EPOCHS = 64
MAX_NUMBER = (1 << 32) - 1  # headers have it as u32
_LABEL = "cryptfs v1 keyring"


class KeyringDamaged(Exception):
    """The sealed keyring does not open, or does not hold what a keyring holds."""


@dataclass(frozen=True)
class Epoch:
    """One generation of keys; `number` stands in the header of every object wrapped under it."""

    number: int
    key: bytes = field(repr=False)
    created: str


class Keyring:
    """1 to 64 epochs in ascending order, the last of them current. Never changed in place."""

    def __init__(self, epochs: tuple[Epoch, ...]) -> None:
        numbers = [epoch.number for epoch in epochs]
        in_order = numbers == sorted(set(numbers))
        if not 1 <= len(epochs) <= MAX_EPOCHS or not in_order or numbers[0] < 1 or numbers[-1] > MAX_NUMBER:
            raise ValueError("a keyring has 1 to 64 epochs with ascending numbers")
        self._epochs = {epoch.number: epoch for epoch in epochs}
        self.current = epochs[-1]

    @classmethod
    def new(cls) -> Keyring:
        """A keyring with one random epoch."""
        return cls((_new_epoch(1),))

    def get(self, number: int) -> Epoch | None:
        """The epoch of this number, if it is still there."""
        return self._epochs.get(number)

    def __iter__(self) -> Iterator[Epoch]:
        return iter(self._epochs.values())

    def __len__(self) -> int:
        return len(self._epochs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Keyring) and self._epochs == other._epochs

    __hash__ = None  # type: ignore[assignment]

    def with_new_epoch(self) -> Keyring:
        """The same with one more random epoch, now the current one; ValueError at 64."""
        return Keyring((*self, _new_epoch(self.current.number + 1)))

    def with_current_only(self) -> Keyring:
        """The keyring once all objects were rewrapped: the older keys are gone."""
        return Keyring((self.current,))

    def seal(self, keys: RootKeys, vault_id: bytes) -> bytes:
        epochs = [_EpochRecord(epoch.number, epoch.key, epoch.created) for epoch in self]
        plain = canonical(msgspec.to_builtins(_KeyringRecord(epochs)))
        return aead.seal(keys.expand(_LABEL), plain, _LABEL.encode() + vault_id)

    @classmethod
    def open(cls, keys: RootKeys, vault_id: bytes, sealed: bytes) -> Keyring:
        """Undo `seal`; KeyringDamaged."""
        return open_with(sealing_key(keys), vault_id, sealed)


class _EpochRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    number: Annotated[int, Meta(ge=1, le=MAX_NUMBER)]
    key: Annotated[bytes, Meta(min_length=EPOCH_KEY_SIZE, max_length=EPOCH_KEY_SIZE)]
    created: Time

    def __repr__(self) -> str:
        return f"epoch {self.number}"


class _KeyringRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    epochs: list[_EpochRecord]


def _new_epoch(number: int) -> Epoch:
    return Epoch(number, os.urandom(EPOCH_KEY_SIZE), now())


def sealing_key(keys: RootKeys) -> bytes:
    """The key that the keyring is sealed with, 32 bytes; it opens nothing else."""
    return keys.expand(_LABEL)


def open_with(key: bytes, vault_id: bytes, sealed: bytes) -> Keyring:
    """A sealed keyring, opened with `sealing_key`; KeyringDamaged."""
    try:
        plain = aead.open_sealed(key, sealed, _LABEL.encode() + vault_id)
        record = msgspec.convert(parse_json(plain), _KeyringRecord)
        return Keyring(tuple(Epoch(e.number, e.key, e.created) for e in record.epochs))
    except (aead.InvalidTag, ValueError):
        raise KeyringDamaged from None

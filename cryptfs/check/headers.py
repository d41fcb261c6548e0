"""Judging both slots of a header area (docs/format.md section 4)."""

from __future__ import annotations

from typing import NamedTuple

from cryptfs.vault.header import (
    MAGIC,
    READ_SIZE,
    SLOT_OFFSETS,
    SLOT_SIZE,
    Header,
    HeaderCodec,
    HeaderInvalid,
    KeyringLike,
)

_ZERO = bytes(SLOT_SIZE)


class Slots(NamedTuple):
    """The header that counts and its slot; the slots that hold neither zeros nor what a writer made."""

    header: Header | None
    slot: int
    bad: tuple[int, ...]
    epochs: tuple[int, ...]
    """Under which epochs the valid slots are wrapped."""

    @property
    def missing(self) -> bool:
        """Nothing but zeros: it never became durable, or was wiped."""
        return self.header is None and not self.bad


def judge(area: bytes, codec: HeaderCodec, keyring: KeyringLike) -> Slots:
    """What is in a header area, of which the missing tail reads as zeros."""
    best: Header | None = None
    number = 0
    invalid: list[tuple[int, bytes]] = []
    epochs: list[int] = []
    first = area[:SLOT_SIZE] if len(area) >= SLOT_SIZE else _ZERO
    second = area[SLOT_OFFSETS[1] : READ_SIZE].ljust(SLOT_SIZE, b"\0")
    for index, slot in enumerate((first, second)):
        if slot == _ZERO:
            continue
        try:
            header = codec.unpack(slot)
        except HeaderInvalid:
            invalid.append((index, slot))
            continue
        epochs.append(header.epoch)
        if best is None or header.generation > best.generation:
            best, number = header, index
    bad = tuple(
        index
        for index, slot in invalid
        if best is None or not is_stale(slot, keyring) or _generation(slot) >= best.generation
    )
    return Slots(best, number, bad, tuple(epochs))


def is_stale(slot: bytes, keyring: KeyringLike) -> bool:
    """Whether a slot claims an epoch that was there once and was given up by a rotation."""
    number = int.from_bytes(slot[8:12], "little")
    return slot[:4] == MAGIC and 1 <= number < keyring.current.number and keyring.get(number) is None


def _generation(slot: bytes) -> int:
    return int.from_bytes(slot[16:24], "little")

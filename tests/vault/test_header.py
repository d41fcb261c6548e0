"""Headers: what is out of range is neither written nor believed, authentic or not."""

from __future__ import annotations

import os

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from cryptfs.crypto.derive import expand
from cryptfs.vault.header import (
    CHAR,
    DIRECTORY,
    FIFO,
    FILE,
    FLAG_SPARSE,
    FLAG_XATTR,
    SEGMENT,
    SYMLINK,
    Header,
    HeaderCodec,
    HeaderInvalid,
    HeaderMissing,
)
from cryptfs.vault.keyring import Keyring

VAULT_ID = bytes(range(16))
KEYRING = Keyring.new()


@pytest.fixture
def codec() -> HeaderCodec:
    return HeaderCodec(VAULT_ID, KEYRING)


def header(kind: int = FILE, chunk_log2: int = 12, **changes: int) -> Header:
    made = Header(
        kind, chunk_log2, 0, 1, 0o640, 1, os.urandom(16), 7, 1, 2, 0, -1, 2, 3, 4, os.urandom(32)
    )  # fmt: skip
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def sealed(slot: bytes, key: bytes) -> bytes:
    """The slot with these fields wrapped anew, as somebody with the epoch key could do it."""
    wrap = AESSIV(expand(KEYRING.current.key, "cryptfs v1 header wrap", 64))
    return slot[:144] + wrap.encrypt(key, [b"cryptfs v1 header", VAULT_ID, slot[:144]])


GOOD = [
    header(FILE, 12),
    header(FILE, 20, flags=FLAG_SPARSE | FLAG_XATTR, mode=0o7777),
    header(SYMLINK, 12, flags=FLAG_XATTR),
    header(DIRECTORY, 0, flags=FLAG_XATTR),
    header(FIFO, 0),
    header(CHAR, 0, rdev=os.makedev(4095, 1 << 19)),
    header(SEGMENT, 12, generation=1 << 63),
]
BAD = [
    header(0, 0),
    header(9, 0),
    header(FILE, 11),
    header(FILE, 21),
    header(FILE, 0),
    header(SYMLINK, 16),
    header(SEGMENT, 13),
    header(DIRECTORY, 12),
    header(FILE, 12, flags=4),
    header(FILE, 12, flags=0x8000),
    header(DIRECTORY, 0, flags=FLAG_SPARSE),
    header(SYMLINK, 12, flags=FLAG_SPARSE),
    header(FILE, 12, mode=0o10000),
    header(FILE, 12, generation=0),
    header(FILE, 12, rdev=1),
    header(FIFO, 0, rdev=1),
]


@pytest.mark.parametrize("good", GOOD, ids=repr)
def test_what_is_in_range_comes_back(codec: HeaderCodec, good: Header) -> None:
    slot = codec.pack(good)
    assert codec.unpack(slot) == good
    assert sealed(slot, good.key) == slot, "the tests below seal as the package does"


@pytest.mark.parametrize("bad", BAD, ids=repr)
def test_what_is_out_of_range_is_refused_though_authentic(
    codec: HeaderCodec, bad: Header, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HeaderInvalid, match="out of range"):
        codec.pack(bad)
    with monkeypatch.context() as patch:
        patch.setattr(Header, "in_range", lambda self: True)
        slot = codec.pack(bad)
        assert codec.unpack(slot) == bad
    with pytest.raises(HeaderInvalid, match="out of range"):
        codec.unpack(slot)


@pytest.mark.parametrize("place", [104, 120, 143])
def test_a_reserved_byte_is_zero(codec: HeaderCodec, place: int) -> None:
    good = header()
    slot = bytearray(codec.pack(good))
    slot[place] = 1
    with pytest.raises(HeaderInvalid, match="out of range"):
        codec.unpack(sealed(bytes(slot), good.key))


def area(first: bytes, second: bytes = b"") -> bytes:
    return first.ljust(4096, b"\xaa") + second


def test_of_equal_generations_slot_0_counts_and_padding_does_not(codec: HeaderCodec) -> None:
    old, new = header(generation=4, mode=0o600), header(generation=5, mode=0o644)
    assert codec.read(area(codec.pack(old), codec.pack(new))) == (new, 1)
    assert codec.read(area(codec.pack(new), codec.pack(old))) == (new, 0)
    equal = header(generation=5, mode=0o604)
    assert codec.read(area(codec.pack(new), codec.pack(equal))) == (new, 0)
    assert codec.read(area(codec.pack(equal), codec.pack(new))) == (equal, 0)


@pytest.mark.parametrize("data", [b"", bytes(191), bytes(192), bytes(4096), bytes(4200), bytes(8192)])
def test_nothing_but_zeros_is_a_missing_header(codec: HeaderCodec, data: bytes) -> None:
    with pytest.raises(HeaderMissing):
        codec.read(data)

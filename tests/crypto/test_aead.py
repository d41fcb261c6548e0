"""XAES-256-GCM against the vectors of its specification (C2SP)."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptfs.crypto.aead import OVERHEAD, InvalidTag, Xaes, open_sealed, seal

NONCE = b"ABCDEFGHIJKLMNOPQRSTUVWX"


@pytest.mark.parametrize(
    ("key", "associated", "expected"),
    [
        (b"\x01" * 32, b"", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
        (b"\x03" * 32, b"c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"),
    ],
    ids=["MSB of L is 0", "MSB of L is 1"],
)
def test_published_vectors(key: bytes, associated: bytes, expected: str) -> None:
    sealed = Xaes(key).encrypt(NONCE, b"XAES-256-GCM", associated)
    assert sealed.hex() == expected
    assert Xaes(key).decrypt(NONCE, sealed, associated) == b"XAES-256-GCM"


def test_accumulated_random_vectors() -> None:
    """10 000 random inputs, their ciphertexts hashed together."""
    # SHAKE-128 of nothing, as one long stream: at most 56 + 2 * 256 bytes are used in an iteration.
    stream = memoryview(hashlib.shake_128(b"").digest(10_000 * (56 + 2 * 256)))
    assert stream[:16].hex() == "7f9c2ba4e88f827d616045507605853e"
    position = 0

    def take(size: int) -> bytes:
        nonlocal position
        position += size
        return bytes(stream[position - size : position])

    digest = hashlib.shake_128()
    for _ in range(10_000):
        key, nonce = take(32), take(24)
        plaintext = take(take(1)[0])
        associated = take(take(1)[0])
        sealed = Xaes(key).encrypt(nonce, plaintext, associated)
        assert Xaes(key).decrypt(nonce, sealed, associated) == plaintext
        digest.update(sealed)
    assert digest.hexdigest(32) == "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939"


@given(st.binary(max_size=100), st.binary(max_size=40), st.data())
def test_any_changed_bit_is_refused(plaintext: bytes, associated: bytes, data: st.DataObject) -> None:
    key = bytes(range(32))
    sealed = seal(key, plaintext, associated)
    assert len(sealed) == len(plaintext) + OVERHEAD
    assert open_sealed(key, sealed, associated) == plaintext
    bit = data.draw(st.integers(0, 8 * len(sealed) - 1))
    changed = bytearray(sealed)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(InvalidTag):
        open_sealed(key, bytes(changed), associated)
    with pytest.raises(InvalidTag):
        open_sealed(key, sealed, associated + b"x")
    with pytest.raises(InvalidTag):
        open_sealed(key, sealed[: data.draw(st.integers(0, len(sealed) - 1))], associated)


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Xaes(bytes(31))
    with pytest.raises(ValueError, match="12 bytes"):
        Xaes(bytes(32)).derive(bytes(11))


def test_two_seals_never_use_one_nonce() -> None:
    assert seal(bytes(32), b"same", b"") != seal(bytes(32), b"same", b"")

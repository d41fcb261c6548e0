"""HPKE with the hybrid KEM: opened once more by hand, from the definitions."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cryptfs.crypto import hpke

INFO = b"cryptfs v1 volume key" + bytes(24)


def open_by_hand(private: bytes, sealed: bytes, info: bytes) -> bytes:
    """RFC 9180 base mode with KEM 0x647a, KDF 0x0001, AEAD 0x0002, written out.

    The KEM's secret is SHA3-256(ML-KEM secret ‖ X25519 secret ‖ X25519 share ‖ X25519 public key ‖ label).
    """
    lattice_ct, share, ciphertext = sealed[:1088], sealed[1088:1120], sealed[1120:]
    lattice = MLKEM768PrivateKey.from_seed_bytes(private[:64]).decapsulate(lattice_ct)
    curve_key = X25519PrivateKey.from_private_bytes(private[64:])
    curve = curve_key.exchange(X25519PublicKey.from_public_bytes(share))
    public = curve_key.public_key().public_bytes_raw()
    shared = hashlib.sha3_256(lattice + curve + share + public + b"\\.//^\\").digest()

    suite = b"HPKE" + bytes.fromhex("647a00010002")

    def extract(salt: bytes, label: bytes, key: bytes) -> bytes:
        return hmac.digest(salt, b"HPKE-v1" + suite + label + key, "sha256")

    def expand(key: bytes, label: bytes, context: bytes, size: int) -> bytes:
        text = size.to_bytes(2, "big") + b"HPKE-v1" + suite + label + context
        return hmac.digest(key, text + b"\x01", "sha256")[:size]

    context = b"\x00" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
    secret = extract(shared, b"secret", b"")
    key = expand(secret, b"key", context, 32)
    nonce = expand(secret, b"base_nonce", context, 12)
    return AESGCM(key).decrypt(nonce, ciphertext, b"")


def test_sealed_bytes_are_those_of_the_standard() -> None:
    private = hpke.generate()
    sealed = hpke.seal(hpke.public_of(private), b"volume key", INFO)
    assert open_by_hand(private, sealed, INFO) == b"volume key"


def test_round_trip_and_sizes() -> None:
    private = hpke.generate()
    public = hpke.public_of(private)
    assert (len(private), len(public)) == (hpke.PRIVATE_SIZE, hpke.PUBLIC_SIZE) == (96, 1216)
    sealed = hpke.seal(public, bytes(32), INFO)
    assert len(sealed) == 32 + hpke.OVERHEAD == 1168
    assert hpke.open_sealed(private, sealed, INFO) == bytes(32)


@pytest.mark.parametrize("position", [0, 1000, 1088, 1119, 1120, 1167])
def test_changed_bytes_are_refused(position: int) -> None:
    private = hpke.generate()
    sealed = bytearray(hpke.seal(hpke.public_of(private), bytes(32), INFO))
    sealed[position] ^= 1
    with pytest.raises(hpke.InvalidTag):
        hpke.open_sealed(private, bytes(sealed), INFO)


def test_other_key_other_info_and_degenerate_share_are_refused() -> None:
    private, other = hpke.generate(), hpke.generate()
    sealed = hpke.seal(hpke.public_of(private), bytes(32), INFO)
    for key, text, info in (
        (other, sealed, INFO),
        (private, sealed, INFO + b"x"),
        (private, sealed[:1088] + bytes(32) + sealed[1120:], INFO),
        (private, sealed[:100], INFO),
        (private, b"", INFO),
    ):
        with pytest.raises(hpke.InvalidTag):
            hpke.open_sealed(key, text, info)


def test_unusable_public_key() -> None:
    with pytest.raises(ValueError):
        hpke.seal(bytes(1216), bytes(32), INFO)
    with pytest.raises(ValueError):
        hpke.seal(hpke.public_of(hpke.generate())[:-1], bytes(32), INFO)

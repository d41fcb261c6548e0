"""HPKE to a hybrid public key: MLKEM768-X25519, HKDF-SHA256, AES-256-GCM.

Keys are raw bytes here, as docs/format.md section 3 has them. The hybrid is for
archives that must stay closed for decades: both ML-KEM and X25519 have to fall.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

_MLKEM_SEED = 64
_MLKEM_PUBLIC = 1184
_X25519 = 32
PRIVATE_SIZE = _MLKEM_SEED + _X25519
PUBLIC_SIZE = _MLKEM_PUBLIC + _X25519
OVERHEAD = 1088 + 32 + 16  # encapsulated key of ML-KEM and of X25519, tag

_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)

__all__ = [
    "OVERHEAD",
    "PRIVATE_SIZE",
    "PUBLIC_SIZE",
    "InvalidTag",
    "generate",
    "open_sealed",
    "public_of",
    "seal",
]


def generate() -> bytes:
    """A new private key: ML-KEM seed (64) ‖ X25519 private key (32)."""
    return MLKEM768PrivateKey.generate().private_bytes_raw() + X25519PrivateKey.generate().private_bytes_raw()


def public_of(private: bytes) -> bytes:
    """The public key: ML-KEM encapsulation key (1184) ‖ X25519 public key (32)."""
    lattice = MLKEM768PrivateKey.from_seed_bytes(private[:_MLKEM_SEED]).public_key().public_bytes_raw()
    curve = X25519PrivateKey.from_private_bytes(private[_MLKEM_SEED:]).public_key().public_bytes_raw()
    return lattice + curve


def seal(public: bytes, plaintext: bytes, info: bytes) -> bytes:
    """Encapsulated key ‖ ciphertext; ValueError if `public` is not a usable public key."""
    key = MLKEM768X25519PublicKey(
        MLKEM768PublicKey.from_public_bytes(public[:_MLKEM_PUBLIC]),
        X25519PublicKey.from_public_bytes(public[_MLKEM_PUBLIC:]),
    )
    return _SUITE.encrypt(plaintext, key, info=info)


def open_sealed(private: bytes, sealed: bytes, info: bytes) -> bytes:
    """Undo `seal`; InvalidTag if it was sealed to another key or anything was changed."""
    key = MLKEM768X25519PrivateKey(
        MLKEM768PrivateKey.from_seed_bytes(private[:_MLKEM_SEED]),
        X25519PrivateKey.from_private_bytes(private[_MLKEM_SEED:]),
    )
    try:
        return _SUITE.decrypt(sealed, key, info=info)
    except ValueError:  # an X25519 share of low order
        raise InvalidTag from None

"""The primitives that come from libraries, against the vectors of their standards."""

from __future__ import annotations

import hashlib
import hmac

from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from cryptfs.crypto.derive import expand
from cryptfs.crypto.kdf import HkdfSha256, argon2id


def test_argon2id_rfc9106_section_5_3() -> None:
    tag = argon2id(b"\x01" * 32, b"\x02" * 16, 3, 32, 4, 32, key=b"\x03" * 8, associated=b"\x04" * 12)
    assert tag.hex() == "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659"


def test_siv_rfc5297_a1() -> None:
    key = "fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"
    associated = "101112131415161718191a1b1c1d1e1f2021222324252627"
    sealed = AESSIV(bytes.fromhex(key)).encrypt(
        bytes.fromhex("112233445566778899aabbccddee"), [bytes.fromhex(associated)]
    )
    assert sealed.hex() == "85632d07c6e8f37f950acd320a2ecc9340c02b9690c4dc04daef7f6afe5c"


def test_siv_rfc5297_a2_several_associated_data() -> None:
    key = "7f7e7d7c7b7a79787776757473727170404142434445464748494a4b4c4d4e4f"
    associated = [
        "00112233445566778899aabbccddeeffdeaddadadeaddadaffeeddccbbaa99887766554433221100",
        "102030405060708090a0",
        "09f911029d74e35bd84156c5635688c0",
    ]
    sealed = AESSIV(bytes.fromhex(key)).encrypt(
        b"this is some plaintext to encrypt using SIV-AES", [bytes.fromhex(a) for a in associated]
    )
    assert sealed.hex() == (
        "7bdb6e3b432667eb06f4d14bff2fbd0f"
        "cb900f2fddbe404326601965c889bf17dba77ceb094fa663b7a3f748ba8af829ea64ad544a272e9c485b62a3fd5c0d"
    )


def test_expand_rfc5869_a3() -> None:
    key = bytes.fromhex("19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04")
    assert expand(key, "", 42).hex() == (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    )


def test_expand_and_slot_key_by_hand() -> None:
    """HKDF written out with HMAC alone, for a label and for the two steps of a slot key."""
    key, label = bytes(range(32)), b"cryptfs v1 header wrap"
    first = hmac.digest(key, label + b"\x01", "sha256")
    second = hmac.digest(key, first + label + b"\x02", "sha256")
    assert expand(key, label.decode(), 64) == first + second

    salt, secret = bytes(range(16)), hashlib.sha256(b"key file").digest()
    extracted = hmac.digest(salt, secret, "sha256")
    assert HkdfSha256(salt).derive(secret) == hmac.digest(extracted, b"cryptfs v1 slot\x01", "sha256")

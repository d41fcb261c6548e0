"""Passphrases and key files as slot secrets."""

from __future__ import annotations

import hashlib

import pytest

from cryptfs.crypto.kdf import Argon2id, HkdfSha256, floor
from cryptfs.errors import UsageError
from cryptfs.keyslots import TYPEABLE, KeyFile, Passphrase, RecoveryKey, passphrase

SALT = HkdfSha256(bytes(16))


def test_a_passphrase_is_the_same_however_it_was_typed() -> None:
    composed, combining = Passphrase("Z\u00e4hne"), Passphrase("Za\u0308hne")
    assert composed.slot_key(SALT, {}) == combining.slot_key(SALT, {})
    assert composed.slot_key(SALT, {}) == SALT.derive("Z\u00e4hne".encode())
    assert composed.slot_key(SALT, {}) != Passphrase("z\u00e4hne").slot_key(SALT, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("x" * 1025, "longer than 1024 bytes"),
        ("ä" * 513, "longer than 1024 bytes"),
        ("\udcff", "not valid UTF-8"),
    ],
)
def test_unusable_passphrases(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Passphrase(text)


def test_longest_passphrase() -> None:
    assert len(Passphrase("ä" * 512).slot_key(SALT, {})) == 32


def test_a_new_passphrase_slot_is_measured_once_and_salted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(passphrase, "calibrate", lambda: calls.append(1) or floor())
    secret = Passphrase("text")
    first, second = secret.new_kdf(), secret.new_kdf()
    assert isinstance(first, Argon2id)
    assert first.salt != second.salt
    assert calls == [1]


def test_key_file_is_its_hash() -> None:
    content = bytes(range(64))
    assert KeyFile(content).slot_key(SALT, {}) == SALT.derive(hashlib.sha256(content).digest())
    assert isinstance(KeyFile(content).new_kdf(), HkdfSha256)


@pytest.mark.parametrize("size", [0, 31, (1 << 20) + 1])
def test_unusable_key_files(size: int) -> None:
    with pytest.raises(UsageError, match="32 bytes to 1 MiB"):
        KeyFile(bytes(size))


@pytest.mark.parametrize("size", [32, 1 << 20])
def test_edges_of_a_key_file(size: int) -> None:
    assert len(KeyFile(bytes(size)).slot_key(SALT, {})) == 32


def test_nothing_shows_its_secret() -> None:
    content = b"visible key file content, 32 or more"
    assert "visible" not in repr(Passphrase("visible")) + repr(KeyFile(content))


def test_what_a_person_can_type() -> None:
    assert {Passphrase.type, RecoveryKey.type} == TYPEABLE

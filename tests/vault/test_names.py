"""Which entries of a ciphertext directory belong to the vault, and how names are spelled."""

from __future__ import annotations

import pytest

from cryptfs.vault.names import NameCipher, NameInvalid, is_entry, long_entry

CIPHER = NameCipher(b"k" * 32, b"i" * 16)


@pytest.mark.parametrize("length", [1, 2, 175, 176, 255])
def test_lengths(length: int) -> None:
    text = CIPHER.encrypt(b"n" * length)
    assert CIPHER.decrypt(text) == b"n" * length
    assert (23 <= len(text) <= 255) == (length <= 175)
    if length > 175:
        assert 256 <= len(text) <= 362
        assert is_entry(long_entry(text))
    else:
        assert is_entry(text)
        with pytest.raises(NameInvalid):  # else it would have a second entry
            long_entry(text)


@pytest.mark.parametrize(
    "name",
    [b"@dir", b"@tmp-config-1", b"@eaDir", b".nfs00000001", b"A" * 22, b"A" * 256, b"lock", b"@l" + b"A" * 42]
    + [b"@l" + b"A" * 43 + b".name", b"@l" + b"A" * 44, b"A" * 30 + b".", b"A" * 30 + b"\n"],
)
def test_what_is_not_part_of_the_vault(name: bytes) -> None:
    assert not is_entry(name)


@pytest.mark.parametrize("name", [b"A" * 23, b"-_" * 127, b"@l" + b"A" * 43])
def test_what_has_to_be_an_object(name: bytes) -> None:
    assert is_entry(name)

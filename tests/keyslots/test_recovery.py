"""The recovery key's text: what is typed wrong is named, never accepted."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cryptfs.errors import UsageError
from cryptfs.keyslots import RecoveryKey
from cryptfs.keyslots.recovery import ALPHABET, GROUP_DIGITS, GROUPS, decode, encode

keys = st.binary(min_size=32, max_size=32)


def encode_by_bits(secret: bytes) -> str:
    """Section 12 of the format, done with strings of bits."""

    def bits(data: bytes, count: int) -> str:
        return "".join(f"{byte:08b}" for byte in data)[:count]

    text = bits(secret, 256) + bits(hashlib.sha256(b"cryptfs v1 recovery" + secret).digest(), 14)
    groups = []
    for number in range(9):
        digits = "".join(ALPHABET[int(text[30 * number + 5 * i :][:5], 2)] for i in range(6))
        label = b"cryptfs v1 recovery group" + bytes([number]) + digits.encode()
        groups.append(digits + ALPHABET[int(bits(hashlib.sha256(label).digest(), 5), 2)])
    return "-".join(groups)


@given(keys)
def test_text_is_that_of_the_specification(secret: bytes) -> None:
    text = RecoveryKey(secret).text
    assert text == encode_by_bits(secret)
    assert [len(group) for group in text.split("-")] == [GROUP_DIGITS] * GROUPS
    assert decode(text) == secret


@given(keys, st.sampled_from(["", " ", "-", "\n", " - "]))
def test_case_separators_and_lookalikes_do_not_matter(secret: bytes, separator: str) -> None:
    text = encode(secret).replace("-", separator)
    assert decode(text.lower()) == secret
    assert decode(text.replace("1", "I").replace("0", "O")) == secret
    assert decode(text.replace("1", "l").replace("0", "o")) == secret


@given(keys, st.integers(0, 62), st.sampled_from(ALPHABET))
def test_one_wrong_character_is_never_accepted_and_its_group_is_named(
    secret: bytes, position: int, digit: str
) -> None:
    digits = list(encode(secret).replace("-", ""))
    assume(digits[position] != digit)
    digits[position] = digit
    with pytest.raises(UsageError) as caught:
        decode("".join(digits))
    # One time in 32 the check digit fits by chance, and the checksum of the whole refuses it.
    named = f"Group {position // 7 + 1} " in str(caught.value)
    assert named or "every group" in str(caught.value)
    if position % 7 == 6:
        assert named


@given(keys, st.integers(0, 7))
def test_exchanged_groups_are_refused(secret: bytes, index: int) -> None:
    groups = encode(secret).split("-")
    assume(groups[index] != groups[index + 1])
    groups[index], groups[index + 1] = groups[index + 1], groups[index]
    with pytest.raises(UsageError):
        decode("-".join(groups))


@given(keys, st.integers(0, 8))
def test_a_group_with_a_missing_character_is_named(secret: bytes, index: int) -> None:
    groups = encode(secret).split("-")
    groups[index] = groups[index][:-1]
    with pytest.raises(UsageError, match=f"Group {index + 1} .* has 6 characters"):
        decode(" ".join(groups))


def test_impossible_characters_are_named_by_group() -> None:
    groups = encode(bytes(32)).split("-")
    groups[4] = "U" + groups[4][1:]
    with pytest.raises(UsageError, match=r"Group 5 .* cannot occur"):
        decode("-".join(groups))


@given(st.text(max_size=80))
def test_any_other_text_is_an_error(text: str) -> None:
    with pytest.raises(UsageError):
        decode(text)


def test_too_few_groups() -> None:
    with pytest.raises(UsageError, match="56 characters were given instead of 63"):
        decode(encode(bytes(32)).rpartition("-")[0])


def test_new_keys_differ_and_do_not_show_themselves() -> None:
    first, second = RecoveryKey.new(), RecoveryKey.new()
    assert first.text != second.text
    assert RecoveryKey.parse(first.text).text == first.text
    assert first.text.split("-")[0] not in repr(first)
    with pytest.raises(ValueError, match="32 bytes"):
        RecoveryKey(bytes(31))

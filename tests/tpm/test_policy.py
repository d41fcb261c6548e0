"""What a secret may be sealed to, and the policy digest, without a TPM."""

from __future__ import annotations

import hashlib

import pytest

from cryptfs.errors import CryptfsError, SlotRefused, UsageError
from cryptfs.tpm.policy import (
    PcrSelection,
    check_values,
    describe,
    differences,
    policy_digest,
)

SEVEN = PcrSelection("sha256", (7,))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sha256:7", "sha256:7"),
        ("7", "sha256:7"),
        ("sha384:7,0,7", "sha384:0,7"),
        ("sha512:14", "sha512:14"),
        ("none", "none"),
    ],
)
def test_selections(text: str, shown: str) -> None:
    assert str(PcrSelection.parse(text)) == shown


@pytest.mark.parametrize(
    "text", ["", "sha256:", "sha256:x", "sha256:7,", "sha256:-1", "md5:7", "7+8", "\u0667"]
)
def test_what_selects_nothing(text: str) -> None:
    with pytest.raises(UsageError):
        PcrSelection.parse(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("sha1:7", "SHA-1"),
        ("sha256:24", "seals to nothing"),
        ("sha256:7,31", "seals to nothing"),
        *((f"sha256:7,{pcr}", f"PCR {pcr} is not fit") for pcr in (8, 9, 10, 12, 13, 16, 23)),
    ],
)
def test_what_is_refused_and_why(text: str, why: str) -> None:
    with pytest.raises(SlotRefused, match=why):
        PcrSelection.parse(text)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([], "keeps no PCRs in the bank"),
        ([bytes(20)], "keeps no PCRs in the bank"),
        ([bytes(32)], "Nothing was measured into PCR 7"),
        ([b"\xff" * 32], "Nothing was measured into PCR 7"),
    ],
)
def test_values_that_protect_nothing(values: list[bytes], why: str) -> None:
    with pytest.raises(SlotRefused, match=why):
        check_values(SEVEN, values)
    check_values(SEVEN, [b"\1" * 32])
    check_values(PcrSelection.parse("none"), [])


def test_the_digest_is_the_specifications() -> None:
    """PolicyPCR and PolicyAuthValue of the TPM 2.0 Library, part 3, written out for one register."""
    value = hashlib.sha256(b"boot").digest()
    selection = bytes.fromhex("00000001 000b 03 800000")
    pcr = hashlib.sha256(
        bytes(32) + bytes.fromhex("0000017f") + selection + hashlib.sha256(value).digest()
    ).digest()
    assert policy_digest(SEVEN, [value], pin=False) == pcr
    both = hashlib.sha256(pcr + bytes.fromhex("0000016b")).digest()
    assert policy_digest(SEVEN, [value], pin=True) == both
    alone = hashlib.sha256(bytes(32) + bytes.fromhex("0000016b")).digest()
    assert policy_digest(PcrSelection.parse("none"), [], pin=True) == alone


def test_selection_as_the_tpm_takes_it() -> None:
    assert PcrSelection.parse("sha384:0,7,15").marshal() == bytes.fromhex("00000001 000c 03 818000")


def test_what_changed_is_named() -> None:
    both = PcrSelection("sha256", (0, 7))
    assert differences(both, [b"a", b"b"], [b"a", b"c"]) == [7]
    assert describe([7, 20]) == "7 (Secure Boot), 20"


def test_refusals_are_sentences() -> None:
    for text in ("sha1:7", "sha256:24", "sha256:10"):
        with pytest.raises(CryptfsError) as caught:
            PcrSelection.parse(text)
        assert str(caught.value).endswith(".")

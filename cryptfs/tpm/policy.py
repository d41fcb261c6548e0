"""Which state of the machine a secret is sealed to: PCR selection and policy digest. No TPM is asked here.

Platform configuration registers (PCRs) hold a hash of what was booted. The policy digest is computed
as the TPM does it (TPM 2.0 Library, part 3, PolicyPCR and PolicyAuthValue), so that it can be compared
with the stored one before a try is spent.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cryptfs.errors import SlotRefused, UsageError

# Bank -> (algorithm identifier, bytes of a value).
BANKS = {"sha256": (0x000B, 32), "sha384": (0x000C, 48), "sha512": (0x000D, 64)}
MAX_PCR = 23
DEFAULT = "sha256:7"

_POLICY_PCR = bytes.fromhex("0000017f")
_POLICY_AUTH_VALUE = bytes.fromhex("0000016b")

_CHANGES_AT_UPDATES = "it changes with every update of the boot loader or kernel"
_UNFIT = {
    8: _CHANGES_AT_UPDATES,
    9: _CHANGES_AT_UPDATES,
    10: "it changes with every program that runs (IMA)",
    12: "whoever edits the kernel's command line or a system extension changes it",
    13: "whoever adds a system extension changes it",
    16: "every program may reset it (it is for debugging)",
    23: "every program may reset it (it is for applications)",
}
MEANING = {
    0: "the firmware",
    1: "the firmware's settings",
    2: "the firmware of extension cards",
    3: "the settings of extension cards",
    4: "the boot loader",
    5: "the partition table",
    6: "what the maker of the computer measures",
    7: "Secure Boot",
    11: "the kernel image",
    14: "the boot loader's own keys (shim)",
    15: "the system's identity",
}


@dataclass(frozen=True)
class PcrSelection:
    """A bank and ascending indices; empty means that the state of the machine does not matter."""

    bank: str
    indices: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> PcrSelection:
        """`sha256:7`, `sha384:0,7` or `none`; UsageError for what is none, SlotRefused for what is unfit."""
        if text == "none":
            return cls("sha256", ())
        bank, colon, listed = text.partition(":")
        if not colon:
            bank, listed = "sha256", text
        if bank == "sha1":
            raise SlotRefused("PCRs of the SHA-1 bank can be forged: use sha256, as in sha256:7.")
        if bank not in BANKS:
            raise UsageError(f"There is no PCR bank {bank!r}: use {', '.join(BANKS)}.")
        if not re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4})*", listed):
            raise UsageError(f"{text!r} selects no PCRs: write for example sha256:7 or sha256:0,7.")
        selection = cls(bank, tuple(sorted({int(item) for item in listed.split(",")})))
        selection.check()
        return selection

    def check(self) -> None:
        """SlotRefused, with the reason, if a secret must not be sealed to one of these PCRs."""
        for index in self.indices:
            if index > MAX_PCR:
                raise SlotRefused(
                    f"There is no PCR {index}: a TPM takes it for none at all, and seals to nothing."
                )
            if index in _UNFIT:
                raise SlotRefused(f"PCR {index} is not fit to seal to: {_UNFIT[index]}.")

    def __str__(self) -> str:
        return f"{self.bank}:{','.join(map(str, self.indices))}" if self.indices else "none"

    def marshal(self) -> bytes:
        """As TPML_PCR_SELECTION."""
        bits = sum(1 << index for index in self.indices)
        algorithm = BANKS[self.bank][0]
        return b"\0\0\0\1" + algorithm.to_bytes(2, "big") + b"\3" + bits.to_bytes(3, "little")


def check_values(selection: PcrSelection, values: Sequence[bytes]) -> None:
    """SlotRefused unless the TPM has a value for each PCR, and something was measured into each."""
    size = BANKS[selection.bank][1]
    if len(values) != len(selection.indices) or any(len(value) != size for value in values):
        raise SlotRefused(
            f"This TPM keeps no PCRs in the bank {selection.bank}: a secret sealed to them would be sealed "
            "to nothing; use another bank, or switch it on in the firmware's settings."
        )
    for index, value in zip(selection.indices, values, strict=True):
        if value in (bytes(size), b"\xff" * size):
            raise SlotRefused(
                f"Nothing was measured into PCR {index} of this machine: it has the same value whatever is "
                "booted, and protects nothing; choose another PCR, or use a PIN without PCRs (--pcrs none)."
            )


def policy_digest(selection: PcrSelection, values: Sequence[bytes], pin: bool) -> bytes:
    """The SHA-256 policy digest of these PCR values, and a PIN if there is one (docs/format.md section 3)."""
    digest = bytes(32)
    if selection.indices:
        measured = hashlib.sha256(b"".join(values)).digest()
        digest = hashlib.sha256(digest + _POLICY_PCR + selection.marshal() + measured).digest()
    if pin:
        digest = hashlib.sha256(digest + _POLICY_AUTH_VALUE).digest()
    return digest


def differences(selection: PcrSelection, then: Sequence[bytes], now: Sequence[bytes]) -> list[int]:
    """The PCRs whose values are not what they were."""
    return [index for index, a, b in zip(selection.indices, then, now, strict=True) if a != b]


def describe(indices: Sequence[int]) -> str:
    """PCRs as a person knows them: `7 (Secure Boot)`."""
    return ", ".join(f"{index} ({MEANING[index]})" if index in MEANING else str(index) for index in indices)

"""The TPM2 slot: a secret that the TPM of one machine releases, and a PIN (docs/format.md section 3).

A PIN is short, so nothing may let it be guessed away from the TPM, which counts. Argon2id makes 256 bits of
it first; one part of these is what the TPM is given, the other goes into the slot key beside what
the TPM releases. So even a broken TPM that gives away everything in it leaves a guesser with Argon2id,
and a known PIN opens nothing without the TPM.
"""

from __future__ import annotations

import hmac
import os
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from cryptfs.crypto.derive import expand
from cryptfs.crypto.kdf import KEY_SIZE, Argon2id, HkdfSha256, Kdf, calibrate
from cryptfs.errors import UsageError
from cryptfs.tpm import device, lockout, sealing
from cryptfs.tpm.errors import OtherTpm
from cryptfs.tpm.policy import BANKS, DEFAULT, MAX_PCR, PcrSelection

RULES = "sealed-1"
MIN_PIN = 4
MAX_PIN_BYTES = 1024
LOCKOUT_SALT_SIZE = 16
_MAX_BLOB = 1024


class Pcr(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A register and the value that it had when the secret was sealed."""

    index: Annotated[int, Meta(ge=0, le=MAX_PCR)]
    value: bytes


class Extra(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `extra` of a slot with rules `sealed-1`; ValueError outside the bounds of section 3."""

    rules: str
    bank: str
    pcrs: list[Pcr]
    srk: Annotated[bytes, Meta(min_length=34, max_length=66)]
    public: Annotated[bytes, Meta(min_length=1, max_length=_MAX_BLOB)]
    private: Annotated[bytes, Meta(min_length=1, max_length=_MAX_BLOB)]
    lockout: bytes

    def __post_init__(self) -> None:
        if self.bank not in BANKS:
            raise ValueError(f"there is no PCR bank {self.bank!r}")
        indices = [pcr.index for pcr in self.pcrs]
        if indices != sorted(set(indices)):
            raise ValueError("the PCRs of a slot are not in ascending order")
        if any(len(pcr.value) != BANKS[self.bank][1] for pcr in self.pcrs):
            raise ValueError("a PCR's value does not have the size of its bank")
        if len(self.lockout) not in (0, LOCKOUT_SALT_SIZE):
            raise ValueError("the lockout salt has neither 0 nor 16 bytes")

    @property
    def selection(self) -> PcrSelection:
        return PcrSelection(self.bank, tuple(pcr.index for pcr in self.pcrs))

    def sealed(self, pin: bool) -> sealing.Sealed:
        values = tuple(pcr.value for pcr in self.pcrs)
        return sealing.Sealed(self.selection, values, pin, self.srk, self.public, self.private)


def check_extra(kdf: Kdf, extra: Mapping[str, Any]) -> None:
    """ValueError if a tpm2 slot's `extra` breaks a rule; one that names other rules is a newer program's."""
    if not isinstance(extra.get("rules"), str):
        raise ValueError("the extra of a tpm2 slot does not name its rules")
    if extra["rules"] != RULES:
        return
    parsed = msgspec.convert(extra, Extra)
    if msgspec.to_builtins(parsed) != extra:
        raise ValueError("a field of a tpm2 slot is not in its canonical form")
    if not parsed.pcrs and not isinstance(kdf, Argon2id):
        raise ValueError("a tpm2 slot has neither PCRs nor a PIN")


def parse_extra(extra: Mapping[str, Any]) -> Extra | None:
    """What a slot that was read needs from the TPM; None if its rules are not known here."""
    return msgspec.convert(extra, Extra) if extra.get("rules") == RULES else None


def lockout_password(authority: bytes, salt: bytes) -> bytes:
    """The password that lifts the TPM's lockout: known to whoever unlocks the vault, and stored nowhere."""
    return expand(hmac.digest(salt, authority, "sha256"), "cryptfs v1 tpm2 lockout", 32)


class Tpm2:
    """What this machine's TPM releases, with a PIN or without; UsageError for a PIN that cannot be one.

    For a new slot `selection` says what to seal to, `cost` are the Argon2id parameters (by default
    the machine is measured), and `replaces` is the `extra` of the slot that is sealed anew.
    """

    type = "tpm2"

    def __init__(
        self,
        address: str = device.DEFAULT,
        pin: str | None = None,
        *,
        selection: PcrSelection | None = None,
        cost: Argon2id | None = None,
        replaces: Mapping[str, Any] | None = None,
    ) -> None:
        device.parse_address(address)
        self.address = address
        self._pin = None if pin is None else _encode(pin)
        self._selection = selection or PcrSelection.parse(DEFAULT)
        self._cost = cost
        self._replaces = parse_extra(replaces or {})
        self._stretched: dict[Argon2id, bytes] = {}

    def new_kdf(self) -> Kdf:
        if self._pin is None:
            return HkdfSha256.new()
        if len(self._pin.decode("utf-8")) < MIN_PIN:
            raise UsageError(f"A PIN has at least {MIN_PIN} characters.")
        # Half a second: the TPM counts the tries, so this only has to be hard where a TPM was broken.
        self._cost = self._cost or calibrate(target=0.5)
        return self._cost.fresh()

    def new_extra(self, kdf: Kdf) -> dict[str, Any]:
        """Seal a new secret in the TPM."""
        pin = self._stretch(kdf)
        secret = os.urandom(sealing.SECRET_SIZE)
        with device.connect(self.address) as esys:
            state = lockout.state(esys)
            if pin is not None:
                lockout.check(state)
            sealed = sealing.seal(esys, secret, self._selection, None if pin is None else _tpm_pin(pin))
        salt = b""
        if pin is not None and not state.password_set:
            salt = os.urandom(LOCKOUT_SALT_SIZE)
        elif pin is not None and self._replaces and self._replaces.srk == sealed.srk_name:
            salt = self._replaces.lockout
        pcrs = [Pcr(i, value) for i, value in zip(sealed.selection.indices, sealed.values, strict=True)]
        extra: dict[str, Any] = msgspec.to_builtins(
            Extra(RULES, sealed.selection.bank, pcrs, sealed.srk_name, sealed.public, sealed.private, salt)
        )
        return extra

    def slot_key(self, kdf: Kdf, extra: Mapping[str, Any]) -> bytes:
        """Ask the TPM; what it may refuse with is in `cryptfs.tpm.errors`."""
        parsed = parse_extra(extra)
        if parsed is None:
            raise OtherTpm("This TPM slot was made by a newer version of cryptfs: unlock in another way.")
        pin = self._stretch(kdf)
        with device.connect(self.address) as esys:
            sealed = parsed.sealed(pin is not None)
            secret = sealing.unseal(esys, sealed, None if pin is None else _tpm_pin(pin))
        if pin is None:
            return kdf.derive(secret)
        return expand(hmac.digest(pin, secret, "sha256"), "cryptfs v1 slot", KEY_SIZE)

    def _stretch(self, kdf: Kdf) -> bytes | None:
        """The 32 bytes that Argon2id makes of the PIN; None for a slot without one."""
        if not isinstance(kdf, Argon2id):
            return None
        if self._pin is None:
            raise UsageError("The TPM slot has a PIN: type it, or give it with --pin-file or --pin-fd.")
        if kdf not in self._stretched:
            self._stretched[kdf] = kdf.derive(self._pin)
        return self._stretched[kdf]


def protect(address: str, extra: Mapping[str, Any], authority: bytes) -> bool:
    """Set the TPM's lockout password if this slot is to and none is set; whether it did.

    Comes after the slot was written: the password follows from it, so a power cut before or after
    loses nothing.
    """
    parsed = parse_extra(extra)
    if parsed is None or not parsed.lockout:
        return False
    with device.connect(address) as esys:
        if lockout.state(esys).password_set:
            return False
        lockout.protect(esys, lockout_password(authority, parsed.lockout))
    return True


def _encode(pin: str) -> bytes:
    try:
        encoded = unicodedata.normalize("NFC", pin).encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError("The PIN is not valid UTF-8 text.") from None
    if not 1 <= len(encoded) <= MAX_PIN_BYTES:
        raise UsageError(
            "The PIN is empty." if not encoded else f"The PIN is longer than {MAX_PIN_BYTES} bytes."
        )
    return encoded


def _tpm_pin(stretched: bytes) -> bytes:
    return expand(stretched, "cryptfs v1 tpm2 pin", 32)

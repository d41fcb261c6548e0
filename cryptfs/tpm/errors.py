"""Why a TPM does not do what it is asked, told apart so that a program can go on in the right way."""

from __future__ import annotations

from cryptfs.errors import TpmRefused, WrongSecret


class PcrsChanged(TpmRefused):
    """Firmware, Secure Boot or the boot loader is not what it was when the secret was sealed."""


class OtherTpm(TpmRefused):
    """The secret was sealed by another TPM, or this one was cleared or lost its storage key since."""


class Locked(TpmRefused):
    """After too many wrong PINs the TPM refuses even the right one for a while."""


class Damaged(TpmRefused):
    """The sealed secret is not what the TPM made."""


class WrongPin(WrongSecret):
    """The PIN is wrong; the TPM counted the try."""

"""Reaching a TPM: its address, the connection, and what its return codes mean to a person."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from cryptfs.errors import CryptfsError, TpmRefused, TpmUnavailable, UsageError
from cryptfs.tpm.errors import Damaged, Locked, WrongPin

DEFAULT = "/dev/tpmrm0"
OVERRIDE = "CRYPTFS_TPM_DEVICE"
"""Environment variable: the TPM to use where no option names one."""
TEST_SWITCH = "CRYPTFS_TEST_TPM"
"""Environment variable: `1` lets a software TPM be used, which protects nothing. For tests alone."""

_SIMULATORS = ("swtpm", "mssim", "cmd")

# Response codes without the bits that say which handle, parameter or session they are about.
AUTH_FAIL = 0x8E
POLICY_FAIL = 0x9D
INTEGRITY = 0x9F
BAD_AUTH = 0xA2
HANDLE = 0x8B
PCR_CHANGED = 0x128
LOCKOUT = 0x921
_INITIALIZE = 0x100
_FAILURE = 0x101
_TCTI_LAYER = 0x000A0000
_MARSHALLING_LAYER = 0x00090000
_LAYERS = 0x00FF0000


def default_address() -> str:
    """The TPM that is used where no option names one."""
    return os.environ.get(OVERRIDE) or DEFAULT


def parse_address(text: str) -> str:
    """The address as the TPM software takes it (TCTI), of a device file or `device:FILE`.

    A simulator is refused outside tests: it keeps its secrets in a file.
    """
    kind, colon, rest = text.partition(":")
    if text.startswith("/"):
        return f"device:{text}"
    if colon and kind == "device" and rest.startswith("/"):
        return text
    if colon and kind in _SIMULATORS:
        if os.environ.get(TEST_SWITCH) == "1":
            return text
        raise UsageError(f"{kind}: is a TPM in software, which keeps nothing secret: use {DEFAULT}.")
    raise UsageError(f"{text!r} is not the device file of a TPM: use {DEFAULT}.")


@contextlib.contextmanager
def connect(address: str) -> Iterator[Any]:
    """An ESAPI context for `parse_address`'s result, and every failure in it as one of our errors.

    TpmUnavailable if there is no TPM, it may not be used, or tpm2-pytss is not installed; TpmRefused,
    WrongPin and the others of `cryptfs.tpm.errors` for what it answers.
    """
    address = parse_address(address)
    _check_file(address)
    # Before its first use, or the library writes to standard error.
    os.environ.setdefault("TSS2_LOG", "all+NONE")
    try:
        from tpm2_pytss import ESAPI, TSS2_Exception
    except (ImportError, NotImplementedError):
        raise TpmUnavailable(
            "The TPM is used through the Python package tpm2-pytss, which is not installed: install cryptfs "
            "with its extra `tpm` (and Debian's libtss2-dev before), or unlock in another way."
        ) from None
    try:
        with ESAPI(address) as esys:
            yield esys
    except TSS2_Exception as error:
        raise explain(error) from None


def explain(error: Any) -> CryptfsError:  # noqa: ANN401
    """What a TSS2_Exception says, in one sentence."""
    code = error.error
    match error.rc & _LAYERS:
        case layer if layer == _TCTI_LAYER:
            return TpmUnavailable("The TPM does not answer: look at the kernel log (dmesg | grep -i tpm).")
        case layer if layer == _MARSHALLING_LAYER:
            return Damaged(
                "The sealed secret of the TPM slot is damaged: unlock in another way, and re-seal."
            )
    if code == LOCKOUT:
        return Locked(
            "The TPM is locked after too many wrong PINs, and refuses even the right one: it "
            "forgives one try "
            "every ten minutes; or unlock in another way and lift it with `cryptfs key lockout --reset`."
        )
    if code in (AUTH_FAIL, BAD_AUTH):
        return WrongPin("Wrong PIN; the TPM counted the try.")
    if code == INTEGRITY:
        return Damaged(
            "The sealed secret of the TPM slot was changed since this TPM made it: unlock in another way, "
            "and re-seal it."
        )
    if code in (_INITIALIZE, _FAILURE):
        return TpmUnavailable(
            "The TPM has failed its self-test or was not started by the firmware: switch the "
            "computer off and "
            "on again."
        )
    return TpmRefused(f"The TPM refused (code {error.rc:#x}): unlock in another way.")


def _check_file(address: str) -> None:
    """TpmUnavailable that tells a missing device from one that may not be used: the library cannot."""
    kind, _, rest = address.partition(":")
    file = rest.partition("path=")[2] if kind != "device" else rest
    if not file:
        return
    if not os.path.exists(file):
        raise TpmUnavailable(
            f"There is no TPM 2.0 at {file}: switch it on in the firmware's settings, or unlock in "
            "another way."
        )
    if not os.access(file, os.R_OK | os.W_OK):
        raise TpmUnavailable(
            f"You may not use the TPM at {file}: run as root, or become a member of the group tss."
        )

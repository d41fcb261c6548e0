"""The TPM's defence against guessing PINs: how many wrong ones, how fast forgiven, who may lift it.

As it comes from the factory anybody at the keyboard may set the counter of wrong PINs back to zero
and go on guessing. So whoever seals with a PIN also sets a lockout password, without which nobody can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cryptfs.errors import SlotRefused
from cryptfs.tpm.errors import Locked
from cryptfs.tpm.sealing import authorisation, encrypted_session, srk_for_sealing

MAX_TRIES = 32
FORGIVE_SECONDS = 600
"""One wrong PIN is forgiven every so often."""
RECOVERY_SECONDS = 86400
"""After one wrong lockout password, none is accepted for so long."""

_PERMANENT = 0x200
_COUNTER = 0x20E
_LOCKOUT_AUTH_SET = 1 << 2
_IN_LOCKOUT = 1 << 9


@dataclass(frozen=True)
class State:
    """The TPM's counters; times in seconds."""

    failed: int
    max_tries: int
    forgive_seconds: int
    recovery_seconds: int
    locked: bool
    password_set: bool

    @property
    def strict(self) -> bool:
        """Whether guessing is as slow as we would make it, or slower."""
        return 0 < self.max_tries <= MAX_TRIES and self.forgive_seconds >= FORGIVE_SECONDS


def state(esys: Any) -> State:  # noqa: ANN401
    """What the TPM says; needs no authorisation."""
    values = _properties(esys, _PERMANENT, 1) | _properties(esys, _COUNTER, 4)
    permanent = values.get(_PERMANENT, 0)
    return State(
        failed=values.get(_COUNTER, 0),
        max_tries=values.get(_COUNTER + 1, 0),
        forgive_seconds=values.get(_COUNTER + 2, 0),
        recovery_seconds=values.get(_COUNTER + 3, 0),
        locked=bool(permanent & _IN_LOCKOUT),
        password_set=bool(permanent & _LOCKOUT_AUTH_SET),
    )


def check(found: State) -> None:
    """SlotRefused if a PIN would not be protected here, and nothing can be done about it."""
    if found.password_set and not found.strict:
        raise SlotRefused(
            f"Another program set this TPM's lockout password, and the TPM allows {found.max_tries} "
            "wrong PINs "
            f"and forgives one every {found.forgive_seconds} s: too many for a PIN to be safe. Set at most "
            f"{MAX_TRIES} and at least {FORGIVE_SECONDS} s with that program, or use no PIN (--no-pin)."
        )
    if found.locked:
        raise Locked(
            "The TPM is locked after too many wrong PINs: wait, or lift it with `cryptfs key lockout "
            "--reset`."
        )


def protect(esys: Any, password: bytes) -> None:  # noqa: ANN401
    """Set the parameters, then the lockout password; only where none is set yet."""
    from tpm2_pytss import ESYS_TR

    with encrypted_session(esys, srk_for_sealing(esys), ESYS_TR.NONE) as session:
        esys.dictionary_attack_parameters(
            MAX_TRIES, FORGIVE_SECONDS, RECOVERY_SECONDS, ESYS_TR.LOCKOUT, session1=_plain(esys, session)
        )
        esys.hierarchy_change_auth(ESYS_TR.LOCKOUT, authorisation(password), session1=_full(esys, session))


def reset(esys: Any, password: bytes) -> None:  # noqa: ANN401
    """Lift the lockout: the counter of wrong PINs is zero again. A wrong password blocks this for a day."""
    from tpm2_pytss import ESYS_TR

    with encrypted_session(esys, srk_for_sealing(esys), ESYS_TR.NONE) as session:
        esys.tr_set_auth(ESYS_TR.LOCKOUT, authorisation(password))
        esys.dictionary_attack_lock_reset(ESYS_TR.LOCKOUT, session1=_plain(esys, session))


def release(esys: Any, password: bytes) -> None:  # noqa: ANN401
    """Take the lockout password away again, as it comes from the factory."""
    from tpm2_pytss import ESYS_TR

    with encrypted_session(esys, srk_for_sealing(esys), ESYS_TR.NONE) as session:
        esys.tr_set_auth(ESYS_TR.LOCKOUT, authorisation(password))
        esys.hierarchy_change_auth(ESYS_TR.LOCKOUT, b"", session1=_full(esys, session))


def _plain(esys: Any, session: Any) -> Any:  # noqa: ANN401
    """The session for a command without a parameter to encrypt, where asking for it is an error."""
    from tpm2_pytss import TPMA_SESSION

    esys.trsess_set_attributes(session, TPMA_SESSION.CONTINUESESSION, 0xFF)
    return session


def _full(esys: Any, session: Any) -> Any:  # noqa: ANN401
    from tpm2_pytss import TPMA_SESSION

    esys.trsess_set_attributes(session, TPMA_SESSION.CONTINUESESSION | TPMA_SESSION.DECRYPT, 0xFF)
    return session


def _properties(esys: Any, first: int, count: int) -> dict[int, int]:  # noqa: ANN401
    from tpm2_pytss import TPM2_CAP

    # The list points into the answer: keep hold of it while it is read.
    _, answer = esys.get_capability(TPM2_CAP.TPM_PROPERTIES, first, count)
    listed = answer.data.tpmProperties
    return {int(item.property): int(item.value) for item in (listed[i] for i in range(len(listed)))}

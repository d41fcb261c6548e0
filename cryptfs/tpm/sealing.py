"""Sealing a secret in a TPM, and getting it released (docs/format.md section 3, type `tpm2`).

Every command that carries a secret goes through a session that is salted with the storage root key (SRK)
and encrypts its parameters, so that a probe on the bus between processor and TPM sees nothing. That holds
only if the key that salts is the TPM's own, so its name is compared with the one that was stored.

TPMs hold few sessions and objects: each is flushed as soon as it is not needed, whatever happens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cryptfs.errors import SlotRefused, TpmRefused
from cryptfs.tpm import device
from cryptfs.tpm.errors import Damaged, OtherTpm, PcrsChanged, WrongPin
from cryptfs.tpm.policy import PcrSelection, check_values, describe, differences, policy_digest

SECRET_SIZE = 32
SRK_HANDLE = 0x81000001
_READ_AT_ONCE = 8
_TRIES = 3


@dataclass(frozen=True)
class Sealed:
    """What has to be kept to have a secret released; none of it is secret."""

    selection: PcrSelection
    values: tuple[bytes, ...] = field(repr=False)
    pin: bool
    srk_name: bytes = field(repr=False)
    public: bytes = field(repr=False)
    private: bytes = field(repr=False)

    @property
    def policy(self) -> bytes:
        return policy_digest(self.selection, self.values, self.pin)


def authorisation(value: bytes) -> bytes:
    """An authorisation value as the TPM keeps it: it drops zero bytes at the end, so both sides must."""
    return value.rstrip(b"\0")


def read_pcrs(esys: Any, selection: PcrSelection) -> tuple[bytes, ...]:  # noqa: ANN401
    """The values now; fewer than asked for if the TPM does not keep them all: it calls that no error."""
    values: list[bytes] = []
    for start in range(0, len(selection.indices), _READ_AT_ONCE):
        part = selection.indices[start : start + _READ_AT_ONCE]
        _, _, digests = esys.pcr_read(f"{selection.bank}:{','.join(map(str, part))}")
        values += [bytes(digest) for digest in digests]
    return tuple(values)


def seal(esys: Any, secret: bytes, selection: PcrSelection, pin: bytes | None) -> Sealed:  # noqa: ANN401
    """Seal a secret of at most 128 bytes to the present state of the machine, and an authorisation value.

    SlotRefused if that state or these PCRs protect nothing, or neither is asked for.
    """
    from tpm2_pytss import ESYS_TR, TPM2B_PUBLIC, TPM2B_SENSITIVE_CREATE, TPMA_OBJECT, TPMS_SENSITIVE_CREATE

    if not selection.indices and not pin:
        raise SlotRefused(
            "A TPM slot needs a PIN or PCRs: with neither, anybody who starts this machine unlocks."
        )
    selection.check()
    values = read_pcrs(esys, selection)
    check_values(selection, values)
    srk = srk_for_sealing(esys)
    attributes = TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT
    if pin is None:
        attributes |= TPMA_OBJECT.NODA  # no PIN to guess: other people's wrong ones must not lock it
    template = TPM2B_PUBLIC.parse(
        "keyedhash", objectAttributes=attributes, authPolicy=policy_digest(selection, values, pin is not None)
    )
    sensitive = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(userAuth=authorisation(pin or b""), data=secret))
    with encrypted_session(esys, srk, ESYS_TR.NONE) as session:
        private, public, *_ = esys.create(srk, sensitive, template, session1=session)
    name = bytes(esys.tr_get_name(srk))
    return Sealed(selection, values, pin is not None, name, public.marshal(), private.marshal())


def unseal(esys: Any, sealed: Sealed, pin: bytes | None) -> bytes:  # noqa: ANN401
    """The secret; OtherTpm, PcrsChanged, WrongPin, Locked or Damaged; only a PIN spends a try."""
    from tpm2_pytss import ESYS_TR, TPM2B_PRIVATE, TPM2B_PUBLIC

    name = srk_name(esys)
    if name is None:
        raise OtherTpm(
            "This TPM has no storage root key: it was cleared, or it is not the one that the slot "
            "was made on. "
            "Unlock in another way, then add the slot again (`cryptfs key reseal`)."
        )
    if name != sealed.srk_name:
        raise OtherTpm(
            "The slot was made on another TPM, or this one was cleared since: unlock in another way, "
            "then seal "
            "it to this TPM (`cryptfs key reseal`)."
        )
    compare_pcrs(sealed, read_pcrs(esys, sealed.selection))
    try:
        public, _ = TPM2B_PUBLIC.unmarshal(sealed.public)
        private, _ = TPM2B_PRIVATE.unmarshal(sealed.private)
    except Exception as error:  # the library raises several kinds for bytes that are no structure
        if not hasattr(error, "rc"):
            raise Damaged("The sealed secret of the TPM slot is damaged: unlock in another way.") from None
        raise
    srk = _srk(esys)
    with encrypted_session(esys, srk, ESYS_TR.NONE) as session:
        loaded = esys.load(srk, private, public, session1=session)
    with loaded:
        if pin is not None:
            esys.tr_set_auth(loaded, authorisation(pin))
        for _ in range(_TRIES):
            try:
                return _unseal_loaded(esys, srk, loaded, sealed)
            except _Moved:
                continue
    raise TpmRefused("The TPM's PCRs change all the time: wait until the machine has started, and try again.")


class _Moved(Exception):
    """Something was measured into a PCR between two commands: try again with a new policy session."""


def _unseal_loaded(esys: Any, srk: Any, loaded: Any, sealed: Sealed) -> bytes:  # noqa: ANN401
    from tpm2_pytss import ESYS_TR, TSS2_Exception

    bound = loaded if sealed.pin else ESYS_TR.NONE
    with policy_session(esys, srk) as policy, encrypted_session(esys, srk, bound) as session:
        if sealed.selection.indices:
            esys.policy_pcr(policy, None, str(sealed.selection))
        if sealed.pin:
            esys.policy_auth_value(policy)
        if bytes(esys.policy_get_digest(policy)) != sealed.policy:
            raise _Moved
        try:
            return bytes(esys.unseal(loaded, session1=policy, session2=session))
        except TSS2_Exception as error:
            if error.error in (device.PCR_CHANGED, device.POLICY_FAIL):
                raise _Moved from None
            if error.error == device.AUTH_FAIL:
                raise WrongPin(_tries_left(esys)) from None
            raise


def compare_pcrs(sealed: Sealed, values: tuple[bytes, ...]) -> None:
    """PcrsChanged that names the registers whose values are not those that were sealed to."""
    if len(values) != len(sealed.values):
        raise PcrsChanged(
            f"This TPM no longer keeps PCRs in the bank {sealed.selection.bank}: unlock in another way, then "
            "seal the slot again (`cryptfs key reseal`)."
        )
    changed = differences(sealed.selection, sealed.values, values)
    if changed:
        raise PcrsChanged(
            "The machine was not started as it was when the TPM slot was made: PCR "
            f"{describe(changed)} differs. "
            "If you know why (an update of the firmware, say), unlock in another way and seal the slot again "
            "(`cryptfs key reseal`); if not, somebody may have changed this machine."
        )


def srk_name(esys: Any) -> bytes | None:  # noqa: ANN401
    """The name of the storage root key, which tells one TPM from another; None if there is none."""
    srk = _srk(esys)
    return None if srk is None else bytes(esys.tr_get_name(srk))


@contextlib.contextmanager
def encrypted_session(esys: Any, srk: Any, bind: Any) -> Iterator[Any]:  # noqa: ANN401
    """An HMAC session, salted with the SRK, that encrypts the first parameter both ways."""
    from tpm2_pytss import TPM2_SE, TPMA_SESSION

    with _session(esys, srk, bind, TPM2_SE.HMAC) as session:
        esys.trsess_set_attributes(
            session, TPMA_SESSION.CONTINUESESSION | TPMA_SESSION.DECRYPT | TPMA_SESSION.ENCRYPT
        )
        yield session


@contextlib.contextmanager
def policy_session(esys: Any, srk: Any) -> Iterator[Any]:  # noqa: ANN401
    """A policy session, salted with the SRK. It encrypts nothing itself: PolicyAuthValue has no parameter."""
    from tpm2_pytss import ESYS_TR, TPM2_SE, TPMA_SESSION

    with _session(esys, srk, ESYS_TR.NONE, TPM2_SE.POLICY) as session:
        esys.trsess_set_attributes(session, TPMA_SESSION.CONTINUESESSION)
        yield session


@contextlib.contextmanager
def _session(esys: Any, srk: Any, bind: Any, kind: Any) -> Iterator[Any]:  # noqa: ANN401
    from tpm2_pytss import TPM2_ALG, TSS2_Exception

    session = esys.start_auth_session(srk, bind, kind, "aes128cfb", TPM2_ALG.SHA256)
    try:
        yield session
    finally:
        with contextlib.suppress(TSS2_Exception):
            esys.flush_context(session)


def _srk(esys: Any) -> Any | None:  # noqa: ANN401
    from tpm2_pytss import TSS2_Exception

    try:
        return esys.tr_from_tpmpublic(SRK_HANDLE)
    except TSS2_Exception as error:
        if error.error == device.HANDLE:
            return None
        raise


def srk_for_sealing(esys: Any) -> Any:  # noqa: ANN401
    """The storage root key, made if the TPM has none; SlotRefused if what is there is something else."""
    from tpm2_pytss import ESYS_TR, TPM2B_PUBLIC, TPM2B_SENSITIVE_CREATE, TPMA_OBJECT, TSS2_Exception

    needed = TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT | TPMA_OBJECT.SENSITIVEDATAORIGIN
    needed |= TPMA_OBJECT.RESTRICTED | TPMA_OBJECT.DECRYPT
    srk = _srk(esys)
    if srk is not None:
        public, *_ = esys.read_public(srk)
        if int(public.publicArea.objectAttributes) & int(needed) != int(needed):
            raise SlotRefused(
                f"What this TPM keeps at {SRK_HANDLE:#x} is not a storage root key of its own: "
                "another program "
                "put it there, and nothing can be sealed safely under it."
            )
        return srk
    template = TPM2B_PUBLIC.parse(
        "ecc256:aes128cfb", objectAttributes=needed | TPMA_OBJECT.USERWITHAUTH | TPMA_OBJECT.NODA
    )
    try:
        primary, *_ = esys.create_primary(TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.OWNER)
        with primary:
            return esys.evict_control(ESYS_TR.OWNER, primary, SRK_HANDLE)
    except TSS2_Exception as error:
        if error.error in (device.AUTH_FAIL, device.BAD_AUTH):
            raise SlotRefused(
                "This TPM has an owner's password and no storage root key: let its owner make one first "
                f"(tpm2_createprimary, tpm2_evictcontrol, at {SRK_HANDLE:#x})."
            ) from None
        raise


def _tries_left(esys: Any) -> str:  # noqa: ANN401
    from cryptfs.tpm import lockout

    state = lockout.state(esys)
    left = max(0, state.max_tries - state.failed)
    return (
        f"Wrong PIN: the TPM counts, and locks itself after {left} more."
        if left
        else ("Wrong PIN, and that was the last try: the TPM is locked now, for ten minutes at least.")
    )

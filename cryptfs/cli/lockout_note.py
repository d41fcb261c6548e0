"""Which of a vault's lockout passwords this machine's TPM has, as far as this machine knows.

A TPM does not tell whose password it has, and takes none for a day after a wrong one. A slot keeps the salt
of the password that was set with it, also after that was taken off the TPM or another was set.
"""

from __future__ import annotations

from cryptfs.cli import notes

_NAME = "lockout.json"
_TAKEN_OFF = ""


def was_set(vault_id: bytes, tpm: bytes, salt: bytes) -> bool:
    """The TPM, named by its root key, has the password with this salt now; whether that is noted."""
    return notes.add(vault_id, _NAME, tpm.hex(), salt.hex())


def was_taken_off(vault_id: bytes, tpm: bytes) -> bool:
    """The TPM has none of the vault's passwords any more; whether that is noted."""
    return notes.add(vault_id, _NAME, tpm.hex(), _TAKEN_OFF)


def is_taken_off(vault_id: bytes, tpm: bytes) -> bool:
    """Whether it is known that the TPM has none of the vault's passwords."""
    return notes.read(vault_id, _NAME).get(tpm.hex()) == _TAKEN_OFF


def may_be(vault_id: bytes, tpm: bytes, salts: set[bytes]) -> set[bytes]:
    """Of these salts those whose password the TPM may have."""
    noted = notes.read(vault_id, _NAME).get(tpm.hex())
    return salts if noted is None else {salt for salt in salts if salt.hex() == noted}


def forget(vault_id: bytes) -> None:
    """The vault is no more."""
    notes.forget(vault_id, _NAME)

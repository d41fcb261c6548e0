"""The closed family of errors that end a command, each with its exit code.

An exception's message is what a person reads: one sentence that says what is
wrong and what to do. The exit codes are documented in docs/exit-codes.md and
never change their meaning.
"""

from __future__ import annotations


class CryptfsError(Exception):
    """Something went wrong that has no code of its own."""

    exit_code = 1


class UsageError(CryptfsError):
    """The command line, or something typed at a prompt, is malformed."""

    exit_code = 2


class WrongSecret(CryptfsError):
    """The passphrase, recovery key, key file or PIN opens no slot."""

    exit_code = 10


class ConfigDamaged(CryptfsError):
    """cryptfs.json is unreadable, out of bounds, or was tampered with."""

    exit_code = 11


class UnsupportedFormat(CryptfsError):
    """The vault was written by a newer version or uses an unknown feature."""

    exit_code = 12


class NotAVault(CryptfsError):
    """The folder holds no vault."""

    exit_code = 13


class VaultInUse(CryptfsError):
    """The vault is mounted or being changed elsewhere."""

    exit_code = 14


class MountpointUnusable(CryptfsError):
    """The mountpoint is missing, not empty, busy, or inside the vault."""

    exit_code = 15


class FuseUnavailable(CryptfsError):
    """/dev/fuse or fusermount3 is missing or refuses."""

    exit_code = 16


class NotMounted(CryptfsError):
    """Nothing of ours is mounted there."""

    exit_code = 17


class IntegrityError(CryptfsError):
    """Ciphertext was damaged or tampered with."""

    exit_code = 18


class StorageError(CryptfsError):
    """The disk below refused: full, read-only, or failing."""

    exit_code = 19


class SlotRefused(CryptfsError):
    """A key slot cannot be added, changed or removed this way."""

    exit_code = 20


class TpmUnavailable(CryptfsError):
    """There is no TPM here, it may not be used, or the software for it is missing."""

    exit_code = 21


class TpmRefused(CryptfsError):
    """The TPM does not release the key: other software was booted, it is locked, or it is another TPM."""

    exit_code = 22


class CheckIncomplete(CryptfsError):
    """A check found no damage, but could not look at everything."""

    exit_code = 24


class FreezeEnded(CryptfsError):
    """A freeze ended before the command was done: its copy is not consistent."""

    exit_code = 25


class EpochNeeded(CryptfsError):
    """Headers are under another epoch key than the current one."""

    exit_code = 26


class Interrupted(CryptfsError):
    """Stopped by the user; nothing was left half done."""

    exit_code = 130

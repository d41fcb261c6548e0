"""Unlocking: how what a person has or knows becomes the key of a slot."""

from cryptfs.keyslots.keyfile import KeyFile
from cryptfs.keyslots.passphrase import Passphrase
from cryptfs.keyslots.recovery import RecoveryKey
from cryptfs.keyslots.secret import Secret
from cryptfs.keyslots.tpm2 import Tpm2

# Slot types that a person can type: a vault keeps at least one of them.
TYPEABLE = frozenset({Passphrase.type, RecoveryKey.type})

__all__ = ["TYPEABLE", "KeyFile", "Passphrase", "RecoveryKey", "Secret", "Tpm2"]

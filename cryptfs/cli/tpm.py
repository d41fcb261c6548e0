"""The TPM as a command line sees it: which device, and where the PIN comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryptfs.cli import terminal
from cryptfs.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cryptfs.keyslots import Tpm2
    from cryptfs.vault.config import Config, Unlocked
    from cryptfs.vault.document import Slot

_MAX_FILE = 4096


@dataclass(frozen=True)
class TpmSource:
    """How a person chose to unlock with a TPM. Without a file or descriptor they are asked for the PIN."""

    device: str | None = None
    pin_file: Path | None = None
    pin_fd: int | None = None

    @property
    def asks(self) -> bool:
        """Whether a person will be asked, if the slot has a PIN."""
        return self.pin_file is None and self.pin_fd is None

    @property
    def address(self) -> str:
        from cryptfs.tpm import device

        return self.device or device.default_address()

    def secret(self, config: Config, ask: Callable[[str], str], slot_id: str | None = None) -> Tpm2:
        """The secret; UsageError if the PIN is none."""
        from cryptfs.keyslots import Tpm2

        slots = [slot for slot in config.slots if slot.type == "tpm2" and slot_id in (None, slot.id)]
        pin: str | None = None
        if any(has_pin(slot) for slot in slots):
            pin = self._given_pin()
            if pin is None:
                pin = ask(f"PIN of {config.path}: ")
        return Tpm2(self.address, pin)

    def new_secret(self, pcrs: str, no_pin: bool, replaces: Mapping[str, object] | None = None) -> Tpm2:
        """The secret of a new slot; a PIN that is typed is typed twice."""
        from cryptfs.keyslots import Tpm2
        from cryptfs.tpm.policy import PcrSelection

        selection = PcrSelection.parse(pcrs)
        if no_pin and not self.asks:
            raise UsageError("--no-pin and a PIN exclude each other.")
        pin = None if no_pin else self._given_pin()
        if pin is None and not no_pin:
            if not terminal.available():
                raise UsageError("There is no terminal to ask on: use --pin-file, --pin-fd or --no-pin.")
            pin = terminal.ask_secret("New PIN: ")
            if terminal.ask_secret("The same again: ") != pin:
                raise UsageError("The two PINs differ: nothing was changed.")
        return Tpm2(self.address, pin, selection=selection, replaces=replaces)

    def _given_pin(self) -> str | None:
        from cryptfs.cli.secret_io import one_line, read_descriptor, warn_if_readable

        if self.pin_file is not None:
            with self.pin_file.open("rb") as stream:
                warn_if_readable(stream.fileno(), self.pin_file)
                return one_line(stream.read(_MAX_FILE), f"{self.pin_file}", "PIN")
        if self.pin_fd is not None:
            return one_line(read_descriptor(self.pin_fd), f"file descriptor {self.pin_fd}", "PIN")
        return None


def has_pin(slot: Slot) -> bool:
    """Whether a tpm2 slot has a PIN."""
    from cryptfs.crypto.kdf import Argon2id

    return isinstance(slot.kdf, Argon2id)


def protect(address: str, slot: Slot, unlocked: Unlocked) -> str:
    """Set the TPM's lockout password for a new slot; a sentence about how the TPM is protected now."""
    from cryptfs.cli import lockout_note
    from cryptfs.keyslots import tpm2

    if not has_pin(slot):
        return (
            "This slot has no PIN: whoever starts this machine, unchanged, unlocks the vault. It protects a "
            "disk that was taken out and a stolen backup, not a stolen server."
        )
    extra = tpm2.parse_extra(slot.extra)
    if tpm2.protect(address, slot.extra, unlocked.keys.authority):
        assert extra is not None
        lockout_note.was_set(unlocked.vault_id, extra.srk, extra.lockout)
        return "The TPM now locks itself after 32 wrong PINs; the vault keeps the password that lifts it."
    if extra is not None and not extra.lockout:
        return (
            "Another program or vault set this TPM's lockout password: its limits on wrong PINs are strict "
            "enough, but only it can lift a lockout."
        )
    return ""


def where_changed(config: Config) -> list[tuple[Slot, str]]:
    """The TPM slots of this machine that it would refuse now, each with the reason; asks for no PIN.

    Nothing if the TPM cannot be reached: then it is no help either way.
    """
    from cryptfs.errors import CryptfsError, TpmRefused
    from cryptfs.keyslots import tpm2
    from cryptfs.tpm import device, sealing

    slots = [slot for slot in config.slots if slot.type == "tpm2"]
    if not slots:
        return []
    found = []
    try:
        with device.connect(device.default_address()) as esys:
            name = sealing.srk_name(esys)
            for slot in slots:
                extra = tpm2.parse_extra(slot.extra)
                if extra is None or extra.srk != name:
                    continue  # another machine's
                sealed = extra.sealed(has_pin(slot))
                try:
                    sealing.compare_pcrs(sealed, sealing.read_pcrs(esys, sealed.selection))
                except TpmRefused as error:
                    found.append((slot, str(error)))
    except CryptfsError:
        return []
    return found

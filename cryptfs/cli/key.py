"""`cryptfs key`: the slots through which a vault is unlocked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cryptfs.cli import key_emergency, key_sheet, key_tpm, terminal
from cryptfs.cli.arguments import vault_argument
from cryptfs.cli.main import printable
from cryptfs.cli.secrets import (
    NewSecretSource,
    SecretSource,
    new_secret_options,
    secret_and_tpm_options,
    secret_options,
)
from cryptfs.cli.tpm import TpmSource
from cryptfs.errors import Interrupted, SlotRefused, UsageError

if TYPE_CHECKING:
    from cryptfs.vault.document import Slot

_TYPES = click.Choice(["passphrase", "recovery", "keyfile", "tpm2"])


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """List, test, add, change and remove key slots.

    Each slot is one way to unlock the vault. Files are not rewritten, and the vault may
    stay mounted meanwhile. docs/keys.md tells the life of each key, and what to do when one is lost.
    """


for _command in (
    key_tpm.test,
    key_tpm.reseal,
    key_tpm.lockout,
    key_sheet.sheet,
    key_emergency.backup,
    key_emergency.restore,
    key_emergency.recover,
    key_emergency.destroy,
):
    command.add_command(_command)


@command.command("list")
@vault_argument
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_slots(vault: Path, as_json: bool) -> None:
    """Show the key slots of VAULT. Needs no secret, so the list is not authenticated.

    LAST USED is when the slot last unlocked the vault on this machine; other machines have their own.
    """
    from cryptfs.cli import slot_use
    from cryptfs.vault.config import load

    config = load(vault)
    used = slot_use.last_used(config.vault_id)
    if as_json:
        listed = {
            "vault": config.vault_id.hex(),
            "generation": config.document.generation,
            "slots": [_describe(slot) | {"last_used_here": used.get(slot.id)} for slot in config.slots],
        }
        click.echo(json.dumps(listed, indent=2))
        return
    click.echo(f"{'SLOT':<18}{'TYPE':<12}{'CREATED':<22}{'LAST USED':<22}{'COST':<26}LABEL")
    for slot in config.slots:
        row = f"{slot.id:<18}{slot.type:<12}{slot.created:<22}{used.get(slot.id, 'never here'):<22}"
        click.echo(f"{printable(row)}{_cost(slot):<26}{printable(slot.label)}".rstrip())


@command.command("add")
@vault_argument
@click.argument("type_", metavar="TYPE", type=_TYPES)
@click.option("--label", default="", help="A note, shown by `key list`.")
@key_tpm.pcr_options
@secret_and_tpm_options
@new_secret_options
def add(
    vault: Path,
    type_: str,
    label: str,
    pcrs: str | None,
    no_pin: bool,
    source: SecretSource,
    tpm_source: TpmSource,
    new: NewSecretSource,
) -> None:
    """Add a slot of TYPE passphrase, recovery, keyfile or tpm2 to VAULT.

    Any existing slot unlocks it; the secrets of the others are not needed.

    A tpm2 slot is opened by the TPM of this machine, as long as it starts the same software (--pcrs),
    and a PIN. It is asked for twice, or read from --pin-file or --pin-fd. It is never the only
    slot: firmware updates change what is started, and mainboards die.
    """
    from cryptfs.vault import config

    loaded = config.load(vault)
    if type_ == "tpm2":
        if new != NewSecretSource():
            raise UsageError("--new-… files are not for a slot of type tpm2: give its PIN with --pin-file.")
        key_tpm.add(loaded, label, pcrs, no_pin, source, tpm_source)
        return
    if pcrs is not None or no_pin or (source.tpm is None and tpm_source != TpmSource()):
        raise UsageError("--pcrs, --no-pin, --pin-file and --pin-fd are for a slot of type tpm2.")
    unlocked = source.unlock(loaded)
    with new.chosen(type_) as secret:
        slot = config.add_slot(unlocked, secret, label).config.slots[-1]
    click.echo(f"Added the {slot.type} slot {slot.id}.")


@command.command("change")
@vault_argument
@click.argument("slot_id", metavar="SLOT")
@click.option("--label", default=None, help="A new note.")
@secret_options
@new_secret_options
def change(vault: Path, slot_id: str, label: str | None, source: SecretSource, new: NewSecretSource) -> None:
    """Give SLOT of VAULT a new secret of the same type.

    The old secret no longer opens the vault. But whoever knows it and kept a copy of the old
    cryptfs.json (a backup has one) can still read every file, for as long as the files keep
    the keys that they have now.
    """
    from cryptfs.vault import config

    loaded = config.load(vault)
    slot = loaded.slot(slot_id)
    if slot.type == "tpm2":
        raise UsageError(f"A TPM slot gets a new PIN with: cryptfs key reseal {vault} {slot.id}")
    unlocked = source.unlock(loaded)
    with new.chosen(slot.type) as secret:
        config.change_slot(unlocked, slot.id, secret, label)
    click.echo(f"Changed the {slot.type} slot {slot.id}.")


@command.command("remove")
@vault_argument
@click.argument("slot_id", metavar="SLOT")
@click.option("--yes", is_flag=True, help="Do not ask.")
@secret_options
def remove(vault: Path, slot_id: str, yes: bool, source: SecretSource) -> None:
    """Remove SLOT from VAULT and replace the volume key.

    The secret no longer opens the vault, and the other slots go on as before. But whoever knows
    it and kept a copy of the old cryptfs.json (a backup has one) can still read every
    file, for as long as the files keep the keys that they have now: delete such copies.
    The last slot that a person can type cannot be removed.
    """
    from cryptfs.keyslots import TYPEABLE
    from cryptfs.vault import config

    loaded = config.load(vault)
    slot = loaded.slot(slot_id)
    if not any(other.type in TYPEABLE for other in loaded.slots if other.id != slot.id):
        raise SlotRefused(
            "This is the last slot that a person can type: add a passphrase or a recovery key first."
        )
    if not yes:
        _confirm(slot)
    unlocked = source.unlock(loaded)
    config.remove_slot(unlocked, slot.id)
    click.echo(f"Removed the {slot.type} slot {slot.id}.")
    key_tpm.after_removal(slot, unlocked)


def _confirm(slot: Slot) -> None:
    if not terminal.available():
        raise UsageError("There is no terminal to ask on: confirm with --yes.")
    name = printable(f"{slot.type} slot {slot.id}" + (f" ({slot.label})" if slot.label else ""))
    if terminal.ask(f"Remove the {name} for good? [y/N] ").lower() not in ("y", "yes"):
        raise Interrupted("Nothing was changed.")


def _describe(slot: Slot) -> dict[str, Any]:
    from cryptfs.crypto.kdf import Argon2id

    kdf: dict[str, Any] = {"name": "hkdf-sha256"}
    if isinstance(slot.kdf, Argon2id):
        kdf = {
            "name": "argon2id",
            "time": slot.kdf.time,
            "memory_kib": slot.kdf.memory_kib,
            "lanes": slot.kdf.lanes,
        }
    described: dict[str, Any] = {
        "id": slot.id,
        "type": slot.type,
        "label": slot.label,
        "created": slot.created,
        "kdf": kdf,
    }
    if slot.type == "tpm2":
        described["tpm"] = key_tpm.describe(slot)
    return described


def _cost(slot: Slot) -> str:
    kdf = _describe(slot)["kdf"]
    if slot.type == "tpm2":
        return key_tpm.cost(slot)
    if kdf["name"] != "argon2id":
        return "none (256-bit secret)"
    return f"{kdf['memory_kib'] >> 10} MiB, {kdf['time']} passes"

"""`cryptfs key add tpm2`, `test`, `reseal`, `lockout`: what concerns the TPM, and whether a slot opens."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cryptfs.cli import terminal
from cryptfs.cli.arguments import vault_argument
from cryptfs.cli.main import printable
from cryptfs.cli.secrets import SecretSource, secret_and_tpm_options, secret_options
from cryptfs.cli.tpm import TpmSource, has_pin, protect
from cryptfs.errors import CryptfsError, SlotRefused, UsageError
from cryptfs.tpm.errors import PcrsChanged

if TYPE_CHECKING:
    from cryptfs.vault.config import Config, Unlocked
    from cryptfs.vault.document import Slot

R = TypeVar("R")


def pcr_options(command: Callable[..., R]) -> Callable[..., R]:
    """Options that say what a TPM slot is sealed to; the command gets `pcrs` and `no_pin`."""

    @click.option(
        "--pcrs",
        metavar="BANK:N,N…",
        help="What the machine must have started: PCRs 0 to 7, 11, 14, 15 or 17 to 22, or `none`. Default: "
        "sha256:7, the state of Secure Boot.",
    )
    @click.option(
        "--no-pin",
        is_flag=True,
        help="Unlock without anybody there. Protects a stolen disk or backup, not a stolen machine.",
    )
    @functools.wraps(command)
    def wrapper(*args: object, **kwargs: object) -> R:
        return command(*args, **kwargs)

    return wrapper


def add(
    loaded: Config, label: str, pcrs: str | None, no_pin: bool, source: SecretSource, tpm_source: TpmSource
) -> None:
    """`cryptfs key add VAULT tpm2`."""
    from cryptfs.tpm.policy import DEFAULT
    from cryptfs.vault import config

    _refuse_neither(pcrs, no_pin)
    unlocked = source.unlock(loaded)
    secret = tpm_source.new_secret(pcrs or DEFAULT, no_pin)
    added = config.add_slot(unlocked, secret, label)
    slot = added.config.slots[-1]
    click.echo(f"Added the tpm2 slot {slot.id}.")
    _protect_or_say(tpm_source.address, slot, added)


@click.command("reseal")
@vault_argument
@click.argument("slot_id", metavar="[SLOT]", required=False)
@pcr_options
@secret_and_tpm_options
def reseal(
    vault: Path,
    slot_id: str | None,
    pcrs: str | None,
    no_pin: bool,
    source: SecretSource,
    tpm_source: TpmSource,
) -> None:
    """Seal the TPM slot SLOT of VAULT to the state in which this machine is now, with a new PIN or the same.

    After an update of the firmware or a change of Secure Boot the TPM refuses; unlock with another
    slot here, and the TPM slot is made anew under its id. Do so only if you know why the state changed.
    The volume key is replaced, so that the old sealed secret opens nothing new. Whoever has an old
    copy of cryptfs.json, this machine in its old state and the old PIN can still open that copy. SLOT may be
    left out if there is only one TPM slot. PCRs and whether there is a PIN stay as they were unless
    you say otherwise.
    """
    from cryptfs.vault import config

    loaded = config.load(vault)
    slot = _tpm_slot(loaded, slot_id)
    # A slot without a PIN stays without one, unless one is given.
    no_pin = no_pin or (tpm_source.asks and not has_pin(slot))
    _seal_again(source.unlock(loaded), slot, pcrs, no_pin, tpm_source)


def _seal_again(
    unlocked: Unlocked, slot: Slot, pcrs: str | None, no_pin: bool, tpm_source: TpmSource
) -> None:
    from cryptfs.keyslots import tpm2
    from cryptfs.tpm.policy import DEFAULT
    from cryptfs.vault import config

    old = tpm2.parse_extra(slot.extra)
    chosen = pcrs or (str(old.selection) if old else DEFAULT)
    _refuse_neither(chosen, no_pin)
    secret = tpm_source.new_secret(chosen, no_pin, replaces=slot.extra)
    changed = config.change_slot(unlocked, slot.id, secret)
    click.echo(f"Sealed the tpm2 slot {slot.id} to the present state of this machine ({chosen}).")
    _protect_or_say(tpm_source.address, changed.config.slot(slot.id), changed)


@click.command("test")
@vault_argument
@click.argument("slot_id", metavar="[SLOT]", required=False)
@click.option("--json", "as_json", is_flag=True, help="For programs: also if the slot does not open.")
@secret_options
def test(vault: Path, slot_id: str | None, as_json: bool, source: SecretSource) -> None:
    """Prove that a key slot of VAULT opens it. Nothing is mounted or changed.

    Without SLOT the options say which secret is tried. With SLOT the secret of that slot is asked for
    or read: of a TPM slot the TPM itself. Exit code 0 means that the slot opened, the configuration is
    authentic, and the keys in it open the vault's root directory. Try each slot once a year, the recovery
    key above all.
    """
    from cryptfs.vault import belongs, config

    loaded = config.load(vault)
    slot = loaded.slot(slot_id) if slot_id else None
    if slot is not None:
        source = _fitting(slot, source)
    try:
        unlocked = source.unlock(loaded, slot.id if slot else None)
        belongs.check(vault, unlocked)
    except CryptfsError as error:
        if as_json:
            failed = {"opens": False, "slot": slot.id if slot else None, "type": source.kind}
            reason = type(error).__name__
            click.echo(json.dumps({**failed, "reason": reason, "message": str(error)}, indent=2))
        if isinstance(error, PcrsChanged) and not as_json:
            _offer(loaded, slot, source, error)
        raise
    opened = unlocked.config.slot(unlocked.slot_id)
    hint = _lockout_hint(opened, source)
    if as_json:
        done = {"opens": True, "slot": opened.id, "type": opened.type, "label": opened.label}
        click.echo(json.dumps({**done, "warning": hint or None}, indent=2))
        return
    name = f"{opened.type} slot {opened.id}" + (f" ({printable(opened.label)})" if opened.label else "")
    click.echo(f"The {name} opens the vault.")
    if hint:
        click.echo(f"cryptfs: warning: {hint}", err=True)


def _fitting(slot: Slot, source: SecretSource) -> SecretSource:
    """What asks for the secret of this slot, if the options do not say otherwise."""
    if source == SecretSource():
        if slot.type == "recovery":
            return SecretSource(recovery_key=True)
        if slot.type == "tpm2":
            return SecretSource(tpm=TpmSource())
        if slot.type == "keyfile":
            raise UsageError("Name the key file of the slot: --key-file FILE.")
    if source.kind != slot.type:
        raise UsageError(
            f"The options name a secret of type {source.kind}, but slot {slot.id} is a {slot.type}."
        )
    return source


def _offer(loaded: Config, slot: Slot | None, source: SecretSource, error: PcrsChanged) -> None:
    """Offer to seal to the present state; never without being asked and answered."""
    tpm_source = source.tpm
    if tpm_source is None or not terminal.available():
        return
    slot = slot or next(slot for slot in loaded.slots if slot.type == "tpm2")
    offer_reseal(loaded.path, SecretSource().unlock, loaded, slot, str(error), tpm_source)


def offer_reseal(
    vault: Path,
    unlock: Callable[[Config], Unlocked],
    loaded: Config,
    slot: Slot,
    reason: str,
    tpm_source: TpmSource,
) -> None:
    """Say what changed, and seal anew if the person says that they know why."""
    terminal.say(printable(reason))
    answer = terminal.ask("Do you know why, and should the slot be sealed to the present state? [y/N] ")
    if answer.lower() not in ("y", "yes"):
        terminal.say(f"Nothing was changed. Later: cryptfs key reseal {vault} {slot.id}")
        return
    _seal_again(unlock(loaded), slot, None, not has_pin(slot), tpm_source)


@click.command("lockout")
@vault_argument
@click.option("--reset", is_flag=True, help="Lift the lockout: the count of wrong PINs begins anew.")
@click.option(
    "--release", is_flag=True, help="Take the lockout password off the TPM, as it came from the maker."
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@secret_and_tpm_options
def lockout(
    vault: Path, reset: bool, release: bool, as_json: bool, source: SecretSource, tpm_source: TpmSource
) -> None:
    """Show how many wrong PINs this machine's TPM has counted; lift its lockout.

    To look needs no secret. --reset and --release need any slot of VAULT, because the password that the TPM
    asks for follows from the vault's keys; it was set when the TPM slot was made. Use --release before
    the machine goes to other hands.

    The count and the password are the TPM's, one for every vault with a slot in it: --reset gives whoever
    guesses at any of them new tries, and after --release all of them can be guessed at without an end.
    """
    from cryptfs.keyslots import tpm2
    from cryptfs.tpm import device, sealing
    from cryptfs.tpm import lockout as attack
    from cryptfs.vault import config

    if reset and release:
        raise UsageError("--reset and --release exclude each other.")
    loaded = config.load(vault)
    with device.connect(tpm_source.address) as esys:
        state = attack.state(esys)
        name = sealing.srk_name(esys) if reset or release else None
    if reset or release:
        if not state.password_set:
            raise SlotRefused(
                "This TPM has no lockout password; seal the slot again to set one (`cryptfs key reseal`)."
            )
        salt = _own_salt(loaded, name)
        password = tpm2.lockout_password(source.unlock(loaded).keys.authority, salt)
        with device.connect(tpm_source.address) as esys:
            if reset:
                attack.reset(esys, password)
            else:
                _release(esys, password, loaded)
            state = attack.state(esys)
    if as_json:
        shown = {
            "failed": state.failed,
            "max_tries": state.max_tries,
            "forgive_seconds": state.forgive_seconds,
            "locked": state.locked,
            "password_set": state.password_set,
        }
        click.echo(json.dumps(shown, indent=2))
        return
    click.echo(
        f"{state.failed} of {state.max_tries} wrong PINs{' (locked)' if state.locked else ''}; one is "
        "forgiven "
        f"every {state.forgive_seconds} s; the lockout password is {'' if state.password_set else 'not '}set."
    )


def _own_salt(loaded: Config, tpm: bytes | None) -> bytes:
    """That of the password which this vault set in a TPM, known by the name of its root key.

    SlotRefused if it set none, or if it is not certain which: a wrong one would block the TPM for a day.
    """
    from cryptfs.cli import lockout_note
    from cryptfs.keyslots import tpm2

    known = [tpm2.parse_extra(slot.extra) for slot in loaded.slots if slot.type == "tpm2"]
    salts = {extra.lockout for extra in known if extra is not None and extra.srk == tpm and extra.lockout}
    if tpm is None or not salts:
        raise SlotRefused(
            "This vault did not set the lockout password of this TPM, so it cannot lift the lockout: wait, "
            "or use the program or vault that did."
        )
    possible = lockout_note.may_be(loaded.vault_id, tpm, salts)
    if not possible:
        raise SlotRefused(
            "The lockout password of this vault was taken off this TPM, which has another one now: wait, "
            "or use the program or vault that set it."
        )
    if len(possible) > 1:
        raise SlotRefused(
            "This vault set the lockout password of this TPM more than once, and this machine does not know "
            "which of them the TPM has: a wrong one would block it for a day. Wait instead."
        )
    return possible.pop()


def _release(esys: Any, password: bytes, loaded: Config) -> None:  # noqa: ANN401
    """Take the lockout password off the TPM, and note that it is gone."""
    from cryptfs.cli import lockout_note
    from cryptfs.tpm import lockout as attack
    from cryptfs.tpm import sealing

    attack.release(esys, password)
    if not lockout_note.was_taken_off(loaded.vault_id, sealing.srk_name(esys) or b""):
        click.echo(
            "cryptfs: warning: this machine could not note that the lockout password is gone: do not use "
            "`cryptfs key lockout --reset` with this vault after another one has set its own.",
            err=True,
        )


def after_removal(slot: Slot, unlocked: Unlocked) -> None:
    """The TPM goes back to how it came, if it is at hand and has the lockout password of this slot.

    `unlocked` is the vault as it was before the slot was removed.
    """
    from cryptfs.cli import lockout_note
    from cryptfs.keyslots import tpm2
    from cryptfs.tpm import device, sealing
    from cryptfs.tpm import lockout as attack

    extra = tpm2.parse_extra(slot.extra) if slot.type == "tpm2" else None
    if extra is None or not extra.lockout or lockout_note.is_taken_off(unlocked.vault_id, extra.srk):
        return
    try:
        with device.connect(device.default_address()) as esys:
            name = sealing.srk_name(esys)
            if name == extra.srk and attack.state(esys).password_set:
                if _own_salt(unlocked.config, name) != extra.lockout:
                    return  # it has that of another slot
                _release(esys, tpm2.lockout_password(unlocked.keys.authority, extra.lockout), unlocked.config)
                click.echo(
                    "The TPM's lockout password was taken off again. If another vault has a slot with a PIN "
                    "in this TPM, seal that again (cryptfs key reseal): anybody can guess at it until then."
                )
                return
    except CryptfsError:
        pass
    click.echo(
        "The TPM of that slot keeps the lockout password that was set with it, until it is cleared in the "
        "firmware's settings."
    )


def describe(slot: Slot) -> dict[str, Any] | None:
    """What a program may want to know of a TPM slot."""
    from cryptfs.keyslots import tpm2

    extra = tpm2.parse_extra(slot.extra)
    if extra is None:
        return None
    return {"pcrs": str(extra.selection), "pin": has_pin(slot), "lockout_password": bool(extra.lockout)}


def cost(slot: Slot) -> str:
    """For the table of slots."""
    known = describe(slot)
    if known is None:
        return "TPM (newer version)"
    return f"TPM{' + PIN' if known['pin'] else ', no PIN'}, {known['pcrs']}"


def _lockout_hint(slot: Slot, source: SecretSource) -> str:
    """Whether the TPM still protects the PIN as it was set to."""
    from cryptfs.tpm import device
    from cryptfs.tpm import lockout as attack

    if source.tpm is None or not has_pin(slot):
        return ""
    with device.connect(source.tpm.address) as esys:
        if attack.state(esys).password_set:
            return ""
    return (
        "the TPM's lockout password is not set, so that anybody at the keyboard can go on guessing the PIN: "
        "seal the slot again (cryptfs key reseal)."
    )


def _protect_or_say(address: str, slot: Slot, unlocked: Unlocked) -> None:
    """Set the lockout password; if the TPM refuses that, say that the slot is there but less protected."""
    try:
        said = protect(address, slot, unlocked)
    except CryptfsError as error:
        raise SlotRefused(
            f"The slot {slot.id} is made, but the TPM did not take the limits on wrong PINs ({error}) Until "
            f"`cryptfs key reseal` succeeds, anybody at the keyboard can guess its PIN."
        ) from None
    if said:
        click.echo(said if has_pin(slot) else f"cryptfs: warning: {said}", err=not has_pin(slot))


def _refuse_neither(pcrs: str | None, no_pin: bool) -> None:
    if no_pin and pcrs == "none":
        raise SlotRefused(
            "A TPM slot needs a PIN or PCRs: with neither, anybody who starts this machine unlocks the vault."
        )


def _tpm_slot(loaded: Config, slot_id: str | None) -> Slot:
    if slot_id:
        slot = loaded.slot(slot_id)
        if slot.type != "tpm2":
            raise UsageError(
                f"The slot {slot.id} is a {slot.type} slot: only a TPM slot can be sealed again."
            )
        return slot
    slots = [slot for slot in loaded.slots if slot.type == "tpm2"]
    if len(slots) != 1:
        raise UsageError(
            "This vault has no TPM slot: add one (`cryptfs key add VAULT tpm2`)."
            if not slots
            else "This vault has several TPM slots: name one (`cryptfs key list` shows them)."
        )
    return slots[0]

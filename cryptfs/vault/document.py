"""cryptfs.json as types: strict parsing, canonical form and MAC (docs/format.md section 3).

Nothing here reads a file or knows a secret. What `parse` returns is within all
bounds but not yet authentic: that takes the root keys and `mac_is_right`.
"""

from __future__ import annotations

import datetime
import hmac
import json
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from cryptfs.crypto import aead, hpke
from cryptfs.crypto.derive import expand
from cryptfs.crypto.kdf import Argon2id, HkdfSha256, Kdf
from cryptfs.errors import ConfigDamaged, UnsupportedFormat
from cryptfs.keyslots import tpm2

MAX_SIZE = 1 << 20
MAX_SLOTS = 64
MAX_LABEL = 200
MAX_INTEGER = (1 << 53) - 1
MAX_DEPTH = 16
VERSION = 1
REENCRYPTION = "reencryption"
"""A feature of vaults that are being re-encrypted (docs/format.md section 13), and of no others."""
KNOWN_FEATURES: frozenset[str] = frozenset({REENCRYPTION})
# How the secret of a slot type may become its key: a passphrase never without Argon2id.
KDFS: dict[str, tuple[type, ...]] = {
    "passphrase": (Argon2id,),
    "recovery": (HkdfSha256, Argon2id),
    "keyfile": (HkdfSha256, Argon2id),
    "tpm2": (HkdfSha256, Argon2id),
}

AUTHORITY_SIZE = 32
_PRIVATE_SIZE = hpke.PRIVATE_SIZE + AUTHORITY_SIZE + aead.OVERHEAD
_VOLUME_SIZE = aead.KEY_SIZE + hpke.OVERHEAD
_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"

Time = Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z", max_length=20)]
VaultId = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
SlotId = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What holds for the vault as a whole."""

    backup_group: bool


@dataclass(frozen=True)
class RootKeys:
    """What an opened slot yields; everything else in the configuration hangs on both.

    The volume key can be sealed by whoever reads the slots' public keys, and is replaced when a slot
    is revoked. The authority key is known only to those who opened a slot: without it nobody
    can make a configuration of his own that the slots open.
    """

    volume: bytes = field(repr=False)
    authority: bytes = field(repr=False)

    def expand(self, label: str) -> bytes:
        """The 32-byte key for one use of both."""
        return expand(self.volume + self.authority, label, 32)


class Slot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way to the root keys: a secret opens `private`, which holds the authority key and
    the private key that the volume key is sealed to."""

    id: SlotId
    type: str
    label: Annotated[str, Meta(max_length=MAX_LABEL)]
    created: Time
    kdf: Kdf
    extra: dict[str, Any]
    public: Annotated[bytes, Meta(min_length=hpke.PUBLIC_SIZE, max_length=hpke.PUBLIC_SIZE)]
    private: Annotated[bytes, Meta(min_length=_PRIVATE_SIZE, max_length=_PRIVATE_SIZE)]
    volume: Annotated[bytes, Meta(min_length=_VOLUME_SIZE, max_length=_VOLUME_SIZE)]

    def __post_init__(self) -> None:
        if not isinstance(self.kdf, KDFS.get(self.type, ())):
            raise ValueError(f"a slot of type {self.type} cannot have this kdf")
        if self.extra and self.type != "tpm2":
            raise ValueError(f"a slot of type {self.type} has an empty extra")
        if self.type == "tpm2":
            tpm2.check_extra(self.kdf, self.extra)
        _check_time(self.created)


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of cryptfs.json."""

    format: str
    version: int
    vault: VaultId
    created: Time
    generation: Annotated[int, Meta(ge=1, le=MAX_INTEGER)]
    features: list[str]
    options: Options
    slots: Annotated[list[Slot], Meta(min_length=1, max_length=MAX_SLOTS)]
    keyring: bytes
    mac: Annotated[bytes, Meta(min_length=32, max_length=32)]

    def __post_init__(self) -> None:
        if len({slot.id for slot in self.slots}) != len(self.slots):
            raise ValueError("two slots have the same id")
        _check_time(self.created)

    @property
    def vault_id(self) -> bytes:
        return bytes.fromhex(self.vault)


def parse(text: bytes) -> Document:
    """A document within bounds; UnsupportedFormat if a newer version wrote it, else ConfigDamaged."""
    try:
        value = parse_json(text)
    except ValueError as error:
        raise ConfigDamaged(str(error)) from None
    if not isinstance(value, dict) or value.get("format") != "cryptfs":
        raise ConfigDamaged("it is not the configuration of a cryptfs vault")
    _check_known(value)
    try:
        document = msgspec.convert(value, Document)
    except msgspec.ValidationError as error:
        raise ConfigDamaged(str(error)) from None
    # What was read is exactly what we would write: no second spelling of the same base64, for one.
    if canonical(msgspec.to_builtins(document)) != canonical(value):
        raise ConfigDamaged("a field is not in its canonical form")
    return document


def parse_json(text: bytes) -> Any:  # noqa: ANN401
    """JSON as this format allows it; ValueError for anything else, including duplicate keys."""
    if len(text) > MAX_SIZE:
        raise ValueError("larger than 1 MiB")
    try:
        value = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_object,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON (line {error.lineno})") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _check_values(value, MAX_DEPTH)
    return value


def canonical(value: Any) -> bytes:  # noqa: ANN401
    """The one form in which a JSON value is authenticated."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def format_document(document: Document) -> bytes:
    """The file's text, indented for people who compare two of them."""
    return json.dumps(msgspec.to_builtins(document), indent=1, ensure_ascii=True).encode("ascii") + b"\n"


def slot_associated(vault_id: bytes, slot: Slot) -> bytes:
    """What the sealed private key of a slot is bound to: all its public fields."""
    fields = msgspec.to_builtins(slot)
    del fields["private"], fields["volume"]
    return b"cryptfs v1 slot private" + vault_id + canonical(fields)


def volume_info(vault_id: bytes, slot_id: str) -> bytes:
    """The HPKE info of the volume key sealed to a slot."""
    return b"cryptfs v1 volume key" + vault_id + bytes.fromhex(slot_id)


def compute_mac(document: Document, keys: RootKeys) -> bytes:
    fields = msgspec.to_builtins(document)
    del fields["mac"]
    return hmac.digest(keys.expand("cryptfs v1 config"), canonical(fields), "sha256")


def mac_is_right(document: Document, keys: RootKeys) -> bool:
    return hmac.compare_digest(compute_mac(document, keys), document.mac)


def now() -> str:
    """The time as this format writes it."""
    return datetime.datetime.now(datetime.UTC).strftime(_TIME_FORMAT)


def _check_known(value: dict[str, Any]) -> None:
    """UnsupportedFormat for what only a newer program can have written."""
    version = value.get("version")
    if type(version) is int and version != VERSION:
        raise UnsupportedFormat(
            f"format version {version} is not known to this program, which knows {VERSION}"
        )
    features = value.get("features")
    if isinstance(features, list):
        unknown = [
            feature for feature in features if isinstance(feature, str) and feature not in KNOWN_FEATURES
        ]
        if unknown:
            raise UnsupportedFormat(f"this program does not know the feature {unknown[0]!r}")
    slots = value.get("slots")
    for slot in slots if isinstance(slots, list) else []:
        kind = slot.get("type") if isinstance(slot, dict) else None
        if isinstance(kind, str) and kind not in KDFS:
            raise UnsupportedFormat(f"this program does not know the slot type {kind!r}")


def _check_time(text: str) -> None:
    try:
        datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a time") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object has the same field twice")
    return result


def _refuse_number(text: str) -> None:
    raise ValueError("only whole numbers may occur")


def _check_values(value: Any, depth: int) -> None:  # noqa: ANN401
    """Bounds that JSON itself does not have: depth, size of integers, text that is Unicode."""
    if depth == 0:
        raise ValueError("nested too deeply")
    if isinstance(value, dict):
        for name, item in value.items():
            _check_values(name, depth - 1)
            _check_values(item, depth - 1)
    elif isinstance(value, list):
        for item in value:
            _check_values(item, depth - 1)
    elif isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("a string is not Unicode text") from None
    elif isinstance(value, int) and not -MAX_INTEGER <= value <= MAX_INTEGER:
        raise ValueError("a number is larger than 53 bits")

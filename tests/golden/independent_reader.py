#!/usr/bin/env python3
"""Decrypts a vault into an ordinary folder; written from docs/format.md alone.

It shares no code with the package, so that the specification is what is tested,
and so that an archive can still be read when the package no longer runs. Needs
Python 3.11 and `cryptography` 50 or later. The vault is never changed.

    independent_reader.py VAULT --passphrase-file F | --recovery-key-file R | --key-file K OUTDIR

Exit codes: 0 everything was decrypted; 1 something was damaged (each on stderr; it
is not written, everything else is); 2 the vault cannot be opened.
Section numbers in this file are those of docs/format.md.
"""

import argparse
import base64
import binascii
import contextlib
import hashlib
import hmac
import itertools
import json
import os
import re
import shutil
import stat
import struct
import sys
import tempfile
import unicodedata
from collections import namedtuple
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PrivateKey, Suite
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

AREA, SLOT_1 = 8192, 4096
FILE, DIRECTORY, SYMLINK, FIFO, SOCKET, CHARACTER, BLOCK, SEGMENT = range(1, 9)
SPARSE, XATTR = 1, 2
NODE_TYPE = {FIFO: stat.S_IFIFO, SOCKET: stat.S_IFSOCK, CHARACTER: stat.S_IFCHR, BLOCK: stat.S_IFBLK}


class Damage(Exception):
    """Some bytes of the vault are not what a writer wrote."""


class NeverDurable(Exception):
    """What a power failure left of an object that was never synced: not part of the tree."""


class CannotOpen(Exception):
    """The vault as a whole cannot be opened."""


# --- Section 1: primitives -----------------------------------------------------------------------


@lru_cache(maxsize=256)
def _derived_cipher(key: bytes, prefix: bytes) -> AESGCM:
    halves = []
    for counter in (1, 2):
        mac = CMAC(AES(key))
        mac.update(bytes([0, counter, 0x58, 0]) + prefix)
        halves.append(mac.finalize())
    return AESGCM(b"".join(halves))


def xaes_open(key: bytes, sealed: bytes, aad: bytes) -> bytes:
    """Of nonce (24) ‖ ciphertext ‖ tag."""
    try:
        return _derived_cipher(key, sealed[:12]).decrypt(sealed[12:24], sealed[24:], aad)
    except (InvalidTag, ValueError):
        raise Damage("does not authenticate") from None


def siv_open(key: bytes, sealed: bytes, associated: list[bytes]) -> bytes:
    try:
        return AESSIV(key).decrypt(sealed, associated)
    except (InvalidTag, ValueError):
        raise Damage("does not authenticate") from None


def expand(key: bytes, label: str, length: int) -> bytes:
    return HKDFExpand(SHA256(), length, label.encode()).derive(key)


def unbase64(text: object, length: int = 0) -> bytes:
    """Of `length` bytes, if that is given."""
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True) if isinstance(text, str) else None
    except (binascii.Error, ValueError):
        raw = None
    if raw is None or length not in (0, len(raw)) or base64.b64encode(raw).decode() != text:
        raise Damage("is not base64 of the right length, in its one spelling")
    return raw


def unbase64url(text: str) -> bytes:
    return unbase64(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4))


# --- Section 3: configuration ----------------------------------------------------------------------


def parse_json(data: bytes) -> Any:  # noqa: ANN401
    """JSON within the limits of section 3: exactly what has a canonical form; raises Damage."""

    def refuse(_: object) -> NoReturn:
        raise ValueError

    def integer(digits: str) -> int:
        return int(digits) if abs(int(digits)) < 1 << 53 else refuse(digits)

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        return dict(items) if len(items) == len(dict(items)) else refuse(items)

    decoder = json.JSONDecoder(
        parse_int=integer, parse_float=refuse, parse_constant=refuse, object_pairs_hook=pairs
    )
    try:
        value = decoder.decode(data.decode()) if len(data) <= 1 << 20 else refuse(data)
        json.dumps(value, ensure_ascii=False).encode()  # fails where a surrogate stands alone
    except (ValueError, RecursionError):
        raise Damage("is not JSON as the format allows it") from None
    return value


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
CONFIG = dict(format="cryptfs", version=range(1, 2), vault="[0-9a-f]{32}", created=TIME, features=list)
CONFIG |= dict(generation=range(1, 1 << 53), options=dict, slots=list, keyring=0, mac=32)
SLOT = dict(id="[0-9a-f]{16}", type="passphrase|recovery|keyfile|tpm2", label=".{0,200}", created=TIME)
SLOT |= dict(kdf=dict, extra=dict, public=1216, private=168, volume=1168)
SEALED = dict(rules="sealed-1", bank="sha256|sha384|sha512", pcrs=list, srk=0, public=0, private=0, lockout=0)
HKDF = dict(name="hkdf-sha256", salt=16)
ARGON2 = dict(
    name="argon2id", salt=16, time=range(2, 65), memory_kib=range(65536, 4194305), lanes=range(1, 17)
)
EPOCH = dict(number=range(1, 1 << 32), key=32, created=TIME)
STATE = dict(session="[0-9a-f]{16}", phase=range(1 << 53), open=bool, unclean=list)
UNCLEAN = dict(session="[0-9a-f]{16}", phase=range(1 << 53))


def fields(value: object, shapes: Mapping[str, object]) -> dict[str, Any]:
    """The values of exactly these fields, base64 decoded; raises Damage.

    A shape is a pattern, a range of integers, a number of bytes (of base64; 0 for any) or a type.
    """
    if not isinstance(value, dict) or value.keys() != shapes.keys():
        raise Damage(f"must have exactly the fields {', '.join(shapes)}")
    decoded = dict(value)
    for name, shape in shapes.items():
        item = value[name]
        match shape:
            case int():
                decoded[name], right = unbase64(item, shape), True
            case str():
                right = isinstance(item, str) and bool(re.fullmatch(shape, item, re.ASCII | re.DOTALL))
            case range():
                right = type(item) is int and item in shape
            case _:
                right = type(item) is shape
        if not right:
            raise Damage(f"has a {name} that is not allowed")
    return decoded


def parse_config(data: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The fields of cryptfs.json and of its slots, within all bounds; raises Damage, CannotOpen."""
    config = parse_json(data)
    if isinstance(config, dict) and config.get("format") == "cryptfs" and config.get("version") != 1:
        raise CannotOpen("the vault has a format version other than 1")
    config = fields(config, CONFIG)
    fields(config["options"], {"backup_group": bool})
    unknown = [feature for feature in config["features"] if feature != "reencryption"]
    if unknown:
        raise CannotOpen(f"the vault uses features not known here: {unknown}")
    slots = [fields(slot, SLOT) for slot in config["slots"]]
    if not 1 <= len(slots) <= 64 or len({slot["id"] for slot in slots}) < len(slots):
        raise Damage("has no slots, too many, or one twice")
    for slot in slots:
        argon2 = slot["type"] == "passphrase" or slot["kdf"].get("name") == "argon2id"
        kdf = slot["kdf"] = fields(slot["kdf"], ARGON2 if argon2 else HKDF)
        if argon2 and kdf["time"] * kdf["memory_kib"] < 196608:
            raise Damage("asks for an Argon2id that is too cheap")
        if slot["type"] == "tpm2":
            check_sealed(slot["extra"], argon2)
        elif slot["extra"]:
            raise Damage("has an extra that is not allowed")
    return config, slots


def check_sealed(extra: dict[str, Any], pin: bool) -> None:
    """The `extra` of a tpm2 slot, if its rules are those of version 1; raises Damage."""
    if not isinstance(extra.get("rules"), str):
        raise Damage("has a TPM slot without rules")
    if extra["rules"] != "sealed-1":
        return
    sealed = fields(extra, SEALED)
    size = {"sha256": 32, "sha384": 48, "sha512": 64}[sealed["bank"]]
    indices = [fields(pcr, {"index": range(24), "value": size})["index"] for pcr in sealed["pcrs"]]
    sizes = len(sealed["srk"]) in range(34, 67) and len(sealed["lockout"]) in (0, 16)
    sizes = sizes and all(1 <= len(sealed[name]) <= 1024 for name in ("public", "private"))
    if not sizes or indices != sorted(set(indices)) or not (indices or pin):
        raise Damage("has a TPM slot that is not allowed")


def slot_key(kdf: dict[str, Any], secret: bytes) -> bytes:
    if kdf["name"] == "hkdf-sha256":
        return expand(hmac.digest(kdf["salt"], secret, "sha256"), "cryptfs v1 slot", 32)
    t, m, p = kdf["time"], kdf["memory_kib"], kdf["lanes"]
    return Argon2id(salt=kdf["salt"], length=32, iterations=t, memory_cost=m, lanes=p).derive(secret)


class Vault(NamedTuple):
    """What opening the configuration yields: all that decrypting takes."""

    id: bytes
    epochs: dict[int, bytes]
    wrap: dict[int, bytes]


def unlock(data: bytes, kind: str, secret: bytes) -> Vault:
    """Opens cryptfs.json with the secret of a slot of that kind; raises CannotOpen."""
    try:
        config, slots = parse_config(data)
        raw, vault_id = parse_json(data), bytes.fromhex(config["vault"])
        root = _root_keys(raw["slots"], slots, kind, secret, vault_id)
        del raw["mac"]
        mac = hmac.digest(expand(root, "cryptfs v1 config", 32), canonical(raw), "sha256")
        if not hmac.compare_digest(mac, config["mac"]):
            raise Damage("was changed by somebody without a key")
        sealed_under, aad = expand(root, "cryptfs v1 keyring", 32), b"cryptfs v1 keyring" + vault_id
        keyring = fields(parse_json(xaes_open(sealed_under, config["keyring"], aad)), {"epochs": list})
        entries = [fields(entry, EPOCH) for entry in keyring["epochs"]]
        epochs = {entry["number"]: entry["key"] for entry in entries}
        if not 1 <= len(entries) <= 64 or [entry["number"] for entry in entries] != sorted(epochs):
            raise Damage("has a keyring out of order")
    except Damage as damage:
        raise CannotOpen(f"cryptfs.json {damage}") from None
    wrap = {number: expand(key, "cryptfs v1 header wrap", 64) for number, key in epochs.items()}
    return Vault(vault_id, epochs, wrap)


def _root_keys(
    raw: list[dict[str, Any]], slots: list[dict[str, Any]], kind: str, secret: bytes, vault_id: bytes
) -> bytes:
    """Volume key and authority key, from the first slot of that kind that the secret opens."""
    for written, slot in zip(raw, slots, strict=True):
        if slot["type"] != kind:
            continue
        bound = {name: value for name, value in written.items() if name not in ("private", "volume")}
        aad = b"cryptfs v1 slot private" + vault_id + canonical(bound)
        try:
            private = xaes_open(slot_key(slot["kdf"], secret), slot["private"], aad)
        except Damage:
            continue
        mlkem = MLKEM768PrivateKey.from_seed_bytes(private[:64])
        key = MLKEM768X25519PrivateKey(mlkem, X25519PrivateKey.from_private_bytes(private[64:96]))
        suite = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
        info = b"cryptfs v1 volume key" + vault_id + bytes.fromhex(slot["id"])
        try:
            return suite.decrypt(slot["volume"], key, info=info) + private[96:]
        except (InvalidTag, ValueError):
            raise Damage("holds a volume key that does not authenticate") from None
    raise CannotOpen(f"this {kind} opens no slot of the vault")


# --- Section 12: the recovery key as text ------------------------------------------------------------

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def parse_recovery_key(text: str) -> bytes:
    """The 32 bytes; raises CannotOpen that names the group with the typing error."""
    plain = re.sub(r"[\s-]", "", text).upper().translate(str.maketrans("ILO", "110"))
    if len(plain) != 63 or any(digit not in CROCKFORD for digit in plain):
        raise CannotOpen("a recovery key has 9 groups of 7 letters and digits, without U")
    bits = 0
    for number in range(9):
        group = plain[7 * number : 7 * number + 7]
        check = hashlib.sha256(b"cryptfs v1 recovery group" + bytes([number]) + group[:6].encode()).digest()
        if CROCKFORD[check[0] >> 3] != group[6]:
            raise CannotOpen(f"group {number + 1} of the recovery key is mistyped")
        for digit in group[:6]:
            bits = bits << 5 | CROCKFORD.index(digit)
    key = (bits >> 14).to_bytes(32, "big")
    if int.from_bytes(hashlib.sha256(b"cryptfs v1 recovery" + key).digest()[:2], "big") >> 2 != bits & 0x3FFF:
        raise CannotOpen("the recovery key is mistyped")
    return key


# --- Section 4: headers ------------------------------------------------------------------------------

HEADER = struct.Struct("<4sBBHIIQ16sQIIQqqqqQ40s48s")
FIELDS = "magic kind log2 flags epoch mode generation object_id session uid gid rdev atime mtime ctime btime"


class Header(namedtuple("Header", FIELDS + " phase reserved key")):
    """A header slot; times in nanoseconds, `key` the object key."""

    @property
    def chunk(self) -> int:
        """Bytes of plaintext in a chunk."""
        return 1 << self.log2


def parse_slot(slot: bytes, vault: Vault) -> Header | None:
    """The header in the 192 bytes of a slot, None if they are not valid."""
    if len(slot) != HEADER.size or slot[:4] != b"CFH1":
        return None
    h = Header._make(HEADER.unpack(slot))
    sizes = {FILE: range(12, 21), SYMLINK: (12,), SEGMENT: (12,)}
    in_range = FILE <= h.kind <= SEGMENT and h.log2 in sizes.get(h.kind, (0,))
    in_range = in_range and h.flags in ((0, 1, 2, 3) if h.kind == FILE else (0, XATTR)) and h.mode <= 0o7777
    in_range = in_range and h.generation >= 1 and (h.rdev == 0 or h.kind in (CHARACTER, BLOCK))
    if not in_range or any(h.reserved) or h.epoch not in vault.wrap:
        return None
    try:
        return h._replace(
            key=siv_open(vault.wrap[h.epoch], h.key, [b"cryptfs v1 header", vault.id, slot[:144]])
        )
    except Damage:
        return None


def parse_area(area: bytes, vault: Vault) -> Header | None:
    """The valid header with the highest generation of a header area, None if there is none."""
    area = area.ljust(AREA, b"\0")
    slots = [parse_slot(area[at : at + HEADER.size], vault) for at in (0, SLOT_1)]
    return max((slot for slot in slots if slot), key=lambda slot: slot.generation, default=None)


def never_written(area: bytes) -> bool:
    """Whether a header area is one that a power failure left without a header (section 9)."""
    return len(area) < HEADER.size or not any(area[:192] + area[SLOT_1 : SLOT_1 + 192])


# --- Section 6: content ------------------------------------------------------------------------------


def plaintext(file: BinaryIO, header: Header, unclean: bool = False) -> Iterator[bytes]:
    """The chunks of a file; raises Damage at the first that does not hold.

    With `unclean` (section 9) a file without its end is the longest run of whole chunks instead.
    """
    stored = header.chunk + 40
    body = os.fstat(file.fileno()).st_size - AREA
    count = max(1, -(-body // stored))
    whole = body >= 40 and (count == 1 or body - (count - 1) * stored >= 41)

    def chunk(index: int, *finals: int) -> tuple[bytes, int]:
        file.seek(AREA + index * stored)
        data = file.read(stored)
        for final in finals:
            with contextlib.suppress(Damage):
                aad = header.object_id + struct.pack("<QB", index, final)
                return xaes_open(header.key, data, aad), final
        if header.flags & SPARSE and 0 in finals and len(data) == stored and not any(data):
            return bytes(header.chunk), 0
        raise Damage(f"is damaged in chunk {index} (from byte {index * header.chunk})")

    if unclean:
        try:
            for index in range(count):
                chunk(index, index == count - 1)
        except Damage:
            whole = False
    elif not whole:
        raise Damage("was cut")
    if whole:
        yield from (chunk(index, index == count - 1)[0] for index in range(count))
        return
    with contextlib.suppress(Damage):
        for index in range(body // stored):
            data, final = chunk(index, 0, 1)
            yield data
            if final:
                return


# --- Sections 9 and 10: session state and journal ----------------------------------------------------


def unclean_sessions(data: bytes, vault: Vault) -> dict[int, int]:
    """The sessions whose files may have been cut, with the last phase that was synced; raises Damage."""
    epoch = int.from_bytes(data[4:8], "little")
    if data[:4] != b"CFS1" or epoch not in vault.epochs:
        raise Damage("is not a session state of this vault")
    key = expand(vault.epochs[epoch], "cryptfs v1 state", 32)
    aad = b"cryptfs v1 state" + vault.id + data[4:8]
    state = fields(parse_json(xaes_open(key, data[8:], aad)), STATE)
    unclean = [fields(item, UNCLEAN) for item in state["unclean"]]
    unclean += [{"session": state["session"], "phase": state["phase"]}] * state["open"]
    return {int(item["session"], 16): item["phase"] for item in unclean}


class Record(NamedTuple):
    """A journal record; `length` is None unless the file is first cut or extended to it.

    An empty path stands for `settled`.
    """

    object_id: bytes
    path: str
    length: int | None
    writes: list[tuple[int, bytes]]


def parse_record(body: bytes) -> Record:
    """The record in an authenticated body; raises Damage."""
    at = 17

    def take(form: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(form, body, at)
        at += struct.calcsize(form)
        return int(value)

    def piece(size: int) -> bytes:
        nonlocal at
        at += size
        if at > len(body):
            raise ValueError
        return body[at - size : at]

    try:
        kind, object_id = body[0], body[1:17]
        if kind == 3:
            return Record(object_id, "", None, [])
        size = take("<H")
        path = piece(take("<I") if size == 65535 else size).decode("ascii")
        length = take("<Q") if kind == 2 else None
        writes = [(take("<Q"), piece(take("<I"))) for _ in range(take("<I"))]
    except (struct.error, ValueError, IndexError):
        raise Damage("holds a journal record that ends too early") from None
    if kind not in (1, 2) or any(part in ("", ".", "..") for part in path.split("/")):
        raise Damage("holds a journal record of unknown type, or for a path outside the tree")
    return Record(object_id, path, length, writes)


def read_segment(data: bytes, number: int, vault: Vault) -> list[Record]:
    """The records of the segment of that number."""
    if never_written(data):
        return []
    header = parse_area(data[:AREA], vault)
    if header is None or header.kind != SEGMENT:
        raise Damage("is not a journal segment of this vault")
    records: list[Record] = []
    at = AREA
    while at + 4 <= len(data):
        (length,) = struct.unpack_from("<I", data, at)
        if not 33 <= length <= 1 << 28:
            break
        nonce = struct.pack("<16xQ", len(records))
        aad = b"cryptfs v1 journal" + header.object_id + struct.pack("<QQ", number, len(records))
        try:
            body = xaes_open(header.key, nonce + data[at + 4 : at + 4 + length], aad)
        except Damage:
            break  # the write that a power failure interrupted
        records.append(parse_record(body))
        at += 4 + length
    return records


# --- The tree ----------------------------------------------------------------------------------------


class Extractor:
    """Writes the plaintext of one vault below a folder; `problems` lists what was damaged."""

    def __init__(self, root: Path, vault: Vault) -> None:
        self.root, self.vault = root, vault
        self.problems: list[str] = []
        self.unclean: dict[int, int] = {}
        self.overlay: dict[tuple[int, int], list[Record]] = {}
        self.written: dict[tuple[int, int], bytes] = {}  # by ciphertext inode, for hard links
        self.copies: dict[bytes, Header] | None = None

    def problem(self, shown: str, why: object) -> None:
        self.problems.append(f"{shown}: {why}")
        print(f"{shown}: {why}", file=sys.stderr)

    def run(self, target: Path) -> None:
        state = self.root / "journal" / "state"
        try:
            if state.exists():
                self.unclean = unclean_sessions(state.read_bytes(), self.vault)
        except (Damage, OSError) as error:
            self.problem("journal/state", error)
        for record in self.pending():
            with contextlib.suppress(OSError), (self.root / "tree" / record.path).open("rb") as file:
                header = parse_area(file.read(AREA), self.vault)
                if header and header.object_id == record.object_id:
                    about = os.fstat(file.fileno())
                    self.overlay.setdefault((about.st_dev, about.st_ino), []).append(record)
        try:
            self.directory(self.root / "tree", os.fsencode(target), "")
        except (Damage, OSError) as error:
            self.problem("/", error)

    def pending(self) -> list[Record]:
        """Section 10: the records that are to be laid over, up to the first damaged or missing segment."""
        found: list[Record] = []
        expected = None
        for path in sorted((self.root / "journal").glob("*.seg")):
            if not re.fullmatch("[0-9a-f]{16}", path.stem):
                continue
            number = int(path.stem, 16)
            try:
                if expected not in (None, number):
                    raise Damage("a segment before it is missing")
                for record in read_segment(path.read_bytes(), number, self.vault):
                    if record.path:
                        found.append(record)
                    else:
                        found = [other for other in found if other.object_id != record.object_id]
            except (Damage, OSError) as error:
                self.problem(f"journal/{path.name}", error)
                break
            expected = number + 1
        return found

    def directory(self, source: Path, target: bytes, shown: str) -> None:
        named: dict[str, str] = {}  # entry -> base64url text of its name
        for entry in sorted(entry.name for entry in os.scandir(source)):
            if re.fullmatch("[A-Za-z0-9_-]{23,255}", entry):
                named[entry] = entry
            elif re.fullmatch("@l[A-Za-z0-9_-]{43}", entry):
                named[entry] = self.long_name(source / entry, shown)
        header = self.directory_header(source, list(named.values()), shown)
        os.makedirs(target, 0o700, exist_ok=not shown)
        keys = [header.key, *self.former_key(source, header)]
        for entry, text in named.items():
            if not text:
                continue  # its sidecar was reported
            try:
                name = self.name(text, keys, header.object_id)
                if not 1 <= len(name) <= 255 or name in (b".", b"..") or b"/" in name or b"\0" in name:
                    raise Damage("is a name no file can have")
            except Damage as error:
                self.problem(f"{shown}/{entry} (the name)", error)
                continue
            path = f"{shown}/{name.decode(errors='backslashreplace')}"
            try:
                self.entry(source / entry, target + b"/" + name, path)
            except NeverDurable:
                print(f"{path}: never became durable, not part of the tree", file=sys.stderr)
            except (Damage, OSError) as error:
                self.problem(path, error)
        about = source.stat()
        self.attributes(target, header, (about.st_atime_ns, about.st_mtime_ns), shown or "/", keys)

    def former(self, source: Path) -> Header | None:
        """Section 13: the header in `@old`, None if there is no valid one."""
        try:
            found = parse_area((source / "@old").read_bytes()[:AREA], self.vault)
        except OSError:
            return None
        return found if found and found.kind == DIRECTORY else None

    def former_key(self, source: Path, header: Header) -> list[bytes]:
        """Section 13: the key that a directory had before, as long as anything may be under it."""
        former = self.former(source)
        return [former.key] if former and former.object_id == header.object_id else []

    def name(self, text: str, keys: list[bytes], object_id: bytes) -> bytes:
        """Section 5: the name in an entry, under the first key that opens it."""
        for key in keys[:-1]:
            with contextlib.suppress(Damage):
                return siv_open(expand(key, "cryptfs v1 names", 64), unbase64url(text), [object_id])
        return siv_open(expand(keys[-1], "cryptfs v1 names", 64), unbase64url(text), [object_id])

    def long_name(self, entry: Path, shown: str) -> str:
        """Section 5: the text in an entry's sidecar, empty (and reported) if it does not fit."""
        try:
            text = entry.with_name(entry.name + ".name").read_bytes()
        except OSError:
            text = b""
        digest = base64.urlsafe_b64encode(hashlib.sha256(text).digest()).rstrip(b"=")
        if entry.name.encode() == b"@l" + digest and re.fullmatch(rb"[A-Za-z0-9_-]{256,}", text):
            return text.decode()
        self.problem(f"{shown}/{entry.name}", "its .name file is lost or damaged")
        return ""

    def directory_header(self, source: Path, names: list[str], shown: str) -> Header:
        """The header from `@dir`, else (section 8) the copy under which a name decrypts; raises Damage."""
        try:
            header = parse_area((source / "@dir").read_bytes()[:AREA], self.vault)
        except OSError:
            header = None
        if header and header.kind == DIRECTORY:
            return header
        former = self.former(source)
        if former:
            return self.header_copies().get(former.object_id, former)
        for copy in itertools.chain(self.header_copies().values(), self.carried(source)):
            name_key = expand(copy.key, "cryptfs v1 names", 64)
            for text in filter(None, names):
                with contextlib.suppress(Damage):
                    siv_open(name_key, unbase64url(text), [copy.object_id])
                    print(f"{shown or '/'}: @dir is lost, its copy in dirs/ was used", file=sys.stderr)
                    return copy
        if shown and self.never_synced(source):
            raise NeverDurable
        raise Damage("the directory's header is lost, and no copy of it was found")

    def never_synced(self, source: Path) -> bool:
        """Section 8: whether nothing that was ever durable lies in a directory without a header."""
        for entry in source.iterdir() if self.unclean else ():
            if not re.fullmatch("[A-Za-z0-9_-]{23,255}|@l[A-Za-z0-9_-]{43}", entry.name):
                continue
            if entry.is_symlink() or not (entry.is_dir() or entry.is_file()):
                return False
            if entry.is_dir():
                if not self.never_synced(entry):
                    return False
                continue
            with entry.open("rb") as file:
                area = file.read(AREA)
            header = parse_area(area, self.vault)
            if not never_written(area) and not (header and self.suspect(header)):
                return False
        return bool(self.unclean)

    def suspect(self, header: Header) -> bool:
        """Section 9: whether content may have been cut before it was ever synced."""
        return header.phase > self.unclean.get(header.session, header.phase)

    def carried(self, source: Path) -> Iterator[Header]:
        """Section 8: headers of directories that the object files below a directory carry."""
        for entry in sorted(source.iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                yield from self.carried(entry)
            elif entry.name != "@dir" and entry.is_file():
                with entry.open("rb") as file:
                    area = file.read(4096)
                for at in range(256, 4096, 256):
                    header = parse_slot(area[at : at + 192], self.vault)
                    if header is None or header.kind != DIRECTORY:
                        break
                    yield header

    def header_copies(self) -> dict[bytes, Header]:
        if self.copies is None:
            self.copies = {}
            for log in sorted((self.root / "dirs").glob("*.log")):
                data = log.read_bytes()
                for at in range(0, len(data) - 255, 256):
                    header = parse_slot(data[at : at + HEADER.size], self.vault)
                    if header is None or header.kind != DIRECTORY:
                        continue  # torn or invalid
                    known = self.copies.get(header.object_id)
                    if known is None or header.generation >= known.generation:
                        self.copies[header.object_id] = header
        return self.copies

    def entry(self, source: Path, target: bytes, shown: str) -> None:
        about = source.lstat()
        if stat.S_ISDIR(about.st_mode):
            return self.directory(source, target, shown)
        if not stat.S_ISREG(about.st_mode):
            raise Damage("is neither a file nor a directory in the vault")
        inode = (about.st_dev, about.st_ino)
        if inode in self.written:
            return os.link(self.written[inode], target, follow_symlinks=False)
        with self.object_file(source, inode) as file:
            area = file.read(AREA)
            if self.unclean and never_written(area):
                raise NeverDurable
            header = parse_area(area, self.vault)
            if header is None or header.kind in (DIRECTORY, SEGMENT):
                raise Damage("has no valid header")
            self.create(file, header, target)
        self.written[inode] = target
        self.attributes(target, header, (header.atime, header.mtime), shown)

    def object_file(self, source: Path, inode: tuple[int, int]) -> BinaryIO:
        """The object file, with the journal applied to a copy of it (section 10)."""
        file = source.open("rb")
        if inode not in self.overlay:
            return file
        here = parse_area(file.read(AREA), self.vault)
        file.seek(0)
        carried = [
            parse_slot(data, self.vault)
            for record in self.overlay[inode]
            for offset, data in record.writes
            if offset in (0, 4096) and len(data) == HEADER.size
        ]
        generations = [header.generation for header in carried if header]
        if here and generations and here.generation > max(generations):
            return file  # copied from a vault in use, later than the journal
        copy = tempfile.TemporaryFile()
        with file:
            shutil.copyfileobj(file, copy)
        for record in self.overlay[inode]:
            if record.length is not None:
                copy.truncate(record.length)
            for offset, data in record.writes:
                copy.seek(offset)
                copy.write(data)
        copy.flush()
        copy.seek(0)
        return copy

    def create(self, file: BinaryIO, header: Header, target: bytes) -> None:
        unclean = self.suspect(header)
        if header.kind in NODE_TYPE:
            return os.mknod(target, NODE_TYPE[header.kind] | 0o600, header.rdev)
        if header.kind == SYMLINK:
            text = b"".join(plaintext(file, header, unclean))
            if unclean and not text:
                raise NeverDurable  # an empty target: no such link can be made here
            return os.symlink(text, target)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as out:
                for chunk in plaintext(file, header, unclean):
                    out.write(chunk)
        except BaseException:
            os.unlink(target)  # half a file must not pass for one
            raise

    def attributes(
        self,
        target: bytes,
        header: Header,
        times: tuple[int, int],
        shown: str,
        keys: list[bytes] | None = None,
    ) -> None:
        """Owner, extended attributes, mode and times, as far as the user running this may set them."""
        with contextlib.suppress(PermissionError):
            os.chown(target, header.uid, header.gid, follow_symlinks=False)
        if header.flags & XATTR:
            try:
                for name, value in self.xattrs(header, keys).items():
                    with contextlib.suppress(PermissionError):
                        os.setxattr(target, name, value, follow_symlinks=False)
            except (Damage, OSError) as error:
                self.problem(f"{shown} (extended attributes)", error)
        if header.kind != SYMLINK:
            os.chmod(target, header.mode)
        os.utime(target, ns=times, follow_symlinks=False)

    def xattrs(self, header: Header, keys: list[bytes] | None = None) -> dict[bytes, bytes]:
        """Section 11: names and values; under one of these keys, or the header's."""
        keys = keys or [header.key]
        digits = header.object_id.hex()
        sealed = (self.root / "xattr" / digits[:2] / digits).read_bytes()
        aad = b"cryptfs v1 xattr" + header.object_id
        opened = None
        for key in keys[:-1]:
            with contextlib.suppress(Damage):
                opened = opened or xaes_open(expand(key, "cryptfs v1 xattr", 32), sealed, aad)
        data = parse_json(opened or xaes_open(expand(keys[-1], "cryptfs v1 xattr", 32), sealed, aad))
        unescape = re.compile(rb"%([0-9A-F]{2})")
        return {
            unescape.sub(lambda match: bytes.fromhex(match[1].decode()), name.encode()): value
            for name, value in fields(data, dict.fromkeys(data, 0)).items()
        }


def extract(root: Path, vault: Vault, target: Path) -> list[str]:
    """Decrypts the whole vault below `target`; returns what was damaged, a sentence each."""
    extractor = Extractor(root, vault)
    extractor.run(target)
    return extractor.problems


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Decrypts a cryptfs vault into a folder.")
    parser.add_argument("vault", type=Path)
    secret = parser.add_mutually_exclusive_group(required=True)
    secret.add_argument("--passphrase-file", type=Path)
    secret.add_argument("--recovery-key-file", type=Path)
    secret.add_argument("--key-file", type=Path)
    parser.add_argument("outdir", type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.passphrase_file:
            text = re.sub(r"\r?\n\Z", "", options.passphrase_file.read_bytes().decode())
            kind, key = "passphrase", unicodedata.normalize("NFC", text).encode()
        elif options.recovery_key_file:
            kind, key = "recovery", parse_recovery_key(options.recovery_key_file.read_text("ascii"))
        else:
            kind, key = "keyfile", hashlib.sha256(options.key_file.read_bytes()).digest()
        vault = unlock((options.vault / "cryptfs.json").read_bytes(), kind, key)
        return 1 if extract(options.vault, vault, options.outdir) else 0
    except (CannotOpen, OSError, UnicodeError) as error:
        print(f"independent_reader: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

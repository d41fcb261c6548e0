#!/usr/bin/env python3
"""Decrypts a vault into an ordinary folder; written from docs/format.md alone.

It shares no code with the package, so that the specification is what is tested,
and so that an archive can still be read when the package no longer runs. Needs
Python 3.11 and `cryptography` 50 or later. The vault is never changed.

    independent_reader.py VAULT --passphrase-file F | --recovery-key-file R | --key-file K OUTDIR

Exit codes: 0 everything was decrypted; 1 something was damaged (each on stderr,
a damaged file is not written, all others are); 2 the vault cannot be opened.
Section numbers in this file are those of docs/format.md.
"""

import argparse
import base64
import binascii
import contextlib
import hashlib
import hmac
import json
import os
import re
import shutil
import stat
import struct
import sys
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

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


def xaes_open(key: bytes, nonce: bytes, sealed: bytes, aad: bytes) -> bytes:
    try:
        return _derived_cipher(key, nonce[:12]).decrypt(nonce[12:], sealed, aad)
    except (InvalidTag, ValueError):
        raise Damage("does not authenticate") from None


def siv_open(key: bytes, sealed: bytes, associated: list[bytes]) -> bytes:
    try:
        return AESSIV(key).decrypt(sealed, associated)
    except (InvalidTag, ValueError):
        raise Damage("does not authenticate") from None


def expand(key: bytes, label: str, length: int) -> bytes:
    return HKDFExpand(SHA256(), length, label.encode()).derive(key)


def unbase64(text: object, length: int | None = None) -> bytes:
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True) if isinstance(text, str) else None
    except (binascii.Error, ValueError):
        raw = None
    if raw is None or length not in (None, len(raw)):
        raise Damage("is not base64 of the right length")
    return raw


def unbase64url(text: str) -> bytes:
    raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if base64.urlsafe_b64encode(raw).rstrip(b"=") != text.encode():
        raise Damage("is not written in the one way it can be")
    return raw


# --- Section 3: configuration ----------------------------------------------------------------------


def parse_json(data: bytes) -> Any:  # noqa: ANN401
    """JSON without duplicate keys, fractions or NaN: exactly what has a canonical form."""

    def refuse(number: str) -> None:
        raise Damage(f"holds the number {number}")

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        if len(items) != len(dict(items)):
            raise Damage("holds a key twice")
        return dict(items)

    try:
        return json.loads(data.decode(), object_pairs_hook=pairs, parse_float=refuse, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise Damage("is not JSON") from None


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def fields(value: object, shape: Mapping[str, type]) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != shape.keys():
        raise Damage(f"must have exactly the fields {', '.join(shape)}")
    if any(type(value[name]) is not kind for name, kind in shape.items()):
        raise Damage("has a field of the wrong type")
    return value


CONFIG = {"format": str, "version": int, "vault": str, "created": str, "generation": int, "features": list}
CONFIG |= {"options": dict, "slots": list, "keyring": str, "mac": str}
SLOT = {"id": str, "type": str, "label": str, "created": str, "kdf": dict, "extra": dict}
SLOT |= {"public": str, "private": str, "volume": str}
ARGON2 = {"name": str, "salt": str, "time": int, "memory_kib": int, "lanes": int}


def slot_key(slot: dict[str, Any], secret: bytes) -> bytes:
    kdf = slot["kdf"]
    if kdf.get("name") == "argon2id":
        t, m, p = (fields(kdf, ARGON2)[name] for name in ("time", "memory_kib", "lanes"))
        if not (2 <= t <= 64 and 65536 <= m <= 4194304 and 1 <= p <= 16 and t * m >= 196608):
            raise Damage("asks for Argon2id outside the bounds")
        salt = unbase64(kdf["salt"], 16)
        return Argon2id(salt=salt, length=32, iterations=t, memory_cost=m, lanes=p).derive(secret)
    fields(kdf, {"name": str, "salt": str})
    if kdf["name"] != "hkdf-sha256" or slot["type"] == "passphrase":
        raise Damage("names a key derivation that does not fit")
    return expand(hmac.digest(unbase64(kdf["salt"], 16), secret, "sha256"), "cryptfs v1 slot", 32)


class Vault(NamedTuple):
    """What opening the configuration yields: all that decrypting takes."""

    id: bytes
    epochs: dict[int, bytes]
    wrap: dict[int, bytes]


def unlock(data: bytes, kind: str, secret: bytes) -> Vault:
    """Opens cryptfs.json with the secret of a slot of that kind; raises CannotOpen."""
    try:
        config = parse_json(data) if len(data) <= 1 << 20 else None
        if isinstance(config, dict) and config.get("format") == "cryptfs" and config.get("version") != 1:
            raise CannotOpen("the vault has a format version other than 1")
        config = fields(config, CONFIG)
        if config["format"] != "cryptfs" or not re.fullmatch("[0-9a-f]{32}", config["vault"]):
            raise Damage("is not of a vault")
        if config["features"]:
            raise CannotOpen(f"the vault uses features not known here: {config['features']}")
        if not 1 <= len(config["slots"]) <= 64:
            raise Damage("has no slots, or too many")
        vault_id = bytes.fromhex(config["vault"])
        volume_key = _volume_key([fields(slot, SLOT) for slot in config["slots"]], kind, secret, vault_id)
        plain = {name: value for name, value in config.items() if name != "mac"}
        mac = hmac.digest(expand(volume_key, "cryptfs v1 config", 32), canonical(plain), "sha256")
        if not hmac.compare_digest(mac, unbase64(config["mac"], 32)):
            raise Damage("was changed by somebody without a key")
        sealed = unbase64(config["keyring"])
        keyring = xaes_open(volume_key, sealed[:24], sealed[24:], b"cryptfs v1 keyring" + vault_id)
        entries = [
            fields(entry, {"number": int, "key": str, "created": str})
            for entry in fields(parse_json(keyring), {"epochs": list})["epochs"]
        ]
        epochs = {entry["number"]: unbase64(entry["key"], 32) for entry in entries}
        numbers = [entry["number"] for entry in entries]
        if not 1 <= len(entries) <= 64 or numbers != sorted(epochs) or numbers[0] < 1:
            raise Damage("has a keyring out of order")
    except Damage as damage:
        raise CannotOpen(f"cryptfs.json {damage}") from None
    wrap = {number: expand(key, "cryptfs v1 header wrap", 64) for number, key in epochs.items()}
    return Vault(vault_id, epochs, wrap)


def _volume_key(slots: list[dict[str, Any]], kind: str, secret: bytes, vault_id: bytes) -> bytes:
    for slot in (slot for slot in slots if slot["type"] == kind):
        bound = {name: value for name, value in slot.items() if name not in ("private", "volume")}
        aad = b"cryptfs v1 slot private" + vault_id + canonical(bound)
        try:
            sealed = unbase64(slot["private"], 24 + 96 + 16)
            private = xaes_open(slot_key(slot, secret), sealed[:24], sealed[24:], aad)
        except Damage:
            continue
        mlkem, x25519 = MLKEM768PrivateKey.from_seed_bytes(private[:64]), private[64:]
        key = MLKEM768X25519PrivateKey(mlkem, X25519PrivateKey.from_private_bytes(x25519))
        suite = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
        try:
            info = b"cryptfs v1 volume key" + vault_id + bytes.fromhex(slot["id"])
            volume_key = suite.decrypt(unbase64(slot["volume"]), key, info=info)
        except (InvalidTag, ValueError):
            raise Damage("holds a volume key that does not authenticate") from None
        if len(volume_key) != 32:
            raise Damage("holds a volume key of the wrong length")
        return volume_key
    raise CannotOpen(f"this {kind} opens no slot of the vault")


# --- Section 12: the recovery key as text ------------------------------------------------------------

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def _group_check(number: int, digits: str) -> str:
    digest = hashlib.sha256(b"cryptfs v1 recovery group" + bytes([number]) + digits.encode()).digest()
    return CROCKFORD[digest[0] >> 3]


def recovery_key_text(key: bytes) -> str:
    check = int.from_bytes(hashlib.sha256(b"cryptfs v1 recovery" + key).digest()[:2], "big") >> 2
    bits = int.from_bytes(key, "big") << 14 | check
    digits = "".join(CROCKFORD[bits >> 5 * i & 31] for i in reversed(range(54)))
    groups = [digits[i : i + 6] for i in range(0, 54, 6)]
    return "-".join(group + _group_check(i, group) for i, group in enumerate(groups))


def parse_recovery_key(text: str) -> bytes:
    """The 32 bytes; raises CannotOpen that names the group with the typing error."""
    plain = re.sub(r"[\s-]", "", text).upper().translate(str.maketrans("ILO", "110"))
    if len(plain) != 63 or any(digit not in CROCKFORD for digit in plain):
        raise CannotOpen("a recovery key has 9 groups of 7 letters and digits, without U")
    bits = 0
    for number in range(9):
        group = plain[7 * number : 7 * number + 7]
        if _group_check(number, group[:6]) != group[6]:
            raise CannotOpen(f"group {number + 1} of the recovery key is mistyped")
        for digit in group[:6]:
            bits = bits << 5 | CROCKFORD.index(digit)
    key = (bits >> 14).to_bytes(32, "big")
    if int.from_bytes(hashlib.sha256(b"cryptfs v1 recovery" + key).digest()[:2], "big") >> 2 != bits & 0x3FFF:
        raise CannotOpen("the recovery key is mistyped")
    return key


# --- Section 4: headers ------------------------------------------------------------------------------

HEADER = struct.Struct("<4sBBHIIQ16sQIIQqqqq48s48s")


class Header(NamedTuple):
    """A valid header slot; times in nanoseconds, chunk size in bytes."""

    kind: int
    chunk: int
    flags: int
    mode: int
    generation: int
    object_id: bytes
    session: int
    uid: int
    gid: int
    rdev: int
    atime: int
    mtime: int
    key: bytes


def parse_slot(slot: bytes, vault: Vault) -> Header | None:
    """The header in the 192 bytes of a slot, None if they are not valid."""
    if len(slot) != HEADER.size:
        return None
    (magic, kind, log2, flags, epoch, mode, generation, object_id, session, uid, gid, rdev, atime, mtime) = (
        HEADER.unpack(slot)[:14]
    )
    reserved, sealed = HEADER.unpack(slot)[16:]
    if magic != b"CFH1" or epoch not in vault.wrap:
        return None
    try:
        key = siv_open(vault.wrap[epoch], sealed, [b"cryptfs v1 header", vault.id, slot[:144]])
    except Damage:
        return None
    sizes = {FILE: range(12, 21), SYMLINK: range(12, 21), SEGMENT: range(12, 13)}
    in_range = log2 in sizes.get(kind, (0,)) and FILE <= kind <= SEGMENT and flags & ~3 == 0
    in_range = in_range and mode <= 0o7777 and generation >= 1 and not any(reserved)
    if not in_range or (rdev and kind not in (CHARACTER, BLOCK)):
        return None
    chunk = 1 << log2
    return Header(kind, chunk, flags, mode, generation, object_id, session, uid, gid, rdev, atime, mtime, key)


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
    """The chunks of a file. Strict: raises Damage at the first that does not hold.

    With `unclean` (section 9) the content ends before that chunk instead.
    """
    stored = header.chunk + 40
    body = os.fstat(file.fileno()).st_size - AREA
    count = max(1, -(-body // stored))
    if not unclean and (body < 40 or (count > 1 and body - (count - 1) * stored < 41)):
        raise Damage("was cut")
    file.seek(AREA)
    for index in range(count):
        data = file.read(stored)
        hole = header.flags & SPARSE and len(data) == stored and not any(data)
        if hole and (unclean or index < count - 1):
            yield bytes(header.chunk)
            continue
        for final in (0, 1) if unclean else (int(index == count - 1),):
            aad = header.object_id + struct.pack("<QB", index, final)
            with contextlib.suppress(Damage):
                yield xaes_open(header.key, data[:24], data[24:], aad)
                break
        else:
            if unclean:
                return
            raise Damage(f"is damaged in chunk {index} (from byte {index * header.chunk})")
        if unclean and final:
            return


# --- Sections 9 and 10: session state and journal ----------------------------------------------------


def unclean_sessions(data: bytes, vault: Vault) -> set[int]:
    """The sessions whose files may have been cut; raises Damage."""
    epoch = struct.unpack_from("<I", data, 4)[0] if len(data) >= 8 + 24 + 16 else None
    if data[:4] != b"CFS1" or epoch not in vault.epochs:
        raise Damage("is not a session state of this vault")
    key = expand(vault.epochs[epoch], "cryptfs v1 state", 32)
    aad = b"cryptfs v1 state" + vault.id + data[4:8]
    shape = {"session": str, "open": bool, "unclean": list}
    state = fields(parse_json(xaes_open(key, data[8:32], data[32:], aad)), shape)
    sessions = state["unclean"] + ([state["session"]] if state["open"] else [])
    if not all(isinstance(session, str) and re.fullmatch("[0-9a-f]{16}", session) for session in sessions):
        raise Damage("names a session that is none")
    return {int(session, 16) for session in sessions}


class Record(NamedTuple):
    """A journal record; `length` is None unless the file is first cut or extended to it."""

    object_id: bytes
    path: str
    length: int | None
    writes: list[tuple[int, bytes]]


def parse_record(body: bytes) -> Record | None:
    """The record in an authenticated body; None for `settled`."""
    kind, at = body[0], 17
    if kind == 3:
        return None
    if kind not in (1, 2):
        raise Damage(f"holds a journal record of unknown type {kind}")

    def take(form: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(form, body, at)
        at += struct.calcsize(form)
        return int(value)

    size = take("<H")
    size = take("<I") if size == 65535 else size
    path, at = body[at : at + size].decode("ascii"), at + size
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise Damage("holds a journal record for a path outside the tree")
    length = take("<Q") if kind == 2 else None
    writes = []
    for _ in range(take("<I")):
        offset, size = take("<Q"), take("<I")
        writes.append((offset, body[at : at + size]))
        at += size
    return Record(body[1:17], path, length, writes)


def read_segment(data: bytes, vault: Vault, records: list[Record]) -> None:
    """Adds a segment's records; a `settled` takes away those of its object."""
    if never_written(data):
        return
    header = parse_area(data[:AREA], vault)
    if header is None or header.kind != SEGMENT:
        raise Damage("is not a journal segment of this vault")
    at, number = AREA, 0
    while at + 4 <= len(data):
        end = at + 4 + struct.unpack_from("<I", data, at)[0]
        nonce = struct.pack("<16xQ", number)
        aad = b"cryptfs v1 journal" + header.object_id + struct.pack("<Q", number)
        try:
            body = xaes_open(header.key, nonce, data[at + 4 : end], aad)
        except Damage:
            return  # the write that a power failure interrupted
        record = parse_record(body)
        if record is None:
            records[:] = [other for other in records if other.object_id != body[1:17]]
        else:
            records.append(record)
        at, number = end, number + 1


# --- The tree ----------------------------------------------------------------------------------------


class Extractor:
    """Writes the plaintext of one vault below a folder; `problems` lists what was damaged."""

    def __init__(self, root: Path, vault: Vault) -> None:
        self.root, self.vault = root, vault
        self.problems: list[str] = []
        self.unclean: set[int] = set()
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
        records: list[Record] = []
        for segment in sorted((self.root / "journal").glob("*.seg")):
            try:
                read_segment(segment.read_bytes(), self.vault, records)
            except (Damage, OSError, struct.error, ValueError, IndexError) as error:
                self.problem(f"journal/{segment.name}", error)
        for record in records:
            with contextlib.suppress(OSError), (self.root / "tree" / record.path).open("rb") as file:
                header = parse_area(file.read(AREA), self.vault)
                if header and header.object_id == record.object_id:
                    about = os.fstat(file.fileno())
                    self.overlay.setdefault((about.st_dev, about.st_ino), []).append(record)
        self.directory(self.root / "tree", os.fsencode(target), "")

    def directory(self, source: Path, target: bytes, shown: str) -> None:
        entries = sorted(entry.name for entry in os.scandir(source))
        named: dict[str, str] = {}  # entry -> base64url text of its name
        for entry in entries:
            if re.fullmatch("[A-Za-z0-9_-]{22,255}", entry):
                named[entry] = entry
            elif re.fullmatch("@l[A-Za-z0-9_-]{43}", entry):
                named[entry] = self.long_name(source / entry, shown)
            elif entry != "@dir" and not re.fullmatch(r"@tmp-.*|@l[A-Za-z0-9_-]{43}\.name", entry):
                print(f"{shown}/{entry}: not of the vault, left alone", file=sys.stderr)
        header = self.directory_header(source, list(named.values()), shown)
        os.makedirs(target, 0o700, exist_ok=not shown)
        name_key = expand(header.key, "cryptfs v1 names", 64) if header else bytes(64)
        for entry, text in named.items():
            if not text:
                continue  # its sidecar was reported
            try:
                sealed = unbase64url(text)
                name = siv_open(name_key, sealed, [header.object_id if header else b""])
                if not 1 <= len(name) <= 255 or name in (b".", b"..") or b"/" in name or b"\0" in name:
                    raise Damage("is a name no file can have")
            except (Damage, ValueError) as error:
                self.problem(f"{shown}/{entry} (the name)", error)
                continue
            path = f"{shown}/{name.decode(errors='backslashreplace')}"
            try:
                self.entry(source / entry, target + b"/" + name, path)
            except (Damage, OSError) as error:
                self.problem(path, error)
        if header:
            about = source.stat()
            times = (about.st_atime_ns, about.st_mtime_ns)
            self.attributes(target, header, times, shown or "/")

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

    def directory_header(self, source: Path, names: list[str], shown: str) -> Header | None:
        """The header from `@dir`, else (section 8) the copy under which a name decrypts."""
        try:
            header = parse_area((source / "@dir").read_bytes()[:AREA], self.vault)
        except OSError:
            header = None
        if header and header.kind == DIRECTORY:
            return header
        for copy in self.header_copies().values():
            name_key = expand(copy.key, "cryptfs v1 names", 64)
            for text in filter(None, names):
                with contextlib.suppress(Damage, ValueError):
                    siv_open(name_key, unbase64url(text), [copy.object_id])
                    print(f"{shown or '/'}: @dir is lost, its copy in dirs/ was used", file=sys.stderr)
                    return copy
        self.problem(shown or "/", "the directory's header is lost, and no copy of it was found")
        return None

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
                return print(f"{shown}: never became durable, not part of the tree", file=sys.stderr)
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
        unclean = header.session in self.unclean
        if header.kind in NODE_TYPE:
            return os.mknod(target, NODE_TYPE[header.kind] | 0o600, header.rdev)
        if header.kind == SYMLINK:
            return os.symlink(b"".join(plaintext(file, header, unclean)), target)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as out:
                for chunk in plaintext(file, header, unclean):
                    out.write(chunk)
        except BaseException:
            os.unlink(target)  # half a file must not pass for one
            raise

    def attributes(self, target: bytes, header: Header, times: tuple[int, int], shown: str) -> None:
        """Owner, extended attributes, mode and times, as far as the user running this may set them."""
        with contextlib.suppress(PermissionError):
            os.chown(target, header.uid, header.gid, follow_symlinks=False)
        if header.flags & XATTR:
            try:
                for name, value in self.xattrs(header).items():
                    with contextlib.suppress(PermissionError):
                        os.setxattr(target, name, value, follow_symlinks=False)
            except (Damage, OSError) as error:
                self.problem(f"{shown} (extended attributes)", error)
        if header.kind != SYMLINK:
            os.chmod(target, header.mode)
        os.utime(target, ns=times, follow_symlinks=False)

    def xattrs(self, header: Header) -> dict[bytes, bytes]:
        """Section 11: names and values."""
        digits = header.object_id.hex()
        sealed = (self.root / "xattr" / digits[:2] / digits).read_bytes()
        key = expand(header.key, "cryptfs v1 xattr", 32)
        data = parse_json(xaes_open(key, sealed[:24], sealed[24:], b"cryptfs v1 xattr" + header.object_id))
        data = fields(data, dict.fromkeys(data, str))
        unescape = re.compile(rb"%([0-9A-Fa-f]{2})")
        return {
            unescape.sub(lambda match: bytes.fromhex(match[1].decode()), name.encode()): unbase64(value)
            for name, value in data.items()
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
            text = options.passphrase_file.read_text("utf-8").removesuffix("\n")
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

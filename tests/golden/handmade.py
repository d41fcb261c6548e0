"""Vaults put together by hand from docs/format.md, a byte at a time.

For the tests of the independent reader: what is sealed here knows nothing of the
package either, so both sides of these tests come from the specification alone.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import struct
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PrivateKey, Suite
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
PASSPHRASE = "cinquième radio à l'étage".encode()
RECOVERY = bytes(range(32))
TIME = "2026-01-02T03:04:05Z"
SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def xaes_seal(key: bytes, nonce: bytes, data: bytes, aad: bytes) -> bytes:
    halves = []
    for counter in (b"\x01", b"\x02"):
        mac = CMAC(AES(key))
        mac.update(b"\x00" + counter + b"X\x00" + nonce[:12])
        halves.append(mac.finalize())
    return AESGCM(b"".join(halves)).encrypt(nonce[12:], data, aad)


def expand(key: bytes, label: str, length: int) -> bytes:
    return HKDFExpand(SHA256(), length, label.encode()).derive(key)


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def recovery_key_text(key: bytes) -> str:
    """Section 12."""
    check = int.from_bytes(hashlib.sha256(b"cryptfs v1 recovery" + key).digest()[:2], "big") >> 2
    bits = int.from_bytes(key, "big") << 14 | check
    digits = "".join(CROCKFORD[bits >> 5 * i & 31] for i in reversed(range(54)))
    groups = []
    for number in range(9):
        group = digits[6 * number : 6 * number + 6]
        data = b"cryptfs v1 recovery group" + bytes([number]) + group.encode()
        groups.append(group + CROCKFORD[hashlib.sha256(data).digest()[0] >> 3])
    return "-".join(groups)


class Thing:
    """The keys of one object: its random id, its random key."""

    def __init__(self, epoch: int = 1) -> None:
        self.id, self.key, self.epoch = os.urandom(16), os.urandom(32), epoch


class HandmadeVault:
    """A vault with two epochs, a passphrase slot and a recovery slot, and an empty root."""

    def __init__(self, path: Path) -> None:
        self.path, self.id = path, os.urandom(16)
        self.volume_key, self.authority_key = os.urandom(32), os.urandom(32)
        self.epochs = {1: os.urandom(32), 2: os.urandom(32)}
        for name in ("tree", "dirs", "journal", "xattr"):
            (path / name).mkdir(parents=True)
        self.write_config()
        self.root = Thing()
        (path / "tree" / "@dir").write_bytes(self.area(self.root, kind=2, mode=0o755))

    # Section 3

    def slot(self, kind: str, kdf: dict[str, object], slot_key: bytes) -> dict[str, object]:
        seed, x25519 = os.urandom(64), os.urandom(32)
        mlkem, curve = MLKEM768PrivateKey.from_seed_bytes(seed), X25519PrivateKey.from_private_bytes(x25519)
        hybrid = MLKEM768X25519PrivateKey(mlkem, curve)
        public = mlkem.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()
        slot: dict[str, object] = {"id": os.urandom(8).hex(), "type": kind, "label": "Dr Ångström 🩻"}
        slot |= {"created": TIME, "kdf": kdf, "extra": {}, "public": b64(public)}
        nonce, aad = os.urandom(24), b"cryptfs v1 slot private" + self.id + canonical(slot)
        info = b"cryptfs v1 volume key" + self.id + bytes.fromhex(str(slot["id"]))
        slot["private"] = b64(nonce + xaes_seal(slot_key, nonce, seed + x25519 + self.authority_key, aad))
        slot["volume"] = b64(SUITE.encrypt(self.volume_key, hybrid.public_key(), info))
        return slot

    def write_config(self, **changes: object) -> None:
        salt, salt2 = os.urandom(16), os.urandom(16)
        argon = Argon2id(salt=salt, length=32, iterations=3, memory_cost=65536, lanes=4).derive(PASSPHRASE)
        kdf = {"name": "argon2id", "salt": b64(salt), "time": 3, "memory_kib": 65536, "lanes": 4}
        hkdf = expand(hmac.digest(salt2, RECOVERY, "sha256"), "cryptfs v1 slot", 32)
        epochs = [{"number": n, "key": b64(key), "created": TIME} for n, key in self.epochs.items()]
        nonce, aad = os.urandom(24), b"cryptfs v1 keyring" + self.id
        root = self.volume_key + self.authority_key
        keyring_key = expand(root, "cryptfs v1 keyring", 32)
        keyring = nonce + xaes_seal(keyring_key, nonce, canonical({"epochs": epochs}), aad)
        config = {"format": "cryptfs", "version": 1, "vault": self.id.hex(), "created": TIME, "generation": 1}
        config |= {"features": [], "options": {"backup_group": False}, "keyring": b64(keyring)}
        config["slots"] = [
            self.slot("passphrase", dict(kdf), argon),
            self.slot("recovery", {"name": "hkdf-sha256", "salt": b64(salt2)}, hkdf),
        ]
        config |= changes
        mac_key = expand(root, "cryptfs v1 config", 32)
        config["mac"] = b64(hmac.digest(mac_key, canonical(config), "sha256"))
        (self.path / "cryptfs.json").write_text(json.dumps(config, indent=1))

    # Section 4

    def header(self, thing: Thing, kind: int = 1, **values: int) -> bytes:
        default_log2 = 12 if kind in (1, 3, 8) else 0
        plain = struct.pack(
            "<4sBBHIIQ16sQIIQqqqqQ40x",
            b"CFH1",
            kind,
            values.get("log2", default_log2),
            values.get("flags", 0),
            thing.epoch,
            values.get("mode", 0o640),
            values.get("generation", 1),
            thing.id,
            values.get("session", 7),
            os.getuid(),
            os.getgid(),
            values.get("rdev", 0),
            *(values.get("atime", 1), values.get("mtime", -5_000_000_001), 3, 4),
            values.get("phase", 1),
        )
        wrap = expand(self.epochs[thing.epoch], "cryptfs v1 header wrap", 64)
        return plain + AESSIV(wrap).encrypt(thing.key, [b"cryptfs v1 header", self.id, plain])

    def area(self, thing: Thing, kind: int = 1, **values: int) -> bytes:
        return self.header(thing, kind, **values).ljust(8192, b"\0")

    # Sections 5 and 6

    def name(self, directory: Thing, name: bytes) -> str:
        key = expand(directory.key, "cryptfs v1 names", 64)
        return b64url(AESSIV(key).encrypt(name, [directory.id]))

    def place(self, directory: Path, thing: Thing, name: bytes) -> Path:
        """Where an entry of that name goes; writes the sidecar of a long name."""
        text = self.name(thing, name)
        if len(text) <= 255:
            return directory / text
        entry = "@l" + b64url(hashlib.sha256(text.encode()).digest())
        (directory / f"{entry}.name").write_text(text)
        return directory / entry

    def chunk(self, thing: Thing, index: int, data: bytes, final: bool) -> bytes:
        nonce = os.urandom(24)
        return nonce + xaes_seal(thing.key, nonce, data, thing.id + struct.pack("<QB", index, final))

    def content(self, thing: Thing, data: bytes, size: int = 4096) -> bytes:
        pieces = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
        last = len(pieces) - 1
        return b"".join(self.chunk(thing, i, piece, i == last) for i, piece in enumerate(pieces))

    def file(
        self,
        name: bytes,
        data: bytes,
        thing: Thing | None = None,
        parent: tuple[Path, Thing] | None = None,
        **values: int,
    ) -> Path:
        """A file in the root directory or in `parent`; returns its object file."""
        thing = thing or Thing()
        path = self.place(*(parent or (self.path / "tree", self.root)), name)
        size = 1 << values.get("log2", 12)
        path.write_bytes(self.area(thing, **values) + self.content(thing, data, size))
        return path

    def directory(
        self, name: bytes, parent: tuple[Path, Thing] | None = None, **values: int
    ) -> tuple[Path, Thing]:
        thing = Thing()
        path = self.place(*(parent or (self.path / "tree", self.root)), name)
        path.mkdir()
        (path / "@dir").write_bytes(self.area(thing, kind=2, **values)[:4096])
        return path, thing

    # Sections 9, 10 and 11

    def state(self, session: int, is_open: bool, unclean: list[int]) -> None:
        nonce, epoch = os.urandom(24), struct.pack("<I", 2)
        state = {"session": f"{session:016x}", "phase": 0, "open": is_open}
        state |= {"unclean": [{"session": f"{s:016x}", "phase": 0} for s in unclean]}
        key, aad = expand(self.epochs[2], "cryptfs v1 state", 32), b"cryptfs v1 state" + self.id + epoch
        sealed = xaes_seal(key, nonce, canonical(state), aad)
        (self.path / "journal" / "state").write_bytes(b"CFS1" + epoch + nonce + sealed)

    def segment(self, number: int, bodies: list[bytes]) -> Path:
        thing = Thing(epoch=2)
        data = self.area(thing, kind=8)
        for index, body in enumerate(bodies):
            aad = b"cryptfs v1 journal" + thing.id + struct.pack("<QQ", number, index)
            sealed = xaes_seal(thing.key, struct.pack("<16xQ", index), body, aad)
            data += struct.pack("<I", len(sealed)) + sealed
        path = self.path / "journal" / f"{number:016x}.seg"
        path.write_bytes(data)
        return path

    @staticmethod
    def record(thing: Thing, path: Path, writes: list[tuple[int, bytes]], length: int | None = None) -> bytes:
        """Body of a write record, or of a truncate record when a length is given."""
        name = path.name.encode()
        kind, cut = (1, b"") if length is None else (2, struct.pack("<Q", length))
        head = bytes([kind]) + thing.id + struct.pack("<H", len(name)) + name + cut
        return (
            head
            + struct.pack("<I", len(writes))
            + b"".join(struct.pack("<QI", offset, len(data)) + data for offset, data in writes)
        )

    def xattrs(self, thing: Thing, values: dict[str, bytes]) -> None:
        nonce, key = os.urandom(24), expand(thing.key, "cryptfs v1 xattr", 32)
        data = canonical({name: b64(value) for name, value in values.items()})
        folder = self.path / "xattr" / thing.id.hex()[:2]
        folder.mkdir(exist_ok=True)
        sealed = xaes_seal(key, nonce, data, b"cryptfs v1 xattr" + thing.id)
        (folder / thing.id.hex()).write_bytes(nonce + sealed)

"""The independent reader against outside vectors and against vaults made by hand."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import hmac
import json
import os
import shutil
import stat
import struct
import sys
import unicodedata
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from tests.golden import independent_reader as reader
from tests.golden.handmade import (
    PASSPHRASE,
    RECOVERY,
    SUITE,
    HandmadeVault,
    Thing,
    recovery_key_text,
    xaes_seal,
)

HERE = Path(__file__).parent
DATA = bytes(range(256)) * 40  # 10240 bytes: three chunks of 4096, the last one partial


@pytest.fixture
def vault(tmp_path: Path) -> HandmadeVault:
    return HandmadeVault(tmp_path / "vault")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def decrypt(vault: HandmadeVault, out: Path) -> list[str]:
    opened = reader.unlock((vault.path / "cryptfs.json").read_bytes(), "recovery", RECOVERY)
    return reader.extract(vault.path, opened, out)


# --- Independence -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["independent_reader.py", "handmade.py"])
def test_imports_nothing_of_the_package(name: str) -> None:
    modules = set()
    for node in ast.walk(ast.parse((HERE / name).read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import could reach the package"
            modules.add((node.module or "").split(".")[0])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("__import__", "import_module", "exec", "eval")
    assert "cryptography" in modules
    assert modules <= set(sys.stdlib_module_names) | {"cryptography"}


# --- XAES-256-GCM: vectors of the C2SP specification ---------------------------------------------------


@pytest.mark.parametrize(
    ("key", "aad", "sealed"),
    [
        (b"\x01" * 32, b"", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
        (
            b"\x03" * 32,
            b"c2sp.org/XAES-256-GCM",
            "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d",
        ),
    ],
)
def test_xaes_vectors(key: bytes, aad: bytes, sealed: str) -> None:
    nonce = b"ABCDEFGHIJKLMNOPQRSTUVWX"
    assert reader.xaes_open(key, nonce + bytes.fromhex(sealed), aad) == b"XAES-256-GCM"
    assert xaes_seal(key, nonce, b"XAES-256-GCM", aad).hex() == sealed
    with pytest.raises(reader.Damage):
        reader.xaes_open(key, nonce + bytes.fromhex(sealed), aad + b"x")


def test_xaes_accumulated_vector() -> None:
    stream = hashlib.shake_128(b"").digest(10_000 * (32 + 24 + 2 * 256))
    at = 0

    def take(count: int) -> bytes:
        nonlocal at
        at += count
        return stream[at - count : at]

    digest = hashlib.shake_128()
    for _ in range(10_000):
        key, nonce = take(32), take(24)
        plain = take(take(1)[0])
        aad = take(take(1)[0])
        sealed = xaes_seal(key, nonce, plain, aad)
        digest.update(sealed)
        assert reader.xaes_open(key, nonce + sealed, aad) == plain
    assert digest.hexdigest(32) == "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939"


# --- HPKE, from RFC 9180 and the definition of the hybrid KEM ------------------------------------------


def test_hpke_volume_key_can_be_opened_without_an_hpke_library() -> None:
    """What `volume` holds is RFC 9180 over ML-KEM-768 and X25519 joined by SHA3-256, nothing more."""
    mlkem, curve = MLKEM768PrivateKey.generate(), X25519PrivateKey.generate()
    public = MLKEM768X25519PrivateKey(mlkem, curve).public_key()
    sealed = SUITE.encrypt(b"k" * 32, public, b"an info")
    assert len(sealed) == 1088 + 32 + 32 + 16

    share = curve.exchange(X25519PublicKey.from_public_bytes(sealed[1088:1120]))
    joined = mlkem.decapsulate(sealed[:1088]) + share + sealed[1088:1120]
    joined += curve.public_key().public_bytes_raw() + rb"\.//^" + b"\\"
    shared = hashlib.sha3_256(joined).digest()
    suite = b"HPKE" + bytes.fromhex("647a00010002")

    def extract(salt: bytes, label: bytes, value: bytes) -> bytes:
        return hmac.digest(salt, b"HPKE-v1" + suite + label + value, "sha256")

    context = b"\0" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", b"an info")
    secret = extract(shared, b"secret", b"")

    def expand(label: bytes, length: int) -> bytes:
        info = struct.pack(">H", length) + b"HPKE-v1" + suite + label + context
        return HKDFExpand(SHA256(), length, info).derive(secret)

    cipher, nonce = AESGCM(expand(b"key", 32)), expand(b"base_nonce", 12)
    assert cipher.decrypt(nonce, sealed[1120:], b"") == b"k" * 32


# --- Section 12 ----------------------------------------------------------------------------------------


def test_recovery_key_round_trip_as_people_type_it() -> None:
    for key in (bytes(32), b"\xff" * 32, RECOVERY, os.urandom(32)):
        text = recovery_key_text(key)
        assert [len(group) for group in text.split("-")] == [7] * 9
        assert reader.parse_recovery_key(text) == key
        typed = text.lower().replace("-", " ").replace("1", "l").replace("0", "o")
        assert reader.parse_recovery_key(f"\n{typed}\t") == key


def test_recovery_key_names_the_mistyped_group() -> None:
    text = recovery_key_text(RECOVERY)
    noticed = 0
    for at in (i for i, digit in enumerate(text) if digit != "-"):
        other = "A" if text[at] != "A" else "B"
        with pytest.raises(reader.CannotOpen) as caught:
            reader.parse_recovery_key(text[:at] + other + text[at + 1 :])
        noticed += f"group {at // 8 + 1} " in str(caught.value)
    assert noticed >= 55  # one typing error in 32 passes the group's check digit, then the whole key's fails
    for wrong in (text[:-1], text + "0", text.replace(text[0], "U", 1), ""):
        with pytest.raises(reader.CannotOpen, match="9 groups"):
            reader.parse_recovery_key(wrong)


# --- Section 3 -----------------------------------------------------------------------------------------


def test_both_slots_open(vault: HandmadeVault) -> None:
    data = (vault.path / "cryptfs.json").read_bytes()
    for kind, secret in (("recovery", RECOVERY), ("passphrase", PASSPHRASE)):
        opened = reader.unlock(data, kind, secret)
        assert (opened.id, opened.epochs) == (vault.id, vault.epochs)


@pytest.mark.parametrize(("kind", "secret"), [("recovery", bytes(32)), ("keyfile", RECOVERY)])
def test_a_wrong_secret_opens_nothing(vault: HandmadeVault, kind: str, secret: bytes) -> None:
    with pytest.raises(reader.CannotOpen, match="opens no slot"):
        reader.unlock((vault.path / "cryptfs.json").read_bytes(), kind, secret)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("created", "2020-01-01T00:00:00Z"),
        ("generation", 2),
        ("options", {"backup_group": True}),
        ("mac", "A" * 43 + "="),
        ("keyring", "A" * 200),
    ],
)
def test_any_change_of_the_configuration_is_noticed(vault: HandmadeVault, field: str, value: object) -> None:
    path = vault.path / "cryptfs.json"
    config = json.loads(path.read_text())
    config[field] = value
    with pytest.raises(reader.CannotOpen, match="changed by somebody"):
        reader.unlock(json.dumps(config).encode(), "recovery", RECOVERY)


def test_a_change_in_another_slot_is_noticed(vault: HandmadeVault) -> None:
    config = json.loads((vault.path / "cryptfs.json").read_text())
    config["slots"][0]["label"] = "somebody else"
    with pytest.raises(reader.CannotOpen, match="changed by somebody"):
        reader.unlock(json.dumps(config).encode(), "recovery", RECOVERY)
    config["slots"][1]["label"] = "this very slot"
    with pytest.raises(reader.CannotOpen, match="opens no slot"):
        reader.unlock(json.dumps(config).encode(), "recovery", RECOVERY)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"version": 2}, "version"),
        ({"features": ["compression"]}, "features"),
        ({"comment": "extra"}, "exactly the fields"),
        ({"generation": True}, "generation that is not allowed"),
        ({"generation": 0}, "generation that is not allowed"),
        ({"created": "2026-02-03 00:00:00Z"}, "created that is not allowed"),
        ({"options": {"backup_group": 1}}, "backup_group that is not allowed"),
        ({"slots": []}, "has no slots"),
        ({"keyring": "AAB="}, "base64"),
    ],
)
def test_a_configuration_of_another_kind_is_refused(
    vault: HandmadeVault, changes: dict[str, object], sentence: str
) -> None:
    vault.write_config(**changes)
    with pytest.raises(reader.CannotOpen, match=sentence):
        reader.unlock((vault.path / "cryptfs.json").read_bytes(), "recovery", RECOVERY)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"\xff", b'{"a":1,"a":1}', b'{"a":1.5}', b"[" * 100_000, b'["\\ud800"]', b"9" * 17]
)
def test_what_is_not_a_configuration(data: bytes) -> None:
    with pytest.raises(reader.CannotOpen):
        reader.unlock(data, "recovery", RECOVERY)


def test_argon2_out_of_bounds_is_not_run(vault: HandmadeVault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "Argon2id", lambda **_: pytest.fail("Argon2id was run"))
    config = json.loads((vault.path / "cryptfs.json").read_text())
    for change in (
        {"time": 1},
        {"time": 2},
        {"time": 65},
        {"memory_kib": 8},
        {"memory_kib": 4194305},
        {"lanes": 17},
    ):
        kdf = {**config["slots"][0]["kdf"], **change}
        changed = {**config, "slots": [{**config["slots"][0], "kdf": kdf}]}
        for kind, secret in (("passphrase", PASSPHRASE), ("recovery", RECOVERY)):
            with pytest.raises(reader.CannotOpen, match=r"not allowed|too cheap"):
                reader.unlock(json.dumps(changed).encode(), kind, secret)


@pytest.mark.parametrize(
    "change",
    [
        {"kdf": {"name": "hkdf-sha256", "salt": "A" * 21 + "Q=="}},
        {"kdf": {"name": "scrypt", "salt": "A" * 21 + "Q=="}},
        {"type": "fido2"},
        {"extra": {"a": 1}},
        {"label": "x" * 201},
        {"id": "0" * 15},
        {"private": "A" * 180},
    ],
)
def test_one_bad_slot_refuses_the_whole_file(vault: HandmadeVault, change: dict[str, object]) -> None:
    """The passphrase's slot is changed, the recovery key's would open."""
    config = json.loads((vault.path / "cryptfs.json").read_text())
    config["slots"][0] |= change
    with pytest.raises(reader.CannotOpen) as caught:
        reader.unlock(json.dumps(config).encode(), "recovery", RECOVERY)
    assert "changed by somebody" not in str(caught.value)
    config["slots"] = [config["slots"][1]] * 2
    with pytest.raises(reader.CannotOpen, match="twice"):
        reader.unlock(json.dumps(config).encode(), "recovery", RECOVERY)


# --- Section 4 -----------------------------------------------------------------------------------------


def test_the_higher_generation_counts_and_a_torn_slot_does_not(vault: HandmadeVault) -> None:
    opened = reader.unlock((vault.path / "cryptfs.json").read_bytes(), "recovery", RECOVERY)
    thing = Thing()
    old, new = vault.header(thing, mode=0o600, generation=4), vault.header(thing, mode=0o644, generation=5)
    for first, second in ((old, new), (new, old)):
        header = reader.parse_area(first.ljust(4096, b"\0") + second, opened)
        assert header is not None
        assert (header.mode, header.key) == (0o644, thing.key)
    torn = new[:100] + old[100:]
    header = reader.parse_area(old.ljust(4096, b"\0") + torn, opened)
    assert header is not None
    assert header.mode == 0o600
    assert reader.parse_area(torn, opened) is None
    assert reader.parse_area(b"", opened) is None


def test_every_bit_of_a_header_is_bound(vault: HandmadeVault) -> None:
    opened = reader.unlock((vault.path / "cryptfs.json").read_bytes(), "recovery", RECOVERY)
    header = vault.header(Thing())
    assert reader.parse_slot(header, opened)
    for bit in range(8 * 192):
        changed = bytearray(header)
        changed[bit // 8] ^= 1 << bit % 8
        assert reader.parse_slot(bytes(changed), opened) is None, bit


@pytest.mark.parametrize(
    "values",
    [{"kind": 9}, {"kind": 0}, {"log2": 11}, {"log2": 21}, {"flags": 4}, {"mode": 0o10000}]
    + [{"generation": 0}, {"rdev": 1}, {"kind": 2, "log2": 12}, {"kind": 6, "log2": 12}]
    + [{"kind": 3, "log2": 16}, {"kind": 3, "flags": 1}, {"kind": 2, "flags": 1}],
)
def test_fields_out_of_range(vault: HandmadeVault, values: dict[str, int]) -> None:
    opened = reader.unlock((vault.path / "cryptfs.json").read_bytes(), "recovery", RECOVERY)
    assert reader.parse_slot(vault.header(Thing(), **values), opened) is None


# --- Sections 5 to 7: a whole tree -----------------------------------------------------------------------


def test_a_whole_tree(vault: HandmadeVault, out: Path) -> None:
    sizes = {12: 3 * 4096, 14: 16384 + 1, 16: 65536, 20: (1 << 20) + 17}
    for log2, size in sizes.items():
        vault.file(f"chunks {log2}".encode(), os.urandom(1) * size, log2=log2)
    vault.file(b"empty", b"", Thing(epoch=2))
    vault.file("Müller^Zoë.dcm".encode(), DATA, mode=0o4751)
    vault.file(b"\xff\x01", b"not UTF-8")
    for length in (1, 175, 176, 255):
        vault.file(b"n" * length, b"%d" % length)
    target = vault.file(b"link", b"../some/target", kind=3)
    assert target.stat().st_size == 8192 + 40 + 14
    (vault.path / "tree" / vault.name(vault.root, b"hard")).hardlink_to(vault.file(b"soft", DATA))
    (vault.path / "tree" / vault.name(vault.root, b"pipe")).write_bytes(vault.area(Thing(), kind=4))
    (vault.path / "tree" / vault.name(vault.root, b"sock")).write_bytes(vault.area(Thing(), kind=5))
    path, thing = vault.directory(b"d" * 200, mode=0o700)
    inner = Thing()
    below = vault.place(path, thing, b"inner")
    below.write_bytes(vault.area(inner) + vault.content(inner, b"below"))
    (vault.path / "tree" / "@tmp-1234").write_bytes(b"unfinished")
    (vault.path / "tree" / ".nfs0001").write_bytes(b"of the NAS")
    os.utime(path, ns=(11, 22))

    assert decrypt(vault, out) == []
    for log2, size in sizes.items():
        assert len(set((out / f"chunks {log2}").read_bytes())) == 1
        assert (out / f"chunks {log2}").stat().st_size == size
    assert (out / "empty").read_bytes() == b""
    image = out / "Müller^Zoë.dcm"
    assert image.read_bytes() == DATA
    assert stat.S_IMODE(image.stat().st_mode) == 0o4751
    assert image.stat().st_mtime_ns == -5_000_000_001
    assert (out / os.fsdecode(b"\xff\x01")).read_bytes() == b"not UTF-8"
    for length in (1, 175, 176, 255):
        assert (out / ("n" * length)).read_bytes() == b"%d" % length
    assert (out / "link").readlink() == Path("../some/target")
    assert (out / "hard").samefile(out / "soft")
    assert (out / "soft").stat().st_nlink == 2
    assert (out / "pipe").is_fifo()
    assert (out / "sock").is_socket()
    folder = out / ("d" * 200)
    assert (folder / "inner").read_bytes() == b"below"
    assert (stat.S_IMODE(folder.stat().st_mode), folder.stat().st_mtime_ns) == (0o700, 22)
    assert not (out / ".nfs0001").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="making device nodes needs root")
def test_device_nodes(vault: HandmadeVault, out: Path) -> None:
    header = vault.area(Thing(), kind=6, rdev=os.makedev(1, 3), mode=0o666)
    (vault.path / "tree" / vault.name(vault.root, b"null")).write_bytes(header)
    assert decrypt(vault, out) == []
    assert (out / "null").stat().st_rdev == os.makedev(1, 3)
    assert (out / "null").is_char_device()


def damaged(vault: HandmadeVault, out: Path, shown: str) -> None:
    """Asserts that exactly one thing is damaged and left out, and the good neighbour is there."""
    vault.file(b"neighbour", DATA)
    problems = decrypt(vault, out)
    assert [problem.split(":")[0] for problem in problems] == [shown]
    assert (out / "neighbour").read_bytes() == DATA
    assert not (out / shown.lstrip("/")).exists()


STORED = 4096 + 40


@pytest.mark.parametrize(
    "harm",
    {
        "flipped": lambda b: b[:9000] + bytes([b[9000] ^ 1]) + b[9001:],
        "flipped in the last": lambda b: b[:-1] + bytes([b[-1] ^ 1]),
        "cut at a chunk": lambda b: b[: 8192 + 2 * STORED],
        "cut within a chunk": lambda b: b[:-5],
        "cut to the header": lambda b: b[:8192],
        "cut within the header": lambda b: b[:100],
        "extended": lambda b: b + b"\0",
        "extended by zeros": lambda b: b + bytes(STORED),
        "last chunk twice": lambda b: b + b[8192 + 2 * STORED :],
        "swapped": lambda b: (
            b[:8192] + b[8192 + STORED : 8192 + 2 * STORED] + b[8192 : 8192 + STORED] + b[8192 + 2 * STORED :]
        ),
        "zeroed": lambda b: b[:8192] + bytes(STORED) + b[8192 + STORED :],
    }.items(),
    ids=lambda item: item[0],
)
def test_harm_to_content(vault: HandmadeVault, out: Path, harm: tuple[str, object]) -> None:
    path = vault.file(b"image", DATA)
    path.write_bytes(harm[1](path.read_bytes()))  # type: ignore[operator]
    damaged(vault, out, "/image")


def test_an_empty_file_is_not_a_cut_one(vault: HandmadeVault, out: Path) -> None:
    path = vault.file(b"image", b"")
    path.write_bytes(path.read_bytes()[:-1])
    damaged(vault, out, "/image")


def test_names_do_not_move_between_directories(vault: HandmadeVault, out: Path) -> None:
    path, _ = vault.directory(b"other")
    moved = vault.file(b"image", DATA)
    moved.rename(path / moved.name)
    damaged(vault, out, f"/other/{moved.name} (the name)")


def test_a_name_in_a_second_spelling_is_damage(vault: HandmadeVault, out: Path) -> None:
    path = vault.file(b"image1", DATA)  # 16 + 6 bytes leave four unused bits in the last character
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    spelling = path.name[:-1] + alphabet[alphabet.index(path.name[-1]) | 1]
    assert spelling != path.name
    path.rename(path.with_name(spelling))
    damaged(vault, out, f"/{spelling} (the name)")


@pytest.mark.parametrize("harm", ["lost", "wrong"])
def test_a_long_name_without_its_text(vault: HandmadeVault, out: Path, harm: str) -> None:
    path = vault.file(b"x" * 200, DATA)
    sidecar = path.with_name(f"{path.name}.name")
    sidecar.unlink()
    if harm == "wrong":
        sidecar.write_text(vault.name(vault.root, b"y" * 200))
    damaged(vault, out, f"/{path.name}")


def test_a_file_of_another_vault_is_damage(vault: HandmadeVault, out: Path, tmp_path: Path) -> None:
    other = HandmadeVault(tmp_path / "other")
    shutil.copy(other.file(b"image", DATA), vault.file(b"image", DATA))
    damaged(vault, out, "/image")


def test_sparse(vault: HandmadeVault, out: Path) -> None:
    for name, flags in ((b"holes", 1), (b"whole", 0)):
        thing, path = Thing(), vault.path / "tree" / vault.name(vault.root, name)
        data = vault.area(thing, flags=flags) + bytes(2 * STORED)
        path.write_bytes(data + vault.chunk(thing, 2, b"end", True))
    (vault.path / "tree" / vault.name(vault.root, b"open end")).write_bytes(
        vault.area(Thing(), flags=1) + bytes(STORED)
    )
    problems = decrypt(vault, out)
    assert sorted(problem.split(":")[0] for problem in problems) == ["/open end", "/whole"]
    assert (out / "holes").read_bytes() == bytes(8192) + b"end"


# --- Sections 8 to 11 --------------------------------------------------------------------------------------


def test_a_lost_directory_header_comes_back_from_its_copy(vault: HandmadeVault, out: Path) -> None:
    path, thing = vault.directory(b"patient", mode=0o750)
    inner = Thing()
    vault.place(path, thing, b"image").write_bytes(vault.area(inner) + vault.content(inner, DATA))
    decoy = vault.header(Thing(), kind=2).ljust(256, b"\0")
    old = vault.header(thing, kind=2, mode=0o777, generation=1) + vault.root.id + bytes(48)
    new = vault.header(thing, kind=2, mode=0o750, generation=2) + vault.root.id + bytes(48)
    torn = bytes(100) + new[100:]
    (vault.path / "dirs" / "0001.log").write_bytes(decoy + new + torn + old + new[:30])
    (path / "@dir").unlink()
    assert decrypt(vault, out) == []
    assert (out / "patient" / "image").read_bytes() == DATA
    assert stat.S_IMODE((out / "patient").stat().st_mode) == 0o750


def test_a_lost_directory_header_without_a_copy_is_reported(vault: HandmadeVault, out: Path) -> None:
    path, thing = vault.directory(b"patient")
    (path / vault.name(thing, b"image")).write_bytes(b"")
    (path / "@dir").write_bytes(bytes(4096))
    vault.file(b"neighbour", DATA)
    problems = decrypt(vault, out)
    assert problems[0].startswith("/patient: the directory's header is lost")
    assert (out / "neighbour").read_bytes() == DATA


def test_a_lost_directory_header_is_found_in_a_file_that_carries_it(vault: HandmadeVault, out: Path) -> None:
    path, directory = vault.directory(b"patient")
    image = Thing()
    area = bytearray(vault.area(image))
    area[256:448] = vault.header(directory, kind=2)
    (path / vault.name(directory, b"image")).write_bytes(bytes(area) + vault.content(image, DATA))
    (path / "@dir").unlink()
    assert decrypt(vault, out) == []
    assert (out / "patient" / "image").read_bytes() == DATA


@pytest.mark.parametrize("is_open", [True, False])
def test_an_unclean_session(vault: HandmadeVault, out: Path, is_open: bool) -> None:
    vault.state(9, is_open, [] if is_open else [9])
    cut = vault.file(b"cut", DATA, session=9)
    cut.write_bytes(cut.read_bytes()[: 8192 + STORED + 30])
    bare = vault.file(b"bare", DATA, session=9)
    bare.write_bytes(bare.read_bytes()[:192])
    vault.file(b"zeros", DATA).write_bytes(bytes(50_000))
    vault.file(b"short", DATA).write_bytes(b"CFH1")
    vault.file(b"whole", DATA, session=9)
    grown, thing = vault.file(b"grown", DATA, session=9), Thing()
    grown.write_bytes(
        vault.area(thing, session=9, flags=1)
        + vault.chunk(thing, 0, DATA[:4096], False)
        + bytes(STORED)
        + vault.chunk(thing, 2, DATA[:4096], True)
        + vault.chunk(thing, 3, DATA[:4096], False)
    )
    hole = vault.file(b"lost inside", DATA, session=9)
    inside = bytearray(hole.read_bytes())
    inside[8192 : 8192 + STORED] = bytes(STORED)
    hole.write_bytes(inside)
    link = vault.file(b"bare link", b"target", kind=3, session=9)
    link.write_bytes(link.read_bytes()[:-1])
    remnant, _ = vault.directory(b"remnant", session=9)
    (remnant / "@dir").unlink()
    below, made = vault.directory(b"remnant with content", session=9)
    inner = vault.directory(b"below", parent=(below, made), session=9)
    vault.file(b"never synced", DATA, session=9, parent=(below, made))
    vault.file(b"no header", DATA, parent=(below, made)).write_bytes(bytes(9000))
    vault.file(b"deep", DATA, session=9, parent=inner)
    kept, also = vault.directory(b"with something durable", session=9)
    vault.file(b"older", DATA, session=8, parent=(kept, also))
    for lost in (below, kept):
        (lost / "@dir").unlink()
    vault.segment(5, []).write_bytes(bytes(4096))
    for name, values in {b"earlier": {"session": 8}, b"synced": {"session": 9, "phase": 0}}.items():
        cut = vault.file(name, DATA, **values)
        cut.write_bytes(cut.read_bytes()[: 8192 + STORED + 30])
    problems = decrypt(vault, out)
    found = sorted(problem.split(":")[0] for problem in problems)
    assert found == ["/earlier", "/synced", "/with something durable"]
    assert (out / "lost inside").read_bytes() == b""
    assert (out / "cut").read_bytes() == DATA[:4096]
    assert (out / "bare").read_bytes() == b""
    assert (out / "whole").read_bytes() == DATA
    assert (out / "grown").read_bytes() == DATA[:4096] + bytes(4096) + DATA[:4096]
    assert sorted(path.name for path in out.iterdir()) == ["bare", "cut", "grown", "lost inside", "whole"]


def test_a_clean_or_forged_state_excuses_nothing(vault: HandmadeVault, out: Path) -> None:
    cut = vault.file(b"cut", DATA, session=9)
    cut.write_bytes(cut.read_bytes()[: 8192 + STORED])
    vault.state(9, False, [])
    assert [problem.split(":")[0] for problem in decrypt(vault, out)] == ["/cut"]
    vault.state(9, True, [])
    state = vault.path / "journal" / "state"
    sealed = state.read_bytes()
    state.write_bytes(sealed[:-1] + bytes([sealed[-1] ^ 1]))
    shutil.rmtree(out)
    problems = decrypt(vault, out)
    assert [problem.split(":")[0] for problem in problems] == ["journal/state", "/cut"]


def test_the_journal_is_laid_over(vault: HandmadeVault, out: Path) -> None:
    data, moved, gone = Thing(), Thing(), Thing()
    path = vault.file(b"database", DATA, data)
    (vault.path / "tree" / vault.name(vault.root, b"second name")).hardlink_to(path)
    cut = vault.file(b"log", DATA, moved)
    before = path.read_bytes()
    settled = [(8192 + STORED, vault.chunk(data, 1, b"s" * 4096, False))]
    old = [(8192, vault.chunk(data, 0, b"o" * 4096, False))]
    new = [(8192, vault.chunk(data, 0, b"n" * 4096, False))]
    end = [(8192 + 3 * STORED, vault.chunk(data, 3, b"tail", True))]
    end.append((8192 + 2 * STORED, vault.chunk(data, 2, b"3" * 4096, False)))
    short = [(8192, vault.chunk(moved, 0, b"short", True))]
    vault.segment(8, [vault.record(data, path, settled), b"\x03" + data.id, vault.record(data, path, old)])
    last = vault.segment(
        9,
        [
            vault.record(data, path, new + end),
            vault.record(moved, cut, short, length=8192 + 45),
            vault.record(gone, path, [(0, b"another object's")]),
            vault.record(data, path, old),
        ],
    )
    last.write_bytes(last.read_bytes()[:-1])  # the write that was going on when the power failed
    assert decrypt(vault, out) == []
    assert (out / "database").read_bytes() == b"n" * 4096 + DATA[4096:8192] + b"3" * 4096 + b"tail"
    assert (out / "second name").samefile(out / "database")
    assert (out / "log").read_bytes() == b"short"
    assert path.read_bytes() == before, "the vault itself is not changed"


def test_a_segment_under_another_number_holds_nothing(vault: HandmadeVault, out: Path) -> None:
    thing = Thing()
    path = vault.file(b"database", DATA, thing)
    write = vault.record(thing, path, [(8192, vault.chunk(thing, 0, b"n" * 4096, False))])
    segment = vault.segment(7, [write])
    segment.rename(segment.with_name(f"{8:016x}.seg"))
    (vault.path / "journal" / "copy of 7.seg").write_bytes(b"not of the vault")
    assert decrypt(vault, out) == []
    assert (out / "database").read_bytes() == DATA


def test_nothing_is_laid_over_after_a_gap(vault: HandmadeVault, out: Path) -> None:
    thing = Thing()
    path = vault.file(b"database", DATA, thing)
    for number, letter in ((7, b"a"), (9, b"b")):
        write = [(8192, vault.chunk(thing, 0, letter * 4096, False))]
        vault.segment(number, [vault.record(thing, path, write)])
    problems = decrypt(vault, out)
    assert problems == ["journal/0000000000000009.seg: a segment before it is missing"]
    assert (out / "database").read_bytes() == b"a" * 4096 + DATA[4096:]


@pytest.mark.parametrize(
    "body", [b"\x04" + bytes(30), b"\x01" + bytes(16) + b"\xff\xff", b"\x01" + bytes(16)]
)
def test_an_authentic_record_of_no_known_form(vault: HandmadeVault, out: Path, body: bytes) -> None:
    vault.segment(1, [body])
    assert [problem.split(":")[0] for problem in decrypt(vault, out)] == ["journal/0000000000000001.seg"]


def test_a_journal_path_may_not_leave_the_tree(vault: HandmadeVault, out: Path) -> None:
    thing = Thing()
    path = vault.file(b"database", DATA, thing)
    body = vault.record(thing, path, [(8192, b"x")]).replace(path.name.encode()[:3], b"../")
    vault.segment(1, [body])
    assert [problem.split(":")[0] for problem in decrypt(vault, out)] == ["journal/0000000000000001.seg"]
    assert (out / "database").read_bytes() == DATA


def test_extended_attributes(vault: HandmadeVault, out: Path) -> None:
    thing = Thing()
    vault.file(b"image", DATA, thing, flags=2)
    vault.xattrs(thing, {"user.modality": b"CT\0", "user.100%25%20%FC": b"v"})
    assert decrypt(vault, out) == []
    with contextlib.suppress(OSError):  # a folder that takes no attributes cannot show them
        assert os.getxattr(out / "image", b"user.modality") == b"CT\0"
        assert os.getxattr(out / "image", b"user.100% \xfc") == b"v"
    opened = reader.unlock((vault.path / "cryptfs.json").read_bytes(), "recovery", RECOVERY)
    header = reader.parse_slot(vault.header(thing, flags=2), opened)
    assert header is not None
    expected = {b"user.modality": b"CT\0", b"user.100% \xfc": b"v"}
    assert reader.Extractor(vault.path, opened).xattrs(header) == expected


def test_lost_attributes_are_reported_and_the_file_is_there(vault: HandmadeVault, out: Path) -> None:
    vault.file(b"image", DATA, flags=2)
    assert [problem.split(":")[0] for problem in decrypt(vault, out)] == ["/image (extended attributes)"]
    assert (out / "image").read_bytes() == DATA


# --- The command -------------------------------------------------------------------------------------------


def test_exit_codes(vault: HandmadeVault, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = vault.file(b"image", DATA)
    passphrase, recovery, wrong = tmp_path / "passphrase", tmp_path / "recovery", tmp_path / "wrong"
    passphrase.write_text(unicodedata.normalize("NFD", PASSPHRASE.decode()) + "\n")
    recovery.write_text(recovery_key_text(RECOVERY).lower())
    wrong.write_text("not it")
    base = [str(vault.path)]
    assert reader.main([*base, "--passphrase-file", str(passphrase), str(tmp_path / "1")]) == 0
    assert (tmp_path / "1" / "image").read_bytes() == DATA
    assert reader.main([*base, "--recovery-key-file", str(recovery), str(tmp_path / "2")]) == 0
    assert reader.main([*base, "--passphrase-file", str(wrong), str(tmp_path / "3")]) == 2
    assert not (tmp_path / "3").exists()
    path.write_bytes(path.read_bytes()[:-1])
    assert reader.main([*base, "--recovery-key-file", str(recovery), str(tmp_path / "4")]) == 1
    assert "/image: " in capsys.readouterr().err

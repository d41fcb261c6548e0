"""Whatever stands in cryptfs.json: an error of the family, and no work done for it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptfs.crypto import kdf
from cryptfs.errors import ConfigDamaged, UnsupportedFormat, WrongSecret
from cryptfs.vault import config, configfile
from tests.keyslots.material import RECOVERY, make, passphrase

Json = Any
REFUSALS = (ConfigDamaged, UnsupportedFormat, WrongSecret)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-1, 100),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["", "cryptfs", "AAAA", "argon2id", "hkdf-sha256", "tpm2", "passphrase", "0" * 32, "\ud800"]
    ),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)


class Text(bytes):
    """Bytes that do not fill the screen when a test fails."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


@pytest.fixture(scope="module")
def original() -> Iterator[bytes]:
    """A good configuration whose recovery slot, tried first, needs no Argon2."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder) / "vault")
        yield Text((Path(folder) / "vault" / configfile.NAME).read_bytes())


def open_text(text: bytes) -> config.Unlocked:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / configfile.NAME).write_bytes(text)
        return config.unlock(config.load(folder), RECOVERY)


def places(value: Json, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every value in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield (*path, name)
        yield from places(item, (*path, name))


def at(document: Json, path: tuple[str | int, ...]) -> Json:
    for name in path:
        document = document[name]
    return document


def test_the_original_opens(original: bytes) -> None:
    assert open_text(original).keyring.current.number == 1


@pytest.mark.thorough
@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_field_replaced_removed_or_added(original: bytes, data: st.DataObject) -> None:
    document = json.loads(original)
    path = data.draw(st.sampled_from(sorted(places(document), key=str)))
    parent, name = at(document, path[:-1]), path[-1]
    match data.draw(st.sampled_from(["replace", "remove", "add", "nudge"])):
        case "remove":
            del parent[name]
        case "add" if isinstance(parent, dict):
            parent[data.draw(st.text(max_size=10))] = data.draw(values)
        case "nudge" if isinstance(parent[name], int) and not isinstance(parent[name], bool):
            parent[name] += data.draw(st.sampled_from([-1, 1]))
        case "nudge" if isinstance(parent[name], str) and parent[name]:
            index = data.draw(st.integers(0, len(parent[name]) - 1))
            letter = data.draw(st.sampled_from("A0af=/ é"))
            parent[name] = parent[name][:index] + letter + parent[name][index + 1 :]
        case _:
            parent[name] = data.draw(values)
    text = json.dumps(document).encode()
    if json.dumps(document, sort_keys=True) == json.dumps(json.loads(original), sort_keys=True):
        open_text(text)
        return
    with pytest.raises(REFUSALS) as caught:
        open_text(text)
    # The vault's id and a slot's own fields are bound to its private key, which then does not open.
    expected = {"version": UnsupportedFormat, "features": UnsupportedFormat, "vault": WrongSecret}
    assert caught.type in (ConfigDamaged, expected.get(path[0])) or path[0] == "slots"


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_byte_changed_or_cut(original: bytes, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(original) - 2))
    if data.draw(st.booleans()):
        text = original[:position]
    else:
        byte = data.draw(st.integers(0, 255))
        text = original[:position] + bytes([byte]) + original[position + 1 :]
    if _same(text, original):
        open_text(text)
        return
    with pytest.raises(REFUSALS):
        open_text(text)


def _same(text: bytes, original: bytes) -> bool:
    """White space outside strings may change."""
    try:
        return bool(json.loads(text) == json.loads(original))
    except ValueError:
        return False


@given(st.binary(max_size=200))
def test_any_bytes(text: bytes) -> None:
    with pytest.raises(ConfigDamaged):
        open_text(text)


@given(values)
def test_any_json(value: Json) -> None:
    with pytest.raises(ConfigDamaged):
        open_text(json.dumps(value).encode())


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"format":"cryptfs","extra":' + b"[" * 400 + b"]" * 400 + b"}",
        b'{"format":"cryptfs","version":1' + b"0" * 5000 + b"}",
        b'{"format":"cryptfs","version":NaN}',
        b"\xef\xbb\xbf{}",
        b" " * (1 << 20) + b"{}",
    ],
    ids=["lists", "objects", "deep", "long number", "NaN", "byte order mark", "too large"],
)
def test_hostile_json(text: bytes) -> None:
    with pytest.raises(ConfigDamaged):
        open_text(text)


def test_the_same_field_twice(original: bytes) -> None:
    text = original.replace(b'"version": 1', b'"version": 1, "version": 1')
    with pytest.raises(ConfigDamaged, match="twice"):
        open_text(text)


def test_another_spelling_of_the_same_bytes(original: bytes) -> None:
    """Base64 whose unused last bits are not zero decodes to the same: there must be only one spelling."""
    document = json.loads(original)
    assert document["mac"].endswith("=")
    last = document["mac"][-2]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    document["mac"] = document["mac"][:-2] + alphabet[alphabet.index(last) ^ 1] + "="
    with pytest.raises(ConfigDamaged, match="canonical"):
        open_text(json.dumps(document).encode())


@pytest.mark.parametrize("version", [0, -1, 2, 99])
def test_versions_of_other_programs(original: bytes, version: int) -> None:
    text = original.replace(b'"version": 1', f'"version": {version}, "news": true'.encode())
    with pytest.raises(UnsupportedFormat, match=f"version {version} "):
        open_text(text)


def test_features_and_slot_types_of_newer_programs(original: bytes) -> None:
    document = json.loads(original)
    with pytest.raises(UnsupportedFormat, match="feature 'compression'"):
        open_text(json.dumps(document | {"features": ["compression"], "level": 3}).encode())
    document["slots"][1]["type"] = "fido2"
    with pytest.raises(UnsupportedFormat, match="slot type 'fido2'"):
        open_text(json.dumps(document).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"memory_kib": 1 << 30},  # 1 TiB
        {"memory_kib": 1 << 52},
        {"memory_kib": (4 << 20) + 1},
        {"time": 1 << 52},
        {"lanes": 1 << 24},
        {"memory_kib": 8},
        {"time": 2, "memory_kib": 65536},
        {"time": 1},
        {"lanes": 0},
    ],
)
def test_argon2_out_of_bounds_never_starts(
    original: bytes, change: dict[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kdf, "argon2id", lambda *args: pytest.fail("Argon2 ran"))
    document = json.loads(original)
    slot = next(slot for slot in document["slots"] if slot["type"] == "passphrase")
    slot["kdf"] |= change
    (tmp_path / configfile.NAME).write_text(json.dumps(document))
    with pytest.raises(ConfigDamaged, match=r"kdf|Argon2id"):
        config.unlock(config.load(tmp_path), passphrase())


def test_a_passphrase_is_never_tried_without_argon2(original: bytes) -> None:
    document = json.loads(original)
    slot = next(slot for slot in document["slots"] if slot["type"] == "passphrase")
    slot["kdf"] = {"name": "hkdf-sha256", "salt": slot["kdf"]["salt"]}
    with pytest.raises(ConfigDamaged, match="cannot have this kdf"):
        open_text(json.dumps(document).encode())

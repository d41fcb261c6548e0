"""`cryptfs index` on vaults that are not mounted, and why a mount has no index; live ones in tests/system."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryptfs.cli.mount import remembered_at
from tests.cli.conftest import Cryptfs


@pytest.fixture
def vault(cryptfs: Cryptfs, tmp_path: Path, password: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CRYPTFS_RUNTIME_DIR", str(tmp_path / "run"))
    path = tmp_path / "vault"
    done = cryptfs("init", path, "--passphrase-file", password, "--recovery-key-file", tmp_path / "recovery")
    assert done.code == 0
    return path


def test_from_nothing_to_nothing(cryptfs: Cryptfs, vault: Path, tmp_path: Path) -> None:
    where = ("--state-dir", tmp_path / "state")
    secret = ("--recovery-key-file", tmp_path / "recovery")
    assert cryptfs("index", "status", vault, *where, "--json").json["state"] == "none"
    built = cryptfs("index", "rebuild", vault, *where, *secret, "--json")
    assert built.code == 0 and built.json["directories"] == 1 and built.json["wrong"] == 0
    found = cryptfs("index", "status", vault, *where, "--json").json
    assert found["state"] == "kept" and found["bytes"] > 0 and not found["mounted"]
    assert cryptfs("index", "verify", vault, *where, *secret).code == 0
    assert cryptfs("index", "drop", vault, *where, "--json").json == {"dropped": True}
    assert cryptfs("index", "drop", vault, *where, "--json").json == {"dropped": False}


def test_where_there_can_be_none(cryptfs: Cryptfs, vault: Path, tmp_path: Path) -> None:
    """A command that is about the index says why; a mount gets the same reason and goes on."""
    secret = ("--recovery-key-file", tmp_path / "recovery")
    refused = cryptfs("index", "rebuild", vault, "--state-dir", vault / "state", *secret)
    assert refused.code == 19 and "is inside" in refused.err
    assert remembered_at(b"v" * 16, vault / "state", (vault,))[0] is None
    (tmp_path / "file").write_text("")
    refused = cryptfs("index", "rebuild", vault, "--state-dir", tmp_path / "file", *secret)
    assert refused.code == 2 or refused.code == 19


def test_not_a_vault(cryptfs: Cryptfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYPTFS_RUNTIME_DIR", str(tmp_path / "run"))
    for action in ("status", "rebuild", "verify", "drop"):
        assert cryptfs("index", action, tmp_path).code == 13

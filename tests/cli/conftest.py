"""What the tests of the command line share."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cryptfs.cli.main import run
from cryptfs.crypto.kdf import floor
from cryptfs.keyslots import passphrase


@pytest.fixture(autouse=True)
def state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What this machine remembers of a test's vaults is kept with the test."""
    monkeypatch.setenv("CRYPTFS_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:  # noqa: ANN401
        return json.loads(self.out)


Cryptfs = Callable[..., Result]


@pytest.fixture
def cryptfs(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cryptfs:
    """Run a command line in this process, at the least cost of Argon2, without a terminal."""
    monkeypatch.setattr(passphrase, "calibrate", floor)
    monkeypatch.setattr("cryptfs.cli.terminal.available", lambda: False)

    def call(*arguments: str | Path) -> Result:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        assert "Traceback" not in captured.out + captured.err
        assert captured.err == "" or captured.err.endswith("\n")
        return Result(code, captured.out, captured.err)

    return call


def secret_file(path: Path, content: str | bytes) -> Path:
    """A file with a secret, readable by its owner only."""
    path.touch(0o600)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def password(tmp_path: Path) -> Path:
    return secret_file(tmp_path / "password", "sieben gelbe Zähne\n")

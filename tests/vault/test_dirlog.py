"""The log of directory headers when disk or process have no room: what can be made good, and what cannot."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cryptfs.vault.dirlog import DirLog
from cryptfs.vault.header import DIRECTORY, Header, HeaderCodec
from cryptfs.vault.keyring import Keyring

CODEC = HeaderCodec(bytes(16), Keyring.new())


@pytest.fixture
def log(tmp_path: Path) -> DirLog:
    return DirLog(str(tmp_path), 7, CODEC, 0o600)


def slot(number: int) -> bytes:
    header = Header(DIRECTORY, 0, 0, 1, 0o700, 1, bytes([number]) * 16, 7, 1, 2, 0, 1, 2, 3, 4, bytes(32))
    return CODEC.pack(header)


def refusing(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, refuse)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOSPC])
@pytest.mark.parametrize("when", ["append", "sync"])
def test_what_cannot_be_opened_now_is_synced_later(
    log: DirLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, when: str
) -> None:
    if when == "sync":
        log.append(slot(1), bytes(16))
    with monkeypatch.context() as patch:
        refusing(patch, "open", number)
        with pytest.raises(OSError) as caught:
            log.append(slot(1), bytes(16)) if when == "append" else log.sync()
    assert caught.value.errno == number and log.synced == 0
    position = log.append(slot(2), bytes(16))
    synced: list[bool] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").samefile(tmp_path))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    log.sync()
    assert log.synced == position
    assert synced == [True], "the log's own name is durable, too"
    log.close()


@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
def test_an_error_of_a_sync_is_never_forgotten(
    log: DirLog, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    log.append(slot(1), bytes(16))
    with monkeypatch.context() as patch:
        refusing(patch, call, errno.EIO)
        with pytest.raises(OSError, match="Input/output"):
            log.sync()
    for _ in range(2):
        log.append(slot(2), bytes(16))
        with pytest.raises(OSError, match="Input/output"):
            log.sync()
    assert log.synced == 0
    log.close()

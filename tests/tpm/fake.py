"""A TPM that is a few lines of Python, for tests of what is built on one; `software.py` has a real one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from cryptfs.tpm import device, lockout, sealing
from cryptfs.tpm.errors import Damaged, Locked, OtherTpm, WrongPin
from cryptfs.tpm.policy import PcrSelection, check_values


class FakeTpm:
    """Install it with `FakeTpm(monkeypatch)`; then `/dev/fake` is its address."""

    address = "/dev/fake"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pcrs = {index: bytes([index + 1]) * 32 for index in range(24)}
        self.name = os.urandom(34)
        self.password = b""
        self.failed = 0
        self.max_tries, self.forgive = 32, 600
        self.commands: list[str] = []
        self._held: dict[bytes, tuple[bytes, bytes | None]] = {}
        monkeypatch.setattr(device, "connect", self._connect)
        for module, names in (
            (sealing, ("seal", "unseal", "read_pcrs", "srk_name")),
            (lockout, ("state", "protect", "reset", "release")),
        ):
            for name in names:
                monkeypatch.setattr(module, name, getattr(self, "_" + name))

    @contextlib.contextmanager
    def _connect(self, address: str) -> Iterator[FakeTpm]:
        device.parse_address(address)
        yield self

    def _read_pcrs(self, esys: object, selection: PcrSelection) -> tuple[bytes, ...]:
        return tuple(self.pcrs[index] for index in selection.indices)

    def _srk_name(self, esys: object) -> bytes | None:
        return self.name

    def _seal(
        self, esys: object, secret: bytes, selection: PcrSelection, pin: bytes | None
    ) -> sealing.Sealed:
        self.commands.append("seal")
        values = self._read_pcrs(esys, selection)
        check_values(selection, values)
        private = os.urandom(160)
        self._held[private] = (secret, pin)
        return sealing.Sealed(selection, values, pin is not None, self.name, os.urandom(80), private)

    def _unseal(self, esys: object, sealed: sealing.Sealed, pin: bytes | None) -> bytes:
        self.commands.append("unseal")
        if sealed.srk_name != self.name:
            raise OtherTpm("The slot was made on another TPM.")
        sealing.compare_pcrs(sealed, self._read_pcrs(esys, sealed.selection))
        if sealed.private not in self._held:
            raise Damaged("The sealed secret was changed.")
        if sealed.pin and self.failed >= self.max_tries:
            raise Locked("The TPM is locked.")
        secret, right = self._held[sealed.private]
        if pin != right:
            self.failed += 1
            raise WrongPin("Wrong PIN.")
        return secret

    def _state(self, esys: object) -> lockout.State:
        locked = self.failed >= self.max_tries
        return lockout.State(self.failed, self.max_tries, self.forgive, 86400, locked, bool(self.password))

    def _protect(self, esys: object, password: bytes) -> None:
        self.password = password

    def _reset(self, esys: object, password: bytes) -> None:
        assert password == self.password
        self.failed = 0

    def _release(self, esys: object, password: bytes) -> None:
        assert password == self.password
        self.password = b""

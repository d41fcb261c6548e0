"""TPM slots on a real TPM 2.0, in software: what it releases, what it refuses, what passes on the wire."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cryptfs.errors import CryptfsError, SlotRefused, TpmUnavailable
from cryptfs.keyslots import tpm2
from cryptfs.tpm import device, lockout, sealing
from cryptfs.tpm.errors import Damaged, Locked, OtherTpm, PcrsChanged, WrongPin
from cryptfs.tpm.policy import PcrSelection
from cryptfs.vault import config
from tests.cli.vaults import make
from tests.keyslots.material import RECOVERY
from tests.tpm.software import SoftwareTpm

pytestmark = pytest.mark.system

SEVEN = PcrSelection.parse("sha256:7")
SECRET = b"what nobody on the bus may see!!"
PIN = bytes(range(1, 33))
PASSWORD = b"the lockout password, 32 bytes.."


@pytest.fixture(autouse=True)
def simulators_are_allowed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(device.TEST_SWITCH, "1")
    monkeypatch.setenv("CRYPTFS_STATE_DIR", str(tmp_path / "state"))


@pytest.fixture
def tpm(simulators_are_allowed: None) -> Iterator[SoftwareTpm]:
    software = SoftwareTpm()
    yield software
    software.close()


def seal(tpm: SoftwareTpm, pin: bytes | None = PIN, selection: PcrSelection = SEVEN) -> sealing.Sealed:
    with device.connect(tpm.address) as esys:
        return sealing.seal(esys, SECRET, selection, pin)


def unseal(tpm: SoftwareTpm, sealed: sealing.Sealed, pin: bytes | None = PIN) -> bytes:
    with device.connect(tpm.address) as esys:
        return sealing.unseal(esys, sealed, pin)


def refuse(
    kind: type[CryptfsError], tpm: SoftwareTpm, sealed: sealing.Sealed, pin: bytes | None = PIN
) -> str:
    with pytest.raises(kind) as caught:
        unseal(tpm, sealed, pin)
    assert type(caught.value) is kind
    return str(caught.value)


@pytest.mark.parametrize("selection", ["sha256:7", "sha384:0,7", "none"])
def test_sealed_and_released(tpm: SoftwareTpm, selection: str) -> None:
    sealed = seal(tpm, PIN, PcrSelection.parse(selection))
    assert unseal(tpm, sealed) == SECRET
    tpm.restart()
    assert unseal(tpm, sealed) == SECRET


def test_without_a_pin(tpm: SoftwareTpm) -> None:
    sealed = seal(tpm, None)
    assert unseal(tpm, sealed, None) == SECRET
    # Others' wrong PINs must not keep a server from starting.
    guessed = seal(tpm)
    for _ in range(3):
        refuse(WrongPin, tpm, guessed, b"wrong")
    refuse(Locked, tpm, guessed)
    assert unseal(tpm, sealed, None) == SECRET


def test_pcrs_changed(tpm: SoftwareTpm) -> None:
    sealed = seal(tpm)
    tpm.extend(7)
    assert "PCR 7 (Secure Boot) differs" in refuse(PcrsChanged, tpm, sealed)
    with device.connect(tpm.address) as esys:
        assert lockout.state(esys).failed == 0, "no try is spent"
    tpm.restart()
    assert unseal(tpm, sealed) == SECRET


def test_a_pcr_that_changes_in_between_is_tried_again(
    tpm: SoftwareTpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any register, extended between PolicyPCR and Unseal, makes the TPM refuse once."""
    sealed = seal(tpm)
    with device.connect(tpm.address) as esys:
        from tpm2_pytss import ESYS_TR

        real, left = esys.policy_get_digest, [1]

        def digest(session: Any) -> Any:  # noqa: ANN401
            result = real(session)
            if left and left.pop():
                esys.pcr_event(ESYS_TR.PCR16, b"meanwhile")
            return result

        monkeypatch.setattr(esys, "policy_get_digest", digest)
        assert sealing.unseal(esys, sealed, PIN) == SECRET
        assert not left


def test_wrong_pins_count_and_lock(tpm: SoftwareTpm) -> None:
    sealed = seal(tpm)
    with device.connect(tpm.address) as esys:
        lockout.protect(esys, PASSWORD)
        state = lockout.state(esys)
    assert (state.max_tries, state.forgive_seconds, state.password_set) == (32, 600, True)
    assert "locks itself after 31 more" in refuse(WrongPin, tpm, sealed, b"wrong")
    assert unseal(tpm, sealed) == SECRET
    with device.connect(tpm.address) as esys:
        for _ in range(31):
            with pytest.raises(WrongPin):
                sealing.unseal(esys, sealed, b"wrong")
    refuse(Locked, tpm, sealed, PIN)
    # As a TPM comes from the factory, whoever is at the keyboard could go on: not any more.
    with pytest.raises(CryptfsError), device.connect(tpm.address) as esys:
        esys.dictionary_attack_lock_reset()
    refuse(Locked, tpm, sealed, PIN)


def test_the_lockout_is_lifted_with_the_password(tpm: SoftwareTpm) -> None:
    sealed = seal(tpm)
    for password in (PASSWORD, b"ends in a zero byte\0\0"):
        with device.connect(tpm.address) as esys:
            lockout.protect(esys, password)
            for _ in range(32):
                with pytest.raises(WrongPin):
                    sealing.unseal(esys, sealed, b"wrong")
            assert lockout.state(esys).locked
            lockout.reset(esys, password)
            assert sealing.unseal(esys, sealed, PIN) == SECRET
            lockout.release(esys, password)
            assert not lockout.state(esys).password_set


def test_authorisation_that_ends_in_zero_bytes(tpm: SoftwareTpm) -> None:
    """One PIN in 256: the TPM drops zeros at the end, and a try would be burnt."""
    sealed = seal(tpm, PIN[:30] + b"\0\0")
    assert unseal(tpm, sealed, PIN[:30] + b"\0\0") == SECRET
    with device.connect(tpm.address) as esys:
        assert lockout.state(esys).failed == 0


def test_changed_blobs(tpm: SoftwareTpm) -> None:
    from dataclasses import replace

    sealed = seal(tpm)
    for at in (0, 10, 80, len(sealed.private) - 1):
        changed = bytearray(sealed.private)
        changed[at] ^= 1
        with pytest.raises(CryptfsError) as caught:
            unseal(tpm, replace(sealed, private=bytes(changed)))
        assert not isinstance(caught.value, WrongPin)
    changed = bytearray(sealed.private)
    changed[80] ^= 1
    refuse(Damaged, tpm, replace(sealed, private=bytes(changed)))
    for public in (b"", b"x", sealed.public[:-1], bytes(80)):
        with pytest.raises(CryptfsError):
            unseal(tpm, replace(sealed, public=public))
    with device.connect(tpm.address) as esys:
        assert lockout.state(esys).failed == 0
    assert unseal(tpm, sealed) == SECRET


def test_another_tpm_a_cleared_one_and_another_root_key(tpm: SoftwareTpm) -> None:
    sealed = seal(tpm)
    with contextlib.closing(SoftwareTpm()) as other:
        assert "no storage root key" in refuse(OtherTpm, other, sealed)
        seal(other)
        assert "another TPM" in refuse(OtherTpm, other, sealed)
    with device.connect(tpm.address) as esys:
        from tpm2_pytss import ESYS_TR, TPM2B_PUBLIC, TPM2B_SENSITIVE_CREATE, TPMA_OBJECT

        esys.evict_control(ESYS_TR.OWNER, esys.tr_from_tpmpublic(sealing.SRK_HANDLE), sealing.SRK_HANDLE)
        storage = TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT | TPMA_OBJECT.SENSITIVEDATAORIGIN
        storage |= TPMA_OBJECT.USERWITHAUTH | TPMA_OBJECT.RESTRICTED | TPMA_OBJECT.DECRYPT
        template = TPM2B_PUBLIC.parse("rsa2048:aes128cfb", objectAttributes=storage)
        primary, *_ = esys.create_primary(TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.OWNER)
        with primary:
            esys.evict_control(ESYS_TR.OWNER, primary, sealing.SRK_HANDLE)
    assert "another TPM" in refuse(OtherTpm, tpm, sealed)
    tpm.clear()
    refuse(OtherTpm, tpm, sealed)
    assert unseal(tpm, seal(tpm)) == SECRET


def test_what_is_at_the_root_keys_place_but_is_none(tpm: SoftwareTpm) -> None:
    with device.connect(tpm.address) as esys:
        from tpm2_pytss import ESYS_TR, TPM2B_PUBLIC, TPM2B_SENSITIVE_CREATE, TPMA_OBJECT

        signing = TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT | TPMA_OBJECT.SENSITIVEDATAORIGIN
        signing |= TPMA_OBJECT.USERWITHAUTH | TPMA_OBJECT.SIGN_ENCRYPT
        template = TPM2B_PUBLIC.parse("ecc256:ecdsa-sha256", objectAttributes=signing)
        primary, *_ = esys.create_primary(TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.OWNER)
        with primary:
            esys.evict_control(ESYS_TR.OWNER, primary, sealing.SRK_HANDLE)
    with pytest.raises(SlotRefused, match="not a storage root key"):
        seal(tpm)


def test_an_owners_password(tpm: SoftwareTpm) -> None:
    with device.connect(tpm.address) as esys:
        from tpm2_pytss import ESYS_TR

        esys.hierarchy_change_auth(ESYS_TR.OWNER, b"of somebody else")
    with pytest.raises(SlotRefused, match="owner's password"):
        seal(tpm)


def test_a_bank_that_the_tpm_does_not_keep(tpm: SoftwareTpm) -> None:
    """The TPM would take it for no register at all, and seal to nothing."""
    banks = "sha1:none+sha256:all+sha384:none+sha512:none"
    subprocess.run(["tpm2_pcrallocate", "-Q", "-T", tpm.address, banks], check=True)
    tpm.restart()
    with pytest.raises(SlotRefused, match="no PCRs in the bank sha384"):
        seal(tpm, PIN, PcrSelection.parse("sha384:7"))
    with pytest.raises(SlotRefused, match="Nothing was measured into PCR 4"):
        seal(tpm, PIN, PcrSelection.parse("sha256:4"))
    with pytest.raises(SlotRefused, match="PIN or PCRs"):
        seal(tpm, None, PcrSelection.parse("none"))


def test_nothing_is_left_in_the_tpm(tpm: SoftwareTpm) -> None:
    """It holds three objects and three sessions: any that leaks shows at once."""
    with device.connect(tpm.address) as esys:
        lockout.protect(esys, PASSWORD)
        for _ in range(5):
            sealed = sealing.seal(esys, SECRET, SEVEN, PIN)
            with pytest.raises(WrongPin):
                sealing.unseal(esys, sealed, b"wrong")
            assert sealing.unseal(esys, sealed, PIN) == SECRET
            lockout.reset(esys, PASSWORD)
            gc.collect()
            assert lockout.state(esys).max_tries == 32
        from tpm2_pytss import TPM2_CAP

        for first in (0x80000000, 0x02000000, 0x03000000):
            _, answer = esys.get_capability(TPM2_CAP.HANDLES, first, 8)
            assert len(answer.data.handles) == 0


class Wire:
    """Between us and the TPM: passes everything on, and keeps it."""

    def __init__(self, tpm: SoftwareTpm) -> None:
        self.seen = bytearray()
        self._listeners = []
        for suffix in ("", ".ctrl"):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(f"{tpm.folder}/wire{suffix}")
            listener.listen()
            self._listeners.append(listener)
            threading.Thread(
                target=self._serve, args=(listener, f"{tpm.folder}/socket{suffix}"), daemon=True
            ).start()
        self.address = f"swtpm:path={tpm.folder}/wire"

    def _serve(self, listener: socket.socket, target: str) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(target)
                for a, b in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(a, b), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.seen += data
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for listener in self._listeners:
            listener.close()


def test_nothing_secret_passes_on_the_wire(tpm: SoftwareTpm) -> None:
    with contextlib.closing(Wire(tpm)) as wire:
        with device.connect(wire.address) as esys:
            sealed = sealing.seal(esys, SECRET, SEVEN, PIN)
            lockout.protect(esys, PASSWORD)
            for pin in (b"wrong" * 6, PIN):
                with contextlib.suppress(WrongPin):
                    assert sealing.unseal(esys, sealed, pin) == SECRET
            lockout.reset(esys, PASSWORD)
            lockout.release(esys, PASSWORD)
            unattended = sealing.seal(esys, SECRET, SEVEN, None)
            assert sealing.unseal(esys, unattended, None) == SECRET
        assert sealed.public in wire.seen, "the wire is listened to"
        for secret in (SECRET, PIN, PASSWORD, b"wrong" * 6):
            assert secret not in wire.seen
            assert secret[:16] not in wire.seen


def test_the_wire_shows_what_is_not_encrypted(tpm: SoftwareTpm) -> None:
    """The test above must be able to fail."""
    seal(tpm)
    with contextlib.closing(Wire(tpm)) as wire, device.connect(wire.address) as esys:
        from tpm2_pytss import TPM2B_PUBLIC, TPM2B_SENSITIVE_CREATE, TPMA_OBJECT, TPMS_SENSITIVE_CREATE

        srk = esys.tr_from_tpmpublic(sealing.SRK_HANDLE)
        sensitive = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(userAuth=PIN, data=SECRET))
        plain = TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT | TPMA_OBJECT.USERWITHAUTH
        esys.create(srk, sensitive, TPM2B_PUBLIC.parse("keyedhash", objectAttributes=plain))
        assert SECRET in wire.seen
        assert PIN in wire.seen


class TestCommands:
    """The program itself, a process each time."""

    @pytest.fixture
    def vault(self, tmp_path: Path) -> Path:
        make(tmp_path / "vault")
        for name, text in (("paper", RECOVERY.text), ("pin", "314159\n"), ("wrong", "2718\n")):
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o600)
        return tmp_path / "vault"

    def run(self, vault: Path, *words: str | Path, code: int = 0, program: str = "") -> str:
        folder = vault.parent
        words = tuple(str(word).replace("@", f"{folder}/") for word in words)
        argv = [sys.executable, "-c", program + "from cryptfs.cli.main import main; main()", "key", *words]
        done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def test_a_life(self, tpm: SoftwareTpm, vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(device.OVERRIDE, tpm.address)
        paper = ("--recovery-key-file", "@paper")
        self.run(vault, "add", vault, "tpm2", *paper, "--pin-file", "@pin")
        test = ("test", vault, "--tpm", "--pin-file", "@pin")
        assert "opens the vault" in self.run(vault, *test)
        tpm.restart()
        self.run(vault, *test)
        # A TPM that was not shut down properly counts that as a try, too.
        before = json.loads(self.run(vault, "lockout", vault, "--json"))["failed"]
        assert "Wrong PIN" in self.run(vault, "test", vault, "--tpm", "--pin-file", "@wrong", code=10)
        assert json.loads(self.run(vault, "lockout", vault, "--json"))["failed"] == before + 1
        self.run(vault, "lockout", vault, "--reset", *paper)
        assert "0 of 32 wrong PINs" in self.run(vault, "lockout", vault)

        tpm.extend(7)
        assert "PCR 7 (Secure Boot) differs" in self.run(vault, *test, code=22)
        self.run(vault, "test", vault, *paper)
        self.run(vault, "reseal", vault, *paper, "--pin-file", "@pin")
        self.run(vault, *test)
        tpm.clear()
        assert "no storage root key" in self.run(vault, *test, code=22)
        self.run(vault, "reseal", vault, *paper, "--pin-file", "@pin")
        self.run(vault, *test)
        slot = config.load(vault).slots[-1]
        assert "taken off again" in self.run(vault, "remove", vault, slot.id, "--yes", *paper)
        with device.connect(tpm.address) as esys:
            assert not lockout.state(esys).password_set

    def test_after_a_release_the_password_of_another_vault_is_not_guessed_at(
        self, tpm: SoftwareTpm, vault: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One wrong password, and the TPM takes none for a day: the other vault could not use it either."""
        monkeypatch.setenv(device.OVERRIDE, tpm.address)
        paper = ("--recovery-key-file", "@paper")
        self.run(vault, "add", vault, "tpm2", *paper, "--pin-file", "@pin")
        self.run(vault, "lockout", vault, "--release", *paper)
        other = vault.parent / "other"
        make(other)
        self.run(other, "add", other, "tpm2", *paper, "--pin-file", "@pin")
        for action in ("--reset", "--release"):
            assert "was taken off this TPM" in self.run(vault, "lockout", vault, action, *paper, code=20)
        assert "Removed" in self.run(vault, "remove", vault, config.load(vault).slots[-1].id, "--yes", *paper)
        self.run(other, "test", other, "--tpm", "--pin-file", "@wrong", code=10)
        self.run(other, "lockout", other, "--reset", *paper)
        assert "0 of 32 wrong PINs" in self.run(other, "lockout", other)

    def test_no_tpm_and_no_software_for_it(self, vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        paper = ("--recovery-key-file", "@paper")
        add = ("add", vault, "tpm2", *paper, "--pin-file", "@pin", "--tpm-device")
        before = (vault / "cryptfs.json").read_bytes()
        assert "There is no TPM 2.0 at /dev/none" in self.run(vault, *add, "/dev/none", code=21)
        without = "import sys; sys.modules['tpm2_pytss'] = None; "
        assert "tpm2-pytss, which is not installed" in self.run(
            vault, *add, "/dev/null", code=21, program=without
        )
        assert "does not answer" in self.run(vault, *add, "/dev/null", code=21)
        monkeypatch.delenv(device.TEST_SWITCH)
        assert "in software" in self.run(vault, *add, "swtpm:path=/x", code=2)
        assert (vault / "cryptfs.json").read_bytes() == before
        # A vault without a TPM slot works where the library is not installed, and never imports it.
        never = (
            "import sys, atexit; atexit.register(lambda: 'tpm2_pytss' in sys.modules and print('IMPORTED')); "
        )
        for program in (without, never):
            assert "IMPORTED" not in self.run(vault, "test", vault, *paper, program=program)
            assert "IMPORTED" not in self.run(vault, "list", vault, program=program)

    def test_permission_is_told_from_absence(self, tpm: SoftwareTpm, tmp_path: Path) -> None:
        from .processes import as_user

        tpm.folder.chmod(0o755)
        kind = as_user(lambda: _error(tpm.address))
        assert "You may not use the TPM" in kind


def _error(address: str) -> str:
    os.environ[device.TEST_SWITCH] = "1"
    try:
        with device.connect(address):
            return ""
    except TpmUnavailable as error:
        return str(error)


def test_the_golden_vault_opens_on_the_tpm_that_sealed_it(tmp_path: Path) -> None:
    from tests.golden.make_golden import PIN as GOLDEN_PIN
    from tests.golden.make_golden import RECOVERY as GOLDEN_RECOVERY
    from tests.golden.test_golden import HERE, unpack

    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "tpm2-00.permall").write_bytes((HERE / "v1-tpm2.permall").read_bytes())
    path = unpack("v1-tpm2", tmp_path / "vault")
    with contextlib.closing(SoftwareTpm(tmp_path / "state")) as tpm:
        opened = config.unlock(config.load(path), tpm2.Tpm2(tpm.address, GOLDEN_PIN))
    assert opened.config.slot(opened.slot_id).label == "server"
    assert opened.keys == config.unlock(config.load(path), GOLDEN_RECOVERY).keys


def test_in_a_vault(tpm: SoftwareTpm, tmp_path: Path) -> None:
    """The slot of a vault, by another vault's lockout password and on a TPM that stays locked."""
    from cryptfs.crypto.kdf import floor

    first = make(tmp_path / "vault")
    secret = tpm2.Tpm2(tpm.address, "1234", cost=floor())
    added = config.add_slot(first, secret)
    assert tpm2.protect(tpm.address, added.config.slots[-1].extra, added.keys.authority)
    second = make(tmp_path / "second")
    other = config.add_slot(second, tpm2.Tpm2(tpm.address, "5678", cost=floor()))
    assert other.config.slots[-1].extra["lockout"] == ""
    assert not tpm2.protect(tpm.address, other.config.slots[-1].extra, other.keys.authority)
    opened = config.unlock(config.load(tmp_path / "second"), tpm2.Tpm2(tpm.address, "5678"))
    assert opened.keys == other.keys
    with pytest.raises(WrongPin):
        config.unlock(config.load(tmp_path / "vault"), tpm2.Tpm2(tpm.address, "5678"))
    assert json.loads((tmp_path / "vault" / "cryptfs.json").read_text())["slots"][1]["extra"]["lockout"]

"""The TPM2 slot's rules: what goes into its key, what its `extra` may hold, and when a try is spent."""

from __future__ import annotations

import base64
import copy
import hmac
from pathlib import Path
from typing import Any

import pytest

from cryptfs.crypto.derive import expand
from cryptfs.crypto.kdf import Argon2id, HkdfSha256, floor
from cryptfs.errors import ConfigDamaged, CryptfsError, SlotRefused, UsageError, WrongSecret
from cryptfs.keyslots import TYPEABLE, Tpm2, tpm2
from cryptfs.tpm import sealing
from cryptfs.tpm.errors import Damaged, Locked, OtherTpm, PcrsChanged, WrongPin
from cryptfs.tpm.policy import PcrSelection
from cryptfs.vault import config
from tests.golden import independent_reader as reader
from tests.tpm.fake import FakeTpm

from .material import RECOVERY

PIN = "4711-Zähne"


@pytest.fixture
def tpm(monkeypatch: pytest.MonkeyPatch) -> FakeTpm:
    return FakeTpm(monkeypatch)


def secret(pin: str | None = PIN, **more: Any) -> Tpm2:  # noqa: ANN401
    return Tpm2(FakeTpm.address, pin, cost=floor(), **more)


def made(slot: Tpm2) -> tuple[Any, dict[str, Any]]:
    kdf = slot.new_kdf()
    return kdf, slot.new_extra(kdf)


def test_the_key_needs_both_the_tpm_and_argon2id_of_the_pin(
    tpm: FakeTpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    kdf, extra = made(secret())
    assert isinstance(kdf, Argon2id)
    given: dict[str, bytes] = {}

    def leak(esys: object, sealed: sealing.Sealed, pin: bytes) -> bytes:
        given["pin"] = pin
        return b"what the TPM kept".ljust(32)

    monkeypatch.setattr(sealing, "unseal", leak)
    stretched = kdf.derive(PIN.encode())
    key = secret().slot_key(kdf, extra)
    assert key == expand(
        hmac.digest(stretched, b"what the TPM kept".ljust(32), "sha256"), "cryptfs v1 slot", 32
    )
    # A TPM that gives away everything it was given and holds leaves a guesser with Argon2id.
    assert given["pin"] == expand(stretched, "cryptfs v1 tpm2 pin", 32)
    assert secret("4712-Zähne").slot_key(kdf, extra) != key


def test_without_a_pin_the_key_is_that_of_any_random_secret(tpm: FakeTpm) -> None:
    kdf, extra = made(secret(None))
    assert isinstance(kdf, HkdfSha256)
    held = tpm._held[base64.b64decode(extra["private"])]
    assert secret(None).slot_key(kdf, extra) == kdf.derive(held[0])
    assert held[1] is None
    assert extra["lockout"] == "", "no PIN, nothing to guess"
    # A PIN that was given although this slot has none does no harm.
    assert secret(PIN).slot_key(kdf, extra) == kdf.derive(held[0])


def test_the_same_pin_however_it_was_typed(tpm: FakeTpm) -> None:
    kdf, extra = made(secret("Z\u00e4hne"))
    assert secret("Za\u0308hne").slot_key(kdf, extra) == secret("Z\u00e4hne").slot_key(kdf, extra)


@pytest.mark.parametrize("pin", ["", "\udcff", "x" * 1025])
def test_unusable_pins(pin: str) -> None:
    with pytest.raises(UsageError, match="PIN"):
        Tpm2(FakeTpm.address, pin)


def test_a_new_pin_is_not_too_short(tpm: FakeTpm) -> None:
    with pytest.raises(UsageError, match="at least 4"):
        secret("äöü").new_kdf()


def test_a_pin_is_missing(tpm: FakeTpm) -> None:
    kdf, extra = made(secret())
    with pytest.raises(UsageError, match="has a PIN"):
        secret(None).slot_key(kdf, extra)
    assert "unseal" not in tpm.commands


def test_it_is_no_slot_that_a_person_can_type() -> None:
    assert Tpm2.type not in TYPEABLE


def test_nothing_shows_the_pin(tpm: FakeTpm) -> None:
    assert "4711" not in repr(secret()) + repr(vars(secret()).keys())


@pytest.mark.thorough
class TestInAVault:
    """A configuration with a recovery key and a TPM slot."""

    @pytest.fixture
    def vault(self, tmp_path: Path, tpm: FakeTpm) -> Path:
        config.add_slot(config.create(tmp_path, [(RECOVERY, "paper")]), secret(), "server")
        return tmp_path

    def unlock(self, vault: Path, slot: Any) -> config.Unlocked:  # noqa: ANN401
        return config.unlock(config.load(vault), slot)

    def test_it_opens(self, vault: Path) -> None:
        by_tpm = self.unlock(vault, secret())
        assert by_tpm.keys == self.unlock(vault, RECOVERY).keys
        assert by_tpm.slot_id == by_tpm.config.slots[1].id

    def test_a_tpm_slot_is_never_the_only_one(
        self, vault: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        unlocked = self.unlock(vault, RECOVERY)
        with pytest.raises(SlotRefused, match="can type"):
            config.remove_slot(unlocked, unlocked.config.slots[0].id)
        with pytest.raises(SlotRefused, match="can type"):
            config.create(tmp_path_factory.mktemp("new"), [(secret(), "")])

    def test_wrong_pin(self, vault: Path, tpm: FakeTpm) -> None:
        with pytest.raises(WrongPin):
            self.unlock(vault, secret("wrong"))
        assert tpm.failed == 1

    def test_pcrs_changed_and_sealed_again(self, vault: Path, tpm: FakeTpm) -> None:
        tpm.pcrs[7] = b"\x77" * 32
        with pytest.raises(PcrsChanged, match=r"PCR 7 \(Secure Boot\) differs"):
            self.unlock(vault, secret("wrong, but no try is spent"))
        assert tpm.failed == 0
        unlocked = self.unlock(vault, RECOVERY)
        slot = unlocked.config.slots[1]
        config.change_slot(unlocked, slot.id, secret(replaces=slot.extra))
        assert self.unlock(vault, secret()).slot_id == slot.id
        tpm.pcrs[7] = b"\x08" * 32
        with pytest.raises(PcrsChanged):
            self.unlock(vault, secret())

    def test_each_machine_has_a_slot_of_its_own(self, vault: Path, tpm: FakeTpm) -> None:
        first, tpm.name = tpm.name, b"\0\x0b" + b"2" * 32
        with pytest.raises(OtherTpm):
            self.unlock(vault, secret())
        config.add_slot(self.unlock(vault, RECOVERY), secret("second machine"))
        assert self.unlock(vault, secret("second machine")).slot_id == config.load(vault).slots[2].id
        # What is wrong with this machine's slot is what is said, not that the other machine's is elsewhere.
        with pytest.raises(WrongPin):
            self.unlock(vault, secret("wrong"))
        tpm.name = first
        assert self.unlock(vault, secret()).slot_id == config.load(vault).slots[1].id

    def test_locked(self, vault: Path, tpm: FakeTpm) -> None:
        tpm.failed = 32
        with pytest.raises(Locked):
            self.unlock(vault, secret())
        self.unlock(vault, RECOVERY)
        with pytest.raises(Locked, match="lift it"):
            config.add_slot(self.unlock(vault, RECOVERY), secret())

    def test_the_lockout_password_is_kept_under_the_vaults_keys(self, vault: Path, tpm: FakeTpm) -> None:
        by_recovery = self.unlock(vault, RECOVERY)
        extra = by_recovery.config.slots[1].extra
        assert tpm2.protect(tpm.address, extra, by_recovery.keys.authority)
        password = tpm.password
        assert len(password) == 32
        assert not tpm2.protect(tpm.address, extra, by_recovery.keys.authority), "only once"
        # Whoever unlocks has it, by any slot, also after slots were revoked.
        config.add_slot(by_recovery, secret("another"))
        after = config.remove_slot(by_recovery, config.load(vault).slots[2].id)
        salt = base64.b64decode(extra["lockout"])
        assert tpm2.lockout_password(after.keys.authority, salt) == password
        assert password.hex() not in (vault / "cryptfs.json").read_text()

    def test_a_lockout_password_of_others(self, vault: Path, tpm: FakeTpm) -> None:
        tpm.password = b"set by another program"
        _, extra = made(secret())
        assert extra["lockout"] == ""
        tpm.forgive = 5
        with pytest.raises(SlotRefused, match="Another program set"):
            made(secret())
        tpm.forgive, tpm.max_tries = 600, 33
        with pytest.raises(SlotRefused, match="33 wrong PINs"):
            made(secret())

    def test_a_slot_of_newer_rules_is_passed_over(self, vault: Path) -> None:
        text = (vault / "cryptfs.json").read_text()
        document = config.load(vault).document
        newer = config.msgspec.structs.replace(document.slots[1], extra={"rules": "sealed-2", "x": [1]})
        changed = config.msgspec.structs.replace(document, slots=[document.slots[0], newer])
        keys = self.unlock(vault, RECOVERY).keys
        changed = config.msgspec.structs.replace(changed, mac=config.compute_mac(changed, keys))
        (vault / "cryptfs.json").write_bytes(config.format_document(changed))
        assert self.unlock(vault, RECOVERY).keys == keys
        with pytest.raises(OtherTpm, match="newer version"):
            self.unlock(vault, secret())
        (vault / "cryptfs.json").write_text(text)

    def test_a_changed_extra_opens_nothing(self, vault: Path, tpm: FakeTpm) -> None:
        text = (vault / "cryptfs.json").read_text()
        extra = config.load(vault).slots[1].extra
        other = base64.b64encode(bytes(80)).decode()
        (vault / "cryptfs.json").write_text(text.replace(extra["public"], other))
        with pytest.raises(WrongSecret):
            self.unlock(vault, secret())
        with pytest.raises(ConfigDamaged):
            self.unlock(vault, RECOVERY)
        (vault / "cryptfs.json").write_text(text.replace(extra["private"], other))
        with pytest.raises(Damaged):
            self.unlock(vault, secret())


def good_extra(pcrs: list[int], bank: str = "sha256", size: int = 32) -> dict[str, Any]:
    def b64(count: int) -> str:
        return base64.b64encode(bytes(count)).decode()

    values = [{"index": index, "value": b64(size)} for index in pcrs]
    extra = {"rules": "sealed-1", "bank": bank, "pcrs": values, "srk": b64(34)}
    return extra | {"public": b64(80), "private": b64(160), "lockout": b64(16)}


GOOD = good_extra([0, 7])
EDGES: list[tuple[dict[str, Any], bool, bool]] = [
    (GOOD, True, True),
    (GOOD, False, True),
    (good_extra([]), True, True),
    (good_extra([]), False, False),
    (good_extra([23], "sha512", 64), True, True),
    (good_extra([23], "sha384", 32), True, False),
    (good_extra([7, 0]), True, False),
    (good_extra([7, 7]), True, False),
    (good_extra([24]), True, False),
    (good_extra([-1]), True, False),
    (GOOD | {"bank": "sha1"}, True, False),
    (GOOD | {"lockout": ""}, True, True),
    (GOOD | {"lockout": "AAAA"}, True, False),
    (GOOD | {"srk": "AAAA"}, True, False),
    (GOOD | {"srk": GOOD["private"]}, True, False),
    (GOOD | {"public": ""}, True, False),
    (GOOD | {"private": base64.b64encode(bytes(1024)).decode()}, True, True),
    (GOOD | {"private": base64.b64encode(bytes(1025)).decode()}, True, False),
    (GOOD | {"lockout": "AAAAAAAAAAAAAAAAAAAAAB=="}, True, False),
    (GOOD | {"more": 1}, True, False),
    ({name: GOOD[name] for name in GOOD if name != "lockout"}, True, False),
    ({}, True, False),
    ({"rules": 1}, True, False),
    ({"rules": "sealed-2", "whatever": {}}, False, True),
    (GOOD | {"pcrs": [{"index": 7}]}, True, False),
    (GOOD | {"pcrs": [{"index": True, "value": GOOD["pcrs"][0]["value"]}]}, True, False),
    (GOOD | {"pcrs": 7}, True, False),
]


@pytest.mark.parametrize(("extra", "pin", "allowed"), EDGES)
def test_bounds_of_extra_here_and_in_the_independent_reader(
    extra: dict[str, Any], pin: bool, allowed: bool
) -> None:
    kdf = floor() if pin else HkdfSha256.new()

    def accepts(check: Any) -> bool:  # noqa: ANN401
        try:
            check(copy.deepcopy(extra))
        except (ValueError, reader.Damage):
            return False
        return True

    assert accepts(lambda value: tpm2.check_extra(kdf, value)) == allowed
    assert accepts(lambda value: reader.check_sealed(value, pin)) == allowed


def test_the_address_is_a_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRYPTFS_TEST_TPM", raising=False)
    for simulator in ("swtpm:path=/tmp/s", "mssim:host=localhost", "cmd:tpm2_send"):
        with pytest.raises(UsageError, match="in software"):
            Tpm2(simulator, PIN)
    for nonsense in ("", "tpm", "device:tpm", "tabrmd:", "libtss2-tcti-evil.so"):
        with pytest.raises(UsageError, match="not the device file"):
            Tpm2(nonsense, PIN)
    Tpm2("/dev/tpmrm0", PIN)
    Tpm2("device:/dev/tpmrm1", PIN)


def test_selection_of_a_new_slot(tpm: FakeTpm) -> None:
    _, extra = made(secret(selection=PcrSelection.parse("sha256:0,7")))
    assert [pcr["index"] for pcr in extra["pcrs"]] == [0, 7]
    _, extra = made(secret(selection=PcrSelection.parse("none")))
    assert extra["pcrs"] == []
    with pytest.raises(CryptfsError):
        made(secret(selection=PcrSelection.parse("sha1:7")))

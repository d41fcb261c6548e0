"""`cryptfs key add tpm2`, `test`, `reseal`, `lockout`, and unlocking with a TPM, on one made of Python."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cryptfs.cli.secrets import SecretSource
from cryptfs.cli.tpm import TpmSource
from cryptfs.errors import UsageError, WrongSecret
from cryptfs.keyslots import tpm2
from cryptfs.tpm.errors import PcrsChanged
from cryptfs.vault import config
from tests.keyslots.material import RECOVERY
from tests.tpm.fake import FakeTpm

from .conftest import Cryptfs, secret_file


@pytest.fixture
def tpm(monkeypatch: pytest.MonkeyPatch) -> FakeTpm:
    from cryptfs.crypto.kdf import floor

    monkeypatch.setattr(tpm2, "calibrate", lambda target: floor())
    monkeypatch.setenv("CRYPTFS_TPM_DEVICE", FakeTpm.address)
    return FakeTpm(monkeypatch)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cryptfs.vault.layout import create_tree

    path = tmp_path_factory.mktemp("pristine") / "vault"
    path.mkdir()
    unlocked = config.create(path, [(RECOVERY, "paper")])
    create_tree(path, unlocked.vault_id, unlocked.keyring, backup_group=False, mode=0o700, uid=0, gid=0)
    return path


@pytest.fixture
def vault(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "vault"))


@pytest.fixture
def paper(tmp_path: Path) -> tuple[str, str]:
    return "--recovery-key-file", str(secret_file(tmp_path / "paper", RECOVERY.text))


@pytest.fixture
def pin(tmp_path: Path) -> tuple[str, str]:
    return "--pin-file", str(secret_file(tmp_path / "pin", "2718\n"))


def slot_of(vault: Path) -> str:
    return next(slot.id for slot in config.load(vault).slots if slot.type == "tpm2")


def test_add_test_and_list(
    cryptfs: Cryptfs, vault: Path, tpm: FakeTpm, paper: tuple[str, str], pin: tuple[str, str]
) -> None:
    added = cryptfs("key", "add", vault, "tpm2", "--label", "server", *paper, *pin)
    assert (added.code, added.err) == (0, "")
    assert "locks itself after 32 wrong PINs" in added.out
    assert len(tpm.password) == 32
    listed = cryptfs("key", "list", vault, "--json").json["slots"][1]
    assert listed["tpm"] == {"pcrs": "sha256:7", "pin": True, "lockout_password": True}
    assert listed["last_used_here"] is None
    assert "TPM + PIN, sha256:7" in cryptfs("key", "list", vault).out

    tested = cryptfs("key", "test", vault, slot_of(vault), "--tpm", *pin, "--json")
    assert tested.code == 0
    assert tested.json == {
        "opens": True,
        "slot": slot_of(vault),
        "type": "tpm2",
        "label": "server",
        "warning": None,
    }
    assert cryptfs("key", "list", vault, "--json").json["slots"][1]["last_used_here"].endswith("Z")
    tpm.password = b""
    assert "can go on guessing the PIN" in cryptfs("key", "test", vault, "--tpm", *pin).err


def test_unattended_is_explicit_and_warned_of(
    cryptfs: Cryptfs, vault: Path, tpm: FakeTpm, paper: tuple[str, str]
) -> None:
    asked = cryptfs("key", "add", vault, "tpm2", *paper)
    assert asked.code == 2
    assert "--no-pin" in asked.err
    added = cryptfs("key", "add", vault, "tpm2", "--no-pin", *paper)
    assert added.code == 0
    assert "not a stolen server" in added.err
    assert tpm.password == b""
    assert cryptfs("key", "test", vault, "--tpm").code == 0


def test_what_is_refused_and_changes_nothing(
    cryptfs: Cryptfs, vault: Path, tpm: FakeTpm, tmp_path: Path, paper: tuple[str, str], pin: tuple[str, str]
) -> None:
    before = (vault / "cryptfs.json").read_bytes()
    tpm.pcrs[0] = bytes(32)
    for options, code, message in (
        (("--pcrs", "sha1:7", *pin), 20, "can be forged"),
        (("--pcrs", "sha256:10", *pin), 20, "PCR 10 is not fit"),
        (("--pcrs", "sha256:24", *pin), 20, "seals to nothing"),
        (("--pcrs", "none", "--no-pin"), 20, "needs a PIN or PCRs"),
        (("--pcrs", "sha256:0", *pin), 20, "Nothing was measured into PCR 0"),
        (("--pcrs", "what", *pin), 2, "selects no PCRs"),
        (("--no-pin", *pin), 2, "exclude each other"),
        (("--tpm-device", "swtpm:path=/tmp/x", *pin), 2, "in software"),
        (("--pin-file", secret_file(tmp_path / "short", "12\n")), 2, "at least 4"),
        (("--new-key-file", tmp_path / "short", *pin), 2, "not for a slot of type tpm2"),
    ):
        result = cryptfs("key", "add", vault, "tpm2", *paper, *options)
        assert (result.code, message in result.err) == (code, True), result
    assert cryptfs("key", "add", vault, "recovery", "--no-pin", *paper).code == 2
    assert (vault / "cryptfs.json").read_bytes() == before


def test_a_pin_never_comes_from_the_command_line_or_the_environment(cryptfs: Cryptfs) -> None:
    for name in ("add", "reseal", "test"):
        text = cryptfs("key", name, "--help").out
        assert "--pin-file FILE" in text
        assert "--pin " not in text


def test_pcrs_changed_then_sealed_again(
    cryptfs: Cryptfs, vault: Path, tpm: FakeTpm, paper: tuple[str, str], pin: tuple[str, str]
) -> None:
    cryptfs("key", "add", vault, "tpm2", *paper, *pin)
    password, before = tpm.password, config.load(vault).document
    tpm.pcrs[7] = b"\x99" * 32
    refused = cryptfs("key", "test", vault, "--tpm", *pin, "--json")
    assert refused.code == 22
    assert refused.json["opens"] is False
    assert refused.json["reason"] == "PcrsChanged"
    assert "PCR 7 (Secure Boot) differs" in refused.err
    assert config.load(vault).document == before, "never silently"
    assert cryptfs("key", "test", vault, *paper).code == 0

    assert cryptfs("key", "reseal", vault, *paper, *pin).code == 0
    assert cryptfs("key", "test", vault, "--tpm", *pin).code == 0
    assert slot_of(vault) == before.slots[1].id
    assert tpm.password == password
    assert cryptfs("key", "lockout", vault, "--reset", *paper).code == 0


def test_lockout(
    cryptfs: Cryptfs, vault: Path, tpm: FakeTpm, paper: tuple[str, str], pin: tuple[str, str], tmp_path: Path
) -> None:
    cryptfs("key", "add", vault, "tpm2", *paper, *pin)
    wrong = secret_file(tmp_path / "wrong", "0000")
    assert cryptfs("key", "test", vault, "--tpm", "--pin-file", wrong).code == 10
    tpm.failed = 32
    assert cryptfs("key", "test", vault, "--tpm", *pin).code == 22
    shown = cryptfs("key", "lockout", vault, "--json")
    assert (shown.code, shown.json["failed"], shown.json["locked"]) == (0, 32, True)
    lifted = cryptfs("key", "lockout", vault, "--reset", *paper)
    assert lifted.code == 0
    assert lifted.out.startswith("0 of 32 wrong PINs; ")
    assert cryptfs("key", "lockout", vault, "--release", *paper).code == 0
    assert tpm.password == b""
    assert "has no lockout password" in cryptfs("key", "lockout", vault, "--reset", *paper).err
    tpm.password, tpm.name = b"of another", b"\0\x0b" + bytes(32)
    assert "did not set the lockout password" in cryptfs("key", "lockout", vault, "--reset", *paper).err


def test_after_a_release_no_old_password_is_tried(
    cryptfs: Cryptfs, vault: Path, tpm: FakeTpm, paper: tuple[str, str], pin: tuple[str, str]
) -> None:
    """A TPM takes no password for a day after a wrong one."""
    cryptfs("key", "add", vault, "tpm2", *paper, *pin)
    first = tpm.password
    assert cryptfs("key", "lockout", vault, "--release", *paper).code == 0
    tpm.password = b"of another vault"
    for action in ("--reset", "--release"):
        refused = cryptfs("key", "lockout", vault, action, *paper)
        assert (refused.code, "was taken off this TPM" in refused.err) == (20, True), refused
    tpm.password = b""
    assert cryptfs("key", "reseal", vault, *paper, *pin).code == 0
    assert tpm.password not in (b"", first)
    assert cryptfs("key", "lockout", vault, "--reset", *paper).code == 0


def test_of_two_slots_the_one_that_set_the_password_counts(
    cryptfs: Cryptfs,
    vault: Path,
    tpm: FakeTpm,
    paper: tuple[str, str],
    pin: tuple[str, str],
    state_directory: Path,
) -> None:
    cryptfs("key", "add", vault, "tpm2", *paper, *pin)
    one = slot_of(vault)
    cryptfs("key", "lockout", vault, "--release", *paper)
    cryptfs("key", "add", vault, "tpm2", *paper, *pin)
    password = tpm.password
    tpm.failed = 32
    assert cryptfs("key", "lockout", vault, "--reset", *paper).code == 0
    assert tpm.failed == 0
    # Where that is not known, none is tried, also not with the slot.
    shutil.rmtree(state_directory)
    refused = cryptfs("key", "lockout", vault, "--reset", *paper)
    assert (refused.code, "more than once" in refused.err) == (20, True)
    removed = cryptfs("key", "remove", vault, one, "--yes", *paper)
    assert (removed.code, "keeps the lockout password" in removed.out) == (0, True)
    assert tpm.password == password
    assert cryptfs("key", "lockout", vault, "--reset", *paper).code == 0, "now there is but one"


def test_removing_takes_the_lockout_password_off(
    cryptfs: Cryptfs, vault: Path, tpm: FakeTpm, paper: tuple[str, str], pin: tuple[str, str]
) -> None:
    cryptfs("key", "add", vault, "tpm2", *paper, *pin)
    removed = cryptfs("key", "remove", vault, slot_of(vault), "--yes", *paper)
    assert removed.code == 0
    assert tpm.password == b""
    cryptfs("key", "add", vault, "tpm2", *paper, *pin)
    tpm.name = b"\0\x0b" + bytes(32)
    removed = cryptfs("key", "remove", vault, slot_of(vault), "--yes", *paper)
    assert (removed.code, "keeps the lockout password" in removed.out) == (0, True)


def test_options_need_each_other(cryptfs: Cryptfs, vault: Path, tpm: FakeTpm, pin: tuple[str, str]) -> None:
    assert "need --tpm" in cryptfs("key", "test", vault, *pin).err
    assert "exclude each other" in cryptfs("key", "test", vault, "--tpm", *pin, "--pin-fd", "3").err
    assert "no TPM slot" in cryptfs("key", "reseal", vault, *pin).err
    refused = cryptfs("key", "test", vault, config.load(vault).slots[0].id, "--tpm")
    assert (refused.code, "is a recovery" in refused.err) == (2, True)


@pytest.mark.thorough
class TestBoot:
    """`mount --tpm --or-ask --ask-with`, as the unit of packaging/systemd calls it."""

    @pytest.fixture
    def asker(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A systemd-ask-password on PATH that answers from a file, and writes down the question."""
        folder = tmp_path / "bin"
        folder.mkdir()
        program = folder / "systemd-ask-password"
        program.write_text(
            f'#!/bin/sh\nprintf "%s\\n" "$*" >>"{tmp_path}/asked"\n'
            f'head -n 1 "{tmp_path}/answers"\nsed -i 1d "{tmp_path}/answers"\n'
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        return tmp_path

    @pytest.fixture
    def sealed(
        self, cryptfs: Cryptfs, vault: Path, tpm: FakeTpm, paper: tuple[str, str], tmp_path: Path
    ) -> Path:
        new = secret_file(tmp_path / "new", "sechs lange Wörter\n")
        pin = secret_file(tmp_path / "pin", "2718\n")
        assert cryptfs("key", "add", vault, "passphrase", *paper, "--new-passphrase-file", new).code == 0
        assert cryptfs("key", "add", vault, "tpm2", *paper, "--pin-file", pin).code == 0
        return vault

    def source(self) -> SecretSource:
        ask = "systemd-ask-password --timeout=0"
        return SecretSource(tpm=TpmSource(), or_ask=True, ask_with=ask)

    def unlock(self, vault: Path) -> str:
        unlocked = self.source().unlock(config.load(vault))
        return next(slot.type for slot in unlocked.config.slots if slot.id == unlocked.slot_id)

    def test_the_pin_is_asked_for(self, sealed: Path, asker: Path) -> None:
        (asker / "answers").write_text("2718\n")
        assert self.unlock(sealed) == "tpm2"
        assert (asker / "asked").read_text() == f"--timeout=0 PIN of {sealed}: \n"

    def test_a_changed_machine_asks_for_the_passphrase(
        self, sealed: Path, asker: Path, tpm: FakeTpm, capfd: pytest.CaptureFixture[str]
    ) -> None:
        tpm.pcrs[7] = b"\x99" * 32
        (asker / "answers").write_text("2718\nfalsch\nsechs lange Wörter\n")
        assert self.unlock(sealed) == "passphrase"
        assert "PCR 7 (Secure Boot) differs" in capfd.readouterr().err
        assert (asker / "asked").read_text().count("Passphrase of") == 2

    def test_three_wrong_pins_then_the_passphrase(self, sealed: Path, asker: Path, tpm: FakeTpm) -> None:
        (asker / "answers").write_text("1111\n2222\n3333\nsechs lange Wörter\n")
        assert self.unlock(sealed) == "passphrase"
        assert tpm.failed == 3

    def test_nobody_answers(self, sealed: Path, asker: Path, tpm: FakeTpm) -> None:
        (asker / "answers").write_text("")
        with pytest.raises(UsageError, match="gave no answer"):
            self.unlock(sealed)
        tpm.pcrs[7] = b"\x99" * 32
        (asker / "answers").write_text("2718\n" + "falsch\n" * 3)
        with pytest.raises(WrongSecret):
            self.unlock(sealed)

    def test_without_or_ask_nobody_is_asked(self, sealed: Path, asker: Path, tpm: FakeTpm) -> None:
        tpm.pcrs[7] = b"\x99" * 32
        source = SecretSource(tpm=TpmSource(pin_file=asker / "pin"))
        with pytest.raises(PcrsChanged):
            source.unlock(config.load(sealed))
        assert not (asker / "asked").exists()

    def test_a_program_that_is_not_there(self, sealed: Path) -> None:
        source = SecretSource(ask_with="no-such-program")
        with pytest.raises(UsageError, match="cannot be run"):
            source.unlock(config.load(sealed))

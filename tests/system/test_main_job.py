"""The main job, by the command line alone: make, mount, use, unmount, recover; and what bad input gets."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.waiting import wait_until

from .dicom import made_set, pixels_by_instance
from .mounts import PASSPHRASE, CryptfsMount, is_alive, is_mounted

pytestmark = pytest.mark.system

MakeMount = Callable[[], CryptfsMount]


def fails(mount: CryptfsMount, code: int, *arguments: str | Path) -> str:
    """A command that must end with this exit code and one clear line, without a traceback or a secret."""
    result = mount.cli(*arguments, check=False)
    assert result.returncode == code, result.stdout + result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for secret in ("Traceback", PASSPHRASE, mount.recovery_file.read_text().strip()):
        assert secret not in result.stdout + result.stderr
    return lines[0]


def test_the_main_job(vault: CryptfsMount, make_mount: MakeMount, tmp_path: Path) -> None:
    images = made_set(tmp_path)
    sent = pixels_by_instance(images.folder)
    assert len(sent) == images.instances

    # the administrator mounts, the imaging software stores
    vault.mount()
    status = json.loads(vault.cli("status", "--json").stdout)["mounts"]
    mine = [entry for entry in status if entry["mountpoint"] == str(vault.path)]
    assert len(mine) == 1
    assert mine[0]["vault"] == str(vault.vault)
    assert mine[0]["state"] == "mounted"
    assert [mine[0]["pid"]] == vault.daemon_pids()
    shutil.copytree(images.folder, vault.path / "images")
    assert pixels_by_instance(vault.path) == sent

    # after work
    pid = mine[0]["pid"]
    vault.cli("unmount", vault.path)
    assert not is_alive(pid)
    assert list(vault.path.iterdir()) == []
    assert (
        sum(path.stat().st_size for path in vault.vault.rglob("*") if path.is_file())
        > images.instances * 1000
    )

    # the next day
    vault.mount()
    assert pixels_by_instance(vault.path) == sent
    vault.unmount()

    # the building has burnt down: a copy of the ciphertext and the recovery key are left
    elsewhere = make_mount()
    shutil.copytree(vault.vault, elsewhere.vault)
    elsewhere.cli("mount", elsewhere.vault, elsewhere.path, "--recovery-key-file", vault.recovery_file)
    assert pixels_by_instance(elsewhere.path) == sent
    elsewhere.unmount()


def test_recovery_key_as_people_type_it(vault: CryptfsMount) -> None:
    typed = vault.base / "typed"
    typed.touch(0o600)
    key = vault.recovery_file.read_text().strip().splitlines()[-1]
    typed.write_text(key.lower().replace("-", " ") + "\n")
    vault.cli("mount", vault.vault, vault.path, "--recovery-key-file", typed)
    vault.unmount()
    wrong = "1" if key[-1] != "1" else "2"  # the check digit: another digit fits it once in 32 times
    typed.write_text(key[:-1] + wrong)
    assert "Group 9" in fails(vault, 2, "mount", vault.vault, vault.path, "--recovery-key-file", typed)
    assert not is_mounted(vault.path)


def test_wrong_passphrase(vault: CryptfsMount) -> None:
    wrong = vault.base / "wrong"
    wrong.touch(0o600)
    wrong.write_text(PASSPHRASE + "x\n")
    fails(vault, 10, "mount", vault.vault, vault.path, "--passphrase-file", wrong)
    assert not is_mounted(vault.path)
    assert vault.daemon_pids() == []


def test_tampered_configuration(vault: CryptfsMount) -> None:
    path = vault.vault / "cryptfs.json"
    config = json.loads(path.read_text())
    original = path.read_text()
    secret = ("--passphrase-file", vault.passphrase_file)
    config["options"]["backup_group"] = not config["options"]["backup_group"]
    path.write_text(json.dumps(config))
    fails(vault, 11, "mount", vault.vault, vault.path, *secret)
    path.write_text(original[: len(original) // 2])
    fails(vault, 11, "mount", vault.vault, vault.path, *secret)
    path.write_text(json.dumps(json.loads(original) | {"version": 2}))
    fails(vault, 12, "mount", vault.vault, vault.path, *secret)
    path.write_text(original)
    vault.mount()


def test_places_that_cannot_be(vault: CryptfsMount, make_mount: MakeMount) -> None:
    secret = ("--passphrase-file", vault.passphrase_file)
    fails(vault, 13, "mount", vault.base / "absent", vault.path, *secret)
    fails(vault, 13, "mount", vault.path, vault.path, *secret)
    fails(vault, 15, "mount", vault.vault, vault.base / "absent", *secret)
    fails(vault, 15, "mount", vault.vault, vault.base, *secret)
    (vault.vault / "inside").mkdir()
    fails(vault, 15, "mount", vault.vault, vault.vault / "inside", *secret)
    (vault.vault / "inside").rmdir()
    (vault.path / "something").touch()
    fails(vault, 15, "mount", vault.vault, vault.path, *secret)
    (vault.path / "something").unlink()
    fails(vault, 17, "unmount", vault.path)
    fails(vault, 17, "status", vault.path)
    fails(vault, 14, "init", vault.vault, *secret, "--recovery-key-file", vault.base / "another")
    assert not (vault.base / "another").exists()
    fails(vault, 2, "init", vault.base, *secret, "--recovery-key-file", vault.base / "another")

    vault.mount()
    fails(vault, 15, "mount", vault.vault, vault.path, *secret)
    second = make_mount()
    fails(vault, 14, "mount", vault.vault, second.path, *secret)
    assert not is_mounted(second.path)


def test_busy_mount_is_not_torn_away(vault: CryptfsMount) -> None:
    vault.mount()
    with (vault.path / "f").open("wb") as file:
        file.write(b"x")
        message = fails(vault, 15, "unmount", vault.path)
        assert str(os.getpid()) in message, "it does not say who holds it"
        file.write(b"y")
    vault.unmount()
    vault.mount()
    assert (vault.path / "f").read_bytes() == b"xy"


def test_lazy_unmount_loses_nothing(vault: CryptfsMount) -> None:
    vault.mount()
    pids = vault.daemon_pids()
    with (vault.path / "f").open("wb") as file:
        vault.cli("unmount", "--lazy", vault.path)
        assert not is_mounted(vault.path)
        file.write(b"after" * 100_000)
    wait_until(lambda: not any(map(is_alive, pids)), "the daemon has ended")
    vault.mount()
    assert (vault.path / "f").read_bytes() == b"after" * 100_000


def test_terminated_daemon_loses_nothing(vault: CryptfsMount) -> None:
    """SIGTERM, as at a shutdown, with data that nobody synced."""
    vault.mount()
    (vault.path / "f").write_bytes(b"x" * 3_000_000)
    (pid,) = vault.daemon_pids()
    os.kill(pid, 15)
    wait_until(lambda: not is_alive(pid), "the daemon has ended")
    assert not is_mounted(vault.path)
    vault.mount()
    assert (vault.path / "f").read_bytes() == b"x" * 3_000_000
    assert "unclean" not in vault.log.read_text()


def test_damage_in_one_file_is_its_own(vault: CryptfsMount) -> None:
    vault.mount()
    for number in range(5):
        (vault.path / f"{number}.dcm").write_bytes(bytes([number]) * 200_000)
    vault.unmount()
    victims = [path for path in (vault.vault / "tree").iterdir() if path.name != "@dir"]
    with victims[0].open("r+b") as file:
        file.seek(100_000)
        byte = file.read(1)[0]
        file.seek(100_000)
        file.write(bytes([byte ^ 1]))
    os.truncate(victims[1], victims[1].stat().st_size - 1)
    vault.mount()
    damaged = 0
    for number in range(5):
        try:
            assert (vault.path / f"{number}.dcm").read_bytes() == bytes([number]) * 200_000
        except OSError as error:
            assert error.errno == errno.EIO
            damaged += 1
    assert damaged == 2


def test_no_secret_is_seen_from_outside(vault: CryptfsMount) -> None:
    vault.mount()
    secrets = [PASSPHRASE.encode(), vault.recovery_file.read_bytes().strip().splitlines()[-1]]
    (vault.path / "DOE^JANE").write_bytes(b"content of Jane")
    vault.unmount()
    vault.mount()
    (pid,) = vault.daemon_pids()
    shown = b"".join(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
    shown += vault.log.read_bytes() + b"".join(
        p.read_bytes() for p in (vault.base / "run").iterdir() if p.is_file()
    )
    shown += b"".join(path.read_bytes() for path in vault.base.glob("command-*"))
    for secret in [*secrets, b"DOE^JANE"]:
        assert secret not in shown

"""A server is switched on: its TPM unlocks the vault before Orthanc starts, or a person is asked."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from cryptfs.tpm.device import TEST_SWITCH
from tests.tpm.software import SoftwareTpm, installed

from .dicom import PATIENT_NAME, made_set
from .machine import Machine
from .mounts import PASSPHRASE, PROJECT, CryptfsMount

pytestmark = pytest.mark.system

MOUNTPOINT = "/var/lib/orthanc/db"
ORTHANC = {
    "Name": "test",
    "StorageDirectory": MOUNTPOINT,
    "IndexDirectory": MOUNTPOINT,
    "HttpPort": 8042,
    "RemoteAccessAllowed": False,
    "AuthenticationEnabled": False,
    "DicomPort": 4242,
    "Plugins": [],
}
# For the witness: REST requests, waiting for Orthanc; each fails if Orthanc has no mount below it.
ASK = "curl -s --fail --retry 100 --retry-delay 1 --retry-all-errors http://127.0.0.1:8042"
SEEN = f"""
findmnt --noheadings --output FSTYPE,TARGET {MOUNTPOINT}
stat --format 'owner %U' {MOUNTPOINT}
systemctl show --property=ActiveState cryptfs-tpm@archive.service orthanc.service
m=$(systemctl show --property=ActiveEnterTimestampMonotonic --value cryptfs-tpm@archive.service)
o=$(systemctl show --property=ExecMainStartTimestampMonotonic --value orthanc.service)
test "$m" -le "$o" && echo mounted before Orthanc
"""
# What a person at the console does, by the protocol of systemd's password agents.
TYPE = """
for _ in $(seq 200); do ls /run/systemd/ask-password/ask.* 2>/dev/null && break; sleep 1; done
cat /run/systemd/ask-password/ask.*
systemctl is-active orthanc.service || echo Orthanc waits
socket=$(sed -n 's/^Socket=//p' /run/systemd/ask-password/ask.*)
/lib/systemd/systemd-reply-password 1 "$socket" </lent/typed
"""


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    try:
        if why := machine.may_boot():
            pytest.skip(why)
        if shutil.which("Orthanc") is None or not installed():
            pytest.skip("needs Orthanc and swtpm")
        yield machine
    finally:
        machine.close()


@pytest.fixture
def tpm(monkeypatch: pytest.MonkeyPatch) -> Iterator[SoftwareTpm]:
    monkeypatch.setenv(TEST_SWITCH, "1")
    tpm = SoftwareTpm()
    try:
        yield tpm
    finally:
        tpm.close()


@pytest.fixture
def server(machine: Machine, tpm: SoftwareTpm, vault: CryptfsMount) -> Machine:
    """Set up as the units' own comments say; nobody has to be there when it is switched on."""
    unlock = ("--passphrase-file", vault.passphrase_file)
    vault.cli("key", "add", vault.vault, "tpm2", "--no-pin", "--tpm-device", tpm.address, *unlock)
    machine.lend("srv", vault.base)
    machine.lend("mnt", tpm.folder)
    for unit in ("cryptfs-tpm@.service", "orthanc.service.d/cryptfs.conf"):
        text = (PROJECT / "packaging" / "systemd" / unit).read_text()
        machine.write(f"etc/systemd/system/{unit}", text.replace("cryptfs@orthanc", "cryptfs-tpm@archive"))
    machine.write(
        "etc/systemd/system/cryptfs-tpm@.service.d/test.conf", f"[Service]\nEnvironment={TEST_SWITCH}=1\n"
    )
    machine.write(
        "etc/cryptfs/archive.conf",
        f"VAULT=/srv/{vault.vault.name}\nMOUNTPOINT={MOUNTPOINT}\n"
        "OPTIONS=--owner orthanc --tpm-device swtpm:path=/mnt/socket\n",
    )
    settings = machine.base / "orthanc"
    settings.mkdir()
    (settings / "orthanc.json").write_text(json.dumps(ORTHANC))
    machine.lend("etc/orthanc", settings)
    (machine.files / MOUNTPOINT.removeprefix("/")).mkdir(parents=True)
    for unit in ("postgresql.service", "mysql.service"):
        machine.without(unit)
    machine.want("cryptfs-tpm@archive.service", "orthanc.service")
    return machine


def instances(log: str) -> int:
    """How many there were when they were counted last."""
    *_, line = (line for line in log.splitlines() if '"CountInstances"' in line)
    return int(line.partition(":")[2].strip(" ,"))


def test_a_server_that_is_switched_on(server: Machine, tpm: SoftwareTpm, vault: CryptfsMount) -> None:
    images = server.base / "images"
    images.mkdir()
    made_set(images)
    shutil.copy(min(images.iterdir()), server.lent / "image.dcm")
    count = f"{ASK}/statistics | grep CountInstances"
    log = server.boot(f"{ASK}/statistics\n{SEEN}\n{ASK}/instances --data-binary @/lent/image.dcm\n{count}")
    assert f"fuse.cryptfs {MOUNTPOINT}" in log and "owner orthanc" in log
    assert log.count("ActiveState=active") == 2 and "mounted before Orthanc" in log
    assert instances(log) == 1
    # It was switched off in order: Orthanc first, then the mount, which left nothing to put in order.
    checked = vault.cli("verify", vault.vault, "--recovery-key-file", vault.recovery_file, "--json")
    assert json.loads(checked.stdout)["findings"] == []
    ciphertext = subprocess.run(
        ["grep", "-rlaF", PATIENT_NAME.partition("^")[0], vault.vault], capture_output=True, text=True
    )
    assert ciphertext.stdout == ""

    # Other firmware: the TPM refuses, and whoever is there is asked; Orthanc waits meanwhile.
    tpm.restart()
    tpm.extend(7)
    typed = server.lent / "typed"
    typed.touch(0o600)
    typed.write_text(PASSPHRASE)
    log = server.boot(f"{TYPE}\n{count}\n{SEEN}")
    assert "Orthanc waits" in log and "Id=cryptfs:archive" in log
    assert instances(log) == 1 and "mounted before Orthanc" in log
    journal = (server.lent / "journal").read_text()
    assert "PCR" in journal and PASSPHRASE not in journal


def test_without_the_vault_nothing_is_stored_in_plain_text(server: Machine, vault: CryptfsMount) -> None:
    os.rename(vault.vault, vault.base / "elsewhere")
    log = server.boot(
        "for _ in $(seq 200); do systemctl is-failed cryptfs-tpm@archive.service && break; sleep 1; done\n"
        "sleep 2\nsystemctl is-active orthanc.service || echo Orthanc did not start\n"
        f"ls -A {MOUNTPOINT} | wc -l | sed 's/^/files: /'"
    )
    assert "Orthanc did not start" in log
    assert "files: 0" in log


def test_a_line_in_fstab(server: Machine, vault: CryptfsMount) -> None:
    """The line that docs/mounting.md shows, with the TPM; Orthanc without anything set for it."""
    text = (PROJECT / "docs" / "mounting.md").read_text()
    (line,) = re.findall(r"^/srv/archive\.vault .*fuse\.cryptfs +tpm,.*$", text, re.MULTILINE)
    options = "tpm,tpm_device=swtpm:path=/mnt/socket,"
    server.write("etc/fstab", line.replace("archive.vault", vault.vault.name).replace("tpm,", options) + "\n")
    helper = PROJECT / "tools" / "mount.fuse.cryptfs"
    server.write("sbin/mount.fuse.cryptfs", f'#!/bin/sh\nexport {TEST_SWITCH}=1\nexec {helper} "$@"\n').chmod(
        0o755
    )
    server.forget("cryptfs-tpm@archive.service", "etc/systemd/system/orthanc.service.d/cryptfs.conf")
    images = server.base / "images"
    images.mkdir()
    made_set(images)
    shutil.copy(min(images.iterdir()), server.lent / "image.dcm")
    for _ in range(2):
        log = server.boot(
            f"{ASK}/instances --data-binary @/lent/image.dcm\n{ASK}/statistics | grep CountInstances\n"
            f"findmnt --noheadings --output FSTYPE,TARGET {MOUNTPOINT}\nstat --format 'owner %U' {MOUNTPOINT}"
        )
        assert f"fuse.cryptfs {MOUNTPOINT}" in log and "owner orthanc" in log
        assert instances(log) == 1
        checked = vault.cli("verify", vault.vault, "--recovery-key-file", vault.recovery_file, "--json")
        assert json.loads(checked.stdout)["findings"] == []
    os.rename(vault.vault, vault.base / "elsewhere")
    log = server.boot(
        "for _ in $(seq 200); do systemctl --failed | grep orthanc-db.mount && break; sleep 1; done\n"
        "sleep 2\nsystemctl is-active orthanc.service || echo Orthanc did not start\n"
        f"ls -A {MOUNTPOINT} | wc -l | sed 's/^/files: /'"
    )
    assert "Orthanc did not start" in log and "files: 0" in log

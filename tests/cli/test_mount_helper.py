"""tools/mount.fuse.cryptfs: what mount(8) gives it, as `cryptfs mount` gets it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

HELPER = Path(__file__).parents[2] / "tools/mount.fuse.cryptfs"


@pytest.fixture
def helper(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A `cryptfs` that only writes down its arguments, one a line."""
    program = tmp_path / "cryptfs"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    return HELPER, os.environ | {"PATH": f"{tmp_path}:/usr/bin:/bin"}


def call(helper: tuple[Path, dict[str, str]], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([helper[0], *arguments], env=helper[1], capture_output=True, text=True)


@pytest.mark.parametrize(
    "options, expected",
    [
        ("passphrase_file=/etc/p w", ["--passphrase-file", "/etc/p w"]),
        ("key_file=/k,ro,allow_other", ["--key-file", "/k", "--read-only", "--allow-other"]),
        ("recovery_key_file=/r,xattrs", ["--recovery-key-file", "/r", "--xattrs"]),
        ("owner=orthanc:dicom", ["--owner", "orthanc:dicom"]),
        ("uid=120,gid=130", ["--owner", "120:130"]),
        ("gid=130,uid=120", ["--owner", "120:130"]),
        ("idle_timeout=8h,log=syslog,verbose", ["--idle-timeout", "8h", "--log", "syslog", "--verbose"]),
        ("tpm", ["--tpm"]),
        (
            "tpm,pin_file=/etc/pin,tpm_device=/dev/tpmrm1",
            ["--tpm", "--pin-file", "/etc/pin", "--tpm-device", "/dev/tpmrm1"],
        ),
        ("pin_file=/etc/pin,tpm", ["--pin-file", "/etc/pin", "--tpm"]),
        ("no-studies,ro", ["--no-studies", "--read-only"]),
        ("no_studies", ["--no-studies"]),
        ("noexec,noatime", ["--option", "noexec", "--option", "noatime"]),
        ("rw,defaults,noauto,nofail,_netdev,x-systemd.automount,user", []),
        ("log=*", ["--log", "*"]),
    ],
)
def test_options(helper: tuple[Path, dict[str, str]], options: str, expected: list[str]) -> None:
    done = call(helper, "/v ault", "/mnt", "-o", options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["mount", *expected, "--", "/v ault", "/mnt"]


def test_flags_of_mount(helper: tuple[Path, dict[str, str]]) -> None:
    done = call(helper, "/v", "/mnt", "-r", "-n", "-s", "-v", "-t", "fuse.cryptfs", "-onoexec")
    assert done.stdout.splitlines() == [
        *("mount", "--read-only", "--verbose", "--option", "noexec"),
        *("--", "/v", "/mnt"),
    ]


def test_a_fake_mount_does_nothing(helper: tuple[Path, dict[str, str]]) -> None:
    assert call(helper, "/v", "/mnt", "-f").stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [["-o", "nonsense=1"], ["-o", "gid=5"], ["-o", "pin_file=/p"], ["-o", "tpm=1"], ["--what"], ["-o"]],
)
def test_refusals(helper: tuple[Path, dict[str, str]], arguments: list[str]) -> None:
    done = call(helper, "/v", "/mnt", *arguments)
    assert done.returncode == 1 and done.stderr.startswith("mount.fuse.cryptfs: ") and done.stdout == ""


def test_usage(helper: tuple[Path, dict[str, str]]) -> None:
    assert "usage" in call(helper, "/v").stderr


def test_the_exit_code_is_that_of_cryptfs(helper: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    (tmp_path / "cryptfs").write_text("#!/bin/sh\nexit 14\n")
    assert call(helper, "/v", "/mnt").returncode == 14

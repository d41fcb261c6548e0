"""`cryptfs mount`, `unmount` and `status` on real vaults, as people and scripts call them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cryptfs
from tests.waiting import HANG, wait_until

PROJECT = Path(__file__).parents[2]
# The one capability is for an interpreter or a checkout in a folder that only root may enter.
_CAPABILITY = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")
AS_NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *_CAPABILITY)

pytestmark = pytest.mark.system


@dataclass
class Place:
    """A vault, a mountpoint and the command line, each call a process of its own."""

    vault: Path
    at: Path
    recovery: Path
    runtime: Path
    log: Path

    def run(self, *arguments: str | Path, ordinary: bool = False) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"CRYPTFS_RUNTIME_DIR": str(self.runtime)}
        return subprocess.run(
            [*(AS_NOBODY if ordinary else []), sys.executable, "-m", "cryptfs", *arguments],
            cwd=PROJECT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=HANG,
            start_new_session=True,
        )

    def mount(self, *options: str | Path, at: Path | None = None) -> subprocess.CompletedProcess[str]:
        secret = ("--recovery-key-file", self.recovery)
        return self.run("mount", self.vault, at or self.at, *secret, "--log", self.log, *options)

    def status(self, *arguments: str | Path) -> Any:  # noqa: ANN401
        """What it says of this mount; asked again while the machine is too busy for an answer in time."""
        while True:
            done = self.run("status", "--json", *arguments)
            assert done.returncode == 0, done.stderr
            mounts = [one for one in json.loads(done.stdout)["mounts"] if one["mountpoint"] == str(self.at)]
            if all(one["state"] != "not answering" for one in mounts):
                return mounts


@pytest.fixture
def place(cryptfs: Cryptfs, password: Path) -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="cryptfs-cli-") as name:
        base = Path(name)
        base.chmod(0o755)
        new = Place(base / "vault", base / "at", base / "recovery", base / "run", base / "log")
        new.at.mkdir()
        made = cryptfs("init", new.vault, "--passphrase-file", password, "--recovery-key-file", new.recovery)
        assert made.code == 0, made.err
        yield new
        for _ in range(3):
            if new.run("unmount", new.at, "--lazy").returncode == 17:
                break


def failed(done: subprocess.CompletedProcess[str], code: int, words: str) -> None:
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_files_survive_unmounting_and_are_encrypted(place: Place) -> None:
    assert place.mount().returncode == 0
    (place.at / "Muster^Erika.dcm").write_bytes(b"DICM" * 5000)
    done = place.run("unmount", place.at)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(place.at.iterdir()) == []
    names = [path.name for path in (place.vault / "tree").rglob("*")]
    assert len(names) == 2 and not any("Muster" in name for name in names)
    assert place.mount("--read-only").returncode == 0
    assert (place.at / "Muster^Erika.dcm").read_bytes() == b"DICM" * 5000
    with pytest.raises(OSError):
        (place.at / "other").touch()


def test_the_command_leaves_no_pipe_open(place: Place) -> None:
    # capture_output in Place.run waits for the end of both pipes: with a daemon that holds them, for ever.
    done = place.mount()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_whoever_mounts_is_told_what_the_log_says_of_it(place: Place) -> None:
    place.mount()
    place.run("unmount", place.at)
    shutil.copytree(place.vault, place.vault.parent / "backup", symlinks=True)
    place.mount()
    (place.at / "later").write_bytes(b"image")
    place.run("unmount", place.at)
    shutil.rmtree(place.vault)
    (place.vault.parent / "backup").rename(place.vault)
    done = place.mount()
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    assert all(line.startswith("cryptfs: warning: ") for line in lines)
    assert "older than this computer last saw it" in done.stderr
    assert "older than this computer last saw it" in place.log.read_text()


def test_a_mounted_vault_cannot_be_mounted_twice(place: Place) -> None:
    place.mount()
    failed(place.mount(), 15, "already mounted")
    other = place.at.parent / "other"
    other.mkdir()
    failed(place.mount(at=other), 14, "vault")
    assert list(other.iterdir()) == []


@pytest.mark.parametrize(
    "name, words",
    [
        ("missing", "does not exist"),
        ("recovery", "is not a folder"),
        ("run", "is not empty"),
        ("vault/tree", "inside the vault"),
        (".", "would hide it"),
    ],
)
def test_bad_mountpoints(place: Place, name: str, words: str) -> None:
    place.runtime.mkdir(mode=0o700)
    (place.runtime / "something").touch()
    failed(place.mount(at=place.at.parent / name), 15, words)


def test_not_a_vault(place: Place) -> None:
    failed(place.run("mount", place.at, place.at, "--recovery-key-file", place.recovery), 13, "vault")


def test_a_wrong_key_mounts_nothing(place: Place, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.touch(0o600)
    wrong.write_bytes(os.urandom(64))
    done = place.run("mount", place.vault, place.at, "--key-file", wrong)
    failed(done, 10, "key file")
    assert place.status() == []


@pytest.mark.parametrize("value", ["10", "0s", "ten minutes", "-5m"])
def test_bad_durations(place: Place, value: str) -> None:
    failed(place.mount("--idle-timeout", value), 2, "duration")


def test_unknown_owner(place: Place) -> None:
    failed(place.mount("--owner", "no-such-user-here"), 2, "no user no-such-user-here")


def test_a_log_that_cannot_be_opened(place: Place) -> None:
    failed(
        place.run(
            "mount", place.vault, place.at, "--recovery-key-file", place.recovery, "--log", place.at.parent
        ),
        2,
        "log",
    )
    assert place.status() == []


def test_owner_sees_and_makes_files(place: Place) -> None:
    assert place.mount("--owner", "nobody").returncode == 0
    child = os.fork()
    if child == 0:
        os.setgid(65534)
        os.setuid(65534)
        (place.at / "mine").write_text("x")
        os._exit(0 if (place.at / "mine").stat().st_uid == 65534 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    (place.at / "by-root").touch()
    assert (place.at / "by-root").stat().st_uid == 65534


def test_a_mount_that_goes_idle(place: Place) -> None:
    assert place.mount("--idle-timeout", "0.3s").returncode == 0
    wait_until(lambda: not place.status(), "it is unmounted")


def test_an_ordinary_user_mounts_with_fusermount3(place: Place) -> None:
    if os.stat("/dev/fuse").st_mode & 0o006 != 0o006:
        pytest.skip("/dev/fuse is open to root only")
    home = place.at.parent / "home"
    (home / "at").mkdir(parents=True)
    (home / "run").mkdir(mode=0o700)
    for path in [home, home / "at", home / "run", place.recovery, place.vault, *place.vault.rglob("*")]:
        os.chown(path, 65534, 65534)
    own = Place(place.vault, home / "at", place.recovery, home / "run", home / "log")
    # The vault was made by root, whose root directory it shows otherwise.
    secret = ("--recovery-key-file", place.recovery, "--log", own.log, "--owner", "65534:65534")
    done = own.run("mount", own.vault, own.at, *secret, ordinary=True)
    assert done.returncode == 0, done.stderr
    try:
        script = "import sys; open(sys.argv[1], 'w').write('mine'); print(open(sys.argv[1]).read())"
        command = [*AS_NOBODY, sys.executable, "-c", script, own.at / "file"]
        used = subprocess.run(command, capture_output=True, text=True)
        assert used.stdout == "mine\n", used.stderr
        with pytest.raises(PermissionError):
            os.listdir(own.at)
        status = json.loads(own.run("status", "--json", own.at, ordinary=True).stdout)
        assert status["mounts"][0]["state"] == "mounted"
        allowed = own.run("mount", own.vault, own.at, *secret, "--allow-other", ordinary=True)
        if "\nuser_allow_other" not in Path("/etc/fuse.conf").read_text():
            failed(allowed, 16, "user_allow_other")
    finally:
        done = own.run("unmount", own.at, ordinary=True)
    assert done.returncode == 0, done.stderr
    assert list(own.at.iterdir()) == []

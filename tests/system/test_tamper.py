"""A real mount over ciphertext that somebody attacks: while it is unmounted, and under its hands.

Whoever reads gets the right content or an error, soon; the daemon goes on, and unmounts in order.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptfs.keyslots import RecoveryKey
from tests.security.archive import HEADER, Archive
from tests.tamper.strangers import make_alien

from .mounts import CryptfsMount, Mount
from .processes import Child

pytestmark = pytest.mark.system

LONG = "patient " + "n" * 240
FILES = {
    **{f"ct/{number}.dcm": 150_000 for number in range(12)},
    "mr/1.dcm": 70_000,
    "mr/2.dcm": 10,
    f"mr/{LONG}": 500,
    "us/1.dcm": 5000,
    "index.db": 40_000,
    "empty": 0,
    "untouched/1.dcm": 200_000,
}
IN_TIME = 600.0
REFUSED = {errno.EIO, errno.ENOENT, errno.ESTALE}


def content(path: str) -> bytes:
    return random.Random(path).randbytes(FILES[path])


@pytest.fixture
def mount(make_mount: Callable[[], Mount]) -> CryptfsMount:
    mount = make_mount()
    if not isinstance(mount, CryptfsMount):
        pytest.skip("a plain folder has no ciphertext")
    mount.mount()
    for path in FILES:
        (mount.path / path).parent.mkdir(exist_ok=True)
        (mount.path / path).write_bytes(content(path))
    (mount.path / "link").symlink_to("ct/0.dcm")
    mount.remount()
    read_everything(mount.path)
    return mount


def attack(mount: CryptfsMount) -> set[str]:
    """Do everything at once; the paths that may be wrong now."""
    archive = Archive.of(mount.vault, RecoveryKey.parse(mount.recovery_file.read_text().strip()))
    lower = {path: archive.lower(path) for path in [*FILES, "link", "ct", "mr", "us"]}
    with lower["ct/0.dcm"].open("r+b") as file:
        file.seek(HEADER + 70_000)
        file.write(b"x")
    os.truncate(lower["ct/1.dcm"], HEADER + 65_576)
    with lower["ct/2.dcm"].open("ab") as file:
        file.write(bytes(100))
    lower["ct/3.dcm"].write_bytes(lower["ct/4.dcm"].read_bytes())
    shutil.copyfile(lower["ct/4.dcm"], lower["ct/5.dcm"].with_name("copy"))
    lower["ct/5.dcm"].with_name("copy").rename(lower["ct/5.dcm"])
    with lower["ct/6.dcm"].open("r+b") as file:
        file.write(bytes(HEADER))
    lower["ct/7.dcm"].unlink()
    for path, what in (("ct/8.dcm", "pipe"), ("ct/9.dcm", "link to outside"), ("ct/10.dcm", "socket")):
        lower[path].unlink()
        make_alien(lower[path], what, Path("/etc/passwd"))
    sidecar = lower[f"mr/{LONG}"].with_name(lower[f"mr/{LONG}"].name + ".name")
    sidecar.unlink()
    os.mkfifo(sidecar)
    (lower["us"] / "@dir").unlink()
    make_alien(lower["us"] / "@dir", "pipe", Path("/etc/passwd"))
    with lower["index.db"].open("r+b") as file:
        file.seek(HEADER)
        file.write(bytes(4136))
    lower["link"].write_bytes(b"")
    for name in ("A" * 24, "@l" + "B" * 43, "plain"):
        os.mkfifo(lower["ct"] / name)
    os.mkfifo(mount.vault / "dirs" / "pipe.log")
    touched = {f"ct/{number}.dcm" for number in range(11) if number != 4}
    return touched | {f"mr/{LONG}", "us/1.dcm", "index.db", "link"}


def read_everything(root: Path) -> dict[str, str]:
    """Read all there is and all there was, each to its end: "right", or the error. In a process, in time."""

    def read() -> None:
        found = {}
        listed = {
            os.path.relpath(os.path.join(folder, name), root)
            for folder, _, names in os.walk(root)
            for name in names
        }
        for path in sorted(listed | set(FILES)):
            try:
                data = (root / path).read_bytes()
                expected = content(path) if path in FILES else content("ct/0.dcm")
                found[path] = "right" if data == expected else f"WRONG, {len(data)} bytes"
            except OSError as error:
                assert error.errno in REFUSED, f"{path}: {error}"
                found[path] = errno.errorcode[error.errno]
        result.write_text(json.dumps(found))

    result = root.parent / "seen.json"
    Child(read).result(IN_TIME)
    seen: dict[str, str] = json.loads(result.read_text())
    return seen


def write_everywhere(root: Path) -> None:
    """Programs go on: they append, replace, rename and delete, and may be refused."""

    def write() -> None:
        for path in FILES:
            with contextlib.suppress(OSError), (root / path).open("r+b") as file:
                file.seek(0, os.SEEK_END)
                file.write(b"appended")
                os.fsync(file.fileno())
        for path in ("ct/8.dcm", "ct/9.dcm", "ct/10.dcm", "mr/2.dcm"):
            with contextlib.suppress(OSError):
                (root / path).unlink()
        with contextlib.suppress(OSError):
            (root / "ct/6.dcm").rename(root / "mr/6.dcm")
        (root / "new").mkdir()
        (root / "new/file").write_bytes(b"a new file")

    Child(write).result(IN_TIME)


def test_attacked_while_it_was_unmounted(mount: CryptfsMount) -> None:
    mount.unmount()
    touched = attack(mount)
    mount.recover()
    seen = read_everything(mount.path)
    assert {path for path, how in seen.items() if how != "right"} <= touched
    assert not [path for path, how in seen.items() if how.startswith("WRONG")]
    for path in (*(f"ct/{number}.dcm" for number in (0, 1, 3, 5, 6, 8, 9)), "index.db"):
        assert seen[path] == "EIO", path
    assert seen["ct/7.dcm"] == "ENOENT"
    assert seen["us/1.dcm"] == "right", "a copy opens the folder"
    (status,) = json.loads(mount.cli("status", "--json", mount.path).stdout)["mounts"]
    assert status["witness"]["refused"] >= 2 and status["witness"]["missing"] >= 1
    write_everywhere(mount.path)
    mount.remount()
    assert (mount.path / "new/file").read_bytes() == b"a new file"
    secret = ("--recovery-key-file", mount.recovery_file)
    assert mount.cli("verify", mount.vault, *secret, check=False).returncode == 18


def test_attacked_while_it_is_mounted(mount: CryptfsMount) -> None:
    with (mount.path / "ct/0.dcm").open("rb"), (mount.path / "index.db").open("r+b"):
        touched = attack(mount)
        Path("/proc/sys/vm/drop_caches").write_text("3")
        seen = read_everything(mount.path)
        assert {path for path, how in seen.items() if how != "right"} <= touched
        assert not [path for path, how in seen.items() if how.startswith("WRONG")]
        write_everywhere(mount.path)
        assert mount.is_served()
    mount.remount()
    assert (mount.path / "new/file").read_bytes() == b"a new file"
    assert (mount.path / "untouched/1.dcm").read_bytes() == content("untouched/1.dcm") + b"appended"

"""How fast `cryptfs rotate` rewraps headers, and what it leaves of an ingest that goes on meanwhile.

`python3 -m benchmarks.rotation`: a vault of small files is rewrapped without a mount, with the second reading
that ends a rotation. Then a vault is mounted, and images are stored in it in turns: some seconds alone, some
seconds while a rotation runs. Each turn's rate is compared with that of the turn before it.

With `--reencrypt`: images of 526 KB and small files are re-encrypted without a mount, and the ciphertext is
copied with `cp -a` and synced, for comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import cli, machine
from benchmarks.backing import working_directory
from benchmarks.errors import BenchmarkError
from cryptfs.fs import FileSystem, FsOptions
from cryptfs.fs.reencrypt import Reencrypt
from cryptfs.fs.rewrap import Rewrap
from cryptfs.fs.throttle import Throttle
from cryptfs.fs.types import Owner
from cryptfs.vault import Vault
from cryptfs.vault.keyring import Keyring
from cryptfs.vault.layout import create_tree

VAULT_ID = bytes(16)
PER_FOLDER = 500
IMAGE = 526 * 1024


def main() -> int:
    """Run the benchmark; exit codes as for `python3 -m benchmarks`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--backing", default="tmpfs", metavar="tmpfs|disk|DIR", help="where the vaults lie")
    parser.add_argument("--files", type=int, default=20_000, metavar="N", help="to rewrap (default 20000)")
    parser.add_argument("--rounds", type=int, default=4, metavar="N", help="pairs of turns (default 4)")
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="a turn (default 5)")
    parser.add_argument("--reencrypt", action="store_true", help="measure rotate --reencrypt instead")
    parser.add_argument("--images", type=int, default=1000, metavar="N", help="for that (default 1000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures")
    options = parser.parse_args()
    return cli.guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    with working_directory(options.backing) as working:
        facts = machine.facts(working)
        if options.reencrypt:
            cli.say("re-encrypting without a mount")
            figures = _reencrypt(working / "alone", options.images, options.files)
        else:
            cli.say("rewrapping without a mount")
            figures = _alone(working / "alone", options.files)
            cli.say("storing images, with and without a rotation")
            figures |= _mounted(working / "mounted", options.files, options.rounds, options.seconds)
    print(
        f"{facts['kernel']}, {facts['cores']} cores ({facts['processor']}), "
        f"backing {facts['backing_file_system']}, load before {facts['load_average_before']:.2f}\n"
    )
    for name, value in figures.items():
        print(f"{name:44}{value:>12,.2f}")
    if options.json:
        options.json.write_text(json.dumps({"machine": facts, "figures": figures}, indent=2) + "\n")


def _alone(path: Path, files: int) -> dict[str, float]:
    path.mkdir()
    keyring = Keyring.new()
    create_tree(path, VAULT_ID, keyring, backup_group=False, mode=0o755, uid=0, gid=0)
    fs = FileSystem(Vault(path, VAULT_ID, keyring), FsOptions())
    _fill(fs, files)
    fs.close()
    fs = FileSystem(Vault(path, VAULT_ID, keyring.with_new_epoch()), FsOptions())
    begin, used = time.perf_counter(), _cpu()
    summary = Rewrap(fs, Throttle()).run()
    wall, cpu = time.perf_counter() - begin, _cpu() - used
    fs.close()
    if not summary.proved or summary.objects < files:
        raise BenchmarkError("The rotation left something under the old epoch.")
    return {"rewrapped, files/s": files / wall, "rewrapped, files per CPU second": files / cpu}


def _reencrypt(path: Path, images: int, files: int) -> dict[str, float]:
    path.mkdir()
    keyring, vault = Keyring.new(), path / "vault"
    vault.mkdir()
    create_tree(vault, VAULT_ID, keyring, backup_group=False, mode=0o755, uid=0, gid=0)
    for content, count in ((os.urandom(IMAGE), images), (b"small image", files)):
        fs = FileSystem(Vault(vault, VAULT_ID, keyring), FsOptions())
        _fill(fs, count, f"of {len(content)} bytes ", content)
        fs.close()
        size = sum(place.stat().st_size for place in (vault / "tree").rglob("*") if place.is_file())
        subprocess.run(["sync", "-f", vault], check=True)
        begin = time.perf_counter()
        subprocess.run(["cp", "-a", vault / "tree", path / "copy"], check=True)
        subprocess.run(["sync", "-f", path / "copy"], check=True)
        copied = time.perf_counter() - begin
        subprocess.run(["rm", "-r", path / "copy"], check=True)
        keyring = keyring.with_current_only().with_new_epoch()
        fs = FileSystem(Vault(vault, VAULT_ID, keyring), FsOptions())
        begin, used = time.perf_counter(), _cpu()
        if not Reencrypt(fs, Throttle()).renew():
            raise BenchmarkError("The re-encryption found damage.")
        wall, cpu = time.perf_counter() - begin, _cpu() - used
        fs.close()
        if content != b"small image":
            figures = {
                "re-encrypted, MB/s": size / 1e6 / wall,
                "re-encrypted, MB per CPU second": size / 1e6 / cpu,
                "copied with cp and sync, MB/s": size / 1e6 / copied,
                "ratio": copied / wall,
            }
        else:
            figures |= {
                "small files re-encrypted, files/s": (images + files) / wall,
                "small files copied with cp and sync, files/s": (images + files) / copied,
            }
    return figures


def _fill(fs: FileSystem, files: int, folders: str = "study ", content: bytes = b"small image") -> None:
    owner = Owner(0, 0)
    for number in range(files):
        if number % PER_FOLDER == 0:
            folder = fs.mkdir(1, f"{folders}{number // PER_FOLDER}".encode(), 0o755, owner).ino
        handle, attr = fs.create(folder, f"{number}.dcm".encode(), 0o644, owner, os.O_RDWR)
        fs.write(handle, 0, content)
        fs.release(handle)
        fs.forget(attr.ino, 1)


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class _Mounted:
    """A vault on a mount of the command line's, with a runtime directory of its own."""

    def __init__(self, base: Path) -> None:
        base.mkdir()
        self.vault, self.path, self.key = base / "vault", base / "mnt", base / "key"
        self.path.mkdir()
        self.key.touch(0o600)
        self.key.write_text("a passphrase for a benchmark\n")
        self._recovery = base / "recovery"
        self._environment = os.environ | {
            "CRYPTFS_RUNTIME_DIR": str(base / "run"), "CRYPTFS_STATE_DIR": str(base / "state"),
        }  # fmt: skip
        made = ("--passphrase-file", str(self.key), "--recovery-key-file", str(self._recovery))
        self.run("init", str(self.vault), *made)
        self.run("mount", str(self.vault), str(self.path), *self.unlock)

    @property
    def unlock(self) -> tuple[str, str]:
        return "--recovery-key-file", str(self._recovery)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "cryptfs", *arguments], env=self._environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def run(self, *arguments: str) -> None:
        if self.start(*arguments).wait() != 0:
            raise BenchmarkError(f"cryptfs {arguments[0]} failed.")


def _mounted(base: Path, files: int, rounds: int, seconds: float) -> dict[str, float]:
    mount = _Mounted(base)
    try:
        for number in range(files):
            folder = mount.path / f"study {number // PER_FOLDER}"
            if number % PER_FOLDER == 0:
                folder.mkdir()
            (folder / f"{number}.dcm").write_bytes(b"small image")
        alone, during = [], []
        for turn in range(rounds):
            alone.append(_ingest(mount.path / f"alone {turn}", seconds, None, mount))
            rotation = mount.start("rotate", str(mount.vault), *mount.unlock)
            during.append(_ingest(mount.path / f"during {turn}", seconds, rotation, mount))
            rotation.wait()
        ratios = [with_it / without for with_it, without in zip(during, alone, strict=True)]
        return {
            "ingest alone, images/s": statistics.median(alone),
            "ingest during a rotation, images/s": statistics.median(during),
            "what is left of the rate (median of pairs)": statistics.median(ratios),
        }
    finally:
        mount.run("unmount", str(mount.path))


def _ingest(folder: Path, seconds: float, rotation: subprocess.Popen[bytes] | None, mount: _Mounted) -> float:
    """Store images until the time is over, or the rotation is; images a second."""
    folder.mkdir()
    data = os.urandom(IMAGE)
    if rotation is not None:
        time.sleep(1.5)  # until it has unlocked the vault and the job runs
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds and (rotation is None or rotation.poll() is None):
        (folder / f"{count}.dcm").write_bytes(data)
        count += 1
    took = time.perf_counter() - begin
    for number in range(count):
        (folder / f"{number}.dcm").unlink()
    return count / took


if __name__ == "__main__":
    raise SystemExit(main())

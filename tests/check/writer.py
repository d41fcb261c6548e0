"""A process that writes to a vault as a busy mount does, until its standard input ends."""

from __future__ import annotations

import os
import random
import sys
import threading
from pathlib import Path

from cryptfs.fs.types import SetAttr
from cryptfs.keyslots import RecoveryKey
from tests.security.archive import Archive


def main(vault: str, state: str, recovery: str) -> None:
    archive = Archive.of(Path(vault), RecoveryKey.parse(recovery))
    archive.state = Path(state)
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    rng = random.Random(1)
    with archive.mounted() as mount:
        fs = mount.fs
        folders = [f"folder {number}" for number in range(4)]
        for folder in folders:
            mount.mkdir(folder)
        print("ready", flush=True)
        names = [f"{folder}/{number}" for folder in folders for number in range(8)]
        while not stop.is_set():
            one, two = rng.sample(names, 2)
            try:
                match rng.randrange(6):
                    case 0 | 1:
                        mount.write(one, os.urandom(rng.choice([10, 5000, 70_000])))
                    case 2:
                        fs.unlink(mount.ino(one.rpartition("/")[0]), one.rpartition("/")[2].encode())
                    case 3:
                        fs.rename(
                            mount.ino(one.rpartition("/")[0]), one.rpartition("/")[2].encode(),
                            mount.ino(two.rpartition("/")[0]), two.rpartition("/")[2].encode(),
                        )  # fmt: skip
                    case 4:
                        fs.setattr(mount.ino(one), SetAttr(mode=rng.choice([0o600, 0o640, 0o644])))
                    case 5:
                        mount.list(rng.choice(folders))
                        if rng.random() < 0.2:
                            fs.sync()
            except FileNotFoundError:
                pass


if __name__ == "__main__":
    main(*sys.argv[1:])

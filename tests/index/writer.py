"""A process that writes to an environment, step by step as its standard input says."""

from __future__ import annotations

import sys
from pathlib import Path

from cryptfs.index import environment
from cryptfs.index.environment import Environment
from tests.fs.support import VAULT_ID, FakeKeyring

environment.MAP_START = 1 << 20  # so that it grows


def main(place: str) -> None:
    opened: Environment | None = None
    for step in sys.stdin:
        match step.split():
            case ["open"]:
                opened = Environment.open(Path(place), "test", VAULT_ID, FakeKeyring(), durable=True)
            case ["write", name, size]:
                assert opened is not None
                opened.write([(name.encode(), name.encode() * int(size))])
            case ["close"]:
                assert opened is not None
                opened.close()
        print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

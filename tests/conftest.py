"""What the whole test suite shares: the order of the tests, and one seed for all that is random.

The seed is printed in the header of every run; `CRYPTFS_TEST_SEED=N pytest …` repeats a run.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

SEED = int(os.environ.get("CRYPTFS_TEST_SEED", random.SystemRandom().randrange(2**32)))


def pytest_configure() -> None:
    """SIGTERM ends a run as Ctrl-C does: with every mount, server and namespace taken away.

    What mounts remember of their vaults goes to a folder of this run.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ["CRYPTFS_STATE_DIR"] = tempfile.mkdtemp(prefix="cryptfs-state-")


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ.pop("CRYPTFS_STATE_DIR"), ignore_errors=True)


def pytest_report_header() -> str:
    return f"random seed: {SEED} (repeat with CRYPTFS_TEST_SEED={SEED})"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """System tests run last, and only where they can: as root, with /dev/fuse."""
    items.sort(key=lambda item: item.get_closest_marker("system") is not None)
    if os.geteuid() == 0 and Path("/dev/fuse").exists():
        return
    for item in items:
        if item.get_closest_marker("system"):
            item.add_marker(pytest.mark.skip(reason="system tests need root and /dev/fuse"))


@pytest.fixture(scope="session")
def seed() -> int:
    """The seed of this run, for random.Random and for hypothesis."""
    return SEED

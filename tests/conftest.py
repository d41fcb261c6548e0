"""What the whole test suite shares: the order of the tests, their surroundings, and one seed for all chance.

Every run makes the same choices. `CRYPTFS_TEST_SEED=N pytest …` makes others, `CRYPTFS_TEST_SEED=new` such as
nobody made before; the header of the run names the number that repeats it.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

_asked_for = os.environ.get("CRYPTFS_TEST_SEED", "")
SEED = random.SystemRandom().randrange(2**32) if _asked_for == "new" else int(_asked_for or 1895)
if _asked_for:
    os.environ["CRYPTFS_TEST_SEED"] = str(SEED)  # for the processes that pytest-xdist starts

# No test depends on how fast it is, nor on what an earlier run found.
settings.register_profile(
    "cryptfs", deadline=None, database=None, derandomize=not _asked_for, print_blob=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
settings.load_profile("cryptfs")

_FOLDERS = ("CRYPTFS_STATE_DIR", "CRYPTFS_RUNTIME_DIR")


def pytest_configure() -> None:
    """SIGTERM ends a run as Ctrl-C does: with every mount, server and namespace taken away.

    What mounts remember and tell of themselves goes to folders of this run, and what the user who runs it has
    set up does not count.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for name in _FOLDERS:
        os.environ[name] = tempfile.mkdtemp(prefix="cryptfs-run-")
    for name in ("CRYPTFS_DEBUG", "CRYPTFS_TPM_DEVICE", "CRYPTFS_TEST_TPM", "NOTIFY_SOCKET"):
        os.environ.pop(name, None)
    os.environ |= {"LC_ALL": "C.UTF-8", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    os.umask(0o022)


def pytest_unconfigure() -> None:
    for name in _FOLDERS:
        shutil.rmtree(os.environ.pop(name), ignore_errors=True)


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

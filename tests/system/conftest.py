"""Fixtures of the system tests: mounts, network namespaces, and a service account."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .mounts import CryptfsMount, Mount, new_mount, system_under_test
from .servers import Namespace


def pytest_report_header() -> str:
    return f"system under test: {system_under_test()} (CRYPTFS_TEST_SYSTEM)"


@pytest.fixture
def make_mount() -> Iterator[Callable[[], Mount]]:
    """A factory of filesystems that a test mounts as it likes."""
    mounts: list[Mount] = []

    def make() -> Mount:
        mounts.append(new_mount())
        return mounts[-1]

    yield make
    for mount in reversed(mounts):
        mount.close()


@pytest.fixture
def vault(make_mount: Callable[[], Mount]) -> CryptfsMount:
    """A vault that is not mounted, for tests that look at ciphertext."""
    mount = make_mount()
    if not isinstance(mount, CryptfsMount):
        pytest.skip("a plain folder has no ciphertext")
    mount.init()
    return mount


@pytest.fixture(scope="module")
def shared_mount() -> Iterator[Mount]:
    """One mounted filesystem for all tests of a module."""
    mount = new_mount()
    try:
        mount.mount()
        yield mount
    finally:
        mount.close()


@pytest.fixture
def folder(shared_mount: Mount, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory of the test's own on the shared mount; the mount must survive the test."""
    path = shared_mount.path / re.sub(r"\W+", "-", request.node.name)
    path.mkdir()
    yield path
    if not shared_mount.is_served():
        shared_mount.recover()
        pytest.fail("the mount did not survive this test")


@pytest.fixture
def namespace(tmp_path: Path) -> Iterator[Namespace]:
    """A network of the test's own with nothing in it but loopback."""
    namespace = Namespace(logs=tmp_path)
    try:
        yield namespace
    finally:
        namespace.close()


@pytest.fixture(scope="session")
def service_account() -> Iterator[str]:
    """An ordinary system user, made for this run."""
    name = "cryptfs-test"
    if subprocess.run(["id", name], capture_output=True).returncode == 0:
        yield name
        return
    subprocess.run(
        ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", name], check=True
    )
    yield name
    # Another run of the tests on this machine may still have a process of that user; 8 is its word for that.
    assert subprocess.run(["userdel", name], capture_output=True).returncode in (0, 6, 8)

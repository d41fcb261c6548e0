"""The state machine of tests/fs/model.py through a real mount."""

from __future__ import annotations

import itertools
from pathlib import Path

import hypothesis
import pytest
from hypothesis.stateful import run_state_machine_as_test

from tests.fs.model import TreeMachine, machine_settings
from tests.fs.trees import PlainTree

from .mounts import Mount, new_mount

pytestmark = pytest.mark.system


class MountedTree(PlainTree):
    """A directory of its own for each example, on a mount that all share."""

    def __init__(self, mount: Mount, root: Path):
        super().__init__(root)
        self._mount = mount

    def reopen(self) -> None:
        super().reopen()
        self._mount.remount()

    def destroy(self) -> None:
        if not self._mount.is_served():
            self._mount.recover()
            raise AssertionError("the mount did not survive this example")
        super().destroy()


@pytest.mark.parametrize("xattrs", [False, True])
def test_mount_behaves_as_a_plain_directory(xattrs: bool, seed: int) -> None:
    mount = new_mount()
    numbers = itertools.count(1)

    class Machine(TreeMachine):
        def make_subject(self) -> MountedTree:
            root = mount.path / f"example-{next(numbers)}"
            root.mkdir(0o700)
            return MountedTree(mount, root)

    Machine.xattrs = xattrs
    try:
        mount.mount(xattrs=xattrs)
        run_state_machine_as_test(
            hypothesis.seed(seed)(Machine), settings=machine_settings(6, 100, shrink=False)
        )
    finally:
        mount.close()

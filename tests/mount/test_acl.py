"""Access control lists and modes stay in step, by the rules of acl(5)."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from cryptfs.mount import acl
from tests.mount.conftest import Passthrough

NOBODY = 65534
NONE = 0xFFFFFFFF


def full(user: int, named: int, group: int, mask: int, other: int) -> bytes:
    return acl.encode(
        [
            (acl.USER_OBJ, user, NONE),
            (acl.USER, named, NOBODY),
            (acl.GROUP_OBJ, group, NONE),
            (acl.MASK, mask, NONE),
            (acl.OTHER, other, NONE),
        ]
    )


@pytest.mark.parametrize("value", [b"", b"\x02", b"\x01\0\0\0", b"\x02\0\0\0" + b"x" * 7])
def test_malformed_lists_are_refused(value: bytes) -> None:
    with pytest.raises(OSError) as refused:
        acl.parse(value)
    assert refused.value.errno == errno.EINVAL


def test_the_mode_shows_the_mask() -> None:
    assert acl.permissions(acl.parse(full(6, 7, 4, 5, 1))) == 0o651


def test_without_a_mask_the_mode_shows_the_group() -> None:
    entries = [(acl.USER_OBJ, 7, NONE), (acl.GROUP_OBJ, 5, NONE), (acl.OTHER, 4, NONE)]
    assert acl.permissions(entries) == 0o754
    assert acl.is_minimal(entries)


def test_chmod_sets_the_mask_and_leaves_the_named_entries() -> None:
    changed = acl.with_mode(acl.parse(full(6, 7, 4, 7, 4)), 0o710, cut=False)
    assert changed == acl.parse(full(7, 7, 4, 1, 0))


def test_creation_only_takes_permissions_away() -> None:
    cut = acl.with_mode(acl.parse(full(6, 7, 7, 7, 5)), 0o750, cut=True)
    assert cut == acl.parse(full(6, 7, 7, 5, 0))


@pytest.mark.system
def test_lists_through_a_mount(passthrough: Passthrough) -> None:
    passthrough.mount(xattrs=True)
    file = passthrough.at / "file"
    file.touch(0o600)
    os.setxattr(file, "system.posix_acl_access", full(6, 4, 0, 4, 0))
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    file.chmod(0o660)
    assert os.getxattr(file, "system.posix_acl_access") == full(6, 4, 0, 6, 0)
    folder = passthrough.at / "folder"
    folder.mkdir(0o755)
    os.setxattr(folder, "system.posix_acl_default", full(7, 7, 5, 7, 0))
    (folder / "new").touch(0o666)
    (folder / "sub").mkdir(0o777)
    assert os.getxattr(folder / "new", "system.posix_acl_access") == full(6, 7, 5, 4, 0)
    assert stat.S_IMODE((folder / "new").stat().st_mode) == 0o640
    assert os.getxattr(folder / "sub", "system.posix_acl_default") == full(7, 7, 5, 7, 0)

"""What is said of mountpoints that cannot be used, and of machines without FUSE."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cryptfs.errors import FuseUnavailable, MountpointUnusable
from cryptfs.mount import mountpoint


@pytest.fixture
def vault(tmp_path: Path) -> Path:
    (tmp_path / "vault/tree").mkdir(parents=True)
    return tmp_path / "vault"


def refusal(path: Path, vault: Path) -> str:
    with pytest.raises(MountpointUnusable) as refused:
        mountpoint.prepare(path, vault)
    return str(refused.value)


def test_an_empty_folder_is_fine_and_its_real_path_returned(tmp_path: Path, vault: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert mountpoint.prepare(tmp_path / "link", vault) == os.path.realpath(tmp_path / "real")


def test_missing(tmp_path: Path, vault: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere", vault)


def test_not_a_folder(tmp_path: Path, vault: Path) -> None:
    (tmp_path / "file").touch()
    assert "is not a folder" in refusal(tmp_path / "file", vault)


def test_not_empty(tmp_path: Path, vault: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/something").touch()
    assert "is not empty" in refusal(tmp_path / "full", vault)


def test_inside_the_vault(vault: Path) -> None:
    (vault / "tree/folder").mkdir()
    assert "inside the vault" in refusal(vault / "tree/folder", vault)
    assert "inside the vault" in refusal(vault, vault)


def test_the_vault_inside_it(tmp_path: Path, vault: Path) -> None:
    assert "would hide" in refusal(tmp_path, vault)


@pytest.mark.system
def test_inside_the_vault_by_another_name(tmp_path: Path, vault: Path) -> None:
    (vault / "tree/folder").mkdir()
    (tmp_path / "bound").mkdir()
    subprocess.run(["mount", "--bind", vault, tmp_path / "bound"], check=True)
    try:
        assert "inside the vault" in refusal(tmp_path / "bound/tree/folder", vault)
    finally:
        subprocess.run(["umount", tmp_path / "bound"], check=True)


def test_no_dev_fuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountpoint, "_FUSE", tmp_path / "fuse")
    with pytest.raises(FuseUnavailable, match="modprobe fuse"):
        mountpoint.check_fuse(allow_other=False)


def as_ordinary_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "fuse").touch()
    monkeypatch.setattr(mountpoint, "_FUSE", tmp_path / "fuse")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


def test_no_fusermount3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_ordinary_user(monkeypatch, tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FuseUnavailable, match="install the package fuse3"):
        mountpoint.check_fuse(allow_other=False)


@pytest.mark.parametrize("line, permitted", [("#user_allow_other", False), ("user_allow_other", True)])
def test_letting_others_in_needs_the_administrator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, permitted: bool
) -> None:
    as_ordinary_user(monkeypatch, tmp_path)
    (tmp_path / "fusermount3").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "fuse.conf").write_text(f"# settings\n{line}\n")
    monkeypatch.setattr(mountpoint, "_FUSE_CONF", tmp_path / "fuse.conf")
    mountpoint.check_fuse(allow_other=False)
    if permitted:
        mountpoint.check_fuse(allow_other=True)
    else:
        with pytest.raises(FuseUnavailable, match="user_allow_other"):
            mountpoint.check_fuse(allow_other=True)


def test_mountinfo_with_spaces_in_names() -> None:
    assert mountpoint._unescape(rb"/mnt/with\040space\011tab") == "/mnt/with space\ttab"


def test_holders_of_a_folder(tmp_path: Path) -> None:
    assert mountpoint.holders(str(tmp_path)) == []
    (tmp_path / "file").touch()
    with (tmp_path / "file").open():
        assert [holder.split()[-1] for holder in mountpoint.holders(str(tmp_path))] == [f"({os.getpid()})"]

"""The study index of a mount: what a real Orthanc stored is found, and after a killed daemon again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import wait_until

from .dicom import ImageSet, image_set
from .mounts import CryptfsMount, Mount
from .servers import Namespace, Orthanc
from .test_orthanc import DICOM

pytestmark = pytest.mark.system


def encrypted(mount: Mount) -> CryptfsMount:
    if not isinstance(mount, CryptfsMount):
        pytest.skip("a plain folder has no index")
    return mount


def stats(mount: CryptfsMount) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(mount.cli("stats", mount.path, "--json").stdout)
    return answer


def complete(mount: CryptfsMount) -> dict[str, Any]:
    wait_until(lambda: bool(stats(mount)["complete"]), "everything was read")
    return stats(mount)


def test_what_orthanc_stored_is_found(
    make_mount: Callable[[], Mount], namespace: Namespace, tmp_path: Path
) -> None:
    images: ImageSet = image_set(tmp_path)
    mount = encrypted(make_mount())
    mount.mount()
    workspace = mount.base / "orthanc"
    workspace.mkdir()
    orthanc = Orthanc(namespace, mount.path, workspace)
    orthanc.start()
    options = ("--no-halt", "--scan-directories", "--recurse", "--call", "ORTHANC")
    namespace.run("dcmsend", *options, *DICOM, images.folder, check=False)
    orthanc.stop()
    # The kernel tells of the last file's closing in its own time.
    wait_until(lambda: stats(mount)["instances"] >= images.instances, "all images were read")
    found = complete(mount)
    assert (found["patients"], found["studies"], found["instances"]) == (
        images.patients,
        images.studies,
        images.instances,
    )
    answer = json.loads(mount.cli("find", mount.path, "--json").stdout)
    paths = {file["path"] for file in answer["found"]}
    assert len(paths) == images.instances
    assert all(Path(path).is_file() for path in paths)
    # What was killed begins where it was: complete again without being asked.
    mount.kill_daemon()
    mount.recover()
    again = complete(mount)
    assert {**again, "all_files": 0, "kinds": {}} == {**found, "all_files": 0, "kinds": {}}


def test_a_mount_without_an_index(make_mount: Callable[[], Mount]) -> None:
    mount = encrypted(make_mount())
    mount.init()
    mount.cli(
        *("mount", mount.vault, mount.path, "--no-studies", "--log", mount.log),
        *("--recovery-key-file", mount.recovery_file),
    )
    refused = mount.cli("find", mount.path, check=False)
    assert refused.returncode == 1
    assert "--no-studies" in refused.stderr

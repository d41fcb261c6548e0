"""DCMTK's servers with their storage on the mount: storescp, and dcmqrscp with its index.dat."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.waiting import wait_until

from .dicom import PATIENT_NAME, ImageSet, Pixels, made_set, pixels_by_instance
from .mounts import Mount
from .servers import Namespace

pytestmark = pytest.mark.system

SERVER = ("127.0.0.1", "11113")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return made_set(tmp_path_factory.mktemp("images"))


def _start(namespace: Namespace, *argv: str | Path) -> subprocess.Popen[bytes]:
    server = namespace.start(*argv)
    wait_until(lambda: namespace.listening(int(SERVER[1])), f"{argv[0]} listens")
    return server


def _send(namespace: Namespace, images: ImageSet) -> None:
    namespace.run("dcmsend", "--call", "ARCHIVE", *SERVER, *sorted(images.folder.iterdir()))


def test_storescp(shared_mount: Mount, folder: Path, namespace: Namespace, images: ImageSet) -> None:
    """Once into one folder, once into folders that are called as the patients."""
    by_name = folder / "by-name"
    by_name.mkdir()
    server = _start(namespace, "storescp", "-aet", "ARCHIVE", "-od", folder, SERVER[1])
    _send(namespace, images)
    _send(namespace, images)  # overwrites every file
    namespace.stop(server)
    server = _start(
        namespace, "storescp", "-aet", "ARCHIVE", "-od", by_name, "--sort-on-patientname", SERVER[1]
    )
    _send(namespace, images)
    namespace.stop(server)
    shared_mount.remount()
    sent = pixels_by_instance(images.folder)
    assert len(sent) == images.instances
    assert pixels_by_instance(by_name) == sent
    directories = [path.name for path in by_name.iterdir()]
    assert len(directories) == images.studies
    assert all(name.startswith(PATIENT_NAME.split("^")[0]) for name in directories)
    stored = [path for path in folder.iterdir() if path.is_file()]
    assert len(stored) == images.instances
    for path in stored:
        assert subprocess.run(["dcmftest", path], capture_output=True).returncode == 0


def test_dcmqrscp(
    shared_mount: Mount, folder: Path, namespace: Namespace, images: ImageSet, tmp_path: Path
) -> None:
    config = tmp_path / "dcmqrscp.cfg"
    config.write_text(
        f"NetworkTCPPort = {SERVER[1]}\nMaxPDUSize = 131072\nMaxAssociations = 16\n"
        "HostTable BEGIN\nreceiver = (RECEIVER, 127.0.0.1, 11112)\nHostTable END\n"
        "VendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nARCHIVE {folder} RW (500, 1024mb) ANY\nAETable END\n"
    )
    sent = pixels_by_instance(images.folder)
    server = _start(namespace, "dcmqrscp", "--config", config)
    _send(namespace, images)
    _check_queries(namespace, images, sent, tmp_path / "first")
    namespace.stop(server)

    shared_mount.remount()
    listing = namespace.run("dcmqridx", "--print", folder)
    assert all(path.name in listing for path in folder.iterdir() if path.name != "index.dat")
    server = _start(namespace, "dcmqrscp", "--config", config)
    _check_queries(namespace, images, sent, tmp_path / "second")
    _send(namespace, images)  # every instance replaced
    _check_queries(namespace, images, sent, tmp_path / "third")
    namespace.stop(server)
    shared_mount.remount()
    stored = [path for path in folder.iterdir() if path.name != "index.dat"]
    assert len(stored) == images.instances
    assert pixels_by_instance(folder) == sent


def _check_queries(namespace: Namespace, images: ImageSet, sent: Pixels, folder: Path) -> None:
    """All studies are found; one is fetched by C-GET and by C-MOVE and shows what was sent."""
    query = ("-S", "-aec", "ARCHIVE", "-k", "QueryRetrieveLevel=STUDY")
    found = namespace.run("findscu", *query, "-k", "PatientName=ZWEI*", "-k", "StudyInstanceUID=", *SERVER)
    studies = sorted(set(re.findall(r"\(0020,000d\) UI \[([0-9.]+)", found)))
    assert len(studies) == images.studies
    got, moved = folder / "got", folder / "moved"
    got.mkdir(parents=True)
    moved.mkdir()
    key = ("-k", f"StudyInstanceUID={studies[0]}")
    namespace.run("getscu", *query, *key, "-od", got, *SERVER)
    receiver = namespace.start("storescp", "-aet", "RECEIVER", "-od", moved, "11112")
    wait_until(lambda: namespace.listening(11112), "the receiver listens")
    namespace.run("movescu", "-aem", "RECEIVER", *query, *key, *SERVER)
    namespace.stop(receiver)
    retrieved = pixels_by_instance(got)
    assert len(retrieved) == images.instances // images.studies
    assert pixels_by_instance(moved) == retrieved
    assert retrieved.items() <= sent.items()

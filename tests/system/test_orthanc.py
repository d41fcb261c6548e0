"""A real Orthanc whose files and index lie on the mount: store, find, retrieve, restart, delete."""

from __future__ import annotations

import hashlib
import io
import os
import re
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from tests.waiting import wait_until

from .dicom import ImageSet, Pixels, image_set, made_set, pixels_by_instance, shown_by
from .mounts import Mount
from .processes import as_user
from .servers import Namespace, Orthanc
from .test_names import errno_of

# The development set has images that break the rules on purpose.
pytestmark = [pytest.mark.system, pytest.mark.filterwarnings("ignore::UserWarning:pydicom")]

DICOM = ("127.0.0.1", "4242")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return image_set(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def few_images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return made_set(tmp_path_factory.mktemp("few-images"))


def _store(namespace: Namespace, images: ImageSet) -> None:
    # Some files of the development set are damaged on purpose, which fails the client; the counts that
    # follow tell whether all the others arrived.
    options = ("--no-halt", "--scan-directories", "--recurse", "--call", "ORTHANC")
    namespace.run("dcmsend", *options, *DICOM, images.folder, check=False)


def _counts(orthanc: Orthanc) -> tuple[int, int, int]:
    statistics = orthanc.get("/statistics")
    return statistics["CountInstances"], statistics["CountStudies"], statistics["CountPatients"]


def _digests(orthanc: Orthanc) -> dict[str, str]:
    """The hash of every stored file as Orthanc gives it out."""
    digests = {}
    for instance in orthanc.get("/instances"):
        status, body = orthanc.rest("GET", f"/instances/{instance}/file")
        assert status == 200, instance
        digests[instance] = hashlib.sha256(body).hexdigest()
    return digests


def _damaged(orthanc: Orthanc) -> list[str]:
    """The instances whose file does not have the MD5 that Orthanc's index keeps."""
    instances = orthanc.get("/instances")
    paths = [f"/instances/{instance}/attachments/dicom/verify-md5" for instance in instances]
    return [path for path in paths if orthanc.rest("POST", path)[0] != 200]


def _study_to_retrieve(orthanc: Orthanc) -> tuple[str, set[str]]:
    """A study that needs no conversion on the way: its UID and those of its instances."""
    for study in orthanc.get("/studies"):
        identifiers = [instance["ID"] for instance in orthanc.get(f"/studies/{study}/instances")]
        syntaxes = {
            orthanc.rest("GET", f"/instances/{i}/metadata/TransferSyntax")[1].decode() for i in identifiers
        }
        if len(identifiers) > 1 and syntaxes <= {ExplicitVRLittleEndian, ImplicitVRLittleEndian}:
            uids = {orthanc.get(f"/instances/{i}/simplified-tags")["SOPInstanceUID"] for i in identifiers}
            return orthanc.get(f"/studies/{study}")["MainDicomTags"]["StudyInstanceUID"], uids
    raise AssertionError("no study to retrieve")


def _retrieve(namespace: Namespace, study: str, expected: set[str], sent: Pixels, folder: Path) -> None:
    """By C-GET, and by C-MOVE to another server: the same instances with the pixels that were sent."""
    got, moved = folder / "got", folder / "moved"
    got.mkdir()
    moved.mkdir()
    keys = ("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}")
    namespace.run("getscu", "-S", "-aec", "ORTHANC", "-od", got, *keys, *DICOM)
    receiver = namespace.start("storescp", "-aet", "RECEIVER", "-od", moved, "11112")
    wait_until(lambda: namespace.listening(11112), "the receiver listens")
    namespace.run("movescu", "-S", "-aec", "ORTHANC", "-aem", "RECEIVER", *keys, *DICOM)
    namespace.stop(receiver)
    for retrieved in (pixels_by_instance(got), pixels_by_instance(moved)):
        assert retrieved.keys() == expected
        for uid, shown in retrieved.items():
            assert {pixels for _, pixels in shown} <= {pixels for _, pixels in sent[uid]}, uid


def test_a_clinic_day(
    make_mount: Callable[[], Mount],
    namespace: Namespace,
    images: ImageSet,
    tmp_path: Path,
    service_account: str,
) -> None:
    """All images there are, with Orthanc as an ordinary system user."""
    mount = make_mount()
    mount.mount(owner=service_account)
    _clinic_day(mount, namespace, images, tmp_path, service_account)
    assert as_user(lambda: errno_of(os.listdir, mount.path)) == 13
    assert mount.path.stat().st_uid == int(subprocess.check_output(["id", "-u", service_account]))


def test_a_clinic_day_as_root(
    make_mount: Callable[[], Mount], namespace: Namespace, few_images: ImageSet, tmp_path: Path
) -> None:
    mount = make_mount()
    mount.mount()
    _clinic_day(mount, namespace, few_images, tmp_path, None)


def _clinic_day(
    mount: Mount, namespace: Namespace, images: ImageSet, scratch: Path, user: str | None
) -> None:
    workspace = mount.base / "orthanc"
    workspace.mkdir()
    orthanc = Orthanc(namespace, mount.path, workspace, user)

    # morning: images arrive, are found and fetched
    orthanc.start()
    _store(namespace, images)
    assert _counts(orthanc) == (images.instances, images.studies, images.patients)
    found = namespace.run(
        *("findscu", "-S", "-aec", "ORTHANC", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID="),
        *DICOM,
    )
    assert len(set(re.findall(r"\(0020,000d\) UI \[([0-9.]+)", found))) == images.studies
    sent = pixels_by_instance(images.folder)
    _retrieve(namespace, *_study_to_retrieve(orthanc), sent, scratch)
    before = _digests(orthanc)
    assert len(before) == images.instances
    orthanc.stop()

    # a new start, with nothing in any cache
    mount.remount()
    orthanc.start()
    assert _damaged(orthanc) == []
    assert _digests(orthanc) == before
    compared = 0
    for instance in before:
        image = pydicom.dcmread(io.BytesIO(orthanc.rest("GET", f"/instances/{instance}/file")[1]))
        syntax, pixels = shown_by(image)
        candidates = [p for s, p in sent.get(str(image.SOPInstanceUID), ()) if s == syntax]
        if candidates:  # else the client had to convert it to another transfer syntax
            assert pixels in candidates, instance
            compared += 1
    assert compared > images.instances * 0.8

    # evening: one patient is deleted, the same images arrive once more
    patient = orthanc.get("/patients")[0]
    deleted = len(orthanc.get(f"/patients/{patient}/instances"))
    assert orthanc.rest("DELETE", f"/patients/{patient}")[0] == 200
    assert _counts(orthanc)[0] == images.instances - deleted
    _store(namespace, images)
    assert _counts(orthanc)[0] == images.instances
    assert orthanc.rest("DELETE", f"/patients/{patient}")[0] == 200
    assert _damaged(orthanc) == []
    orthanc.stop()

    _check_storage(mount, images.instances - deleted)
    mount.remount()
    _check_storage(mount, images.instances - deleted)


def _check_storage(mount: Mount, instances: int) -> None:
    """Orthanc's database is sound, and there is one file for each attachment it knows and no other."""
    database = sqlite3.connect(mount.path / "index")
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    attachments = dict(database.execute("SELECT uuid, compressedSize FROM AttachedFiles"))
    database.close()
    assert len(attachments) >= instances
    files = {path.name: path.stat().st_size for path in mount.path.glob("??/??/*")}
    assert files == attachments
    assert [path.name for path in mount.path.iterdir() if path.is_file()] == ["index"]


def test_an_index_left_by_a_killed_server(
    make_mount: Callable[[], Mount], namespace: Namespace, few_images: ImageSet
) -> None:
    """Orthanc is killed, not stopped: its write-ahead log and shared memory are there at the next start."""
    mount = make_mount()
    mount.mount()
    workspace = mount.base / "orthanc"
    workspace.mkdir()
    orthanc = Orthanc(namespace, mount.path, workspace)
    orthanc.start()
    _store(namespace, few_images)
    counts = _counts(orthanc)
    orthanc.kill()
    assert (mount.path / "index-wal").stat().st_size > 0
    mount.remount()
    orthanc.start()
    assert _counts(orthanc) == counts
    assert _damaged(orthanc) == []
    orthanc.stop()
    _check_storage(mount, counts[0])

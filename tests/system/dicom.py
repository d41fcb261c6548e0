"""Images to store: the development set where it is at hand, else a small made one.

The development set is an archive `dicom-dev.tar.zst`: `CRYPTFS_DICOM_DEV` names it (or the folder it was
unpacked to), or it lies at `shared/data/` beside the checkout.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ComprehensiveSRStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

from .mounts import PROJECT

MADE_PATIENTS, MADE_STUDIES, MADE_SERIES, MADE_SLICES = 4, 2, 2, 7
# A name that no other software writes anywhere, to be looked for in ciphertext.
PATIENT_NAME = "ZWEISTEIN^Wilhelmine"


@dataclass(frozen=True)
class ImageSet:
    """A folder of DICOM files, and what an archive counts in it (None: not known beforehand)."""

    folder: Path
    instances: int
    studies: int
    patients: int


def development_archive() -> Path | None:
    named = os.environ.get("CRYPTFS_DICOM_DEV")
    if named is not None:
        return Path(named)
    beside = PROJECT.parent / "shared" / "data" / "dicom-dev.tar.zst"
    return beside if beside.exists() else None


def image_set(folder: Path) -> ImageSet:
    """The best set there is, unpacked or made below `folder`."""
    archive = development_archive()
    if archive is None:
        return made_set(folder)
    if archive.is_dir():
        return ImageSet(archive, 1203, 57, 42)
    subprocess.run(["tar", "--zstd", "-xf", archive, "-C", folder], check=True)
    return ImageSet(folder, 1203, 57, 42)


def made_set(folder: Path) -> ImageSet:
    """CT slices with pixels and one structured report for each study."""
    rng = random.Random(1895)
    count = 0
    for patient in range(MADE_PATIENTS):
        for study in range(MADE_STUDIES):
            uid, number = generate_uid(), 0
            for series in range(MADE_SERIES):
                series_uid = generate_uid()
                for _ in range(MADE_SLICES):
                    number += 1
                    image = _instance(patient, uid, series_uid, "CT", number)
                    _add_pixels(image, rng)
                    image.save_as(
                        folder / f"{patient}-{study}-{series}-{number}.dcm", enforce_file_format=True
                    )
            _instance(patient, uid, generate_uid(), "SR", number + 1).save_as(
                folder / f"{patient}-{study}-report.dcm", enforce_file_format=True
            )
            count += number + 1
    return ImageSet(folder, count, MADE_PATIENTS * MADE_STUDIES, MADE_PATIENTS)


def _instance(patient: int, study_uid: str, series_uid: str, modality: str, number: int) -> Dataset:
    image = Dataset()
    image.SOPClassUID = CTImageStorage if modality == "CT" else ComprehensiveSRStorage
    image.SOPInstanceUID = generate_uid()
    image.StudyInstanceUID, image.SeriesInstanceUID = study_uid, series_uid
    image.PatientName = f"{PATIENT_NAME}^{patient}"
    image.PatientID = f"PID-{patient:05}"
    image.PatientBirthDate, image.PatientSex = "19010101", "F"
    image.StudyDate, image.StudyTime, image.StudyID = "20200101", "120000", "1"
    image.AccessionNumber, image.ReferringPhysicianName = "A1", ""
    image.Modality = modality
    image.SeriesNumber, image.InstanceNumber = 1, number
    if modality == "SR":
        image.ValueType, image.CompletionFlag, image.VerificationFlag = "CONTAINER", "COMPLETE", "UNVERIFIED"
        image.TextValue = "Findings: " + "unremarkable. " * 500
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return image


def _add_pixels(image: Dataset, rng: random.Random) -> None:
    image.Rows = image.Columns = 256
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    image.SamplesPerPixel, image.PixelRepresentation = 1, 0
    image.PhotometricInterpretation = "MONOCHROME2"
    image.RescaleIntercept, image.RescaleSlope = -1024, 1
    image.add_new("PixelData", "OW", rng.randbytes(256 * 256 * 2))


Pixels = dict[str, set[tuple[str, str]]]


def pixels_by_instance(folder: Path) -> Pixels:
    """What every DICOM file below a folder shows: SOP instance UID to (transfer syntax, hash of PixelData).

    A set of images may hold one instance twice with different content; an archive keeps one of them.
    """
    found: Pixels = {}
    for path in folder.rglob("*"):
        if path.is_file():
            try:
                image = pydicom.dcmread(path)
            except pydicom.errors.InvalidDicomError:
                continue
            if "SOPInstanceUID" in image:
                found.setdefault(str(image.SOPInstanceUID), set()).add(shown_by(image))
    return found


def shown_by(image: Dataset) -> tuple[str, str]:
    """The transfer syntax and a hash of the pixels; syntaxes that share their pixels' bytes count as one."""
    pixels = bytes(image.get("PixelData", b"") or b"")
    syntax = str(image.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian))
    native = ExplicitVRLittleEndian if syntax == ImplicitVRLittleEndian else syntax
    return native, hashlib.sha256(pixels).hexdigest()

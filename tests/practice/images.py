"""DICOM files made for tests, as bytes."""

from __future__ import annotations

import io
import zlib

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
)


def dataset(
    *,
    patient_id: str = "P1",
    name: str = "Muster^Anna",
    study: str = "1.2.3",
    series: str = "1.2.3.1",
    instance: str = "1.2.3.1.1",
    modality: str = "CT",
    date: str = "20200131",
    accession: str = "A1",
    charset: str = "ISO_IR 192",
    pixels: int = 512,
) -> Dataset:
    """A small image; `pixels` is the length of its pixel data in bytes, 0 for none."""
    image = Dataset()
    image.SpecificCharacterSet = charset
    image.SOPClassUID = CTImageStorage
    image.SOPInstanceUID, image.StudyInstanceUID, image.SeriesInstanceUID = instance, study, series
    image.PatientID, image.PatientName = patient_id, name
    image.StudyDate, image.AccessionNumber, image.Modality = date, accession, modality
    if pixels:
        image.Rows, image.Columns, image.BitsAllocated = 1, 64, 8
        image.add_new("PixelData", "OB", b"\x55" * pixels)
    return image


def encoded(image: Dataset, syntax: str = ExplicitVRLittleEndian, *, bare: bool = False) -> bytes:
    """The bytes of the file; `bare`: without preamble and meta information."""
    stream = io.BytesIO()
    uid = UID(syntax)
    deflate = uid == DeflatedExplicitVRLittleEndian
    implicit, little = (False, True) if deflate or not uid.is_transfer_syntax else _encoding(uid)
    if bare:
        image.save_as(stream, implicit_vr=implicit, little_endian=little, enforce_file_format=False)
        return stream.getvalue()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if deflate else uid
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.save_as(stream, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
    return stream.getvalue()


def _encoding(uid: UID) -> tuple[bool, bool]:
    return (uid.is_implicit_VR, uid.is_little_endian)


def image(**elements: object) -> bytes:
    """A file with these elements, explicit VR and little-endian."""
    return encoded(dataset(**elements))  # type: ignore[arg-type]


def deflated(image: Dataset) -> bytes:
    """A file whose dataset is deflated, as PS3.5 section A.5 has it."""
    meta = dataset_meta(DeflatedExplicitVRLittleEndian)
    body = encoded(image, bare=True)
    squeezer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return meta + squeezer.compress(body) + squeezer.flush()


def dataset_meta(syntax: str) -> bytes:
    """Preamble and meta information with nothing in it but the transfer syntax."""
    value = syntax.encode()
    value += b"\0" * (len(value) % 2)
    element = b"\x02\x00\x10\x00UI" + len(value).to_bytes(2, "little") + value
    length = b"\x02\x00\x00\x00UL\x04\x00" + len(element).to_bytes(4, "little")
    return bytes(128) + b"DICM" + length + element

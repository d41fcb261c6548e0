"""What the study index knows of one image."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Kind(StrEnum):
    """What the beginning of a file shows it to be."""

    INSTANCE = "instance"
    OTHER_DICOM = "other dicom"  # a directory of a CD, a palette: belongs to no study
    DAMAGED = "damaged"  # says it is DICOM, and cannot be read
    NOT_DICOM = "not dicom"
    NEEDS_MORE = "needs more"  # the series' UID comes later than the bytes given


class Tags(msgspec.Struct, frozen=True, array_like=True):
    """What is known of one instance. Texts are decoded, and empty where the file says nothing."""

    patient_id: str = ""
    patient_name: str = ""  # components separated by ^, writings by =
    study: str = ""
    series: str = ""
    instance: str = ""
    modality: str = ""
    date: str = ""  # of the study: YYYYMMDD, or empty if it is no date
    accession: str = ""
    transfer_syntax: str = ""
    sop_class: str = ""

    def __repr__(self) -> str:
        # A patient's name must not get into a log or a traceback.
        return f"<Tags {self.modality}>"

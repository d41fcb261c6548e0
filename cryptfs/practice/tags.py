"""Whose image a file is: a few DICOM elements, read from the beginning of the file with pydicom.

The bytes come from outside: whoever can send an image to the archive chooses them. So everything is
bounded (how much is looked at, how much a deflated file may become, how long a text may be), no
element beyond the series' UID is looked at, and whatever goes wrong in the parser is the file's fault.
"""

from __future__ import annotations

import io
import re
import warnings
import zlib
from typing import Any, NamedTuple

import pydicom.config
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
)

from cryptfs.index.tags import Kind, Tags

__all__ = ["START", "START_MAX", "TEXT_MAX", "Kind", "Reading", "Tags", "is_date", "read_tags"]

# Values that break the rules are taken as they are, without a word: they are in the archive all the same.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

START = 64 << 10
"""How many bytes of a file are enough for nearly every image."""
START_MAX = 1 << 20
"""How many are looked at in a file with much before its series' UID."""
TEXT_MAX = 256
"""The longest text kept, in characters. DICOM's own limit is 64, for names three times that."""
_PREAMBLE = 132

CHARACTER_SET = 0x00080005
SOP_CLASS, SOP_INSTANCE = 0x00080016, 0x00080018
STUDY_DATE, ACCESSION, MODALITY = 0x00080020, 0x00080050, 0x00080060
PATIENT_NAME, PATIENT_ID = 0x00100010, 0x00100020
STUDY, SERIES = 0x0020000D, 0x0020000E
TRANSFER_SYNTAX = 0x00020010

_WANTED: list[BaseTag | int] = [
    Tag(number)
    for number in (
        CHARACTER_SET, SOP_CLASS, SOP_INSTANCE, STUDY_DATE, ACCESSION, MODALITY, PATIENT_NAME, PATIENT_ID,
        STUDY, SERIES,
    )
]  # fmt: skip
# How a file without preamble and meta information begins: group 2 or 8, little or big endian.
_BARE = re.compile(rb"[\x02\x08]\x00[\x00-\x20]\x00|\x00[\x02\x08]\x00[\x00-\x20]")


class Reading(NamedTuple):
    """The outcome for one file; `tags` for an instance."""

    kind: Kind
    tags: Tags = Tags()


def read_tags(start: bytes, whole: bool) -> Reading:
    """What a file is that begins with `start`; `whole` if it ends there, too. Raises nothing."""
    bare = start[128:132] != b"DICM"
    if bare and not _BARE.match(start):
        return Reading(Kind.NOT_DICOM)
    final = whole or len(start) >= START_MAX
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reached, tags = _parse(start[:START_MAX], bare)
    except Exception:  # RecursionError, MemoryError and what else a parser of hostile bytes comes to
        if not final:
            return Reading(Kind.NEEDS_MORE)
        return Reading(Kind.NOT_DICOM if bare else Kind.DAMAGED)
    if not reached and not final:
        return Reading(Kind.NEEDS_MORE)
    if tags.study and tags.series and tags.instance:
        return Reading(Kind.INSTANCE, tags)
    if bare:
        return Reading(Kind.NOT_DICOM)
    return Reading(Kind.OTHER_DICOM if tags.sop_class else Kind.DAMAGED)


def _parse(start: bytes, bare: bool) -> tuple[bool, Tags]:
    """The tags, and whether everything before the end of the series' UID was there to be read."""
    stream = io.BytesIO(start)
    stream.seek(0 if bare else _PREAMBLE)
    meta = Dataset()
    if not bare or start[0] == 2:
        meta = read_dataset(
            stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2,
            specific_tags=[Tag(TRANSFER_SYNTAX), Tag(0x00020002)],
        )  # fmt: skip
    syntax = _text(meta, TRANSFER_SYNTAX)
    implicit, little = _encoding(syntax, stream)
    if syntax == DeflatedExplicitVRLittleEndian:
        stream = io.BytesIO(zlib.decompressobj(-zlib.MAX_WBITS).decompress(stream.read(), START_MAX))
    reached = False

    def beyond(tag: BaseTag, vr: str | None, length: int) -> bool:
        nonlocal reached
        reached = int(tag) > SERIES
        return reached

    found = read_dataset(stream, implicit, little, stop_when=beyond, specific_tags=_WANTED)
    # The character set is an element of this very dataset; pydicom has taken it over.
    date = _text(found, STUDY_DATE).replace(".", "")[:8]
    tags = Tags(
        patient_id=_text(found, PATIENT_ID),
        patient_name=_text(found, PATIENT_NAME),
        study=_uid(found, STUDY),
        series=_uid(found, SERIES),
        instance=_uid(found, SOP_INSTANCE),
        modality=_text(found, MODALITY).upper()[:16],
        date=date if is_date(date) else "",
        accession=_text(found, ACCESSION),
        transfer_syntax=syntax or (ImplicitVRLittleEndian if implicit else ""),
        sop_class=_uid(found, SOP_CLASS) or _text(meta, 0x00020002),
    )
    return reached, tags


def _encoding(syntax: str, stream: io.BytesIO) -> tuple[bool, bool]:
    """Whether the dataset has implicit VRs and little-endian numbers; guessed where the file does not say."""
    if syntax == ImplicitVRLittleEndian:
        return True, True
    if syntax == ExplicitVRBigEndian:
        return False, False
    if not syntax:
        at = stream.tell()
        begin = stream.read(6)
        stream.seek(at)
        explicit = begin[4:6].isalpha() and begin[4:6].isupper()
        return not explicit, not (explicit and begin[:1] == b"\0")
    uid = UID(syntax)
    # A private syntax that pydicom knows says how it is encoded; all others are explicit, little-endian.
    if uid.is_private and uid.is_transfer_syntax:
        return uid.is_implicit_VR, uid.is_little_endian
    return False, True


def is_date(text: str) -> bool:
    """Whether it is eight digits with a month and a day that exist."""
    return (
        len(text) == 8
        and text.isascii()
        and text.isdigit()
        and 1 <= int(text[4:6]) <= 12
        and 1 <= int(text[6:]) <= 31
    )


def _uid(dataset: Dataset, tag: int) -> str:
    """An identifier. Some that are in use are no UIDs, so any printable text without spaces will do."""
    text = _text(dataset, tag)
    return text if text.isprintable() and not any(map(str.isspace, text)) else ""


def _text(dataset: Dataset, tag: int) -> str:
    """The value of an element as one line of text, "" if it is not there."""
    try:
        element = dataset.get(Tag(tag))
        value: Any = None if element is None else element.value
    except Exception:
        # A character set that does not exist, bytes that are none of it, a VR that does not fit.
        raw = dataset.get_item(Tag(tag))
        value = getattr(raw, "value", None)
    if value is None:
        return ""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    elif isinstance(value, MultiValue):
        value = "\\".join(map(str, value))
    text = str(value)[: TEXT_MAX * 4].replace("\0", "")
    return " ".join(text.split())[:TEXT_MAX].rstrip()

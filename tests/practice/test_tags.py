"""Reading tags: every encoding, every character set at hand, and bytes that mean harm."""

# ruff: noqa: RUF001  (names in many scripts)
from __future__ import annotations

import random
import struct
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)

from cryptfs.practice.tags import START_MAX, TEXT_MAX, Kind, Tags, is_date, read_tags

from .images import dataset, dataset_meta, deflated, encoded, image

EXPECTED = Tags(
    patient_id="P1",
    patient_name="Muster^Anna",
    study="1.2.3",
    series="1.2.3.1",
    instance="1.2.3.1.1",
    modality="CT",
    date="20200131",
    accession="A1",
    transfer_syntax=ExplicitVRLittleEndian,
    sop_class="1.2.840.10008.5.1.4.1.1.2",
)


def changed(**fields: str) -> Tags:
    return Tags(**{**{name: getattr(EXPECTED, name) for name in Tags.__struct_fields__}, **fields})


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, "1.2.3.4.5.6"]
)
def test_every_encoding(syntax: str) -> None:
    assert read_tags(encoded(dataset(), syntax), True) == (Kind.INSTANCE, changed(transfer_syntax=syntax))


def test_encapsulated_pixels() -> None:
    data = dataset_meta(JPEGBaseline8Bit) + encoded(dataset(pixels=0), bare=True)
    assert read_tags(data, True) == (Kind.INSTANCE, changed(transfer_syntax=JPEGBaseline8Bit))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_without_preamble(syntax: str) -> None:
    kind, tags = read_tags(encoded(dataset(), syntax, bare=True), True)
    assert kind == Kind.INSTANCE
    assert (tags.patient_id, tags.study) == ("P1", "1.2.3")


def test_deflated() -> None:
    data = deflated(dataset())
    assert read_tags(data, True) == (
        Kind.INSTANCE,
        changed(transfer_syntax=DeflatedExplicitVRLittleEndian),
    )


def test_the_beginning_is_enough() -> None:
    data = image(pixels=200_000)
    assert read_tags(data[:4096], False) == (Kind.INSTANCE, EXPECTED)


def test_more_is_asked_for_until_the_limit() -> None:
    long = dataset()
    long.add_new(0x00091001, "OB", b"x" * 200_000)  # a private element before the patient's
    data = encoded(long)
    assert read_tags(data[:65536], False).kind == Kind.NEEDS_MORE
    assert read_tags(data, True) == (Kind.INSTANCE, EXPECTED)
    longer = dataset()
    longer.add_new(0x00091001, "OB", b"x" * (START_MAX + 10))
    assert read_tags(encoded(longer)[:START_MAX], False).kind == Kind.OTHER_DICOM


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 100", "Äneas^Rüdiger"),
        ("ISO_IR 144", "Люкceмбypг"),
        ("ISO_IR 126", "Διονυσιος"),
        ("ISO_IR 192", "王^小東=やまだ"),
        ("GB18030", "王^小东"),
        ("ISO_IR 138", "שרון^דבורה"),
    ],
)
def test_character_sets(charset: str, name: str) -> None:
    assert read_tags(image(charset=charset, name=name), True).tags.patient_name == name


def test_a_character_set_that_does_not_exist() -> None:
    data = image(name="Muster^Anna").replace(b"ISO_IR 192", b"ISO_IR 999")
    kind, tags = read_tags(data, True)
    assert (kind, tags.patient_name) == (Kind.INSTANCE, "Muster^Anna")


def test_texts_are_one_short_line() -> None:
    wide = dataset(name="A\r\n" * 2000 + "B", patient_id="x" * 60_000)
    kind, tags = read_tags(encoded(wide), True)
    assert kind == Kind.INSTANCE
    assert len(tags.patient_name) <= TEXT_MAX and tags.patient_name.startswith("A A")
    assert len(tags.patient_id) <= TEXT_MAX


def test_dates() -> None:
    assert is_date("20200229")
    assert not is_date("٢٠٢٠٠١٠١")


@pytest.mark.parametrize("value", ["2020", "20201301", "20200132", "heute"])
def test_a_date_that_is_none(value: str) -> None:
    assert not is_date(value)
    assert read_tags(image(date=value), True).tags.date == ""


def test_the_old_form_of_dates() -> None:
    assert read_tags(image(date="2020.01.31"), True).tags.date == "20200131"


def test_what_belongs_to_no_study() -> None:
    palette = dataset()
    del palette.StudyInstanceUID
    assert read_tags(encoded(palette), True).kind == Kind.OTHER_DICOM


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"SQLite format 3\0" + bytes(4000), bytes(132), b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 192"],
    ids=["empty", "short", "database", "zeros", "no image"],
)
def test_what_is_not_dicom(data: bytes) -> None:
    assert read_tags(data, True).kind == Kind.NOT_DICOM


@pytest.mark.thorough
def test_a_deflated_bomb_is_not_unpacked() -> None:
    squeezer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = squeezer.compress(bytes(64 << 20)) + squeezer.flush()
    data = dataset_meta(DeflatedExplicitVRLittleEndian) + bomb
    tracemalloc.start()
    try:
        assert read_tags(data, True).kind in (Kind.DAMAGED, Kind.OTHER_DICOM)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_sequences_nested_without_end() -> None:
    sequence = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff"
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    data = dataset_meta(ExplicitVRLittleEndian) + (sequence + item) * 20_000
    assert read_tags(data, True).kind == Kind.DAMAGED


def test_a_length_beyond_the_end() -> None:
    data = dataset_meta(ExplicitVRLittleEndian) + b"\x08\x00\x18\x00UI\xff\xff1.2.3"
    assert read_tags(data, True).kind in (Kind.DAMAGED, Kind.OTHER_DICOM)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_bytes_raise(data: st.DataObject) -> None:
    """Real files cut, spliced and changed anywhere in their header."""
    whole = data.draw(st.sampled_from(_SEEDS))
    bytes_ = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(128, len(bytes_) - 1))
        new = data.draw(st.one_of(st.binary(min_size=1, max_size=8), st.just(struct.pack("<I", 0xFFFFFFFF))))
        bytes_[at : at + len(new)] = new
    cut = data.draw(st.integers(0, len(bytes_)))
    kind, tags = read_tags(bytes(bytes_[:cut]), data.draw(st.booleans()))
    assert kind == Kind.INSTANCE or tags == Tags()
    for text in (getattr(tags, field) for field in Tags.__struct_fields__):
        assert len(text) <= TEXT_MAX and "\n" not in text and "\0" not in text


def test_random_bytes_behind_the_magic(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(200):
        data = bytes(128) + b"DICM" + rng.randbytes(rng.randrange(300))
        assert read_tags(data, True).kind in (Kind.DAMAGED, Kind.OTHER_DICOM)


def test_tags_do_not_show_a_name() -> None:
    assert "Muster" not in repr(read_tags(image(), True))


def _nested() -> Dataset:
    outer, inner = dataset(), dataset(pixels=0)
    outer.ReferencedImageSequence = [inner, inner]
    return outer


_SEEDS = [
    image(),
    encoded(dataset(), ImplicitVRLittleEndian),
    encoded(dataset(charset="ISO_IR 13"), ExplicitVRBigEndian),
    encoded(_nested()),
    deflated(dataset()),
]

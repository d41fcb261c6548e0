"""What imaging software does: storing images as different programs store them, and reading them back."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass

from benchmarks.data import MIB
from benchmarks.figures import Figure
from benchmarks.workloads.base import Place, expect, workload, write_all

CT_SIZE = 526_178  # a 512 x 512 slice of 16 bits with its header
CT_FILES = 2000
CT_ORTHANC_FILES = 1000
ORTHANC_WRITE = 4096
HEADER = 4096  # what pydicom reads for the header alone
LARGEST_WRITE = 16 * MIB  # larger files are written in requests of this size

# (files, bytes each): the mix of a radiology practice, about 1.6 GB, 95 % of the files at most 0.53 MB.
MIX = (
    (1000, CT_SIZE),
    (400, 25_000),  # MR, small matrix
    (400, 212_000),  # MR
    (12, 8_000_000),  # CR
    (4, 12_000_000),  # MG
    (1, 450_000_000),  # breast tomosynthesis
    (20, 5_000_000),  # US
    (2, 60_000_000),  # XA
    (400, 500_000),  # dental CBCT
    (60, 10_000),  # SR
)

CT_WRITE = Figure("ct-write", "files/s", "CT slices, each by open, one write, close; no sync")
CT_READ_COLD = Figure("ct-read-cold", "files/s", "whole slices after dropping caches")
CT_READ_WARM = Figure("ct-read-warm", "files/s", "the same again at once")
CT_HEADER_COLD = Figure("ct-header-cold", "files/s", "first 4096 bytes of each slice after dropping caches")
CT_ORTHANC = Figure("ct-orthanc", "files/s", "CT slices as Orthanc writes them, fdatasync of each included")
MIX_WRITE = Figure("mix-write", "MB/s", "the mixed images, each by open, one write, close; no sync")
MIX_ORTHANC = Figure("mix-orthanc", "MB/s", "the mixed images as Orthanc writes them, fdatasync included")


@dataclass(frozen=True)
class Image:
    """One file to be stored: its path, the folders Orthanc makes for it, and its content in pieces."""

    path: str
    folders: tuple[str, ...]
    pieces: tuple[memoryview, ...]


def mixed_sizes(scale: float) -> list[int]:
    """File sizes of the mix: counts are scaled, and where less than one file remains, its size is."""
    sizes = []
    for count, size in MIX:
        files = count * scale
        sizes += [size] * round(files) if files >= 1 else [max(1, round(size * files))]
    random.Random(1).shuffle(sizes)
    return sizes


@workload("ct", CT_WRITE, CT_READ_COLD, CT_READ_WARM, CT_HEADER_COLD)
def ct(place: Place) -> None:
    """Store CT slices in one write each, read them cold and warm, scan their headers cold."""
    count = place.scaled(CT_FILES, at_least=10)
    with place.folder("ct") as folder:
        images = _flat_images(place, str(folder), [CT_SIZE] * count)
        with place.meter.timing(CT_WRITE, count):
            _store_whole(images)
        _verify(place, images)
        paths = [image.path for image in images]
        place.make_cold()
        for figure in (CT_READ_COLD, CT_READ_WARM):
            with place.meter.timing(figure, count):
                total = _read_whole(paths, CT_SIZE)
            expect("bytes of CT slices", total, count * CT_SIZE)
        place.make_cold()
        with place.meter.timing(CT_HEADER_COLD, count):
            total = _read_headers(paths)
        expect("bytes of CT headers", total, count * HEADER)


@workload("ct-orthanc", CT_ORTHANC)
def ct_orthanc(place: Place) -> None:
    """Store CT slices in Orthanc's pattern."""
    count = place.scaled(CT_ORTHANC_FILES, at_least=10)
    with place.folder("ct-orthanc") as folder:
        images = _orthanc_images(place, str(folder), [CT_SIZE] * count)
        with place.meter.timing(CT_ORTHANC, count):
            _store_as_orthanc(images)
        _verify(place, images)


@workload("mix", MIX_WRITE)
def mix(place: Place) -> None:
    """Store the mixed images in one write each."""
    sizes = mixed_sizes(place.scale)
    with place.folder("mix") as folder:
        images = _flat_images(place, str(folder), sizes)
        with place.meter.timing(MIX_WRITE, sum(sizes) / 1e6):
            _store_whole(images)
        _verify(place, images)


@workload("mix-orthanc", MIX_ORTHANC)
def mix_orthanc(place: Place) -> None:
    """Store the mixed images in Orthanc's pattern."""
    sizes = mixed_sizes(place.scale)
    with place.folder("mix-orthanc") as folder:
        images = _orthanc_images(place, str(folder), sizes)
        with place.meter.timing(MIX_ORTHANC, sum(sizes) / 1e6):
            _store_as_orthanc(images)
        _verify(place, images)


def _flat_images(place: Place, folder: str, sizes: list[int]) -> list[Image]:
    """As storescp does: all in one folder, named by the instance."""
    return [
        Image(f"{folder}/CT.1.2.276.{key:06}", (), tuple(place.data.pieces(key, size, LARGEST_WRITE)))
        for key, size in enumerate(sizes)
    ]


def _orthanc_images(place: Place, folder: str, sizes: list[int]) -> list[Image]:
    """As Orthanc does: a random name, in two levels of folders named by its first four digits."""
    names = random.Random(2)
    images = []
    for key, size in enumerate(sizes):
        name = f"{names.getrandbits(128):032x}"
        first, second = f"{folder}/{name[:2]}", f"{folder}/{name[:2]}/{name[2:4]}"
        pieces = tuple(place.data.pieces(key, size, ORTHANC_WRITE))
        images.append(Image(f"{second}/{name}", (first, second), pieces))
    return images


def _store_whole(images: list[Image]) -> None:
    for image in images:
        descriptor = os.open(image.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for piece in image.pieces:
            write_all(descriptor, piece)
        os.close(descriptor)


def _store_as_orthanc(images: list[Image]) -> None:
    write = os.write
    for image in images:
        for folder in image.folders:
            try:
                os.mkdir(folder)
            except FileExistsError:
                pass
        descriptor = os.open(image.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        for piece in image.pieces:
            write(descriptor, piece)
        os.fdatasync(descriptor)
        os.close(descriptor)


def _read_whole(paths: list[str], largest: int) -> int:
    """One open, fstat, read of the whole file and close for each path, as Orthanc serves a file."""
    buffer = memoryview(bytearray(largest))
    total = 0
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        left = os.fstat(descriptor).st_size
        while left:
            count = os.readv(descriptor, [buffer[:left]])
            if not count:
                break
            left -= count
            total += count
        os.close(descriptor)
    return total


def _read_headers(paths: list[str]) -> int:
    total = 0
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        total += len(os.read(descriptor, HEADER))
        os.close(descriptor)
    return total


def _verify(place: Place, images: list[Image]) -> None:
    if place.verify:
        for image in images:
            place.check(image.path, image.pieces)

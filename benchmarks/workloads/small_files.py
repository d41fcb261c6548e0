"""Names and metadata: walking a large archive, and making and removing small files and folders."""

from __future__ import annotations

import os

from benchmarks.figures import Figure
from benchmarks.workloads.base import Place, expect, workload, write_all

WALK_FILES = 100_000
FILES_PER_FOLDER = 100
SMALL = 4096
FILES = 8000
FOLDERS = 4000

WALK_COLD = Figure("walk-cold", "entries/s", "list all folders and stat all files, after dropping caches")
CREATE_EMPTY = Figure("create-empty", "per s", "new empty files in one folder: open, close; no sync")
UNLINK_EMPTY = Figure("unlink-empty", "per s", "removing them")
CREATE_4K = Figure("create-4k", "per s", "new files of 4 KiB in one folder: open, write, close; no sync")
UNLINK_4K = Figure("unlink-4k", "per s", "removing them")
MKDIR = Figure("mkdir", "per s", "new folders in one folder; no sync")
RMDIR = Figure("rmdir", "per s", "removing them")


@workload("walk", WALK_COLD)
def walk(place: Place) -> None:
    """Walk a tree of small files as `find -ls` does.

    The tree is written once per system, before the first timing, and kept for the later rounds.
    """
    count = place.scaled(WALK_FILES, at_least=FILES_PER_FOLDER)
    archive = place.root / "walk"
    folders = [
        archive / f"{number // 100:03}" / f"{number:05}" for number in range(-(-count // FILES_PER_FOLDER))
    ]
    entries = count + len(folders) + len({folder.parent for folder in folders})
    if not archive.exists():
        paths = []
        for number, folder in enumerate(folders):
            folder.mkdir(parents=True)
            first = number * FILES_PER_FOLDER
            paths += [f"{folder}/{key:07}.dcm" for key in range(first, min(first + FILES_PER_FOLDER, count))]
        _create(paths, [place.data.piece(key, SMALL) for key in range(count)])
    place.make_cold()
    with place.meter.timing(WALK_COLD, entries):
        found, size = _walk(str(archive))
    expect("entries walked", found, entries)
    expect("bytes of files walked", size, count * SMALL)


@workload("small-files", CREATE_EMPTY, UNLINK_EMPTY, CREATE_4K, UNLINK_4K)
def small_files(place: Place) -> None:
    """Make and remove empty files, then files of 4 KiB."""
    count = place.scaled(FILES, at_least=50)
    for create, unlink, size in ((CREATE_EMPTY, UNLINK_EMPTY, 0), (CREATE_4K, UNLINK_4K, SMALL)):
        with place.folder("small-files") as folder:
            paths = [f"{folder}/{key:06}" for key in range(count)]
            pieces = [place.data.piece(key, size) for key in range(count)] if size else []
            with place.meter.timing(create, count):
                _create(paths, pieces)
            if place.verify:
                for key, path in enumerate(paths):
                    place.check(path, pieces[key : key + 1])
            with place.meter.timing(unlink, count):
                for path in paths:
                    os.unlink(path)
            expect("files left after unlink", len(os.listdir(folder)), 0)


@workload("folders", MKDIR, RMDIR)
def folders(place: Place) -> None:
    """Make and remove folders."""
    count = place.scaled(FOLDERS, at_least=50)
    with place.folder("folders") as folder:
        paths = [f"{folder}/{key:06}" for key in range(count)]
        with place.meter.timing(MKDIR, count):
            for path in paths:
                os.mkdir(path)
        expect("folders made", len(os.listdir(folder)), count)
        with place.meter.timing(RMDIR, count):
            for path in paths:
                os.rmdir(path)
        expect("folders left after rmdir", len(os.listdir(folder)), 0)


def _create(paths: list[str], pieces: list[memoryview]) -> None:
    """Make the files, with the contents given, or empty if none are."""
    for number, path in enumerate(paths):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        if pieces:
            write_all(descriptor, pieces[number])
        os.close(descriptor)


def _walk(top: str) -> tuple[int, int]:
    """Entries below `top` and the sum of the files' sizes."""
    entries = size = 0
    waiting = [top]
    while waiting:
        with os.scandir(waiting.pop()) as listing:
            for entry in listing:
                entries += 1
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    size += entry.stat(follow_symlinks=False).st_size
    return entries, size

"""The content of files: offsets, holes, mappings, locks, and several processes on one file."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from .mounts import Mount
from .processes import Child, in_parallel, run

pytestmark = pytest.mark.system

EDGES = [0, 1, 4095, 4096, 4097, 8192, 65535, 65536, 65537, 131072, 200_000]


def test_random_writes_around_chunk_edges(shared_mount: Mount, folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = folder / "slice.dcm"
    expected = bytearray()
    with path.open("wb", buffering=0) as file:
        for _ in range(400):
            offset = max(0, rng.choice(EDGES) + rng.randint(-2, 2))
            data = rng.randbytes(rng.choice([1, 100, 4096, 4097, 65536, 70_000]))
            assert os.pwrite(file.fileno(), data, offset) == len(data)
            expected.extend(bytes(max(0, offset - len(expected))))
            expected[offset : offset + len(data)] = data
    assert path.read_bytes() == expected
    shared_mount.remount()
    assert path.stat().st_size == len(expected)
    assert path.read_bytes() == expected


def test_truncate_both_ways(shared_mount: Mount, folder: Path, seed: int) -> None:
    content = random.Random(seed).randbytes(200_000)
    expected = {}
    for first in EDGES:
        for second in EDGES:
            path = folder / f"{first}-{second}"
            path.write_bytes(content)
            os.truncate(path, first)
            os.truncate(path, second)
            expected[path] = content[: min(first, second)].ljust(second, b"\0")
    assert [path for path, data in expected.items() if path.read_bytes() != data] == []
    shared_mount.remount()
    assert [path for path, data in expected.items() if path.read_bytes() != data] == []


def test_file_cut_under_an_open_reader(folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"x" * 100_000)
    with path.open("rb", buffering=0) as reader:
        assert len(os.pread(reader.fileno(), 10, 90_000)) == 10
        os.truncate(path, 50_000)
        assert os.pread(reader.fileno(), 10, 90_000) == b""
        assert os.pread(reader.fileno(), 100, 49_990) == b"x" * 10


def test_sparse_file_keeps_holes(shared_mount: Mount, folder: Path) -> None:
    path = folder / "volume.raw"
    size = 256 << 20
    with path.open("wb") as file:
        file.truncate(size)
        for offset in (10_000, 77 << 20, size - 3):
            file.seek(offset)
            file.write(b"abc")
    shared_mount.remount()
    status = path.stat()
    assert status.st_size == size
    assert status.st_blocks * 512 < 4 << 20, "the holes were filled"
    with path.open("rb") as file:
        for offset in (10_000, 77 << 20, size - 3):
            file.seek(offset - 100)
            assert file.read(106) == (bytes(100) + b"abc" + bytes(3))[: size - offset + 100]
        file.seek(130 << 20)
        assert file.read(1 << 20) == bytes(1 << 20)


def test_file_over_4_gib(shared_mount: Mount, folder: Path, seed: int) -> None:
    path = folder / "tomosynthesis.dcm"
    marker = random.Random(seed).randbytes(150_001)
    offset = (5 << 30) + 12_345
    with path.open("wb") as file:
        file.write(b"DICM")
        file.seek(offset)
        file.write(marker)
    shared_mount.remount()
    status = path.stat()
    assert status.st_size == offset + len(marker)
    assert status.st_blocks * 512 < 16 << 20
    with path.open("rb") as file:
        assert file.read(6) == b"DICM\0\0"
        for hole in ((1 << 32) - 10, (5 << 30) - 1):
            file.seek(hole)
            assert file.read(20) == bytes(20)
        file.seek(offset - 1)
        assert file.read() == b"\0" + marker
    os.truncate(path, 10)
    assert path.read_bytes() == b"DICM" + bytes(6)


def test_allocated_space_reads_as_zeros(folder: Path) -> None:
    path = folder / "f"
    with path.open("wb") as file:
        file.write(b"head")
        file.flush()
        os.posix_fallocate(file.fileno(), 0, 300_000)
    assert path.read_bytes() == b"head".ljust(300_000, b"\0")


def test_shared_mapping_reaches_the_file(shared_mount: Mount, folder: Path, seed: int) -> None:
    path = folder / "index-shm"
    expected = bytearray(random.Random(seed).randbytes(300_001))
    path.write_bytes(expected)

    def write_by_mapping() -> None:
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
            for offset in (0, 4095, 65_530, 300_000):
                mapping[offset : offset + 1] = b"!"
            mapping[65_536:69_632] = b"#" * 4096
            mapping.flush()

    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        Child(write_by_mapping).result()
        for offset in (0, 4095, 65_530, 300_000):
            expected[offset] = ord("!")
        expected[65_536:69_632] = b"#" * 4096
        assert view[:] == expected, "the other process's mapping shows something else"
        assert path.read_bytes() == expected
    shared_mount.remount()
    assert path.read_bytes() == expected


def test_shared_mapping_without_msync_is_written_at_close(shared_mount: Mount, folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(bytes(10_000))
    with path.open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0)
    mapping[9_000:9_004] = b"late"  # the descriptor is closed, the mapping lives on
    mapping.close()
    shared_mount.remount()
    assert path.read_bytes() == bytes(9_000) + b"late" + bytes(996)


def test_private_mapping_changes_nothing(shared_mount: Mount, folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(b"original" * 1000)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapping:
        mapping[0:8] = b"modified"
        assert mapping[0:8] == b"modified"
    shared_mount.remount()
    assert path.read_bytes() == b"original" * 1000


def _flock(descriptor: int) -> None:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _range_lock(descriptor: int) -> None:
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 100)


@pytest.mark.parametrize("lock", [_flock, _range_lock])
def test_locks_exclude_other_processes(folder: Path, lock: Callable[[int], None]) -> None:
    path = folder / "index.dat"
    path.touch()

    def try_lock() -> int:
        with path.open("r+b") as file:
            try:
                lock(file.fileno())
            except OSError as error:
                return error.errno
        return 0

    with path.open("r+b") as file:
        lock(file.fileno())
        assert Child(try_lock).result() in (errno.EAGAIN, errno.EACCES)
    assert Child(try_lock).result() == 0, "the lock outlived its holder"


def test_range_locks_apart_do_not_meet(folder: Path) -> None:
    path = folder / "index"
    path.touch()

    def lock_elsewhere() -> bool:
        with path.open("r+b") as file:
            fcntl.lockf(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 200)
        return True

    with path.open("r+b") as file:
        _range_lock(file.fileno())
        assert Child(lock_elsewhere).result()


def test_appends_of_two_processes_lose_nothing(shared_mount: Mount, folder: Path) -> None:
    path = folder / "log"

    def append(letter: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for number in range(500):
            os.write(descriptor, letter * 90 + b"%09d\n" % number)
        os.close(descriptor)

    in_parallel(lambda: append(b"a"), lambda: append(b"b"))
    shared_mount.remount()
    lines = path.read_bytes().splitlines()
    assert sorted(lines) == [letter * 90 + b"%09d" % n for letter in (b"a", b"b") for n in range(500)]
    for letter in (b"a", b"b"):
        mine = [line for line in lines if line.startswith(letter)]
        assert mine == sorted(mine), "one process's records changed their order"


def test_readers_and_writers_of_one_file_at_once(folder: Path) -> None:
    path = folder / "f"
    block = 4096
    path.write_bytes(bytes(64 * block))

    def write(first: int) -> None:
        with path.open("r+b", buffering=0) as file:
            for round_number in range(1, 30):
                for index in range(first, 64, 2):
                    os.pwrite(file.fileno(), bytes([round_number]) * block, index * block)

    def read() -> set[int]:
        """Every byte that is seen. On no file system is a read atomic: two rounds may show in a block."""
        seen: set[int] = set()
        with path.open("rb", buffering=0) as file:
            for _ in range(20):
                for index in range(64):
                    seen |= set(os.pread(file.fileno(), block, index * block))
        return seen

    assert in_parallel(lambda: write(0), lambda: write(1), read)[2] <= set(range(30))
    assert path.read_bytes() == bytes([29]) * (64 * block)


def test_unlinked_file_lives_until_closed(shared_mount: Mount, folder: Path) -> None:
    path = folder / "etilqs"
    with path.open("w+b", buffering=0) as file:
        file.write(b"before")
        path.unlink()
        assert os.fstat(file.fileno()).st_nlink == 0
        file.write(b"after" * 50_000)
        os.fsync(file.fileno())
        os.ftruncate(file.fileno(), 200_000)
        file.seek(0)
        assert file.read() == (b"before" + b"after" * 50_000)[:200_000]
        path.write_bytes(b"another")
        assert path.stat().st_ino != os.fstat(file.fileno()).st_ino
        assert os.pread(file.fileno(), 6, 0) == b"before"
    assert path.read_bytes() == b"another"
    shared_mount.remount()
    assert os.listdir(folder) == ["etilqs"]


def test_renamed_file_stays_open(shared_mount: Mount, folder: Path) -> None:
    incoming, database = folder / "INCOMING.noindex", folder / "DATABASE.noindex"
    incoming.mkdir()
    database.mkdir()
    with (incoming / "1.dcm").open("wb") as file:
        file.write(b"a" * 100_000)
        file.flush()
        (incoming / "1.dcm").rename(database / "2.dcm")
        file.write(b"b" * 100_000)
    assert (database / "2.dcm").read_bytes() == b"a" * 100_000 + b"b" * 100_000
    incoming.rename(folder / "moved")
    shared_mount.remount()
    assert (database / "2.dcm").read_bytes() == b"a" * 100_000 + b"b" * 100_000
    assert sorted(os.listdir(folder)) == ["DATABASE.noindex", "moved"]


def test_file_replaced_by_rename_while_open(folder: Path) -> None:
    (folder / "old").write_bytes(b"old")
    with (folder / "old").open("rb") as reader:
        (folder / "new").write_bytes(b"new")
        (folder / "new").rename(folder / "old")
        assert reader.read() == b"old"
    assert (folder / "old").read_bytes() == b"new"


def test_copy_within_the_mount(shared_mount: Mount, folder: Path, seed: int) -> None:
    content = random.Random(seed).randbytes(3_000_001)
    (folder / "a").write_bytes(content)
    shutil.copy2(folder / "a", folder / "b")
    with (folder / "a").open("rb") as source, (folder / "c").open("wb") as target:
        offset = 0
        while count := os.copy_file_range(source.fileno(), target.fileno(), len(content), offset, offset):
            offset += count
    shared_mount.remount()
    assert (folder / "b").read_bytes() == content
    assert (folder / "c").read_bytes() == content
    assert (folder / "b").stat().st_mtime_ns == (folder / "a").stat().st_mtime_ns


def test_synced_through_every_call(shared_mount: Mount, folder: Path) -> None:
    path = folder / "f"
    with path.open("wb", buffering=0) as file:
        for call in (os.fsync, os.fdatasync):
            file.write(b"x" * 70_000)
            call(file.fileno())
    synchronous = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_SYNC)
    os.write(synchronous, b"y" * 10)
    os.close(synchronous)
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(directory)
    os.close(directory)
    os.sync()
    shared_mount.remount()
    assert path.read_bytes() == b"x" * 140_000 + b"y" * 10


def test_everything_synced_after_deletions(folder: Path) -> None:
    """syncfs(2) writes back the attributes of deleted files that the kernel still knows."""

    def sync() -> None:
        run("sync", "--file-system", folder)

    path, other = folder / "a", folder / "b"
    path.write_bytes(b"x" * 10_000)
    sync()
    path.unlink()
    sync()
    path.write_bytes(b"old")
    other.write_bytes(b"new")
    other.rename(path)
    sync()
    os.link(path, other)
    path.unlink()
    sync()
    with other.open("wb") as file:
        file.write(b"x" * 10_000)
        other.unlink()
        sync()

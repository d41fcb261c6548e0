"""What is done to a vault while its lower file system is recorded. Nothing here is left to chance."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from unittest import mock

from cryptfs.fs import reencrypt, renewing
from cryptfs.fs.proving import Proof
from cryptfs.fs.throttle import Throttle
from tests.powercut.expect import Client

WORKLOADS: dict[str, Callable[[Client], None]] = {}
REENCRYPTIONS = {"reencryption", "reencryption_proved_late"}
WITH_ATTRIBUTES = {"attributes", *REENCRYPTIONS}
"""Those that use extended attributes."""


def workload(function: Callable[[Client], None]) -> Callable[[Client], None]:
    WORKLOADS[function.__name__] = function
    return function


def data(size: int, tag: object) -> bytes:
    """Bytes that do not occur anywhere else."""
    seed = hashlib.sha256(str(tag).encode()).digest()
    return b"".join(hashlib.sha256(seed + bytes([n & 255, n >> 8])).digest() for n in range(size // 32 + 1))[
        :size
    ]


@workload
def ingest_with_fsync(client: Client) -> None:
    """An imaging server stores slices in two new levels of directories and syncs each."""
    for number in range(6):
        folder = f"{number % 3:02x}"
        if number < 3:
            client.mkdir(folder)
        client.mkdir(f"{folder}/{number}")
        client.put(f"{folder}/{number}/slice", data(70_000, number), sync=True, step=30_000)


@workload
def ingest_without_fsync(client: Client) -> None:
    client.put("first", data(150_000, "first"))
    client.mkdir("study")
    for number in range(4):
        client.put(f"study/{number}", data(40_000 * number, number), step=16_384)
    client.settle()
    for number in range(4, 6):
        client.put(f"study/{number}", data(90_000, number), step=16_384)


@workload
def rollback_database(client: Client) -> None:
    """SQLite's journal mode DELETE."""
    database = client.create("index")
    client.write(database, 0, data(40_960, "index"))
    client.fsync(database)
    for turn in range(3):
        journal = client.create("index-journal")
        client.write(journal, 0, data(512, ("header", turn)))
        client.write(journal, 512, data(8200, ("old", turn)))
        client.fsync(journal)
        client.fsyncdir("")
        client.write(database, 4096 * turn, data(4096, ("page", turn)))
        client.write(database, 4096 * 5, data(8192, ("pages", turn)))
        client.fsync(database)
        client.close(journal)
        client.unlink("index-journal")
        client.fsyncdir("")
    client.close(database)


@workload
def write_ahead_log(client: Client) -> None:
    """SQLite's journal mode WAL, with a checkpoint and the log begun again."""
    database = client.create("index.db")
    client.write(database, 0, data(20_480, "index"))
    client.fsync(database)
    log = client.create("index.db-wal")
    for turn in range(8):
        client.write(log, 32 + turn % 5 * 4120, data(4120, turn))
        client.fsync(log)
        if turn == 4:
            client.write(database, 0, data(4096, "one"))
            client.write(database, 8192, data(4096, "two"))
            client.fsync(database)
        if turn == 6:
            client.checkpoint()
    client.truncate(log, 0)
    client.close(log)
    client.unlink("index.db-wal")
    client.close(database)


@workload
def append_and_fsync(client: Client) -> None:
    log = client.create("log")
    size = 0
    for turn in range(12):
        client.write(log, size, data(700 if turn % 4 else 40_000, turn))
        size += 700 if turn % 4 else 40_000
        client.fsync(log)
    client.close(log)
    log = client.open("log")
    client.write(log, size, data(100, "again"))
    client.close(log)


@workload
def emptied_and_settled(client: Client) -> None:
    """Just before an emptied file is synced the background work has settled it, and no other one."""
    log, index = client.create("log"), client.create("index")
    for file in (log, index):
        client.write(file, 0, data(70_000, file.handle))
        client.fsync(file)
    for turn in range(3):
        client.truncate(log, 0)
        client.write(log, 0, data(90_000, turn))
        client.write(index, 100 * turn, data(100, turn))
        client.commit()
        client.fs._committer.checkpoint(client.fs._handles[log.handle])
        client.fsync(log)
        client.write(log, 90_000, data(500, turn))
        client.fsync(log)
    client.close(log)
    client.close(index)


@workload
def overwrite_at_random(client: Client) -> None:
    file = client.create("volume")
    client.write(file, 0, data(300_000, "volume"))
    client.fsync(file)
    at = 1
    for turn in range(14):
        at = at * 7919 % 290_000
        client.write(file, at, data(3000 if turn % 3 else 80_000, turn))
        if turn % 5 == 4:
            client.fsync(file)
        elif turn % 5 == 2:
            client.commit()
    client.checkpoint()
    client.write(file, 1000, data(10, "last"))
    client.commit()
    client.close(file)


@workload
def moved_under_a_busy_journal(client: Client) -> None:
    """The journal has room ahead, so that its syncs change nothing but content."""
    file = client.create("index")
    client.write(file, 0, data(20_480, "index"))
    client.fsync(file)
    for turn in range(8):
        client.write(file, turn * 100, data(50, turn))
        client.fsync(file)
    client.rename("index", "renamed")
    for turn in range(4):
        client.write(file, 4000 + turn * 4096, data(200, ("renamed", turn)))
        client.commit()
    client.close(file)


@workload
def rename_over(client: Client) -> None:
    """How editors and package managers replace a file."""
    client.put("settings", data(5000, "old"), sync=True)
    for turn in range(3):
        client.put(f"settings.{turn}", data(70_000 * turn + 10, turn), sync=turn == 1)
        client.rename(f"settings.{turn}", "settings")
        if turn == 1:
            client.fsyncdir("")
    file = client.open("settings")
    client.write(file, 3, b"changed")
    client.fsync(file)
    client.write(file, 10, b"changed again")
    client.rename("settings", "kept")
    client.write(file, 20, b"and again")
    client.fsync(file)
    client.close(file)


@workload
def move_into_new_directories(client: Client) -> None:
    for number in range(3):
        client.put(f"incoming{number}", data(20_000, number), sync=True)
    for number in range(3):
        client.mkdir(f"day{number}")
        client.mkdir(f"day{number}/study")
        client.rename(f"incoming{number}", f"day{number}/study/image")
        if number == 1:
            client.fsyncdir("day1/study")
    client.rename("day2", "day1/moved")
    file = client.open("day1/moved/study/image")
    client.write(file, 100, b"touched")
    client.fsync(file)
    client.close(file)
    client.rename("day0", "day1", flags=2)
    client.fsyncdir("")


@workload
def directories(client: Client) -> None:
    """Made, emptied, removed, made again."""
    for number in range(4):
        client.mkdir(f"d{number}")
        client.mkdir(f"d{number}/inner")
    client.put("d0/inner/file", data(100, 0), sync=True)
    client.fsyncdir("d1")
    client.unlink("d0/inner/file")
    client.fsyncdir("d0/inner")
    client.rmdir("d1/inner")
    client.fsyncdir("d1")
    client.put("d2/inner/file", data(100, 2), sync=True)
    client.rename("d2/inner/file", "d3/file")
    client.fsyncdir("d3")
    client.chmod("d3", 0o711)
    client.fsyncdir("d3")
    client.rmdir("d2/inner")
    client.rmdir("d2")
    client.mkdir("d2", 0o700)
    client.put("d2/new", data(10, "new"), sync=True)
    client.unlink("d2/new")
    client.rmdir("d2")
    client.fsyncdir("")


@workload
def truncate_both_ways(client: Client) -> None:
    file = client.create("volume")
    client.write(file, 0, data(200_000, "volume"))
    client.fsync(file)
    for turn, size in enumerate((100, 150_000, 65_536, 1, 0, 70_000, 66_000)):
        client.truncate(file, size)
        if turn % 2:
            client.write(file, size, data(50, turn))
        if turn % 3 == 2:
            client.fsync(file)
    client.truncate(file, 0)
    client.write(file, 0, data(140_000, "anew"))
    client.fsync(file)
    client.truncate(file, 0)
    client.write(file, 0, data(80_000, "anew again"))
    client.close(file)


@workload
def holes(client: Client) -> None:
    file = client.create("sparse.db")
    client.write(file, 0, data(5000, "begin"))
    client.write(file, 1_200_000, data(5000, "end"))
    client.fsync(file)
    client.write(file, 600_000, data(9000, "middle"))
    client.write(file, 2_600_000, data(10, "beyond"))
    client.fsync(file)
    client.truncate(file, 700_000)
    client.truncate(file, 2_000_000)
    client.commit()
    client.close(file)


@workload
def hard_links(client: Client) -> None:
    client.mkdir("a")
    client.mkdir("b")
    client.put("a/file", data(10_000, "file"), sync=True)
    client.link("a/file", "b/file")
    file = client.open("b/file")
    client.write(file, 5, b"changed")
    client.fsync(file)
    client.write(file, 50, b"changed once more")
    client.commit()
    client.unlink("a/file")
    client.write(file, 500, b"by the second name")
    client.fsync(file)
    client.close(file)
    client.rename("b/file", "a/third")
    client.fsyncdir("a")
    client.unlink("a/third")
    client.fsyncdir("a")


@workload
def attributes(client: Client) -> None:
    client.mkdir("folder")
    client.put("folder/image", data(1000, "image"), sync=True)
    client.setxattr("folder/image", b"user.a", b"1")
    client.chmod("folder/image", 0o600)
    file = client.open("folder/image")
    client.fsync(file)
    client.setxattr("folder/image", b"user.b", data(2000, "value"))
    client.setxattr("folder", b"user.c", b"3")
    client.fsyncdir("folder")
    client.removexattr("folder/image", b"user.a")
    client.write(file, 0, b"changed")
    client.chmod("folder/image", 0o644)
    client.fsync(file)
    client.chmod("folder/image", 0o604)
    client.close(file)
    client.settle()
    client.chmod("folder/image", 0o640)
    client.chmod("folder", 0o700)


@workload
def long_names_and_links(client: Client) -> None:
    long = "n" * 250
    client.put(long, data(100, "long"), sync=True)
    client.mkdir("m" * 240)
    client.put("m" * 240 + "/" + long, data(200, "longer"), sync=True)
    client.rename(long, "m" * 240 + "/" + "o" * 230)
    client.fsyncdir("m" * 240)
    client.symlink("link", b"/srv/archive")
    client.symlink("another", b"x" * 3000)
    client.fsyncdir("")
    client.unlink("link")
    client.unlink("m" * 240 + "/" + long)
    client.fsyncdir("m" * 240)


@workload
def open_while_synced(client: Client) -> None:
    """A directory and a whole file system are synced while files in it are being written."""
    client.mkdir("study")
    file = client.create("study/open")
    client.write(file, 0, data(30_000, "open"))
    client.put("study/closed", data(30_000, "closed"))
    client.fsyncdir("study")
    client.write(file, 30_000, data(80_000, "more"))
    client.sync()
    client.write(file, 1000, data(40_000, "over"))
    client.put("study/late", data(10, "late"))
    client.settle()
    client.write(file, 70_000, data(60_000, "end"))
    client.close(file)
    client.unlink("study/closed")


@workload
def deleted_while_open(client: Client) -> None:
    file = client.create("index")
    client.write(file, 0, data(20_000, "index"))
    client.fsync(file)
    client.write(file, 100, b"changed")
    client.fsync(file)
    client.unlink("index")
    client.fs.write(file.handle, 0, data(30_000, "scratch"))
    client.put("index", data(9000, "another"), sync=True)
    client.fs.write(file.handle, 0, data(300, "scratch again"))
    client.checkpoint()
    client.close(file)


@workload
def reencryption(client: Client) -> None:
    """Everything gets new keys and names; each batch is synced before the next is begun."""
    reencrypt_everything(client, lambda proof, throttle: proof._run(throttle))


@workload
def reencryption_proved_late(client: Client) -> None:
    """The same; each batch is synced when the next one was copied, the last instant at which it may be."""
    reencrypt_everything(client, lambda _proof, _throttle: None)


def reencrypt_everything(client: Client, start: Callable[[Proof, Throttle], None]) -> None:
    """A file is open meanwhile, and what is not synced is there as well."""
    client.mkdir("a")
    client.mkdir("a/" + "m" * 240)
    client.put("a/image", data(70_000, "image"), sync=True)
    client.link("a/image", "a/" + "m" * 240 + "/image")
    client.put("a/" + "n" * 240, data(100, "long"))
    client.put("a/empty", b"")
    client.symlink("link", b"a/image")
    client.setxattr("a/empty", b"user.a", b"1")
    client.setxattr("a", b"user.b", b"2")
    sparse = client.create("sparse")
    client.write(sparse, 0, data(3000, "begin"))
    client.write(sparse, 1_300_000, data(3000, "end"))
    client.close(sparse)
    client.sync()
    file = client.create("a/open")
    client.write(file, 0, data(9000, "open"))
    client.fsync(file)
    client.write(file, 100, data(200, "changed"))
    with mock.patch.object(renewing, "BATCH_FILES", 3), mock.patch.object(Proof, "start", start):
        reencrypt.Reencrypt(client.fs, Throttle()).renew()
    client.write(file, 200, data(200, "changed again"))
    client.fsync(file)
    client.close(file)

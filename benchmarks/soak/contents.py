"""Workers that write content: images, blocks overwritten in place, logs."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.soak.worker import Worker, content, opened, write_all

BLOCK = 4096


class Ingest(Worker):
    """Images of 1 to 600 KB, written once, most of them synced, the oldest deleted."""

    kept = 60

    def prepare(self) -> None:
        super().prepare()
        self.images: dict[int, tuple[int, bool]] = {}  # number -> size, synced
        self.next = 0
        self.doubtful: int | None = None

    def _path(self, number: int) -> Path:
        return self.folder / f"{number % 7:02x}" / f"{number:06}.dcm"

    def step(self) -> None:
        number, self.next = self.next, self.next + 1
        size = self.random.choice([1, 4000, 30_000, 65_536, 130_000, 526_000, 600_000])
        sync, path = self.random.random() < 0.7, self._path(number)
        path.parent.mkdir(exist_ok=True)
        self.doubtful = number
        self.images[number] = size, False
        with opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
            write_all(descriptor, content(number, size), self.random.choice([4096, 65_536, 1 << 20]))
            if sync:
                os.fdatasync(descriptor)
                self.images[number] = size, True
        self.doubtful = None
        if len(self.images) > self.kept:
            oldest = next(iter(self.images))
            self.doubtful = oldest
            self._path(oldest).unlink()
            del self.images[oldest]
            self.doubtful = None
        elif self.images:
            self._read(self.random.choice(list(self.images)))

    def _read(self, number: int) -> None:
        if number != self.doubtful:
            found = self._path(number).read_bytes()
            self.expect(found == content(number, self.images[number][0]), f"image {number} is wrong")

    def refusal(self) -> None:
        number = self.doubtful
        if number is not None:
            self._path(number).unlink(missing_ok=True)
            self.images.pop(number, None)
            self.doubtful = None

    def check(self) -> None:
        for number, (size, synced) in list(self.images.items()):
            path, whole = self._path(number), content(number, size)
            if number == self.doubtful or (self.weather.killed and not synced):
                if path.exists():
                    found = path.read_bytes()
                    self.expect(whole.startswith(found), f"unsynced image {number} is no beginning")
                    path.unlink()
                del self.images[number]
            else:
                self.expect(path.read_bytes() == whole, f"image {number} (synced: {synced}) is wrong")
        names = {path.name for path in self.folder.rglob("*.dcm")}
        expected = {self._path(number).name for number in self.images}
        self.expect(names == expected, lambda: f"images {sorted(names ^ expected)} differ")
        self.doubtful = None


class Blocks(Worker):
    """A file of numbered blocks, overwritten at random and synced now and then."""

    count = 512
    suffix = ".img"

    def prepare(self) -> None:
        super().prepare()
        self.path = self.folder / f"blocks{self.suffix}"
        self.latest = [0] * self.count
        self.durable = [0] * self.count
        with opened(self.path, os.O_WRONLY | os.O_CREAT) as descriptor:
            write_all(descriptor, b"".join(self._block(n, 0) for n in range(self.count)), 1 << 16)
            os.fsync(descriptor)

    def _block(self, number: int, version: int) -> bytes:
        return content((self.name, number, version), BLOCK)

    def step(self) -> None:
        with opened(self.path, os.O_RDWR) as descriptor:
            for _ in range(self.random.randint(1, 8)):
                first = self.random.randrange(self.count)
                run = range(first, min(self.count, first + self.random.choice([1, 1, 2, 16])))
                for number in run:
                    self.latest[number] += 1
                data = b"".join(self._block(number, self.latest[number]) for number in run)
                write_all(descriptor, data, len(data), first * BLOCK)
            number = self.random.randrange(self.count)
            found = os.pread(descriptor, BLOCK, number * BLOCK)
            self.expect(
                self._version(number, found) == self.latest[number] or self.weather.full,
                f"block {number} does not read as it was written",
            )
            if self.random.random() < 0.4:
                if self.weather.full:
                    # An earlier error may have taken pages that nobody will write again.
                    for number in range(self.count):
                        if self.latest[number] != self.durable[number]:
                            os.pwrite(descriptor, self._block(number, self.latest[number]), number * BLOCK)
                os.fsync(descriptor)
                self.durable = list(self.latest)

    def _version(self, number: int, data: bytes) -> int | None:
        for version in range(self.latest[number], self.durable[number] - 1, -1):
            if data == self._block(number, version):
                return version
        return None

    def check(self) -> None:
        data = self.path.read_bytes()
        self.expect(len(data) == self.count * BLOCK, f"has {len(data)} bytes")
        exact = not (self.weather.killed or self.weather.full)
        for number in range(self.count):
            version = self._version(number, data[number * BLOCK : (number + 1) * BLOCK])
            self.expect(version is not None, f"block {number} has neither its synced content nor a newer one")
            self.expect(version == self.latest[number] or not exact, f"block {number} is not the newest")
            assert version is not None
            self.latest[number] = self.durable[number] = version


class Database4K(Blocks):
    """The same in chunks of 4 KiB."""

    suffix = ".db"


class Log(Worker):
    """Records appended, most of them synced; begun anew when the log has grown."""

    longest = 3 << 20

    def prepare(self) -> None:
        super().prepare()
        self.path = self.folder / "application.log"
        self.data = bytearray()
        self.synced = 0
        self.before: bytes | None = None  # what it was, while it is being emptied
        self.number = 0
        self.path.touch()

    def step(self) -> None:
        if len(self.data) > self.longest:
            self.before, self.data, self.synced = bytes(self.data), bytearray(), 0
            with opened(self.path, os.O_WRONLY | os.O_TRUNC):
                pass
            self.before = None
        with opened(self.path, os.O_WRONLY | os.O_APPEND) as descriptor:
            for _ in range(self.random.randint(1, 20)):
                self.number += 1
                record = content(("record", self.number), self.random.choice([10, 100, 5000, 70_000]))
                self.data += record
                write_all(descriptor, record, len(record))
            if self.random.random() < 0.8:
                os.fsync(descriptor)
                self.synced = len(self.data)

    def refusal(self) -> None:
        # What was appended in vain goes, so that what follows stands where the model has it.
        with opened(self.path, os.O_WRONLY) as descriptor:
            os.ftruncate(descriptor, self.synced)
        del self.data[self.synced :]
        self.before = None

    def check(self) -> None:
        found = self.path.read_bytes()
        if self.weather.full and self.weather.killed:
            # Pages that found no room are lost, and what was written after them is not.
            self.expect(found.startswith(self.data[: self.synced]), "has lost what was synced")
            self.refusal()
        elif self.before is not None and self.before.startswith(found) and found:
            self.data, self.before = bytearray(found), None
        else:
            self.expect(self.data.startswith(found), f"{len(found)} bytes are no beginning of the log")
            low = self.synced if self.weather.killed or self.weather.full else len(self.data)
            self.expect(low <= len(found), f"has {len(found)} bytes, {low} were synced")
            del self.data[len(found) :]
        self.before = None
        self.synced = len(self.data)

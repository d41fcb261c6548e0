"""Workers that change names, and one that looks at everything."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from benchmarks.soak.worker import Weather, Worker, content, opened, write_all


class Replace(Worker):
    """A file that is always replaced as a whole: written beside, then renamed over."""

    def prepare(self) -> None:
        super().prepare()
        self.path = self.folder / ("configuration " + "of a very long name " * 8)
        self.version = self.attempted = 0
        self.path.write_bytes(self._content(0))

    def _content(self, version: int) -> bytes:
        return content(("configuration", version), 10 + version % 9 * 11_000)

    def step(self) -> None:
        new = self.folder / "new"
        self.attempted = self.version + 1
        with opened(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
            write_all(descriptor, self._content(self.attempted), 4096)
            if self.random.random() < 0.5:
                os.fsync(descriptor)
        new.replace(self.path)
        self.version = self.attempted
        self.expect(self.path.read_bytes() == self._content(self.version), "it is not what was renamed over")

    def refusal(self) -> None:
        self.check()

    def check(self) -> None:
        found = self.path.read_bytes()
        for version in range(self.version, self.attempted + 1):
            if found == self._content(version):
                self.version = self.attempted = version
                return
        self.expect(False, f"is neither version {self.version} nor {self.attempted}")


class Move(Worker):
    """A folder with files that is moved about, and files in it that are exchanged."""

    places = 6
    files = 8

    def prepare(self) -> None:
        super().prepare()
        for place in range(self.places):
            (self.folder / f"study-{place}").mkdir()
        self.place = self.target = 0
        series = self._series(0)
        series.mkdir()
        for number in range(self.files):
            with opened(series / f"{number}", os.O_WRONLY | os.O_CREAT) as descriptor:
                os.write(descriptor, content(("moved", number), 3000 * number))
                os.fsync(descriptor)
        self.order = list(range(self.files))
        self.swapping: tuple[int, int] | None = None

    def _series(self, place: int) -> Path:
        return self.folder / f"study-{place}" / "series"

    def step(self) -> None:
        if self.random.random() < 0.5:
            self.target = self.random.randrange(self.places)
            if self.target != self.place:
                self._series(self.place).rename(self._series(self.target))
                self.place = self.target
        else:
            a, b = self.random.sample(range(self.files), 2)
            self.swapping = a, b
            series = self._series(self.place)
            spare = series / "spare"
            (series / f"{a}").rename(spare)
            (series / f"{b}").rename(series / f"{a}")
            spare.rename(series / f"{b}")
            self.order[a], self.order[b] = self.order[b], self.order[a]
            self.swapping = None

    def refusal(self) -> None:
        self.check()

    def check(self) -> None:
        places = [place for place in range(self.places) if self._series(place).exists()]
        self.expect(len(places) == 1 and places[0] in (self.place, self.target), f"is at {places}")
        self.place = self.target = places[0]
        series = self._series(self.place)
        if self.swapping is not None:
            self._finish(series, *self.swapping)
            self.swapping = None
        for number, origin in enumerate(self.order):
            found = (series / f"{number}").read_bytes()
            self.expect(found == content(("moved", origin), 3000 * origin), f"file {number} is wrong")
        self.expect(len(list(series.iterdir())) == self.files, "there are more files than there were")

    def _finish(self, series: Path, a: int, b: int) -> None:
        """An exchange that was interrupted is finished, or had been, or had not begun."""
        first, second, spare = series / f"{a}", series / f"{b}", series / "spare"
        if spare.exists():
            if not first.exists():
                second.rename(first)
            spare.rename(second)
            self.order[a], self.order[b] = self.order[b], self.order[a]
        elif first.read_bytes() == content(("moved", self.order[b]), 3000 * self.order[b]):
            self.order[a], self.order[b] = self.order[b], self.order[a]


class Walk(Worker):
    """Lists and reads everything there is; nothing may be unreadable."""

    pause = 0.5

    def __init__(self, root: Path, weather: Weather, seed: int) -> None:
        super().__init__(root, weather, seed)
        self.root = root

    def prepare(self) -> None:
        """It changes nothing and needs no folder."""

    def step(self) -> None:
        self._walk()

    def _walk(self) -> None:
        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise error

        for folder, _, names in os.walk(self.root, onerror=refuse):
            for name in names:
                self._look(Path(folder, name))
            if self.weather.stop.is_set():
                return

    def _look(self, path: Path) -> None:
        for attempt in (1, 2):
            try:
                path.stat()
                if self.random.random() < 0.2:
                    path.read_bytes()
            except FileNotFoundError:
                return  # renamed or deleted meanwhile
            except OSError as error:
                # A file deleted between the kernel's two steps may be EIO for once, if its inode number
                # was taken by another at once; a file that is damaged stays so.
                if error.errno != errno.EIO or attempt == 2:
                    raise

    def check(self) -> None:
        self._walk()

"""A worker that keeps a SQLite database, as imaging software keeps its index."""

from __future__ import annotations

import errno
import sqlite3

from benchmarks.soak.worker import Worker

_FULL = "no such table", "full", "I/O", "unable to open"
"""What SQLite says of a disk that is, or was, full."""


class Database(Worker):
    """Transactions of a few rows, durable when committed; old rows deleted, vacuumed now and then.

    The rows are numbered without a gap, from one of `lows` to one of `highs`: what was committed, and what
    failed to be since. A commit that met a full disk may be seen or not, and its pages may be in the cache
    of the kernel or in the log alone: that is decided by the next commit, or by a fresh mount.
    """

    kept = 1500

    def prepare(self) -> None:
        super().prepare()
        self.path = self.folder / "index"
        self.low, self.high = 1, 0
        self.lows, self.highs = {1}, {0}
        self.connection: sqlite3.Connection | None = None
        self.opened = 0

    def _open(self) -> sqlite3.Connection:
        if self.connection is None:
            connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=60)
            self.connection = connection  # to be closed even if the first word to it meets a full disk
            self.opened += 1
            connection.execute(f"PRAGMA journal_mode={'WAL' if self.opened % 2 else 'DELETE'}")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("CREATE TABLE IF NOT EXISTS instances(number INTEGER PRIMARY KEY, data)")
        return self.connection

    def step(self) -> None:
        try:
            self._transaction(self._open())
        except sqlite3.Error as error:
            if self.weather.killed:
                raise OSError(errno.EIO, str(error)) from None
            if not self.weather.full:
                raise
            self.refused += 1
            self._close()
            try:
                self._look()
            except sqlite3.Error:
                if not self.weather.killed:
                    raise
                raise OSError(errno.EIO, "killed meanwhile") from None

    def _transaction(self, connection: sqlite3.Connection) -> None:
        kind = self.random.random()
        if kind < 0.03:
            connection.execute("VACUUM")
        elif self.high - self.low > self.kept:
            low = self.low + self.kept // 3
            self.lows.add(low)
            connection.execute("DELETE FROM instances WHERE number < ?", (low,))
            self.low = low
        else:
            high = self.high + self.random.randint(1, 10)
            self.highs.add(high)
            connection.execute("BEGIN")
            for number in range(self.high + 1, high + 1):
                connection.execute("INSERT INTO instances VALUES(?, randomblob(1500))", (number,))
            connection.execute("COMMIT")
            self.high = high
        self.lows, self.highs = {self.low}, {self.high}

    def _close(self) -> None:
        if self.connection is not None:
            try:
                self.connection.close()
            except sqlite3.Error:
                pass  # of a mount that is gone
            self.connection = None

    def run(self) -> None:
        super().run()
        self._close()

    def _look(self) -> None:
        """Compare, and go on from what is there."""
        try:
            connection = sqlite3.connect(self.path, timeout=60)
        except sqlite3.OperationalError:
            if not self.weather.full:
                raise
            return  # no file can be made beside it
        try:
            state = connection.execute("PRAGMA integrity_check").fetchall()
            self.expect(state == [("ok",)], f"is damaged: {state[:3]}")
            if max(self.highs):
                rows = [n for (n,) in connection.execute("SELECT number FROM instances ORDER BY number")]
                low, high = (rows[0], rows[-1]) if rows else (self.low, self.low - 1)
                self.expect(rows == list(range(low, high + 1)), "rows are missing between others")
                self.expect(low in self.lows, f"begins with {low}, not {sorted(self.lows)}")
                self.expect(high in self.highs, f"ends with {high}, not {sorted(self.highs)}")
                self.low, self.high = low, high
        except sqlite3.OperationalError as error:
            if not self.weather.full or not any(words in str(error) for words in _FULL):
                raise
        finally:
            connection.close()

    def check(self) -> None:
        self._look()
        self.lows, self.highs = {self.low}, {self.high}

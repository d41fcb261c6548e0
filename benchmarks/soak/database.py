"""A worker that keeps a SQLite database, as imaging software keeps its index."""

from __future__ import annotations

import sqlite3

from benchmarks.soak.worker import Worker


class Database(Worker):
    """Transactions of a few rows, durable when committed; old rows deleted, vacuumed now and then.

    The rows are numbered without a gap: from `low` to `high`.
    """

    kept = 1500

    def prepare(self) -> None:
        super().prepare()
        self.path = self.folder / "index"
        self.low, self.high = 1, 0
        self.may_low, self.may_high = 1, 0
        self.connection: sqlite3.Connection | None = None
        self.opened = 0

    def _open(self) -> sqlite3.Connection:
        if self.connection is None:
            connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=60)
            self.opened += 1
            connection.execute(f"PRAGMA journal_mode={'WAL' if self.opened % 2 else 'DELETE'}")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("CREATE TABLE IF NOT EXISTS instances(number INTEGER PRIMARY KEY, data)")
            self.connection = connection
        return self.connection

    def step(self) -> None:
        try:
            self._transaction(self._open())
        except sqlite3.Error as error:
            if self.weather.killed:
                raise OSError(5, str(error)) from None
            if not self.weather.full:
                raise
            self.refused += 1
            self._close()
            self.check()

    def _transaction(self, connection: sqlite3.Connection) -> None:
        kind = self.random.random()
        if kind < 0.03:
            connection.execute("VACUUM")
        elif self.high - self.low > self.kept:
            self.may_low = self.low + self.kept // 3
            connection.execute("DELETE FROM instances WHERE number < ?", (self.may_low,))
            self.low = self.may_low
        else:
            self.may_high = self.high + self.random.randint(1, 10)
            connection.execute("BEGIN")
            for number in range(self.high + 1, self.may_high + 1):
                connection.execute("INSERT INTO instances VALUES(?, randomblob(1500))", (number,))
            connection.execute("COMMIT")
            self.high = self.may_high

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

    def check(self) -> None:
        connection = sqlite3.connect(self.path, timeout=60)
        try:
            state = connection.execute("PRAGMA integrity_check").fetchall()
            self.expect(state == [("ok",)], f"is damaged: {state[:3]}")
            if self.high or self.may_high:
                rows = [n for (n,) in connection.execute("SELECT number FROM instances ORDER BY number")]
                low, high = (rows[0], rows[-1]) if rows else (self.low, self.low - 1)
                self.expect(rows == list(range(low, high + 1)), "rows are missing between others")
                self.expect(low in (self.low, self.may_low), f"begins with {low}, not {self.low}")
                self.expect(high in (self.high, self.may_high), f"ends with {high}, not {self.high}")
                self.low = self.may_low = low
                self.high = self.may_high = high
        except sqlite3.OperationalError as error:
            if not self.weather.full:
                raise
            if "no such table" not in str(error) and "full" not in str(error) and "I/O" not in str(error):
                raise
        finally:
            connection.close()

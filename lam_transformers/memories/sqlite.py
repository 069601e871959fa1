"""The embedded store: one SQLite file, in WAL mode."""

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import MemoryFileDamaged, MemoryFileRefused, MemoryUnavailable
from .pool import Pool
from .store import Transaction, prepare

APPLICATION_ID = 0x4C414D31  # "LAM1"
PATIENCE = 60.0  # seconds that a lock is waited for
_TYPES = {"serial": "INTEGER PRIMARY KEY AUTOINCREMENT", "blob": "BLOB", "real": "REAL"}
# Result codes, by which errors are told apart.
_FULL, _READ_ONLY, _BUSY, _LOCKED, _CANNOT_OPEN, _CORRUPT, _NOT_A_DATABASE, _IO = 13, 8, 5, 6, 14, 11, 26, 10


class _Transaction:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql, values).fetchall()

    def run(self, sql: str, *values: Any) -> int:
        return self._connection.execute(sql, values).rowcount


class SQLiteStore(Pool):
    """A store in one file, for any number of threads and processes of one machine.

    Args:
        path: the file; it is made if it does not exist. ":memory:" is refused.

    Raises:
        MemoryFileRefused: for a file of another program or of a newer version.
        MemoryFileDamaged, MemoryUnavailable: as the contract says.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.place = os.fspath(path)
        if self.place.startswith(":memory:") or not self.place:
            raise ValueError("A memory needs a file of its own, such as memory.db.")
        super().__init__()
        self._writing = threading.RLock()  # threads of a process queue up here, where waiting is fair
        with self._errors():
            self._check_file()
            prepare(self, _TYPES, self._version, self._copy)

    def _check_file(self) -> None:
        path = Path(self.place)
        if path.exists() and not path.is_file():
            raise MemoryFileRefused(f"{self.place} is no file.")
        if not path.exists() and not path.parent.is_dir():
            raise MemoryUnavailable(f"The folder of {self.place} does not exist; make it first.")
        if path.exists() and path.stat().st_size:
            with path.open("rb") as file:
                head = file.read(100)
            if head[:16] != b"SQLite format 3\0":
                raise MemoryFileRefused(f"{self.place} is no memory: it is not a SQLite database.")
            if len(head) < 100:
                raise MemoryFileDamaged(f"{self.place} is cut off after {len(head)} bytes.")

    def _version(self) -> int | None:
        with self.read() as transaction:
            names = {name for (name,) in transaction.rows("SELECT name FROM sqlite_master WHERE type = 'table'")}
            (application,) = transaction.rows("PRAGMA application_id")[0]
            if not names and application in (0, APPLICATION_ID):
                return None
            if application != APPLICATION_ID or "settings" not in names:
                raise MemoryFileRefused(
                    f"{self.place} is no memory: it is a SQLite database of another program. Choose another file."
                )
            rows = transaction.rows("SELECT value FROM settings WHERE name = 'schema'")
            if not rows or not rows[0][0].isdigit():
                raise MemoryFileDamaged(f"{self.place} does not say which version of the schema it has.")
            return int(rows[0][0])

    def _copy(self, version: int) -> str:
        target = f"{self.place}.schema-{version}"
        if not os.path.exists(target):
            with self._connection() as connection:
                other = sqlite3.connect(target + ".tmp")
                try:
                    connection.backup(other)
                finally:
                    other.close()
            os.replace(target + ".tmp", target)
        return target

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.place, timeout=PATIENCE, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        try:
            connection.execute("PRAGMA busy_timeout = 60000")
            if connection.execute("PRAGMA application_id").fetchone()[0] == 0:
                empty = not connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
                if empty:
                    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            if connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID:
                with contextlib.suppress(sqlite3.OperationalError):  # a read-only file stays in the mode that it has
                    connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = ON")
            # Nothing that was said goes into temporary files.
            connection.execute("PRAGMA temp_store = MEMORY")
            connection.execute("PRAGMA cache_size = -65536")
        except BaseException:
            connection.close()
            raise
        return connection

    def _is_idle(self, connection: sqlite3.Connection) -> bool:
        return not connection.in_transaction

    def _after_fork(self) -> None:
        super()._after_fork()
        self._writing = threading.RLock()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """What SQLite says, in the words of this package."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)
            primary = None if code is None else code & 0xFF
            text = f"{self.place}: {error}"
            if primary == _FULL:
                raise MemoryUnavailable(f"{text}. Nothing was changed; make room on the disk and try again.") from error
            if primary == _READ_ONLY:
                raise MemoryUnavailable(f"{text}. It can be searched, but not written.") from error
            if primary in (_BUSY, _LOCKED):
                raise MemoryUnavailable(
                    f"{self.place} was in use by others for more than {PATIENCE:.0f} seconds; nothing was changed, "
                    "try again."
                ) from error
            if primary in (_CANNOT_OPEN, _IO):
                raise MemoryUnavailable(f"{text}. Nothing was changed.") from error
            if primary in (_CORRUPT, _NOT_A_DATABASE) or "malformed" in str(error) or "decode" in str(error):
                raise MemoryFileDamaged(
                    f"{text}. verify() names what is damaged, export() saves the memories that are intact."
                ) from error
            raise

    @contextlib.contextmanager
    def read(self) -> Iterator[Transaction]:
        """See `Store.read`."""
        with self._errors(), self._connection() as connection:
            connection.execute("BEGIN")
            try:
                yield _Transaction(connection)
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def write(self) -> Iterator[Transaction]:
        """See `Store.write`."""
        with self._errors(), self._writing, self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield _Transaction(connection)
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def forget(self) -> None:
        """Rewrites the file without what was deleted, and empties the WAL."""
        with self._errors(), self._writing, self._connection() as connection:
            until = time.monotonic() + PATIENCE
            connection.execute("VACUUM")
            while connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                if time.monotonic() > until:
                    raise MemoryUnavailable(
                        f"{self.place} is being read all the time, so that its WAL could not be emptied; what was "
                        "deleted is gone from all answers. Call forget() again to empty the WAL."
                    )
                time.sleep(0.01)

    def damage(self) -> list[str]:
        """See `Store.damage`."""
        try:
            with self._connection() as connection:
                lines = [line for (line,) in connection.execute("PRAGMA integrity_check(100)")]
        except sqlite3.Error as error:
            return [f"SQLite: {error}"]
        return [f"SQLite: {line}" for line in lines if line != "ok"]

    def size(self) -> int:
        """Bytes on disk."""
        paths = (self.place + ending for ending in ("", "-wal"))
        return sum(os.path.getsize(path) for path in paths if os.path.exists(path))

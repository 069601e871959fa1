"""The store for teams and more than one machine: PostgreSQL, through psycopg 3."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from .errors import MemoryFileDamaged, MemoryUnavailable
from .pool import Pool
from .store import Transaction, prepare

_TYPES = {"serial": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY", "blob": "BYTEA", "real": "DOUBLE PRECISION"}
_SCHEMA = "lam_memory"
_LOCK = 0x4C414D31  # of the one transaction that writes


class _Transaction:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql.replace("?", "%s"), values).fetchall()

    def run(self, sql: str, *values: Any) -> int:
        return self._connection.execute(sql.replace("?", "%s"), values).rowcount


class PostgresStore(Pool):
    """A store in the schema `lam_memory` of a database, for any number of threads, processes and machines.

    Args:
        place: "postgresql://user:password@host/database".

    Raises:
        ImportError: without psycopg.
        MemoryFileRefused, MemoryUnavailable: as the contract says.
    """

    def __init__(self, place: str) -> None:
        try:
            import psycopg
        except ImportError as error:
            raise ImportError('PostgreSQL needs psycopg: pip install "lam-transformers[memory]".') from error
        super().__init__()
        self._psycopg = psycopg
        self._place = place
        self.place = re.sub(r"//([^:@/]*):[^@/]*@", r"//\1:...@", place)
        prepare(self, _TYPES, self._version, self._copy)

    def _version(self) -> int | None:
        with self.read() as transaction:
            if transaction.rows(f"SELECT to_regclass('{_SCHEMA}.settings')")[0][0] is None:
                return None
            rows = transaction.rows("SELECT value FROM settings WHERE name = 'schema'")
        if not rows:
            raise MemoryFileDamaged(f"{self.place} does not say which version of the schema it has.")
        return int(rows[0][0])

    def _copy(self, version: int) -> str:
        """Copies of all tables, in a schema of their own."""
        name = f"{_SCHEMA}_{version}"
        with self.write() as transaction:
            if not transaction.rows("SELECT 1 FROM pg_namespace WHERE nspname = ?", name):
                transaction.run(f"CREATE SCHEMA {name}")
                for (table,) in transaction.rows("SELECT tablename FROM pg_tables WHERE schemaname = ?", _SCHEMA):
                    transaction.run(f"CREATE TABLE {name}.{table} AS TABLE {_SCHEMA}.{table}")
        return name

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._psycopg.errors.DataCorrupted as error:
            raise MemoryFileDamaged(f"{self.place}: {error}") from error
        except self._psycopg.errors.DiskFull as error:
            raise MemoryUnavailable(f"{self.place}: {error}. Nothing was changed; make room on the disk.") from error
        except self._psycopg.OperationalError as error:
            text = " ".join(str(error).split())
            raise MemoryUnavailable(f"{self.place} cannot be reached or is too busy: {text}") from error

    def _connect(self) -> Any:
        connection = self._psycopg.connect(self._place, autocommit=True)
        connection.execute("SET client_min_messages = warning")
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {_SCHEMA}")
        connection.execute(f"SET search_path = {_SCHEMA}")
        connection.execute("SET lock_timeout = '60s'")
        return connection

    def _is_idle(self, connection: Any) -> bool:
        idle: bool = connection.info.transaction_status == self._psycopg.pq.TransactionStatus.IDLE
        return idle

    @contextlib.contextmanager
    def read(self) -> Iterator[Transaction]:
        """See `Store.read`."""
        with self._errors(), self._connection() as connection:
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            try:
                yield _Transaction(connection)
            finally:
                connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def write(self) -> Iterator[Transaction]:
        """See `Store.write`."""
        with self._errors(), self._connection() as connection:
            connection.execute("BEGIN")
            done = False
            try:
                connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                yield _Transaction(connection)
                connection.execute("COMMIT")
                done = True
            finally:
                if not done and not connection.closed:
                    connection.execute("ROLLBACK")

    def forget(self) -> None:
        """Rewrites the tables without what was deleted; the server's own log (WAL) goes when it is recycled."""
        with self._errors(), self._connection() as connection:
            for table in ("memories", "vectors", "conversations", "documents", "events", "strengths", "settings"):
                connection.execute(f"VACUUM FULL {table}")

    def damage(self) -> list[str]:
        """Nothing: the server checks its own pages."""
        return []

    def size(self) -> int:
        """Bytes on disk."""
        with self.read() as transaction:
            return int(
                transaction.rows(
                    "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0) FROM pg_class c JOIN pg_namespace n "
                    "ON n.oid = c.relnamespace WHERE n.nspname = ? AND c.relkind = 'r'",
                    _SCHEMA,
                )[0][0]
            )

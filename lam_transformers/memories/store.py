"""What a store is: transactions over a handful of tables. SQLite is one, PostgreSQL another.

The SQL of the service is written once, in what both databases understand; a store brings the connections, the types'
names, and what each database does in its own way (locks, forgetting, checks of its files).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from .errors import MemoryFileRefused

SCHEMA_VERSION = 2

# Keys of a server, each bound to a scope; only hashes of them.
_API_KEYS = (
    """CREATE TABLE api_keys (
        digest TEXT PRIMARY KEY, name TEXT NOT NULL, user_id TEXT NOT NULL, agent_id TEXT NOT NULL,
        run_id TEXT NOT NULL, created {real} NOT NULL, revoked {real})""",
    "CREATE UNIQUE INDEX api_keys_in_use ON api_keys (name) WHERE revoked IS NULL",
)

# One statement each. {serial}: an integer key that is never used twice; {blob}: bytes; {real}: a 64-bit float.
TABLES = (
    # schema, model, dimension, words, passage
    "CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    # Every version of every memory, as it was said. changed: the event that wrote the row last.
    """CREATE TABLE memories (
        row_id {serial}, id TEXT NOT NULL, version INTEGER NOT NULL, kind TEXT NOT NULL, user_id TEXT NOT NULL,
        agent_id TEXT NOT NULL, run_id TEXT NOT NULL, role TEXT, key TEXT, source_id TEXT, text TEXT NOT NULL,
        metadata TEXT NOT NULL, time {real} NOT NULL, superseded {real}, position BIGINT, document_id TEXT,
        start_at BIGINT, end_at BIGINT, digest TEXT NOT NULL, changed BIGINT NOT NULL, UNIQUE (id, version))""",
    "CREATE INDEX memories_of_user ON memories (user_id, changed)",
    "CREATE INDEX memories_of_run ON memories (user_id, agent_id, run_id, position)",
    "CREATE INDEX memories_of_document ON memories (document_id, position)",
    "CREATE UNIQUE INDEX memories_of_key ON memories (user_id, agent_id, key) "
    "WHERE key IS NOT NULL AND superseded IS NULL",
    "CREATE UNIQUE INDEX memories_of_source ON memories (user_id, agent_id, run_id, source_id, version) "
    "WHERE source_id IS NOT NULL",
    # What is computed from a text: float32 vectors, the passages' spans (int32 pairs), the words (words.ENTRY).
    """CREATE TABLE vectors (
        row_id BIGINT PRIMARY KEY, alone {blob}, passages {blob}, spans {blob}, carried {blob}, words {blob} NOT NULL,
        digest TEXT NOT NULL)""",
    # How well a memory is remembered; session: when both were last brought up to date.
    """CREATE TABLE strengths (
        id TEXT PRIMARY KEY, user_id TEXT NOT NULL, fast {real} NOT NULL, slow {real} NOT NULL,
        session BIGINT NOT NULL, recalls BIGINT NOT NULL)""",
    "CREATE TABLE sessions (user_id TEXT PRIMARY KEY, number BIGINT NOT NULL, time {real} NOT NULL)",
    # A conversation, and the state of the model after its first `read_turns` turns.
    """CREATE TABLE conversations (
        user_id TEXT NOT NULL, agent_id TEXT NOT NULL, run_id TEXT NOT NULL, turns BIGINT NOT NULL,
        last_time {real} NOT NULL, epoch BIGINT NOT NULL, read_turns BIGINT NOT NULL, tail {blob}, state {blob},
        digest TEXT, PRIMARY KEY (user_id, agent_id, run_id))""",
    # A document; while it is read, `state` is where to go on from.
    """CREATE TABLE documents (
        id TEXT NOT NULL, version INTEGER NOT NULL, user_id TEXT NOT NULL, agent_id TEXT NOT NULL, title TEXT NOT NULL,
        digest TEXT NOT NULL, text TEXT NOT NULL, complete INTEGER NOT NULL, read_tokens BIGINT NOT NULL, state {blob},
        PRIMARY KEY (id, version))""",
    "CREATE INDEX documents_of_user ON documents (user_id, agent_id, title, version)",
    # What happened, in order. It never holds text.
    """CREATE TABLE events (
        number {serial}, time {real} NOT NULL, kind TEXT NOT NULL, id TEXT, user_id TEXT NOT NULL,
        data TEXT NOT NULL)""",
    "CREATE INDEX events_of_memory ON events (id)",
    # Counts the deletions of a user's memories: who holds a copy in memory sees that it has to look again.
    "CREATE TABLE deletions (user_id TEXT PRIMARY KEY, number BIGINT NOT NULL)",
    *_API_KEYS,
)

# What turns schema version n into n + 1, run after a copy was made: {n: [statements]}.
MIGRATIONS: dict[int, Sequence[str]] = {1: _API_KEYS}


class Transaction(Protocol):
    """Statements that take effect together or not at all. Values are written as ? in the SQL."""

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """What a statement returns."""

    def run(self, sql: str, *values: Any) -> int:
        """Runs a statement; the number of rows it changed."""


class Store(Protocol):
    """The contract of a store. All of it may be used from any thread.

    Attributes:
        place: where the data is, for messages; without a password.
    """

    place: str

    def read(self) -> AbstractContextManager[Transaction]:
        """One snapshot to read from."""

    def write(self) -> AbstractContextManager[Transaction]:
        """The one transaction that may write, across threads, processes and machines; commits unless there is an error.

        Raises:
            MemoryUnavailable: for a full disk, a read-only database, a lock that is held too long.
            MemoryFileDamaged: for a database that the engine cannot read.
        """

    def forget(self) -> None:
        """Leave nothing of what was deleted in any file of the database."""

    def damage(self) -> list[str]:
        """What the database's own check finds."""

    def size(self) -> int:
        """Bytes on disk."""

    def close(self) -> None:
        """Let go of all connections."""


def prepare(store: Store, types: dict[str, str], present: Callable[[], int | None], copy: Callable[[int], str]) -> None:
    """Make the tables of an empty database, or bring older ones up to date.

    Args:
        store: the store.
        types: names of the types serial, blob and real.
        present: the schema version in the database, None for an empty one.
        copy: saves a database of the given version before it is changed; says where.

    Raises MemoryFileRefused for a newer version, or one that nothing leads on from.
    """
    version = present()
    if version is None:
        with store.write() as transaction:
            if present() is not None:  # another process was first
                return
            for statement in TABLES:
                transaction.run(statement.format(**types))
            transaction.run("INSERT INTO settings (name, value) VALUES ('schema', ?)", str(SCHEMA_VERSION))
        return
    if version > SCHEMA_VERSION:
        raise MemoryFileRefused(
            f"{store.place} was written by a newer version of lam-transformers (schema {version}, this one knows "
            f"{SCHEMA_VERSION}); update the package."
        )
    if version < SCHEMA_VERSION:
        copy(version)
        with store.write() as transaction:
            version = int(transaction.rows("SELECT value FROM settings WHERE name = 'schema'")[0][0])
            while version < SCHEMA_VERSION:
                if version not in MIGRATIONS:
                    raise MemoryFileRefused(f"{store.place} has schema {version}, which this version cannot read.")
                for statement in MIGRATIONS[version]:
                    transaction.run(statement.format(**types))
                version += 1
            transaction.run("UPDATE settings SET value = ? WHERE name = 'schema'", str(version))

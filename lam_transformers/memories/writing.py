"""Rows that are written: versions of memories with their vectors and words, and the log."""

from typing import Any

import numpy as np

from .engine import Engine
from .records import MemoryRecord
from .rows import RECORD, Computed, Version, as_float32, as_json, digest_of, record_of
from .store import Transaction


def log(engine: Engine, transaction: Transaction, kind: str, id: str | None, user_id: str, data: dict[str, Any]) -> int:
    """Write an event, which must hold no text; its number."""
    rows = transaction.rows(
        "INSERT INTO events (time, kind, id, user_id, data) VALUES (?, ?, ?, ?, ?) RETURNING number",
        *(engine.now(), kind, id, user_id, as_json(data)),
    )
    return int(rows[0][0])


def insert(
    engine: Engine,
    transaction: Transaction,
    event: int,
    version: Version,
    computed: Computed,
    carried: np.ndarray | None = None,
) -> int:
    """Write a version of a memory with its vectors and words.

    Args:
        engine: the memory.
        transaction: one that writes.
        event: number of the event by which the version is written.
        version: what is remembered.
        computed: what was made of its text.
        carried: the carried vector [D] of a turn.

    Returns:
        its row_id.
    """
    if computed.alone is not None:
        engine.claim(transaction)
    columns = {
        "id": version.id,
        "version": version.version,
        "kind": version.kind,
        "user_id": version.scope.user_id,
        "agent_id": version.scope.agent_id,
        "run_id": version.scope.run_id,
        "role": version.role,
        "key": version.key,
        "source_id": version.source_id,
        "text": version.text,
        "metadata": version.metadata,
        "time": version.at,
        "superseded": version.superseded,
        "position": version.position,
        "document_id": version.document_id,
        "start_at": None if version.span is None else version.span[0],
        "end_at": None if version.span is None else version.span[1],
        "digest": digest_of(version.text, version.metadata),
        "changed": event,
    }
    marks = ", ".join("?" * len(columns))
    rows = transaction.rows(
        f"INSERT INTO memories ({', '.join(columns)}) VALUES ({marks}) RETURNING row_id", *columns.values()
    )
    row = int(rows[0][0])
    write_vectors(transaction, row, computed, None if carried is None else as_float32(carried))
    return row


def write_vectors(transaction: Transaction, row: int, computed: Computed, carried: bytes | None = None) -> None:
    """Write what was made of a text, for a row that has none of it yet."""
    values = (computed.alone, computed.passages, computed.spans, carried, computed.words)
    transaction.run(
        "INSERT INTO vectors (row_id, alone, passages, spans, carried, words, digest) VALUES (?, ?, ?, ?, ?, ?, ?)",
        *(row, *values, digest_of(*values)),
    )


def replace_vectors(transaction: Transaction, row: int, computed: Computed) -> None:
    """Write what was made of a text in place of what its row has."""
    transaction.run("DELETE FROM vectors WHERE row_id = ?", row)
    write_vectors(transaction, row, computed)


def write_carried(transaction: Transaction, row: int, carried: np.ndarray | None) -> None:
    """Write the carried vector [D] of a row, or take it away."""
    data = None if carried is None else as_float32(carried)
    rows = transaction.rows("SELECT alone, passages, spans, words FROM vectors WHERE row_id = ?", row)
    for alone, passages, spans, words in rows:
        digest = digest_of(alone, passages, spans, data, words)
        transaction.run("UPDATE vectors SET carried = ?, digest = ? WHERE row_id = ?", data, digest, row)


def erase_row(transaction: Transaction, row: int) -> None:
    """Delete a version and what was made of it."""
    transaction.run("DELETE FROM vectors WHERE row_id = ?", row)
    transaction.run("DELETE FROM memories WHERE row_id = ?", row)


def record_at(transaction: Transaction, row: int) -> MemoryRecord:
    """The record of a row that is there."""
    return record_of(transaction.rows(f"SELECT {RECORD} FROM memories WHERE row_id = ?", row)[0])


def count_deletion(transaction: Transaction, user_id: str) -> None:
    """Let everybody who keeps a user's memories in memory see that they have to look again."""
    transaction.run(
        "INSERT INTO deletions (user_id, number) VALUES (?, 1) "
        "ON CONFLICT (user_id) DO UPDATE SET number = deletions.number + 1",
        user_id,
    )

"""Memories that are forgotten: texts, vectors, words, log entries, and all that has read them."""

from typing import Any

from .conversations import drop_state
from .engine import Engine
from .lookup import one
from .records import Scope
from .rows import OF_SCOPE, exactly
from .store import Transaction
from .writing import count_deletion, erase_row, log


def delete(engine: Engine, id: str, scope: Scope | None) -> None:
    """See `Memory.delete`."""
    with engine.store.write() as transaction:
        newest = one(transaction, id, scope, own=True, holds=False)
        if newest[3] == "paragraph":
            raise ValueError(f"{id} is a paragraph of the document {newest[13]}; delete that.")
        _erase(engine, transaction, "id = ?", [id])
    engine.clear()
    clean(engine)


def delete_all(engine: Engine, scope: Scope, everything: bool, strictly: bool = False) -> int:
    """See `Memory.delete_all`; strictly: as `exactly`."""
    if scope == Scope() and not everything:
        raise ValueError("delete_all needs a user_id, agent_id or run_id; everything=True forgets all users.")
    if scope != Scope() and everything:
        raise ValueError("everything=True means all users; leave the scope out.")
    where, values = ("1 = 1", []) if everything else exactly(scope, strictly)
    with engine.store.write() as transaction:
        count = _erase(engine, transaction, where, values)
        if everything:
            for table in ("conversations", "strengths", "sessions", "events"):
                transaction.run(f"DELETE FROM {table}")
    engine.clear()
    clean(engine)
    return count


def clean(engine: Engine) -> None:
    """See `Memory.forget`."""
    engine.store.forget()
    with engine.store.write() as transaction:
        transaction.run("DELETE FROM settings WHERE name = 'forgetting'")


def _erase(engine: Engine, transaction: Transaction, where: str, values: list[str]) -> int:
    """Deletes memories with all that was made of them; the number of memories.

    where: a condition on columns that documents have too, with its values.
    """
    # Paragraphs go with their document.
    where = f"({where}) OR document_id IN (SELECT id FROM memories WHERE ({where}) AND kind = 'document')"
    rows = transaction.rows(
        f"SELECT row_id, id, kind, user_id, agent_id, run_id, position FROM memories WHERE {where}",
        *(*values, *values),
    )
    for row_id, *_ in rows:
        erase_row(transaction, row_id)
    for id in {row[1] for row in rows}:
        for table in ("events", "strengths", "documents"):
            transaction.run(f"DELETE FROM {table} WHERE id = ?", id)
    _erase_from_conversations(transaction, rows)
    for user in {row[3] for row in rows}:
        count_deletion(transaction, user)
    # Whoever opens the memory after a kill between here and the end of `clean` goes on with it.
    transaction.run("INSERT INTO settings (name, value) VALUES ('forgetting', '1') ON CONFLICT (name) DO NOTHING")
    for id, user in {(row[1], row[3]) for row in rows if row[2] != "paragraph"}:
        log(engine, transaction, "deleted", id, user, {})
    return len({row[1] for row in rows if row[2] != "paragraph"})


def _erase_from_conversations(transaction: Transaction, rows: list[tuple[Any, ...]]) -> None:
    """The states that have read deleted turns, and conversations of which nothing is left."""
    positions: dict[Scope, int] = {}
    for row in rows:
        if row[2] == "turn":
            scope = Scope(*row[3:6])
            positions[scope] = min(positions.get(scope, row[6]), row[6])
    for scope, position in positions.items():
        drop_state(transaction, scope, position)
        left = transaction.rows(f"SELECT 1 FROM memories WHERE {OF_SCOPE} AND kind = 'turn' LIMIT 1", *scope.values)
        if not left:
            transaction.run(f"DELETE FROM conversations WHERE {OF_SCOPE}", *scope.values)

"""Memories looked up by id or listed, their versions, and the log."""

import json
from collections.abc import Iterable
from typing import Any

from .errors import UnknownMemory
from .records import ConversationRecord, MemoryRecord, Scope, as_datetime, check_kinds, check_name
from .rows import RECORD, exactly, record_of
from .store import Store, Transaction


def one(transaction: Transaction, id: Any, scope: Scope | None, *, own: bool, holds: bool) -> tuple[Any, ...]:
    """(row_id, *RECORD) of the newest version of a memory. Another user's memory is as unknown as one that is not.

    Args:
        transaction: one that reads or writes.
        id: of the memory.
        scope: who asks; None for whoever may see and change everything.
        own: whether it has to be the scope's own, because it is to be changed, or only to be seen from there.
        holds: whether the version has to hold still.

    Raises:
        UnknownMemory: if there is none.
    """
    if not isinstance(id, str) or "\0" in id:
        raise UnknownMemory(f"There is no memory {id!r}.")
    where = "superseded IS NULL" if holds else "1 = 1"
    rows = transaction.rows(
        f"SELECT row_id, {RECORD} FROM memories WHERE id = ? AND {where} ORDER BY version DESC LIMIT 1", id
    )
    if rows and scope is not None:
        theirs = Scope(*rows[0][5:8])
        if not (scope.owns(theirs) if own else scope.sees(theirs)):
            rows = []
    if not rows:
        raise UnknownMemory(f"There is no memory {id[:80]!r}.")
    return rows[0]


def get(store: Store, id: str, scope: Scope | None) -> MemoryRecord:
    """See `Memory.get`."""
    with store.read() as transaction:
        return record_of(one(transaction, id, scope, own=False, holds=True)[1:])


def history(store: Store, id: str, scope: Scope | None) -> list[MemoryRecord]:
    """See `Memory.history`."""
    with store.read() as transaction:
        one(transaction, id, scope, own=False, holds=False)
        rows = transaction.rows(f"SELECT {RECORD} FROM memories WHERE id = ? ORDER BY version", id)
    return [record_of(row) for row in rows]


def document(store: Store, id: str, scope: Scope | None) -> str:
    """See `Memory.document`."""
    with store.read() as transaction:
        newest = one(transaction, id, scope, own=False, holds=False)
        rows = transaction.rows("SELECT text FROM documents WHERE id = ? ORDER BY version DESC LIMIT 1", newest[1])
    if not rows:
        raise UnknownMemory(f"{id!r} is no document.")
    return str(rows[0][0])


def listed(
    store: Store, scope: Scope, kinds: Iterable[str] | None, limit: int, offset: int, strictly: bool = False
) -> list[MemoryRecord]:
    """See `Memory.list`; strictly: as `exactly`."""
    chosen = ("memory", "turn", "document") if kinds is None else check_kinds(kinds)
    _check_page(limit, offset)
    where, values = exactly(scope, strictly)
    marks = ", ".join("?" * len(chosen))
    with store.read() as transaction:
        rows = transaction.rows(
            f"SELECT {RECORD} FROM memories WHERE {where} AND kind IN ({marks}) AND superseded IS NULL "
            "ORDER BY row_id LIMIT ? OFFSET ?",
            *(*values, *chosen, limit, offset),
        )
    return [record_of(row) for row in rows]


def conversations(
    store: Store, scope: Scope, limit: int, offset: int, strictly: bool = False
) -> list[ConversationRecord]:
    """See `Memory.conversations`; strictly: as `exactly`."""
    _check_page(limit, offset)
    where, values = exactly(scope, strictly)
    with store.read() as transaction:
        # A correction has a later time than what it corrects: a turn was said when its first version was written.
        rows = transaction.rows(
            "SELECT user_id, agent_id, run_id, sum(CASE WHEN superseded IS NULL THEN 1 ELSE 0 END), min(time), "
            "max(CASE WHEN version = 1 THEN time END) AS last_time FROM memories "
            f"WHERE {where} AND kind = 'turn' GROUP BY user_id, agent_id, run_id "
            "ORDER BY last_time DESC, user_id, agent_id, run_id LIMIT ? OFFSET ?",
            *(*values, limit, offset),
        )
    return [
        ConversationRecord(
            user_id=row[0] or None,
            agent_id=row[1] or None,
            run_id=row[2] or None,
            turns=int(row[3]),
            first_time=as_datetime(row[4]),
            last_time=as_datetime(row[4] if row[5] is None else row[5]),
        )
        for row in rows
    ]


def _check_page(limit: int, offset: int) -> None:
    for name, value in (("limit", limit), ("offset", offset)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{name} must be a whole number from 0 on, got {value!r}.")


def seen(store: Store, scope: Scope) -> list[MemoryRecord]:
    """All that holds and may be seen from a scope, as a search there sees it, in the order in which it was written."""
    with store.read() as transaction:
        rows = transaction.rows(
            f"SELECT {RECORD} FROM memories WHERE user_id IN (?, '') AND superseded IS NULL ORDER BY row_id",
            scope.user_id,
        )
    return [record_of(row) for row in rows if scope.sees(Scope(*row[4:7]))]


def events(store: Store, id: str | None, user_id: str | None) -> list[dict[str, Any]]:
    """See `Memory.events`."""
    where = "1 = 1"
    values = []
    if id is not None:
        where = "id = ?"
        values.append(id)
    if user_id is not None:
        where += " AND user_id = ?"
        values.append(check_name("user_id", user_id))
    with store.read() as transaction:
        rows = transaction.rows(
            f"SELECT number, time, kind, id, data FROM events WHERE {where} ORDER BY number", *values
        )
    return [
        {"number": row[0], "time": as_datetime(row[1]), "kind": row[2], "id": row[3], **json.loads(row[4])}
        for row in rows
    ]

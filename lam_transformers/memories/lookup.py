"""Memories looked up by id or listed, their versions, and the log."""

import json
from collections.abc import Iterable
from typing import Any

from .errors import UnknownMemory
from .records import MemoryRecord, Scope, as_datetime, check_kinds, check_name, check_owner
from .rows import RECORD, exactly, record_of
from .store import Store, Transaction


def one(transaction: Transaction, id: Any, user_id: str | None, *, shared: bool, holds: bool) -> tuple[Any, ...]:
    """(row_id, *RECORD) of the newest version of a memory. Another user's memory is as unknown as one that is not.

    Args:
        transaction: one that reads or writes.
        id: of the memory.
        user_id: whose it has to be: None for anybody's, "" for a shared one.
        shared: whether a shared one will do for a user too.
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
    allowed = {user_id, ""} if shared else {user_id}
    if not rows or (user_id is not None and rows[0][5] not in allowed):
        raise UnknownMemory(f"There is no memory {id[:80]!r}.")
    return rows[0]


def get(store: Store, id: str, user_id: str | None) -> MemoryRecord:
    """See `Memory.get`."""
    owner = check_owner(user_id)
    with store.read() as transaction:
        return record_of(one(transaction, id, owner, shared=True, holds=True)[1:])


def history(store: Store, id: str, user_id: str | None) -> list[MemoryRecord]:
    """See `Memory.history`."""
    owner = check_owner(user_id)
    with store.read() as transaction:
        one(transaction, id, owner, shared=True, holds=False)
        rows = transaction.rows(f"SELECT {RECORD} FROM memories WHERE id = ? ORDER BY version", id)
    return [record_of(row) for row in rows]


def document(store: Store, id: str, user_id: str | None) -> str:
    """See `Memory.document`."""
    owner = check_owner(user_id)
    with store.read() as transaction:
        newest = one(transaction, id, owner, shared=True, holds=False)
        rows = transaction.rows("SELECT text FROM documents WHERE id = ? ORDER BY version DESC LIMIT 1", newest[1])
    if not rows:
        raise UnknownMemory(f"{id!r} is no document.")
    return str(rows[0][0])


def listed(store: Store, scope: Scope, kinds: Iterable[str] | None, limit: int, offset: int) -> list[MemoryRecord]:
    """See `Memory.list`."""
    chosen = ("memory", "turn", "document") if kinds is None else check_kinds(kinds)
    for name, value in (("limit", limit), ("offset", offset)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{name} must be a whole number from 0 on, got {value!r}.")
    where, values = exactly(scope)
    marks = ", ".join("?" * len(chosen))
    with store.read() as transaction:
        rows = transaction.rows(
            f"SELECT {RECORD} FROM memories WHERE {where} AND kind IN ({marks}) AND superseded IS NULL "
            "ORDER BY row_id LIMIT ? OFFSET ?",
            *(*values, *chosen, limit, offset),
        )
    return [record_of(row) for row in rows]


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

"""Texts that are remembered, and newer versions that supersede them."""

import uuid
from collections.abc import Sequence
from typing import Any

from .conversations import add_messages, drop_state
from .engine import Engine
from .lookup import one
from .records import (
    MemoryRecord,
    Scope,
    Time,
    as_datetime,
    check_messages,
    check_metadata,
    check_name,
    check_text,
    check_time,
)
from .rows import RECORD, Computed, Version, record_of
from .store import Transaction
from .strengths import begin
from .writing import count_deletion, insert, log, record_at


def add(
    engine: Engine,
    content: str | dict[str, Any] | Sequence[dict[str, Any]],
    scope: Scope,
    key: str | None,
    timestamp: Time | None,
    metadata: dict[str, Any] | None,
) -> list[MemoryRecord]:
    """See `Memory.add`."""
    at = None if timestamp is None else check_time("timestamp", timestamp)
    if isinstance(content, str):
        name = None if key is None else check_name("key", key)
        text = check_text("The text", content)
        return [_add_text(engine, text, scope, name, at, check_metadata("metadata", metadata))]
    if key is not None or metadata is not None or timestamp is not None:
        raise ValueError("key, timestamp and metadata belong to a text; a message has its own inside.")
    return add_messages(engine, check_messages([content] if isinstance(content, dict) else content), scope)


def _add_text(
    engine: Engine, text: str, scope: Scope, key: str | None, at: float | None, metadata: str
) -> MemoryRecord:
    computed = engine.compute([text])[0]
    with engine.store.write() as transaction:
        given = at
        at = engine.now() if given is None else given
        old = None
        if key is not None:
            rows = transaction.rows(
                f"SELECT row_id, {RECORD} FROM memories WHERE user_id = ? AND agent_id = ? AND key = ? "
                "AND superseded IS NULL",
                *(scope.user_id, scope.agent_id, key),
            )
            old = rows[0] if rows else None
        if old is None:
            version = Version(
                id=uuid.uuid4().hex, kind="memory", scope=scope, text=text, at=at, metadata=metadata, key=key
            )
            event = log(engine, transaction, "added", version.id, scope.user_id, {})
            row = insert(engine, transaction, event, version, computed)
            begin(engine, transaction, version.id, scope.user_id, computed.alone)
        elif old[2] == text and old[16] == metadata:
            return record_of(old[1:])  # known already
        else:
            # A clock that went back is no error of the caller's.
            at = max(at, old[9]) if given is None else at
            row = _supersede(engine, transaction, old, computed, text, at, metadata)
        return record_at(transaction, row)


def update(
    engine: Engine,
    id: str,
    text: str,
    timestamp: Time | None,
    metadata: dict[str, Any] | None,
    scope: Scope | None,
) -> MemoryRecord:
    """See `Memory.update`."""
    check_text("The text", text)
    given = None if timestamp is None else check_time("timestamp", timestamp)
    computed = engine.compute([text])[0]
    with engine.store.write() as transaction:
        old = one(transaction, id, scope, own=True, holds=True)
        record = record_of(old[1:])
        if record.kind not in ("memory", "turn"):
            raise ValueError(f"{id} is a {record.kind}; add the changed document again under the same title.")
        fields = old[16] if metadata is None else check_metadata("metadata", metadata)
        if record.text == text and fields == old[16]:
            return record
        at = max(engine.now(), old[9]) if given is None else given
        row = _supersede(engine, transaction, old, computed, text, at, fields)
        if record.kind == "turn":
            drop_state(transaction, Scope(old[5], old[6], old[7]), old[12])
            count_deletion(transaction, old[5])
        return record_at(transaction, row)


def _supersede(
    engine: Engine,
    transaction: Transaction,
    old: tuple[Any, ...],
    computed: Computed,
    text: str,
    at: float,
    metadata: str,
) -> int:
    """A newer version of a row (row_id, *RECORD); its row_id."""
    before = record_of(old[1:])
    if at < old[9]:
        raise ValueError(
            f"timestamp {as_datetime(at).isoformat()} is earlier than that of the version it would supersede, "
            f"{before.time.isoformat()}; give a later one."
        )
    newer = Version(
        id=before.id,
        kind=before.kind,
        scope=Scope(old[5], old[6], old[7]),
        text=text,
        at=at,
        version=before.version + 1,
        metadata=metadata,
        key=before.key,
        role=before.role,
        position=before.position,
    )
    event = log(engine, transaction, "updated", before.id, newer.scope.user_id, {"version": newer.version})
    transaction.run("UPDATE memories SET superseded = ?, changed = ? WHERE row_id = ?", at, event, old[0])
    return insert(engine, transaction, event, newer, computed)

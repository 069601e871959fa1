"""Conversations as texts that grow: turns are added at the end, and the model's state is stored with them.

With each turn its carried vector is kept, of its tokens in the light of all that was said before. It is computed before
the transaction begins; if somebody else wrote to the conversation meanwhile, the conversation is read on and tried
again. `epoch` counts the times that something before the end was changed or forgotten. It starts at a random number: a
conversation that was forgotten and begun again must not look like the one that another process has read.
"""

import contextlib
import logging
import secrets
import threading
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .engine import Engine, KeptState
from .errors import MemoryFileRefused, MemoryUnavailable, UnknownMemory
from .records import MemoryRecord, Message, Scope, as_datetime
from .rows import OF_SCOPE, Computed, Version, digest_of
from .store import Transaction
from .strengths import begin
from .writing import count_deletion, insert, log, record_at, write_carried

if TYPE_CHECKING:
    from .reading import ConversationState

logger = logging.getLogger(__name__)

STATE_EVERY = 512  # tokens of a conversation after which its state is stored again
_BATCH = 256  # turns that are taken from the store at once, to be read again
_TRIES = 100  # times that a conversation is read on before giving up, because others wrote to it meanwhile


@dataclass
class _End:
    """Where a conversation ends: number of turns, epoch (-1: there is no such conversation), time of the last turn."""

    turns: int = 0
    epoch: int = -1
    last_time: float = float("-inf")


@dataclass(frozen=True)
class _ReadOn:
    """A conversation that was read on, before it is written.

    Attributes:
        turns, epoch: of the conversation when it was read.
        state: after all its turns, the new ones included.
        carried: the carried vector [D] of each new message, None for those that are known already.
        missing: carried vectors, by row, of earlier turns that had none.
    """

    turns: int
    epoch: int
    state: "ConversationState"
    carried: list[np.ndarray | None]
    missing: dict[int, np.ndarray]


def add_messages(engine: Engine, messages: list[Message], scope: Scope) -> list[MemoryRecord]:
    """Turns at the end of the conversation of a scope, all or none; see `Memory.add`."""
    computed = engine.compute([message.text for message in messages])
    with engine.lock:
        lock = engine.conversation_locks.setdefault(scope, threading.Lock())
    with lock if engine.keeps_carried else contextlib.nullcontext():
        for _ in range(_TRIES):
            written = _try_messages(engine, messages, computed, scope)
            if written is not None:
                return written
    raise MemoryFileRefused(
        f"Others kept writing to the conversation {scope.run_id!r} while it was being read; try again."
    )


def refill(engine: Engine, scope: Scope) -> None:
    """Read a conversation to its end and give its turns the carried vectors that they lack."""
    if engine.keeps_carried and engine.has_model:
        for _ in range(_TRIES):
            if _try_messages(engine, [], [], scope) is not None:
                return


def _try_messages(
    engine: Engine, messages: list[Message], computed: list[Computed], scope: Scope
) -> list[MemoryRecord] | None:
    """None if somebody else wrote to the conversation while its state was computed."""
    read_on = _read_on(engine, messages, scope) if engine.keeps_carried and engine.has_model else None
    with engine.store.write() as transaction:
        end = _end(transaction, scope)
        if read_on is not None:
            if (read_on.turns, read_on.epoch) != (end.turns, end.epoch):
                return None
            _fill_in(transaction, scope, read_on.missing)
        rows = _write_messages(engine, transaction, messages, computed, scope, end, read_on)
        if read_on is not None:
            _store_state(transaction, scope, read_on.state)
        records = [record_at(transaction, row) for row in rows]
    if read_on is not None:
        engine.keep_conversation(scope, KeptState(end.epoch, end.turns, read_on.state))
    return records


def _read_on(engine: Engine, messages: list[Message], scope: Scope) -> _ReadOn:
    missing: dict[int, np.ndarray] = {}
    with engine.store.read() as transaction:
        end = _end(transaction, scope)
        known = set(_known_sources(transaction, scope, messages))
        state = state_of(engine, transaction, scope, missing)
    new = []
    for i, message in enumerate(messages):
        if message.source_id is None or message.source_id not in known:
            new.append(i)
            known.add(message.source_id or "")
    carried: list[np.ndarray | None] = [None] * len(messages)
    for i, vector in zip(new, engine.reader.add_turns(state, [messages[i].text for i in new]), strict=True):
        carried[i] = vector
    return _ReadOn(end.turns, end.epoch, state, carried, missing)


def _write_messages(
    engine: Engine,
    transaction: Transaction,
    messages: list[Message],
    computed: list[Computed],
    scope: Scope,
    end: _End,
    read_on: _ReadOn | None,
) -> list[int]:
    """Writes the messages that are not known yet; the row_ids of all of them. `end` goes on."""
    known = _known_sources(transaction, scope, messages)
    rows = []
    turns = end.turns
    for i, message in enumerate(messages):
        if message.source_id is not None and message.source_id in known:
            row, text = known[message.source_id]
            if text != message.text:
                raise ValueError(
                    f"messages[{i}]['id'] {message.source_id!r} is that of another message of this "
                    "conversation; use update to change it."
                )
            rows.append(row)
            continue
        if message.time is not None and message.time < end.last_time:
            raise ValueError(
                f"messages[{i}]['timestamp'] is earlier than the last turn of the conversation "
                f"({as_datetime(end.last_time).isoformat()}); add turns in order, or use another run_id."
            )
        end.last_time = max(end.last_time, engine.now()) if message.time is None else message.time
        version = Version(
            id=uuid.uuid4().hex,
            kind="turn",
            scope=scope,
            text=message.text,
            at=end.last_time,
            metadata=message.metadata,
            role=message.role,
            source_id=message.source_id,
            position=end.turns,
        )
        event = log(engine, transaction, "added", version.id, scope.user_id, {})
        row = insert(engine, transaction, event, version, computed[i], None if read_on is None else read_on.carried[i])
        if message.source_id is not None:
            known[message.source_id] = (row, message.text)
        begin(engine, transaction, version.id, scope.user_id, computed[i].alone)
        rows.append(row)
        end.turns += 1
    if end.turns > turns:
        if end.epoch < 0:
            end.epoch = new_epoch()
        transaction.run(
            "INSERT INTO conversations (user_id, agent_id, run_id, turns, last_time, epoch, read_turns) "
            "VALUES (?, ?, ?, ?, ?, ?, 0) ON CONFLICT (user_id, agent_id, run_id) "
            "DO UPDATE SET turns = excluded.turns, last_time = excluded.last_time",
            *(*scope.values, end.turns, end.last_time, end.epoch),
        )
    return rows


def new_epoch() -> int:
    """The epoch of a conversation that begins: a random number, never that of one that was forgotten."""
    return secrets.randbits(62)


def gist(engine: Engine, scope: Scope) -> np.ndarray:
    """See `Memory.gist`."""
    engine.check_fits()
    if not engine.has_model:
        raise ValueError("A memory without a model has no vectors; open it with model=...")
    with engine.store.read() as transaction:
        end = _end(transaction, scope)
        if not end.turns:
            raise UnknownMemory(f"There is no conversation {scope.run_id!r} in this scope.")
        state = state_of(engine, transaction, scope)
    with contextlib.suppress(MemoryUnavailable), engine.store.write() as transaction:
        now = _end(transaction, scope)
        if (now.turns, now.epoch) == (end.turns, end.epoch):
            _store_state(transaction, scope, state)
    engine.keep_conversation(scope, KeptState(end.epoch, end.turns, state))
    return engine.reader.gist(state)


def _end(transaction: Transaction, scope: Scope) -> _End:
    rows = transaction.rows(f"SELECT turns, epoch, last_time FROM conversations WHERE {OF_SCOPE}", *scope.values)
    return _End(*rows[0]) if rows else _End()


def _known_sources(transaction: Transaction, scope: Scope, messages: list[Message]) -> dict[str, tuple[int, str]]:
    """Of the callers' own ids of messages, those that the conversation has: the row and text of each."""
    wanted = [message.source_id for message in messages if message.source_id is not None]
    known: dict[str, tuple[int, str]] = {}
    for start in range(0, len(wanted), 500):
        part = wanted[start : start + 500]
        marks = ", ".join("?" * len(part))
        rows = transaction.rows(
            f"SELECT source_id, row_id, text FROM memories WHERE {OF_SCOPE} AND source_id IN ({marks})",
            *(*scope.values, *part),
        )
        known |= {source: (int(row), text) for source, row, text in rows}
    return known


def state_of(
    engine: Engine, transaction: Transaction, scope: Scope, missing: dict[int, np.ndarray] | None = None
) -> "ConversationState":
    """The state after all turns that a transaction sees: from this process, the store, or the texts.

    Args:
        engine: the memory.
        transaction: one that reads.
        scope: of the conversation.
        missing: takes the carried vectors, by row, of turns that are read again here and have none.

    Returns:
        a copy, which the caller may read on.
    """
    end = _end(transaction, scope)
    kept = engine.kept_conversation(scope)
    state = None
    if kept is not None and kept.epoch == end.epoch and engine.reader.continues(kept.state):
        state = kept.state.copy()
        if kept.turns == end.turns:
            return state
    if state is None:
        state = _stored_state(engine, transaction, scope)
    count = transaction.rows(
        f"SELECT count(*) FROM memories WHERE {OF_SCOPE} AND kind = 'turn' AND superseded IS NULL", *scope.values
    )[0][0]
    if state is None or not engine.reader.continues(state) or count < state.turns:
        state = engine.reader.new_conversation()
    while state.turns < count:
        turns = transaction.rows(
            f"SELECT text, row_id FROM memories WHERE {OF_SCOPE} AND kind = 'turn' AND superseded IS NULL "
            "ORDER BY position LIMIT ? OFFSET ?",
            *(*scope.values, _BATCH, state.turns),
        )
        vectors = engine.reader.add_turns(state, [text for text, _ in turns])
        if missing is not None:
            missing |= {row: vector for (_, row), vector in zip(turns, vectors, strict=True)}
    return state


def _stored_state(engine: Engine, transaction: Transaction, scope: Scope) -> "ConversationState | None":
    """The state that the store has, which may be that of an earlier turn; None if there is none."""
    rows = transaction.rows(f"SELECT state FROM conversations WHERE {OF_SCOPE} AND state IS NOT NULL", *scope.values)
    if not rows:
        return None
    try:
        return engine.reader.kept_conversation(bytes(rows[0][0]))
    except ValueError:
        logger.warning("The state of the conversation %r is damaged; it is read again.", scope.run_id)
        return None


def _fill_in(transaction: Transaction, scope: Scope, vectors: dict[int, np.ndarray]) -> None:
    """Carried vectors of turns that have none, because something before them was forgotten or changed."""
    filled = False
    for row, vector in vectors.items():
        if transaction.rows("SELECT 1 FROM vectors WHERE row_id = ? AND carried IS NULL", row):
            write_carried(transaction, row, vector)
            filled = True
    if filled:
        count_deletion(transaction, scope.user_id)


def _store_state(transaction: Transaction, scope: Scope, state: "ConversationState") -> None:
    """Stores a state unless the stored one is near enough: what is between them is read again, from the texts."""
    rows = transaction.rows(f"SELECT tail FROM conversations WHERE {OF_SCOPE}", *scope.values)
    # The column `tail` holds the number of tokens that the stored state has seen.
    stored = int.from_bytes(rows[0][0], "little") if rows and rows[0][0] is not None else -STATE_EVERY
    if state.tokens - stored < STATE_EVERY:
        return
    data = state.head_bytes()
    transaction.run(
        f"UPDATE conversations SET state = ?, tail = ?, read_turns = ?, digest = ? WHERE {OF_SCOPE}",
        *(data, state.tokens.to_bytes(8, "little"), state.turns, digest_of(data), *scope.values),
    )


def drop_state(transaction: Transaction, scope: Scope, position: int = 0) -> None:
    """Drop all that has read the turn at a position: the state, and the carried vectors from there on."""
    transaction.run(
        "UPDATE conversations SET state = NULL, tail = NULL, digest = NULL, read_turns = 0, epoch = epoch + 1 "
        f"WHERE {OF_SCOPE}",
        *scope.values,
    )
    rows = transaction.rows(
        "SELECT row_id FROM vectors WHERE carried IS NOT NULL AND row_id IN "
        f"(SELECT row_id FROM memories WHERE {OF_SCOPE} AND position >= ? AND kind = 'turn')",
        *(*scope.values, position),
    )
    for (row,) in rows:
        write_carried(transaction, row, None)

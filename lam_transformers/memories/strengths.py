"""Fast and slow strength: what was written or recalled lately, and what was new and is recalled again and again.

The fast strength is set to 1 when a memory is written or recalled and loses 70 % a session; the slow one starts at the
memory's novelty (1 less its highest cosine with what the user had before), loses 0.1 % a session and grows by a tenth
of what it lacks with each recall. A session ends when nothing was written or recalled for half an hour. Every change is
in the log.
"""

from dataclasses import asdict, dataclass

import numpy as np

from .engine import Engine
from .records import MemoryRecord
from .store import Transaction
from .writing import log

SESSION_GAP = 1800.0  # seconds without a word after which a new session begins
FAST_KEPT = 0.3
SLOW_KEPT = 0.999
GROWTH = 0.1
_CANDIDATES = 200  # of the best texts, those whose strengths are looked up


@dataclass(frozen=True)
class Strength:
    """How well a memory is remembered, as it was in a session.

    Attributes:
        fast, slow: both strengths, 0 to 1.
        session: when they were last brought up to date.
        recalls: how often the memory was recalled.
    """

    fast: float
    slow: float
    session: int
    recalls: int


def session_of(engine: Engine, transaction: Transaction, user_id: str) -> int:
    """The number of the session that is now, without beginning it."""
    rows = transaction.rows("SELECT number, time FROM sessions WHERE user_id = ?", user_id)
    if not rows:
        return 0
    number, last = rows[0]
    return int(number) + (engine.now() - last > SESSION_GAP)


def _touch(engine: Engine, transaction: Transaction, user_id: str) -> int:
    """The number of the session that is now; it is begun, or goes on."""
    number = session_of(engine, transaction, user_id)
    transaction.run(
        "INSERT INTO sessions (user_id, number, time) VALUES (?, ?, ?) "
        "ON CONFLICT (user_id) DO UPDATE SET number = excluded.number, time = excluded.time",
        *(user_id, number, engine.now()),
    )
    return number


def begin(engine: Engine, transaction: Transaction, id: str, user_id: str, vector: bytes | None) -> None:
    """Strengths of a memory that is being written, where any are kept.

    Args:
        engine: the memory.
        transaction: the one that writes it.
        id: its id.
        user_id: whose it is.
        vector: the float32 embedding [D] of its text, None without a model.
    """
    if not engine.keeps_strengths:
        return
    novelty = 1.0
    if vector is not None:
        partition = engine.partitions.get(user_id)
        # What this transaction writes may never be: it is not to be taken over into what is kept in memory.
        with partition.lock, engine.store.read() as snapshot:
            partition.refresh(snapshot)
            if len(partition):
                cosines = partition.vectors @ np.frombuffer(vector, "<f4")
                novelty = float(np.clip(1 - cosines[partition.first].max(), 0, 1))
    session = _touch(engine, transaction, user_id)
    _write(engine, transaction, "strength", id, user_id, Strength(1.0, novelty, session, 0))


def recalled(engine: Engine, records: list[MemoryRecord]) -> None:
    """Reconsolidation: what was recalled becomes stronger."""
    with engine.store.write() as transaction:
        for record in records:
            rows = transaction.rows("SELECT slow, session, recalls, user_id FROM strengths WHERE id = ?", record.id)
            if not rows:
                continue
            slow, since, recalls, user_id = rows[0]
            session = _touch(engine, transaction, user_id)
            slow = slow * SLOW_KEPT ** max(session - since, 0)
            slow += GROWTH * (1 - slow)
            _write(engine, transaction, "recalled", record.id, user_id, Strength(1.0, slow, session, recalls + 1))


def _write(engine: Engine, transaction: Transaction, kind: str, id: str, user_id: str, strength: Strength) -> None:
    values = asdict(strength)
    transaction.run(
        "INSERT INTO strengths (id, user_id, fast, slow, session, recalls) VALUES (?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (id) DO UPDATE SET fast = excluded.fast, slow = excluded.slow, session = excluded.session, "
        "recalls = excluded.recalls",
        *(id, user_id, *values.values()),
    )
    log(engine, transaction, kind, id, user_id, values)


def current(engine: Engine, transaction: Transaction, id: str) -> dict[str, float] | None:
    """Fast and slow strength of a memory at this moment, or None where none are kept."""
    rows = transaction.rows("SELECT fast, slow, session, recalls, user_id FROM strengths WHERE id = ?", id)
    if not rows:
        return None
    fast, slow, since, recalls, user_id = rows[0]
    passed = max(session_of(engine, transaction, user_id) - since, 0)
    return {"fast": fast * FAST_KEPT**passed, "slow": slow * SLOW_KEPT**passed, "recalls": recalls}


def boosts(engine: Engine, transaction: Transaction, ids: list[str], total: np.ndarray) -> np.ndarray:
    """[texts] the mean of both strengths, 0 to 1, of the texts that score best; 0 for the others."""
    values = np.zeros(len(ids), np.float32)
    for i in np.argsort(-total, kind="stable")[:_CANDIDATES]:
        strength = current(engine, transaction, ids[i])
        if strength is not None:
            values[i] = (strength["fast"] + strength["slow"]) / 2
    return values

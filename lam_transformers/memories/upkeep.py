"""Looking after a memory: what is damaged, what is in it, and making anew what was computed from the texts."""

import json
import logging
from typing import Any

import numpy as np

from .conversations import refill
from .engine import Engine
from .errors import MemoryFileDamaged, MemoryFileRefused
from .intact import BATCH, intact_rows
from .records import Scope
from .rows import OF_SCOPE, Computed, digest_of
from .store import SCHEMA_VERSION, Transaction
from .words import count_words
from .writing import count_deletion, erase_row, log, replace_vectors

logger = logging.getLogger(__name__)


def verify(engine: Engine) -> list[str]:
    """See `Memory.verify`."""
    problems = engine.store.damage()
    try:
        settings = engine.settings()
        width = 4 * int(settings.get("dimension", 0))
        problems += _verify_memories(engine, width)
        problems += _verify_vectors(engine)
        with engine.store.read() as transaction:
            problems += _verify_versions(transaction)
            problems += _verify_conversations(transaction)
            problems += _verify_documents(transaction)
        if "rebuilding" in settings:
            problems.append("rebuild() was interrupted; call it again to finish it")
    except Exception as error:  # damaged values make their readers stumble in many ways
        logger.debug("verify", exc_info=True)
        problems.append(f"the check could not go on: {error}")
    return problems


def _verify_memories(engine: Engine, width: int) -> list[str]:
    problems: list[str] = []
    for row, id, text, metadata, digest in intact_rows(
        engine.store, "row_id, id, text, metadata, digest", "memories", problems
    ):
        if not isinstance(text, str) or digest_of(text, metadata) != digest:
            problems.append(f"the text or metadata of memory {id} (row {row}) is not what was written")
            continue
        try:
            with engine.store.read() as transaction:
                rows = transaction.rows("SELECT alone, words FROM vectors WHERE row_id = ?", row)
        except MemoryFileDamaged:
            continue  # named with the vectors
        if not rows:
            problems.append(f"memory {id} (row {row}) has no vectors; rebuild() makes them again")
        elif bytes(rows[0][1]) != count_words(text).tobytes():
            problems.append(f"the words of memory {id} (row {row}) are not those of its text; rebuild() mends them")
        elif rows[0][0] is not None and len(rows[0][0]) != width:
            problems.append(f"the vector of memory {id} (row {row}) is another model's; rebuild() makes a new one")
    return problems


def _verify_vectors(engine: Engine) -> list[str]:
    problems: list[str] = []
    columns = "row_id, alone, passages, spans, carried, words, digest"
    for row, *values, digest in intact_rows(engine.store, columns, "vectors", problems):
        if digest_of(*(None if value is None else bytes(value) for value in values)) != digest:
            problems.append(f"the vectors or words of row {row} are not what was written; rebuild() makes them again")
        elif any(value is not None and not np.isfinite(np.frombuffer(value, "<f4")).all() for value in values[:2]):
            problems.append(f"a vector of row {row} holds NaN or infinity; rebuild() makes it again")
    return problems


def _verify_versions(transaction: Transaction) -> list[str]:
    problems = [
        f"memory {id} has {count} versions that hold at once"
        for id, count in transaction.rows(
            "SELECT id, count(*) FROM memories WHERE superseded IS NULL GROUP BY id HAVING count(*) > 1"
        )
    ]
    orphans = transaction.rows(
        "SELECT count(*) FROM vectors v WHERE NOT EXISTS (SELECT 1 FROM memories m WHERE m.row_id = v.row_id)"
    )[0][0]
    if orphans:
        problems.append(f"{orphans} rows of vectors belong to no memory")
    return problems


def _verify_conversations(transaction: Transaction) -> list[str]:
    problems = []
    for user, agent, run, turns, state, digest in transaction.rows(
        "SELECT user_id, agent_id, run_id, turns, state, digest FROM conversations"
    ):
        name = f"the conversation {run!r} of user {user!r}, agent {agent!r}"
        last = transaction.rows(
            f"SELECT max(position), count(*), count(DISTINCT position) FROM memories WHERE {OF_SCOPE} "
            "AND kind = 'turn' AND superseded IS NULL",
            *(user, agent, run),
        )[0]
        if last[0] is not None and (last[0] >= turns or last[1] != last[2]):
            problems.append(f"{name} has turns that are doubled or beyond its {turns}")
        if state is not None and digest_of(bytes(state)) != digest:
            problems.append(f"the state of {name} is not what was written; rebuild() drops it, and it is read again")
    return problems


def _verify_documents(transaction: Transaction) -> list[str]:
    problems = []
    for id, version, title, digest, text, complete in transaction.rows(
        "SELECT id, version, title, digest, text, complete FROM documents"
    ):
        name = f"the document {title!r} ({id}, version {version})"
        if digest_of(text) != digest:
            problems.append(f"the text of {name} is not what was written")
        rows = transaction.rows(
            "SELECT position, start_at, end_at, text FROM memories WHERE document_id = ? AND version = ? "
            "ORDER BY position",
            id,
            version,
        )
        if [row[0] for row in rows] != list(range(len(rows))):
            problems.append(f"{name} has paragraphs that are doubled or missing")
        if any(text[start:end] != part for _, start, end, part in rows):
            problems.append(f"{name} has paragraphs that are not in its text")
        if complete and not rows:
            problems.append(f"{name} has no paragraphs")
    return problems


def rebuild(engine: Engine, model: Any) -> int:
    """See `Memory.rebuild`."""
    if model is not None:
        engine.use_model(model)
    fingerprint = engine.reader.fingerprint if engine.has_model else ""
    with engine.store.write() as transaction:
        progress = _progress(transaction)
        if progress is None or progress["model"] != fingerprint:
            progress = {"model": fingerprint, "row": 0, "document": ["", 0]}
            _keep(transaction, progress)
            transaction.run("UPDATE conversations SET state = NULL, tail = NULL, digest = NULL, epoch = epoch + 1")
    while _rebuild_rows(engine, progress):
        pass
    while _rebuild_document(engine, progress):
        pass
    with engine.store.write() as transaction:
        if _progress(transaction) != progress:
            raise MemoryFileRefused("Somebody else began another rebuild() meanwhile; wait for it to end.")
        for name in ("model", "model_name", "dimension"):
            transaction.run("DELETE FROM settings WHERE name = ?", name)
        for name, value in engine.model_settings().items():
            transaction.run("INSERT INTO settings (name, value) VALUES (?, ?)", name, value)
        scopes = transaction.rows("SELECT user_id, agent_id, run_id FROM conversations")
    engine.use_model(None)
    for scope in scopes:
        refill(engine, Scope(*scope))
    with engine.store.write() as transaction:
        _check_progress(transaction, progress)
        transaction.run("DELETE FROM settings WHERE name = 'rebuilding'")
        for (user,) in transaction.rows("SELECT DISTINCT user_id FROM memories"):
            count_deletion(transaction, user)
        log(engine, transaction, "rebuilt", None, "", {"model": fingerprint})
        return int(transaction.rows("SELECT count(*) FROM memories")[0][0])


def _progress(transaction: Transaction) -> dict[str, Any] | None:
    rows = transaction.rows("SELECT value FROM settings WHERE name = 'rebuilding'")
    return json.loads(rows[0][0]) if rows else None


def _keep(transaction: Transaction, progress: dict[str, Any]) -> None:
    transaction.run(
        "INSERT INTO settings (name, value) VALUES ('rebuilding', ?) "
        "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        json.dumps(progress),
    )


def _rebuild_rows(engine: Engine, progress: dict[str, Any]) -> bool:
    """The next memories and turns; False if there are none."""
    with engine.store.read() as transaction:
        rows = transaction.rows(
            "SELECT row_id, text FROM memories WHERE row_id > ? AND kind IN ('memory', 'turn') ORDER BY row_id LIMIT ?",
            progress["row"],
            BATCH,
        )
    if not rows:
        return False
    if engine.has_model:
        readings = engine.reader.read([text for _, text in rows])
        computed = [
            Computed.of_reading(reading, count_words(text).tobytes())
            for reading, (_, text) in zip(readings, rows, strict=True)
        ]
    else:
        computed = [Computed.of_words(text) for _, text in rows]
    with engine.store.write() as transaction:
        _check_progress(transaction, progress)
        still = {row for (row,) in transaction.rows("SELECT row_id FROM memories WHERE row_id > ?", progress["row"])}
        for (row, _), values in zip(rows, computed, strict=True):
            if row in still:
                replace_vectors(transaction, row, values)
        progress["row"] = rows[-1][0]
        _keep(transaction, progress)
    return True


def _rebuild_document(engine: Engine, progress: dict[str, Any]) -> bool:
    """The next document; False if there is none."""
    id, version = progress["document"]
    with engine.store.read() as transaction:
        rows = transaction.rows(
            "SELECT id, version, title, text, complete FROM documents WHERE id > ? OR (id = ? AND version > ?) "
            "ORDER BY id, version LIMIT 1",
            id,
            id,
            version,
        )
    if not rows:
        return False
    id, version, title, text, complete = rows[0]
    vectors: list[np.ndarray] = []
    whole = None
    if engine.has_model and complete:
        for step in engine.reader.read_document(text):
            vectors += [paragraph.vector for paragraph in step.paragraphs]
            whole = step.vector
    with engine.store.write() as transaction:
        _check_progress(transaction, progress)
        parts = transaction.rows(
            "SELECT row_id, text, position FROM memories WHERE document_id = ? AND version = ?", id, version
        )
        for row, part, position in parts:
            vector = vectors[position] if position < len(vectors) else None
            replace_vectors(transaction, row, Computed.of_vector(vector, count_words(part).tobytes()))
        for (row,) in transaction.rows("SELECT row_id FROM memories WHERE id = ? AND version = ?", id, version):
            replace_vectors(transaction, row, Computed.of_vector(whole, count_words(title).tobytes()))
        if not complete:  # it is read again from its start when it is added again
            for row, *_ in parts:
                erase_row(transaction, row)
            transaction.run(
                "UPDATE documents SET read_tokens = 0, state = NULL WHERE id = ? AND version = ?", id, version
            )
        progress["document"] = [id, version]
        _keep(transaction, progress)
    return True


def _check_progress(transaction: Transaction, progress: dict[str, Any]) -> None:
    if _progress(transaction) != progress:
        raise MemoryFileRefused("Somebody else is rebuilding this memory; wait for it to end.")


def stats(engine: Engine) -> dict[str, Any]:
    """See `Memory.stats`."""
    with engine.store.read() as transaction:

        def number(sql: str) -> int:
            return int(transaction.rows(sql)[0][0])

        settings = dict(transaction.rows("SELECT name, value FROM settings"))
        return {
            "memories": number("SELECT count(*) FROM memories WHERE superseded IS NULL AND kind IN ('memory', 'turn')"),
            "versions": number("SELECT count(*) FROM memories"),
            "users": number("SELECT count(DISTINCT user_id) FROM memories WHERE user_id <> ''"),
            "conversations": number("SELECT count(*) FROM conversations"),
            "documents": number("SELECT count(*) FROM documents WHERE complete = 1"),
            "unfinished_documents": number("SELECT count(*) FROM documents WHERE complete = 0"),
            "paragraphs": number("SELECT count(*) FROM memories WHERE superseded IS NULL AND kind = 'paragraph'"),
            "characters": number("SELECT coalesce(sum(length(text)), 0) FROM memories WHERE kind <> 'document'"),
            "events": number("SELECT count(*) FROM events"),
            "bytes": engine.store.size(),
            "schema": SCHEMA_VERSION,
            "model": settings.get("model_name"),
            "place": engine.store.place,
        }

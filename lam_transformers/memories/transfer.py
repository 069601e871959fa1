"""Export and import: JSON lines that hold all that was said, and nothing that can be computed from it."""

import contextlib
import json
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .conversations import drop_state, new_epoch, refill
from .documents import Document, begin, read
from .engine import Engine
from .intact import BATCH, intact_rows
from .records import KINDS, LONGEST_DOCUMENT, Scope, check_metadata, check_name, check_text
from .rows import Version, digest_of
from .store import Transaction
from .writing import insert, log

logger = logging.getLogger(__name__)

FORMAT = 1
_COLUMNS = (
    "id",
    "version",
    "kind",
    "user_id",
    "agent_id",
    "run_id",
    "role",
    "key",
    "source_id",
    "text",
    "metadata",
    "time",
    "superseded",
    "position",
)


def export(engine: Engine, path: Path) -> int:
    """See `Memory.export`."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{uuid.uuid4().hex[:12]}.tmp")
    count = 0
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(json.dumps({"lam_memory": FORMAT}) + "\n")
            for record in _records(engine):
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    return count


def _records(engine: Engine) -> Iterator[dict[str, Any]]:
    for values in intact_rows(engine.store, f"row_id, {', '.join(_COLUMNS)}, digest", "memories"):
        record = dict(zip(_COLUMNS, values[1:-1], strict=True))
        if not _as_written(record["text"], record["metadata"], values[-1]):
            logger.warning("The memory %s (row %d) is damaged and was left out.", record["id"], values[0])
            continue
        if record["kind"] == "paragraph":
            continue
        record["metadata"] = json.loads(record["metadata"])
        if record["kind"] == "document":
            with engine.store.read() as transaction:
                rows = transaction.rows(
                    "SELECT text, complete, digest FROM documents WHERE id = ? AND version = ?",
                    record["id"],
                    record["version"],
                )
            if not rows or not rows[0][1]:
                continue  # it was never read to its end
            record["document"] = rows[0][0]
        yield {name: value for name, value in record.items() if value not in (None, "")}


def _as_written(text: Any, metadata: Any, digest: str) -> bool:
    return isinstance(text, str) and isinstance(metadata, str) and digest_of(text, metadata) == digest


def import_(engine: Engine, path: Path) -> int:
    """See `Memory.import_`."""
    count = 0
    batch: list[dict[str, Any]] = []
    conversations: set[Scope] = set()
    with path.open(encoding="utf-8") as file:
        try:
            header = json.loads(file.readline())
        except (ValueError, UnicodeDecodeError):
            header = None
        if not isinstance(header, dict) or "lam_memory" not in header:
            raise ValueError(f"{path} is no export of a memory: its first line does not say so.")
        if header["lam_memory"] != FORMAT:
            raise ValueError(f"{path} has format {header['lam_memory']!r}, this version reads {FORMAT}; update it.")
        for number, line in enumerate(file, 2):
            if not line.strip():
                continue
            record = _checked(path, number, line)
            if "document" in record:
                count += _import_batch(engine, batch) + _import_document(engine, record)
                batch = []
                continue
            batch.append(record)
            if record["kind"] == "turn":
                conversations.add(_scope(record))
            if len(batch) == BATCH:
                count += _import_batch(engine, batch)
                batch = []
    count += _import_batch(engine, batch)
    for scope in conversations:
        refill(engine, scope)
    return count


def _checked(path: Path, number: int, line: str) -> dict[str, Any]:
    where = f"Line {number} of {path}"
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is no JSON ({error}); the lines before it were imported.") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where} is no object.")
    try:
        check_name("id", record["id"])
        check_text("text", record["text"])
        if "document" in record:
            check_text("document", record["document"], LONGEST_DOCUMENT)
        if record["kind"] not in KINDS or not isinstance(record["version"], int):
            raise ValueError(f"kind {record['kind']!r} or version {record['version']!r} is wrong.")
        for name in ("time", "superseded"):
            if record.get(name) is not None and not isinstance(record[name], (int, float)):
                raise ValueError(f"{name} is {record[name]!r}, no number of seconds.")
        float(record["time"])
        for name in ("user_id", "agent_id", "run_id", "role", "key", "source_id"):
            if name in record:
                check_name(name, record[name])
        record["metadata"] = check_metadata("metadata", record.get("metadata"))
    except (KeyError, TypeError, ValueError) as error:
        reason = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{where}: {reason}") from error
    return record


def _import_batch(engine: Engine, batch: list[dict[str, Any]]) -> int:
    if not batch:
        return 0
    computed = engine.compute([record["text"] for record in batch])
    added = 0
    with engine.store.write() as transaction:
        for record, values in zip(batch, computed, strict=True):
            scope = _scope(record)
            if _known(transaction, record):
                continue
            event = log(engine, transaction, "imported", record["id"], scope.user_id, {"version": record["version"]})
            fields: dict[str, Any] = {name: record.get(name) for name in _COLUMNS if name not in _NOT_FIELDS}
            insert(engine, transaction, event, Version(scope=scope, at=float(record["time"]), **fields), values)
            added += 1
            if record["kind"] == "turn":
                _reach(transaction, scope, int(record.get("position") or 0) + 1, record["time"])
    return added


def _reach(transaction: Transaction, scope: Scope, turns: int, last_time: float) -> None:
    """A conversation has at least this many turns, and its last one is not earlier than this."""
    transaction.run(
        "INSERT INTO conversations (user_id, agent_id, run_id, turns, last_time, epoch, read_turns) "
        "VALUES (?, ?, ?, ?, ?, ?, 0) ON CONFLICT (user_id, agent_id, run_id) DO UPDATE SET "
        "turns = CASE WHEN conversations.turns > ? THEN conversations.turns ELSE ? END, "
        "last_time = CASE WHEN conversations.last_time > ? THEN conversations.last_time ELSE ? END",
        *(*scope.values, turns, last_time, new_epoch(), turns, turns, last_time, last_time),
    )
    drop_state(transaction, scope)


_NOT_FIELDS = ("user_id", "agent_id", "run_id", "time")


def _scope(record: dict[str, Any]) -> Scope:
    return Scope(*(record.get(name) or "" for name in ("user_id", "agent_id", "run_id")))


def _known(transaction: Transaction, record: dict[str, Any]) -> bool:
    """Whether a memory is there already. Raises ValueError if another one has its id."""
    rows = transaction.rows(
        "SELECT text, user_id FROM memories WHERE id = ? AND version = ?", record["id"], record["version"]
    )
    if rows and rows[0] != (record["text"], record.get("user_id") or ""):
        raise ValueError(f"There is another memory with the id {record['id']!r}; import into a new database.")
    return bool(rows)


def _import_document(engine: Engine, record: dict[str, Any]) -> int:
    document = Document(
        id=record["id"],
        version=record["version"],
        scope=_scope(record),
        title=record["text"],
        text=record["document"],
        at=float(record["time"]),
        metadata=record["metadata"],
    )
    while True:
        with engine.store.write() as transaction:
            rows = transaction.rows(
                "SELECT complete FROM documents WHERE id = ? AND version = ?", document.id, document.version
            )
            if rows and rows[0][0]:
                _known(transaction, record)
                return 0
            tokens, state = begin(engine, transaction, document)
        if read(engine, document, tokens, state) is not None:
            return 1

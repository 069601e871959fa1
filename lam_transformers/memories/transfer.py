"""Export and import: JSON lines that hold all that was said, and nothing that can be computed from it."""

import contextlib
import json
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import MemoryFileDamaged
from .records import KINDS, LONGEST_DOCUMENT, Scope, check_metadata, check_name, check_text
from .store import Transaction

if TYPE_CHECKING:
    from .memory import Memory

logger = logging.getLogger(__name__)

FORMAT = 1
_COLUMNS = (
    "id", "version", "kind", "user_id", "agent_id", "run_id", "role", "key", "source_id", "text", "metadata", "time",
    "superseded", "position",
)  # fmt: skip
_BATCH = 64


def export(memory: "Memory", path: Path) -> int:
    """See `Memory.export`."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{uuid.uuid4().hex[:12]}.tmp")
    count = 0
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(json.dumps({"lam_memory": FORMAT}) + "\n")
            for record in _records(memory):
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


def _records(memory: "Memory") -> Iterator[dict[str, Any]]:
    for values in intact_rows(memory, f"row_id, {', '.join(_COLUMNS)}, digest", "memories"):
        record = dict(zip(_COLUMNS, values[1:-1], strict=True))
        if not _as_written(record["text"], record["metadata"], values[-1]):
            logger.warning("The memory %s (row %d) is damaged and was left out.", record["id"], values[0])
            continue
        if record["kind"] == "paragraph":
            continue
        record["metadata"] = json.loads(record["metadata"])
        if record["kind"] == "document":
            with memory.store.read() as transaction:
                rows = transaction.rows(
                    "SELECT text, complete, digest FROM documents WHERE id = ? AND version = ?",
                    record["id"], record["version"],
                )  # fmt: skip
            if not rows or not rows[0][1]:
                continue  # it was never read to its end
            record["document"] = rows[0][0]
        yield {name: value for name, value in record.items() if value not in (None, "")}


def _as_written(text: Any, metadata: Any, digest: str) -> bool:
    from .memory import digest_of

    return isinstance(text, str) and isinstance(metadata, str) and digest_of(text, metadata) == digest


def intact_rows(memory: "Memory", columns: str, table: str, problems: list[str] | None = None) -> Iterator[tuple]:
    """All rows of a table with a row_id that can be read; what cannot is logged, and added to `problems`."""
    with memory.store.read() as transaction:
        last = _last_row(transaction, table)
    start = 0
    while start < last:
        end = min(start + _BATCH, last)
        try:
            rows = _read(memory, columns, table, start, end)
        except (MemoryFileDamaged, UnicodeDecodeError):
            rows = []
            for row in range(start + 1, end + 1):
                try:
                    rows += _read(memory, columns, table, row - 1, row)
                except (MemoryFileDamaged, UnicodeDecodeError) as error:
                    logger.warning("Row %d of %s cannot be read: %s", row, table, error)
                    if problems is not None:
                        problems.append(f"row {row} of {table} cannot be read")
        yield from rows
        start = end


def _last_row(transaction: Transaction, table: str) -> int:
    try:
        return int(transaction.rows(f"SELECT max(row_id) FROM {table}")[0][0] or 0)
    except Exception as error:
        logger.warning("The end of %s cannot be read: %s", table, error)
        return 1_000_000


def _read(memory: "Memory", columns: str, table: str, after: int, last: int) -> list[tuple]:
    with memory.store.read() as transaction:
        return transaction.rows(
            f"SELECT {columns} FROM {table} WHERE row_id > ? AND row_id <= ? ORDER BY row_id", after, last
        )


def import_(memory: "Memory", path: Path) -> int:
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
                count += _import_batch(memory, batch) + _import_document(memory, record)
                batch = []
                continue
            batch.append(record)
            if record["kind"] == "turn":
                conversations.add(_scope(record))
            if len(batch) == _BATCH:
                count += _import_batch(memory, batch)
                batch = []
    count += _import_batch(memory, batch)
    for scope in conversations:
        memory.refill(scope)
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


def _import_batch(memory: "Memory", batch: list[dict[str, Any]]) -> int:
    if not batch:
        return 0
    computed = memory._compute([record["text"] for record in batch])
    added = 0
    with memory.store.write() as transaction:
        for record, values in zip(batch, computed, strict=True):
            scope = _scope(record)
            if _known(transaction, record):
                continue
            number = memory._log(transaction, "imported", record["id"], scope.user_id, {"version": record["version"]})
            memory._insert(
                transaction, number, values, scope=scope, at=float(record["time"]),
                **{name: record.get(name) for name in _COLUMNS if name not in _NOT_FIELDS},
            )  # fmt: skip
            added += 1
            if record["kind"] == "turn":
                turns = int(record.get("position") or 0) + 1
                transaction.run(
                    "INSERT INTO conversations (user_id, agent_id, run_id, turns, last_time, epoch, read_turns) "
                    "VALUES (?, ?, ?, ?, ?, 0, 0) ON CONFLICT (user_id, agent_id, run_id) DO UPDATE SET "
                    "turns = CASE WHEN conversations.turns > ? THEN conversations.turns ELSE ? END, "
                    "last_time = CASE WHEN conversations.last_time > ? THEN conversations.last_time ELSE ? END",
                    scope.user_id, scope.agent_id, scope.run_id, turns, record["time"], turns, turns, record["time"],
                    record["time"],
                )  # fmt: skip
                memory._drop_state(transaction, scope)
    return added


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


def _import_document(memory: "Memory", record: dict[str, Any]) -> int:
    from .documents import _begin_version, _read
    from .memory import digest_of

    scope = _scope(record)
    id, version, text = record["id"], record["version"], record["document"]
    while True:
        with memory.store.write() as transaction:
            rows = transaction.rows(
                "SELECT complete, read_tokens, state FROM documents WHERE id = ? AND version = ?", id, version
            )
            if rows and rows[0][0]:
                _known(transaction, record)
                return 0
            if not rows:
                _begin_version(
                    memory, transaction, id, version, scope, record["text"], digest_of(text), text,
                    float(record["time"]), record["metadata"],
                )  # fmt: skip
                rows = [(0, 0, None)]
        _, tokens, state = rows[0]
        if _read(memory, text, scope, id, version, int(tokens), None if state is None else bytes(state)) is not None:
            return 1

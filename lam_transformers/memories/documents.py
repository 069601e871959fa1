"""Documents: recognised, read in one pass that may be interrupted, and kept in versions."""

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .engine import Engine
from .files import load_text
from .paragraphs import paragraphs
from .records import (
    LONGEST_DOCUMENT,
    LONGEST_ID,
    MemoryRecord,
    Scope,
    Time,
    check_metadata,
    check_storable,
    check_text,
    check_time,
)
from .rows import Computed, Version, digest_of
from .store import Transaction
from .words import count_words
from .writing import count_deletion, erase_row, insert, log, record_at, replace_vectors


@dataclass(frozen=True)
class Document:
    """A version of a document that is to be read.

    Attributes:
        id, version: of the document.
        scope: whose it is.
        title, text: what it holds.
        at: since when it holds, seconds since 1970.
        metadata: JSON.
    """

    id: str
    version: int
    scope: Scope
    title: str
    text: str
    at: float
    metadata: str


@dataclass(frozen=True)
class _Part:
    """A paragraph that was read: characters [start, end), and its vector [D], None without a model."""

    start: int
    end: int
    vector: np.ndarray | None


@dataclass(frozen=True)
class _Step:
    """What one transaction writes: see `reading.DocumentStep`."""

    parts: list[_Part]
    tokens: int
    resume: bytes | None
    vector: np.ndarray | None


def add_document(
    engine: Engine,
    source: str | os.PathLike[str],
    title: str | None,
    scope: Scope,
    timestamp: Time | None,
    metadata: dict[str, Any] | None,
) -> MemoryRecord:
    """See `Memory.add_document`."""
    text, name = load_text(source)
    check_text("The document", text, LONGEST_DOCUMENT)
    if title is None:
        title = name or text.strip().split("\n")[0].strip("# ")[:200] or "Untitled"
    title = check_storable("title", check_text("title", title, LONGEST_ID))
    at = engine.now() if timestamp is None else check_time("timestamp", timestamp)
    fields = check_metadata("metadata", metadata)
    engine.check_fits()
    while True:
        with engine.store.write() as transaction:
            known, document = _known(transaction, text, title, scope, at, fields)
            if known is not None:
                return known
            tokens, state = begin(engine, transaction, document)
        record = read(engine, document, tokens, state)
        if record is not None:
            return record


def _known(
    transaction: Transaction, text: str, title: str, scope: Scope, at: float, metadata: str
) -> tuple[MemoryRecord | None, Document]:
    """The record of the document if it was read already, and the version that it has or would have."""
    rows = transaction.rows(
        "SELECT id, version, digest, complete FROM documents WHERE user_id = ? AND agent_id = ? AND title = ? "
        "ORDER BY version DESC LIMIT 1",
        *(scope.user_id, scope.agent_id, title),
    )
    if not rows:
        return None, Document(uuid.uuid4().hex, 1, scope, title, text, at, metadata)
    id, last, digest, complete = rows[0]
    if digest == digest_of(text):
        document = Document(id, last, scope, title, text, at, metadata)
        return _record(transaction, document) if complete else None, document
    if not complete:  # another text was begun and never finished: it gives way
        _drop_version(transaction, id, last)
        count_deletion(transaction, scope.user_id)
    before = transaction.rows("SELECT max(time) FROM memories WHERE id = ? AND superseded IS NULL", id)[0][0]
    if before is not None and at < before:
        raise ValueError("timestamp is earlier than that of the version of this document that it follows.")
    return None, Document(id, last + 1 if complete else last, scope, title, text, at, metadata)


def begin(engine: Engine, transaction: Transaction, document: Document) -> tuple[int, bytes | None]:
    """Write down that a document is being read, unless that was done before.

    Returns:
        the number of tokens that were read, and the state to go on from.
    """
    rows = transaction.rows(
        "SELECT read_tokens, state FROM documents WHERE id = ? AND version = ?", document.id, document.version
    )
    if rows:
        tokens, state = rows[0]
        return int(tokens), None if state is None else bytes(state)
    scope = document.scope
    transaction.run(
        "INSERT INTO documents (id, version, user_id, agent_id, title, digest, text, complete, read_tokens) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, 0, 0)",
        *(document.id, document.version, scope.user_id, scope.agent_id, document.title),
        *(digest_of(document.text), document.text),
    )
    event = log(engine, transaction, "document begun", document.id, scope.user_id, {"version": document.version})
    # Until it has been read to its end, it holds for no time at all.
    version = Version(
        id=document.id,
        kind="document",
        scope=scope,
        text=document.title,
        at=document.at,
        version=document.version,
        metadata=document.metadata,
        superseded=document.at,
    )
    insert(engine, transaction, event, version, Computed.of_words(document.title))
    return 0, None


def read(engine: Engine, document: Document, progress: int, state: bytes | None) -> MemoryRecord | None:
    """Read a document to its end, a transaction a step.

    Args:
        engine: the memory.
        document: one that was begun.
        progress: number of tokens that were read.
        state: to go on from; None at the start.

    Returns:
        its record, or None if another reader of the same document was quicker.
    """
    for step in _steps(engine, document.text, state):
        texts = [document.text[part.start : part.end] for part in step.parts]
        computed = [
            Computed.of_vector(part.vector, count_words(text).tobytes())
            for part, text in zip(step.parts, texts, strict=True)
        ]
        with engine.store.write() as transaction:
            if _progress(transaction, document) != progress:
                return None
            _write_step(engine, transaction, document, step, texts, computed)
            if step.resume is None:
                _finish(engine, transaction, document, step.vector)
                return _record(transaction, document)
        progress = step.tokens
    raise AssertionError("a document ends with its last step")


def _steps(engine: Engine, text: str, state: bytes | None) -> Iterator[_Step]:
    if not engine.has_model:
        yield _Step([_Part(start, end, None) for start, end in paragraphs(text)], 0, None, None)
        return
    for step in engine.reader.read_document(text, state):
        parts = [_Part(paragraph.start, paragraph.end, paragraph.vector) for paragraph in step.paragraphs]
        yield _Step(parts, step.tokens, step.resume, step.vector)


def _write_step(
    engine: Engine,
    transaction: Transaction,
    document: Document,
    step: _Step,
    texts: list[str],
    computed: list[Computed],
) -> None:
    key = (document.id, document.version)
    first = transaction.rows("SELECT count(*) FROM memories WHERE document_id = ? AND version = ?", *key)[0][0]
    at = transaction.rows("SELECT time FROM memories WHERE id = ? AND version = ?", *key)[0][0]
    about = {"version": document.version, "tokens": step.tokens}
    event = log(engine, transaction, "document read", document.id, document.scope.user_id, about)
    for position, (part, text, values) in enumerate(zip(step.parts, texts, computed, strict=True), first):
        version = Version(
            id=f"{document.id}-{position}",
            kind="paragraph",
            scope=document.scope,
            text=text,
            at=at,
            version=document.version,
            superseded=at,
            position=position,
            document_id=document.id,
            span=(part.start, part.end),
        )
        insert(engine, transaction, event, version, values)
    transaction.run(
        "UPDATE documents SET read_tokens = ?, state = ? WHERE id = ? AND version = ?", step.tokens, step.resume, *key
    )


def _finish(engine: Engine, transaction: Transaction, document: Document, vector: np.ndarray | None) -> None:
    """The version holds from now on, in place of the one before."""
    key = (document.id, document.version)
    event = log(engine, transaction, "document", document.id, document.scope.user_id, {"version": document.version})
    row, title, at = transaction.rows("SELECT row_id, text, time FROM memories WHERE id = ? AND version = ?", *key)[0]
    transaction.run(
        "UPDATE memories SET superseded = ?, changed = ? WHERE (id = ? OR document_id = ?) AND superseded IS NULL",
        *(at, event, document.id, document.id),
    )
    replace_vectors(transaction, row, Computed.of_vector(vector, count_words(title).tobytes()))
    transaction.run(
        "UPDATE memories SET superseded = NULL, changed = ? WHERE (id = ? OR document_id = ?) AND version = ?",
        *(event, document.id, *key),
    )
    transaction.run("UPDATE documents SET complete = 1, state = NULL WHERE id = ? AND version = ?", *key)
    # Its vector was written after somebody may have seen the row without one.
    count_deletion(transaction, document.scope.user_id)


def _drop_version(transaction: Transaction, id: str, version: int) -> None:
    rows = transaction.rows(
        "SELECT row_id FROM memories WHERE (id = ? OR document_id = ?) AND version = ?", id, id, version
    )
    for (row,) in rows:
        erase_row(transaction, row)
    transaction.run("DELETE FROM documents WHERE id = ? AND version = ?", id, version)


def _progress(transaction: Transaction, document: Document) -> int:
    """Tokens read so far, -1 if the document is gone or was finished by somebody else."""
    rows = transaction.rows(
        "SELECT read_tokens, complete FROM documents WHERE id = ? AND version = ?", document.id, document.version
    )
    return int(rows[0][0]) if rows and not rows[0][1] else -1


def _record(transaction: Transaction, document: Document) -> MemoryRecord:
    rows = transaction.rows("SELECT row_id FROM memories WHERE id = ? AND version = ?", document.id, document.version)
    return record_at(transaction, rows[0][0])

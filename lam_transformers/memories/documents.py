"""Documents: read from files, recognised, read in one pass that may be interrupted, and kept in versions."""

import datetime
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .records import (
    LONGEST_DOCUMENT,
    LONGEST_ID,
    MemoryRecord,
    Scope,
    check_metadata,
    check_storable,
    check_text,
    check_time,
)
from .store import Transaction
from .words import count_words

if TYPE_CHECKING:
    from .memory import Memory


def load_text(source: str | os.PathLike) -> tuple[str, str | None]:
    """The text of a document and its name: a string is the text itself, a path names a file (.pdf through pypdf).

    Raises OSError for a file that cannot be read, ValueError for one that is no text.
    """
    if isinstance(source, str):
        return source, None
    path = Path(source)
    if path.suffix.lower() == ".pdf":
        return _pdf_text(path), path.name
    from ..model.checks_lam import check_regular

    check_regular(path)
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig"), path.name
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}); convert it first.") from error


def _pdf_text(path: Path) -> str:
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError as error:
        raise ImportError('A PDF needs pypdf: pip install "lam-transformers[memory]".') from error
    try:
        text = "\n\n".join(page.extract_text() or "" for page in PdfReader(path).pages)
    except (PyPdfError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as a PDF ({error}).") from error
    text = text.replace("\0", " ").encode("utf-8", "replace").decode()
    if not text.strip():
        raise ValueError(f"{path} holds no text, only pictures perhaps; run it through text recognition first.")
    return text


def add_document(
    memory: "Memory",
    source: str | os.PathLike,
    title: str | None,
    scope: Scope,
    timestamp: str | float | datetime.datetime | None,
    metadata: dict | None,
) -> MemoryRecord:
    """See `Memory.add_document`."""
    from .memory import digest_of

    text, name = load_text(source)
    check_text("The document", text, LONGEST_DOCUMENT)
    if title is None:
        title = name or text.strip().split("\n")[0].strip("# ")[:200] or "Untitled"
    title = check_storable("title", check_text("title", title, LONGEST_ID))
    at = memory._now() if timestamp is None else check_time("timestamp", timestamp)
    fields = check_metadata("metadata", metadata)
    memory._check_fits()
    digest = digest_of(text)
    while True:
        known = _begin(memory, text, title, digest, scope, at, fields)
        if isinstance(known, MemoryRecord):
            return known
        if (record := _read(memory, text, scope, *known)) is not None:
            return record


def _begin(
    memory: "Memory", text: str, title: str, digest: str, scope: Scope, at: float, metadata: str
) -> MemoryRecord | tuple[str, int, int, bytes | None]:
    """The finished document if it is known; otherwise its id and version, and where to go on reading."""
    with memory.store.write() as transaction:
        rows = transaction.rows(
            "SELECT id, version, digest, complete, read_tokens, state FROM documents WHERE user_id = ? "
            "AND agent_id = ? AND title = ? ORDER BY version DESC LIMIT 1",
            scope.user_id, scope.agent_id, title,
        )  # fmt: skip
        id = rows[0][0] if rows else uuid.uuid4().hex
        version = 1
        if rows:
            _, last, known_digest, complete, tokens, state = rows[0]
            if known_digest == digest:
                if complete:
                    return _record(memory, transaction, id, last)
                return id, last, int(tokens), None if state is None else bytes(state)
            version = last + 1
            if not complete:  # another text was begun and never finished: it gives way
                version = last
                _drop_version(transaction, id, last)
                memory._count_deletion(transaction, scope.user_id)
            before = transaction.rows(
                "SELECT max(time) FROM memories WHERE id = ? AND superseded IS NULL", id
            )[0][0]  # fmt: skip
            if before is not None and at < before:
                raise ValueError("timestamp is earlier than that of the version of this document that it follows.")
        _begin_version(memory, transaction, id, version, scope, title, digest, text, at, metadata)
        return id, version, 0, None


def _begin_version(
    memory: "Memory", transaction: Transaction, id: str, version: int, scope: Scope, title: str, digest: str, text: str,
    at: float, metadata: str,
) -> None:  # fmt: skip
    from .memory import _Computed

    transaction.run(
        "INSERT INTO documents (id, version, user_id, agent_id, title, digest, text, complete, read_tokens) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, 0, 0)",
        id, version, scope.user_id, scope.agent_id, title, digest, text,
    )  # fmt: skip
    number = memory._log(transaction, "document begun", id, scope.user_id, {"version": version})
    # Until it has been read to its end, it holds for no time at all.
    memory._insert(
        transaction, number, _Computed(None, None, None, count_words(title).tobytes()), id=id, version=version,
        kind="document", scope=scope, text=title, at=at, superseded=at, metadata=metadata,
    )  # fmt: skip


def _read(
    memory: "Memory", text: str, scope: Scope, id: str, version: int, progress: int, state: bytes | None
) -> MemoryRecord | None:
    """Reads a document to its end, a transaction a step. None if another reader of the same document was quicker."""
    steps = memory.reader.read_document(text, state) if memory.has_model else _without_model(text)
    for step in steps:
        texts = [text[paragraph.start : paragraph.end] for paragraph in step.paragraphs]
        words = [count_words(part).tobytes() for part in texts]
        with memory.store.write() as transaction:
            if _progress(transaction, id, version) != progress:
                return None
            position = transaction.rows(
                "SELECT count(*) FROM memories WHERE document_id = ? AND version = ?", id, version
            )[0][0]
            at = transaction.rows("SELECT time FROM memories WHERE id = ? AND version = ?", id, version)[0][0]
            number = memory._log(
                transaction, "document read", id, scope.user_id, {"version": version, "tokens": step.tokens}
            )
            for paragraph, part, entries in zip(step.paragraphs, texts, words, strict=True):
                _insert_paragraph(
                    memory, transaction, number, scope, id, version, position, at, paragraph, part, entries
                )
                position += 1
            transaction.run(
                "UPDATE documents SET read_tokens = ?, state = ? WHERE id = ? AND version = ?",
                step.tokens, step.resume, id, version,
            )  # fmt: skip
            if step.resume is None:
                _finish(memory, transaction, scope, id, version, at, step.vector)
                return _record(memory, transaction, id, version)
        progress = step.tokens
    raise AssertionError("a document ends with its last step")


def _insert_paragraph(memory, transaction, number, scope, id, version, position, at, paragraph, text, words) -> None:
    from .memory import _Computed

    vector = None if paragraph.vector is None else np.asarray(paragraph.vector, "<f4").tobytes()
    nothing = None if vector is None else b""
    memory._insert(
        transaction, number, _Computed(vector, nothing, nothing, words), id=f"{id}-{position}", version=version,
        kind="paragraph", scope=scope, text=text, at=at, superseded=at, position=position, document_id=id,
        span=(paragraph.start, paragraph.end),
    )  # fmt: skip


def _finish(
    memory: "Memory",
    transaction: Transaction,
    scope: Scope,
    id: str,
    version: int,
    at: float,
    vector: np.ndarray | None,
) -> None:
    """The version holds from now on, in place of the one before."""
    from .memory import _Computed

    number = memory._log(transaction, "document", id, scope.user_id, {"version": version})
    transaction.run(
        "UPDATE memories SET superseded = ?, changed = ? WHERE (id = ? OR document_id = ?) AND superseded IS NULL",
        at, number, id, id,
    )  # fmt: skip
    row, title = transaction.rows("SELECT row_id, text FROM memories WHERE id = ? AND version = ?", id, version)[0]
    transaction.run("DELETE FROM vectors WHERE row_id = ?", row)
    data = None if vector is None else np.asarray(vector, "<f4").tobytes()
    nothing = None if data is None else b""
    memory._write_vectors(transaction, row, _Computed(data, nothing, nothing, count_words(title).tobytes()))
    transaction.run(
        "UPDATE memories SET superseded = NULL, changed = ? WHERE (id = ? OR document_id = ?) AND version = ?",
        number, id, id, version,
    )  # fmt: skip
    transaction.run("UPDATE documents SET complete = 1, state = NULL WHERE id = ? AND version = ?", id, version)
    # Its vector was written after somebody may have seen the row without one.
    memory._count_deletion(transaction, scope.user_id)


def _drop_version(transaction: Transaction, id: str, version: int) -> None:
    rows = transaction.rows(
        "SELECT row_id FROM memories WHERE (id = ? OR document_id = ?) AND version = ?", id, id, version
    )
    for (row,) in rows:
        transaction.run("DELETE FROM vectors WHERE row_id = ?", row)
        transaction.run("DELETE FROM memories WHERE row_id = ?", row)
    transaction.run("DELETE FROM documents WHERE id = ? AND version = ?", id, version)


def _progress(transaction: Transaction, id: str, version: int) -> int:
    """Tokens read so far, -1 if the document is gone."""
    rows = transaction.rows("SELECT read_tokens, complete FROM documents WHERE id = ? AND version = ?", id, version)
    return int(rows[0][0]) if rows and not rows[0][1] else -1


def _record(memory: "Memory", transaction: Transaction, id: str, version: int) -> MemoryRecord:
    row = transaction.rows("SELECT row_id FROM memories WHERE id = ? AND version = ?", id, version)[0][0]
    return memory._record(transaction, row)


class _Span:
    def __init__(self, start: int, end: int):
        self.start = start
        self.end = end
        self.vector = None


class _OneStep:
    def __init__(self, text: str):
        from .paragraphs import paragraphs

        self.paragraphs = [_Span(start, end) for start, end in paragraphs(text)]
        self.tokens = 0
        self.resume = None
        self.vector = None


def _without_model(text: str):
    yield _OneStep(text)

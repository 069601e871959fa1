"""What is written in the tables of a memory: a version's columns, digests, conditions, and what was made of a text."""

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .records import MemoryRecord, Scope, as_datetime
from .words import count_words

if TYPE_CHECKING:
    from .reading import Reading

# The columns of which `record_of` makes a record.
RECORD = (
    "id, text, kind, version, user_id, agent_id, run_id, role, time, superseded, key, position, document_id, "
    "start_at, end_at, metadata"
)
# A condition for the rows of one conversation; its values are `Scope.values`.
OF_SCOPE = "user_id = ? AND agent_id = ? AND run_id = ?"


@dataclass(frozen=True)
class Computed:
    """What is stored with a text, as bytes: float32 vectors, int32 spans, words; the first three None without a model.

    Attributes:
        alone: the embedding [D] of the text alone.
        passages: embeddings [passages, D] of its passages.
        spans: [passages, 2] characters of the passages.
        words: entries of `words.ENTRY`.
    """

    alone: bytes | None
    passages: bytes | None
    spans: bytes | None
    words: bytes

    @classmethod
    def of_words(cls, text: str) -> "Computed":
        """What is known of a text without a model."""
        return cls(None, None, None, count_words(text).tobytes())

    @classmethod
    def of_reading(cls, reading: "Reading", words: bytes) -> "Computed":
        """What the model read in a text, with the text's words."""
        return cls(
            as_float32(reading.alone),
            as_float32(reading.passages),
            np.asarray(reading.spans, "<i4").tobytes(),
            words,
        )

    @classmethod
    def of_vector(cls, vector: np.ndarray | None, words: bytes) -> "Computed":
        """One vector [D] and no passages; None without a model."""
        if vector is None:
            return cls(None, None, None, words)
        return cls(as_float32(vector), b"", b"", words)


@dataclass(frozen=True)
class Version:
    """A version of a memory that is to be written.

    Attributes:
        id, kind, text, version, key, role, position, document_id: as `MemoryRecord` has them.
        scope: whose it is.
        at: since when it holds, seconds since 1970.
        superseded: until when it holds, None for still.
        metadata: JSON.
        source_id: the caller's own id of a message.
        span: characters [start, end) of a paragraph in its document.
    """

    id: str
    kind: str
    scope: Scope
    text: str
    at: float
    version: int = 1
    metadata: str = "{}"
    superseded: float | None = None
    key: str | None = None
    role: str | None = None
    source_id: str | None = None
    position: int | None = None
    document_id: str | None = None
    span: tuple[int, int] | None = None


def record_of(row: tuple[Any, ...]) -> MemoryRecord:
    """The record of a row of RECORD."""
    (
        id,
        text,
        kind,
        version,
        user_id,
        agent_id,
        run_id,
        role,
        at,
        superseded,
        key,
        position,
        document_id,
        start,
        end,
        metadata,
    ) = row
    return MemoryRecord(
        id=id,
        text=text,
        kind=kind,
        version=version,
        user_id=user_id or None,
        agent_id=agent_id or None,
        run_id=run_id or None,
        role=role,
        time=as_datetime(at),
        superseded=None if superseded is None else as_datetime(superseded),
        key=key,
        position=position,
        document_id=document_id,
        start=start,
        end=end,
        metadata=json.loads(metadata),
    )


def digest_of(*values: str | bytes | None) -> str:
    """Hexadecimal digest of texts and bytes, by which a flipped bit is found."""
    digest = hashlib.blake2b(digest_size=16)
    for value in values:
        data = b"" if value is None else value.encode() if isinstance(value, str) else bytes(value)
        digest.update(f"{'-' if value is None else len(data)} ".encode())
        digest.update(data)
    return digest.hexdigest()


def exactly(scope: Scope, strictly: bool = False) -> tuple[str, list[str]]:
    """A condition for memories of a scope: the user named (or none), and the agent and run where they are given.

    strictly: without a user and an agent only what is shared, not what belongs to agents.
    """
    where = "user_id = ?"
    values = [scope.user_id]
    if scope.agent_id or (strictly and not scope.user_id):
        where += " AND agent_id = ?"
        values.append(scope.agent_id)
    if scope.run_id:
        where += " AND run_id = ?"
        values.append(scope.run_id)
    return where, values


def as_float32(vectors: np.ndarray) -> bytes:
    """The bytes in which vectors are stored."""
    return np.asarray(vectors, "<f4").tobytes()


def as_json(data: dict[str, Any]) -> str:
    """What an event says, as it is stored."""
    return json.dumps(data, ensure_ascii=False, sort_keys=True)

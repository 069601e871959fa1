"""A memory through the eyes of one scope: what a server, an adapter or an assistant is given, never a `Memory`."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from . import adding, conversations, documents, forgetting, lookup, searching
from .engine import Engine
from .ranking import Ranking
from .records import ConversationRecord, MemoryRecord, Scope, SearchResult, Time

_List = list  # `list` is a method of ScopedMemory


class ScopedMemory:
    """What one user, assistant or conversation may see and change; `Memory.within` makes it.

    None of its methods takes a scope, so that none can be forgotten, and no id leads out of the scope: a memory that
    is not to be seen is as unknown as one that does not exist. It sees what a search in its scope sees: what belongs to
    its user (with an agent, only what belongs to this agent or to none; with a run, to this conversation or to none),
    what belongs to its agent and to no user, and what is shared. It changes and forgets only what belongs to exactly
    its user, and to its agent and run where it has them.

    Args:
        engine: all of the memory.
        ranking: how results are ordered.
        scope: the part.
    """

    def __init__(self, engine: Engine, ranking: Ranking, scope: Scope) -> None:
        self._engine = engine
        self._ranking = ranking
        self.scope = scope

    def add(
        self,
        content: str | dict[str, Any] | Sequence[dict[str, Any]],
        *,
        key: str | None = None,
        timestamp: Time | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> _List[MemoryRecord]:
        """See `Memory.add`."""
        return adding.add(self._engine, content, self.scope, key, timestamp, metadata)

    def add_document(
        self,
        source: str | os.PathLike[str],
        *,
        title: str | None = None,
        timestamp: Time | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> MemoryRecord:
        """See `Memory.add_document`. A document belongs to the user and agent of the scope, and to no conversation."""
        scope = Scope(self.scope.user_id, self.scope.agent_id)
        return documents.add_document(self._engine, source, title, scope, timestamp, metadata)

    def search(
        self,
        query: str,
        *,
        top_k: int = 10,
        kinds: Iterable[str] | None = None,
        after: Time | None = None,
        before: Time | None = None,
        as_of: Time | None = None,
        explain: bool = False,
        ranking: Ranking | None = None,
    ) -> _List[SearchResult]:
        """See `Memory.search`."""
        question = searching.Question.of(
            query, self.scope, top_k, kinds, after, before, as_of, explain, ranking or self._ranking
        )
        return searching.search(self._engine, question)

    def get(self, id: str) -> MemoryRecord:
        """See `Memory.get`. Raises UnknownMemory for what is not to be seen."""
        return lookup.get(self._engine.store, id, self.scope)

    def list(self, *, kinds: Iterable[str] | None = None, limit: int = 100, offset: int = 0) -> _List[MemoryRecord]:
        """See `Memory.list`: what belongs to exactly this scope, without what is shared."""
        return lookup.listed(self._engine.store, self.scope, kinds, limit, offset, strictly=True)

    def conversations(self, *, limit: int = 100, offset: int = 0) -> _List[ConversationRecord]:
        """See `Memory.conversations`: those that belong to exactly this scope."""
        return lookup.conversations(self._engine.store, self.scope, limit, offset, strictly=True)

    def history(self, id: str) -> _List[MemoryRecord]:
        """See `Memory.history`. Raises UnknownMemory for what is not to be seen."""
        return lookup.history(self._engine.store, id, self.scope)

    def document(self, id: str) -> str:
        """See `Memory.document`. Raises UnknownMemory for what is not to be seen."""
        return lookup.document(self._engine.store, id, self.scope)

    def events(self, id: str) -> _List[dict[str, Any]]:
        """What the log says of one memory. Raises UnknownMemory for what is not to be seen, or was forgotten."""
        self.history(id)
        return lookup.events(self._engine.store, id, None)

    def gist(self) -> np.ndarray:
        """See `Memory.gist`: the conversation of this scope."""
        return conversations.gist(self._engine, self.scope)

    def update(
        self, id: str, text: str, *, timestamp: Time | None = None, metadata: dict[str, Any] | None = None
    ) -> MemoryRecord:
        """See `Memory.update`. Raises UnknownMemory for what is not this scope's to change."""
        return adding.update(self._engine, id, text, timestamp, metadata, self.scope)

    def delete(self, id: str) -> None:
        """See `Memory.delete`. Raises UnknownMemory for what is not this scope's to forget."""
        forgetting.delete(self._engine, id, self.scope)

    def delete_all(self) -> int:
        """Forget all that belongs to exactly this scope. Raises ValueError for a scope without any name."""
        return forgetting.delete_all(self._engine, self.scope, everything=False, strictly=True)

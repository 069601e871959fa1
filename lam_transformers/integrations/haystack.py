"""Haystack's memory store, kept in a memory of LAM, and the components that read and write it in a pipeline."""

from dataclasses import replace
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict, logging
from haystack.dataclasses import ChatMessage
from haystack.utils.filters import document_matches_filter

from ..memories import Memory, MemoryRecord, Scope, ScopedMemory
from ..memories.lookup import seen
from ..memories.searching import Question, search

logger = logging.getLogger(__name__)


class LAMMemoryStore:
    """A memory store as Haystack's protocol `MemoryStore` has it: messages are remembered as they were said.

    Each call names whose memories are meant: a user, an assistant, or both, and perhaps a conversation. One user's
    memories never appear for another one; what is shared (`Memory.add_document` without a user, say) appears for all.

    Args:
        place: a file for SQLite, such as "memory.db", or "postgresql://user@host/database".
        model: a LAM folder or Hub id; None remembers and finds by words alone.

    Attributes:
        memory: the `Memory`, which is opened when it is first needed.
    """

    def __init__(self, place: str = "memory.db", *, model: str | None = "LAM-base-v1") -> None:
        self.place = place
        self.model = model
        self._memory: Memory | None = None

    def warm_up(self) -> None:
        """Open the memory."""
        if self._memory is None:
            self._memory = Memory(self.place, model=self.model)

    @property
    def memory(self) -> Memory:
        """The memory, opened."""
        self.warm_up()
        assert self._memory is not None
        return self._memory

    def to_dict(self) -> dict[str, Any]:
        """For the YAML of a pipeline: the place, a password in it included, and the model."""
        return default_to_dict(self, place=self.place, model=self.model)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "LAMMemoryStore":
        """The inverse of `to_dict`."""
        return default_from_dict(cls, data)

    def add_memories(
        self,
        *,
        messages: list[ChatMessage],
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        **kwargs: Any,
    ) -> list[dict[str, Any]]:
        """Remember messages, at the end of the conversation of their scope, all of them or none.

        Args:
            messages: those without text, such as calls of tools, are left out. `meta` comes back with a message; its
                "timestamp", if there is one, says when it was said, and its "id" keeps it from being added twice.
            user_id: whose they are.
            agent_id: the assistant whose they are.
            run_id: the conversation.
            **kwargs: nothing: there is no further option.

        Returns:
            {"memory_id", "memory"} of each.

        Raises:
            ValueError: without a user or an assistant, and for what cannot be stored.
        """
        turns = [_turn(message) for message in messages if message.text and message.text.strip()]
        scoped = self._within(user_id, agent_id, run_id, kwargs)
        if not turns:
            logger.warning("No message has a text; nothing was remembered.")
            return []
        return [{"memory_id": record.id, "memory": record.text} for record in scoped.add(turns)]

    def search_memories(
        self,
        *,
        query: str | None = None,
        filters: dict[str, Any] | None = None,
        top_k: int = 5,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        **kwargs: Any,
    ) -> list[ChatMessage]:
        """What answers a question best, best first; without a question, what was remembered last.

        Args:
            query: plain words.
            filters: Haystack's filters, on "content" and "meta.NAME".
            top_k: number of memories, at most.
            user_id: whose memories are searched, beside the shared ones.
            agent_id: of the user's memories only those of this assistant or of none.
            run_id: only this conversation and what belongs to none.
            **kwargs: nothing: there is no further option.

        Returns:
            a system message for each, with the `meta` of the message that was added and, in meta["memory"], its id,
            score (None without a question), role, kind, time and scope.

        Raises:
            ValueError: without a user or an assistant, and for arguments that do not fit.
        """
        scope = self._within(user_id, agent_id, run_id, kwargs).scope
        only = None
        records: list[MemoryRecord] = []
        if filters or not query:
            records = [record for record in seen(self.memory.store, scope) if not filters or _passes(filters, record)]
            only = frozenset(record.id for record in records)
        if not query:
            latest = [record for record in reversed(records) if record.kind != "paragraph"]
            return [_message(record, None) for record in latest[:top_k]]
        question = Question.of(query, scope, top_k, None, None, None, None, False, self.memory.ranking)
        results = search(self.memory.engine, replace(question, only=only))
        return [_message(result.memory, result.score) for result in results]

    def delete_all_memories(
        self, *, user_id: str | None = None, agent_id: str | None = None, run_id: str | None = None, **kwargs: Any
    ) -> None:
        """Forget all that belongs to exactly this user, assistant and conversation; nothing of it remains.

        Raises ValueError without a user or an assistant.
        """
        self._within(user_id, agent_id, run_id, kwargs).delete_all()

    def delete_memory(
        self,
        memory_id: str,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Forget one memory of this user or assistant.

        Raises:
            UnknownMemory: (a ValueError) if there is no such memory, or it is not theirs.
            ValueError: without a user or an assistant.
        """
        self._within(user_id, agent_id, run_id, kwargs).delete(memory_id)

    def _within(
        self, user_id: str | None, agent_id: str | None, run_id: str | None, unknown: dict[str, Any]
    ) -> ScopedMemory:
        """Whose memories are meant. Raises ValueError if nobody's are, because what is nobody's is shared with all."""
        if unknown:
            raise TypeError(f"LAMMemoryStore has no option {', '.join(unknown)}; it has user_id, agent_id and run_id.")
        if user_id is None and agent_id is None:
            raise ValueError("Name a user_id or an agent_id; without one, everybody's memories would be the same.")
        return self.memory.within(user_id=user_id, agent_id=agent_id, run_id=run_id)


def _turn(message: ChatMessage) -> dict[str, Any]:
    meta = {name: value for name, value in message.meta.items() if name != "memory"}
    turn: dict[str, Any] = {"role": message.role.value, "content": message.text, "metadata": meta}
    return turn | {name: meta[name] for name in ("timestamp", "id") if meta.get(name) is not None}


def _message(record: MemoryRecord, score: float | None) -> ChatMessage:
    scope = Scope.of(record.user_id, record.agent_id, record.run_id)
    known = {
        "memory_id": record.id,
        "score": score,
        "role": record.role,
        "kind": record.kind,
        "time": record.time.isoformat(),
        **{name: value or None for name, value in vars(scope).items()},
    }
    return ChatMessage.from_system(record.text, meta={**record.metadata, "memory": known})


def _passes(filters: dict[str, Any], record: MemoryRecord) -> bool:
    message = _message(record, None)
    return document_matches_filter(filters, Document(content=record.text, meta=message.meta))


@component
class LAMMemoryWriter:
    """Remembers the messages of a pipeline.

    Args:
        memory_store: where.
    """

    def __init__(self, memory_store: LAMMemoryStore) -> None:
        self.memory_store = memory_store

    def warm_up(self) -> None:
        """Open the memory."""
        self.memory_store.warm_up()

    @component.output_types(memories_written=int)
    def run(
        self,
        messages: list[ChatMessage],
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
    ) -> dict[str, int]:
        """See `LAMMemoryStore.add_memories`; returns the number of memories as "memories_written"."""
        added = self.memory_store.add_memories(messages=messages, user_id=user_id, agent_id=agent_id, run_id=run_id)
        return {"memories_written": len(added)}

    def to_dict(self) -> dict[str, Any]:
        """For the YAML of a pipeline."""
        return default_to_dict(self, memory_store=self.memory_store.to_dict())

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "LAMMemoryWriter":
        """The inverse of `to_dict`."""
        return default_from_dict(cls, _with_store(data))


@component
class LAMMemoryRetriever:
    """Finds memories for a pipeline.

    Args:
        memory_store: where.
        top_k: number of memories, at most.
    """

    def __init__(self, memory_store: LAMMemoryStore, top_k: int = 5) -> None:
        self.memory_store = memory_store
        self.top_k = top_k

    def warm_up(self) -> None:
        """Open the memory."""
        self.memory_store.warm_up()

    @component.output_types(memories=list[ChatMessage])
    def run(
        self,
        query: str | None = None,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
    ) -> dict[str, list[ChatMessage]]:
        """See `LAMMemoryStore.search_memories`; returns the messages as "memories"."""
        memories = self.memory_store.search_memories(
            query=query,
            filters=filters,
            top_k=self.top_k if top_k is None else top_k,
            user_id=user_id,
            agent_id=agent_id,
            run_id=run_id,
        )
        return {"memories": memories}

    def to_dict(self) -> dict[str, Any]:
        """For the YAML of a pipeline."""
        return default_to_dict(self, memory_store=self.memory_store.to_dict(), top_k=self.top_k)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "LAMMemoryRetriever":
        """The inverse of `to_dict`."""
        return default_from_dict(cls, _with_store(data))


def _with_store(data: dict[str, Any]) -> dict[str, Any]:
    """The dictionary of a component, its store made again."""
    parameters = data["init_parameters"]
    store = LAMMemoryStore.from_dict(parameters["memory_store"])
    return data | {"init_parameters": parameters | {"memory_store": store}}

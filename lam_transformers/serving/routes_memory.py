"""A memory over HTTP: the paths of mem0's open server, documents and conversations.

Answers are written in the thread that looks them up, because a list of memories may be long.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response

from ..memories import MemoryRecord, Scope, ScopedMemory, SearchResult, UnknownMemory
from ..memories.strengths import FAST_KEPT, SLOW_KEPT
from .answers import encoded
from .errors import InvalidInput, ServeError
from .memory_schemas import (
    ConversationItems,
    ConversationRequest,
    CorrectRequest,
    DocumentRequest,
    Forgotten,
    FoundMemories,
    Gist,
    Kind,
    MemoryEvent,
    MemoryItem,
    MemoryItems,
    MemorySearchRequest,
    MemoryVersion,
    RememberRequest,
    check_depth,
)
from .memory_service import NAMES
from .schemas import TEIError
from .service import Service, note

Name = Annotated[str | None, Query()]
Limit = Annotated[int, Query(ge=1, le=1000)]
Offset = Annotated[int, Query(ge=0, le=1 << 40)]


class Named:
    """Reads the names in the query of a request, and refuses what the route does not know.

    A misspelt name would otherwise mean all of a user's memories where one conversation was meant.

    Args:
        others: what else the query may have.
    """

    def __init__(self, *others: str):
        self._known = (*NAMES, *others)

    def __call__(
        self, request: Request, user_id: Name = None, agent_id: Name = None, run_id: Name = None
    ) -> dict[str, str | None]:
        for name in request.query_params:
            if name not in self._known:
                raise InvalidInput(f"There is no parameter {name[:40]!r} here; there are {', '.join(self._known)}.")
        return {"user_id": user_id, "agent_id": agent_id, "run_id": run_id}


Names = Annotated[dict[str, str | None], Depends(Named())]
NamesAndKinds = Annotated[dict[str, str | None], Depends(Named("limit", "offset", "kinds"))]
NamesAndShared = Annotated[dict[str, str | None], Depends(Named("limit", "offset", "shared"))]
NamesAndPage = Annotated[dict[str, str | None], Depends(Named("limit", "offset"))]
NamesAndFormat = Annotated[dict[str, str | None], Depends(Named("encoding_format"))]


def memory_routes(service: Service) -> APIRouter:
    """The routes of one service's memory."""
    statuses = (400, 401, 403, 404, 408, 409, 413, 421, 422, 429, 500, 503)
    router = APIRouter(tags=["Memory"], responses={status: {"model": TEIError} for status in statuses})

    def part(request: Request, names: dict[str, str | None]) -> ScopedMemory:
        """What a request may see and change. Raises ServeError for names that its key does not open."""
        try:
            scope = request.scope["lam.access"].narrowed(**names)
        except ValueError as error:
            raise InvalidInput(str(error)) from None
        return service.memory.part(scope)

    def conversation(request: Request, names: dict[str, str | None]) -> ScopedMemory:
        """The same, where it has to be one conversation."""
        own = part(request, names)
        if not own.scope.run_id:
            raise InvalidInput("Say which conversation: run_id.", "run_id")
        return own

    async def forget_all(request: Request, own: ScopedMemory) -> Response:
        if own.scope == Scope():
            raise InvalidInput("Say whose memories: user_id, agent_id or run_id. Shared ones are forgotten one by one.")
        count = await service.memory.change(request, own.delete_all)
        return _json({"message": f"Forgot {count}.", "deleted": count})

    # Memories

    @router.post("/memories", response_model=MemoryItems)
    async def add(body: RememberRequest, request: Request) -> Response:
        """Remember a text, or turns at the end of the conversation of their scope; all of them or none.

        `messages` is a text, a message {"role", "content", "timestamp"?, "id"?, "metadata"?}, or several. With `key` a
        text supersedes what the same user (and agent) had under that name.
        """
        own = part(request, body.names)
        given = {"timestamp": body.timestamp, "metadata": body.metadata}
        options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        content: Any = body.messages
        if isinstance(content, str):
            options |= {"key": body.key}
        elif body.key is not None:
            raise InvalidInput("A key belongs to a text; messages have none.", "key")
        else:
            content = _messages(content, service.settings.inputs, options)
            options = {}
        note(request, inputs=1 if isinstance(content, str) else len(content))
        return await service.memory.read(request, _characters(content), lambda: _items(own.add(content, **options)))

    @router.get("/memories", response_model=MemoryItems)
    async def list_all(
        names: NamesAndKinds,
        request: Request,
        limit: Limit = 100,
        offset: Offset = 0,
        kinds: Annotated[list[Kind] | None, Query()] = None,
    ) -> Response:
        """What belongs to exactly this scope, in the order in which it was written; all kinds but paragraphs."""
        own = part(request, names)
        return await service.memory.look(
            request, lambda: _items(own.list(kinds=kinds or None, limit=limit, offset=offset))
        )

    @router.delete("/memories", response_model=Forgotten)
    async def delete_all(names: Names, request: Request) -> Response:
        """Forget all that belongs to exactly this scope, for good."""
        return await forget_all(request, part(request, names))

    @router.get("/memories/{memory_id}", response_model=MemoryItem)
    async def get(memory_id: str, names: Names, request: Request) -> Response:
        """A memory in the version that holds."""
        own = part(request, names)
        return await service.memory.look(request, lambda: _json(_item(own.get(memory_id))))

    @router.put("/memories/{memory_id}", response_model=MemoryItem)
    async def update(memory_id: str, body: CorrectRequest, names: Names, request: Request) -> Response:
        """Supersede a memory: searches show the new text, its history both."""
        own = part(request, names)

        def run() -> Response:
            with _own_only(own, memory_id):
                record = own.update(memory_id, body.text, timestamp=body.timestamp, metadata=body.metadata)
                return _json(_item(record))

        return await service.memory.read(request, len(body.text), run)

    @router.delete("/memories/{memory_id}", response_model=Forgotten)
    async def delete(memory_id: str, names: Names, request: Request) -> Response:
        """Forget a memory in all its versions, a turn, or a document; nothing of it remains."""
        own = part(request, names)

        def run() -> None:
            with _own_only(own, memory_id):
                own.delete(memory_id)

        await service.memory.change(request, run)
        return _json({"message": "Forgotten.", "deleted": 1})

    @router.get("/memories/{memory_id}/history", response_model=list[MemoryVersion])
    async def history(memory_id: str, names: Names, request: Request) -> Response:
        """All versions of a memory, the oldest first."""
        own = part(request, names)
        return await service.memory.look(request, lambda: _json(_versions(own.history(memory_id))))

    @router.get("/memories/{memory_id}/events", response_model=list[MemoryEvent])
    async def events(memory_id: str, names: Names, request: Request) -> Response:
        """What the log says of a memory: when it was written and recalled, and how its strengths moved.

        `fast_before` and `slow_before` are what was left of the strengths, after the sessions that had passed.
        """
        own = part(request, names)

        def run() -> Response:
            return _json(_events(own.events(memory_id)))

        return await service.memory.look(request, run)

    @router.post("/search", response_model=FoundMemories)
    async def search(body: MemorySearchRequest, request: Request) -> Response:
        """What answers a question best, best first: of the scope, and of what is shared."""
        own = part(request, _with_filters(body))
        least = float("-inf") if body.threshold is None else body.threshold

        def run() -> Response:
            results = own.search(
                body.query,
                top_k=body.limit or body.top_k,
                kinds=body.kinds,
                after=body.after,
                before=body.before,
                as_of=body.as_of,
                explain=body.explain,
            )
            return _json({"results": [_result(result) for result in results if result.score >= least]})

        return await service.memory.look(request, run)

    # Documents

    @router.post("/documents", response_model=MemoryItem)
    async def add_document(body: DocumentRequest, request: Request) -> Response:
        """Remember a whole document, read in one pass; an interrupted one goes on where it was when it is sent again.

        The same document again costs nothing, a changed one of the same title becomes its next version. It belongs to
        the user and agent of its scope, or is shared.
        """
        own = part(request, {"user_id": body.user_id, "agent_id": body.agent_id, "run_id": None})

        def run() -> Response:
            record = own.add_document(body.text, title=body.title, timestamp=body.timestamp, metadata=body.metadata)
            return _json(_item(record))

        note(request, inputs=1)
        return await service.memory.read(request, len(body.text), run)

    @router.get("/documents", response_model=MemoryItems)
    async def list_documents(
        names: NamesAndShared, request: Request, limit: Limit = 100, offset: Offset = 0, shared: bool = False
    ) -> Response:
        """Documents of exactly this scope, or those that are shared; `memory` is the title."""
        own = service.memory.part(Scope()) if shared else part(request, names)
        return await service.memory.look(
            request, lambda: _items(own.list(kinds=["document"], limit=limit, offset=offset))
        )

    @router.get("/documents/{document_id}", response_model=MemoryItem)
    async def get_document(document_id: str, names: Names, request: Request) -> Response:
        """A document; `memory` is its title."""
        own = part(request, names)

        def run() -> Response:
            _check_document(own, document_id)
            return _json(_item(own.get(document_id)))

        return await service.memory.look(request, run)

    text_answer: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @router.get("/documents/{document_id}/text", response_class=Response, responses=text_answer)
    async def get_text(document_id: str, names: Names, request: Request) -> Response:
        """The whole text of a document."""
        own = part(request, names)

        def run() -> Response:
            _check_document(own, document_id)
            return Response(own.document(document_id), media_type="text/plain")

        return await service.memory.look(request, run)

    @router.delete("/documents/{document_id}", response_model=Forgotten)
    async def delete_document(document_id: str, names: Names, request: Request) -> Response:
        """Forget a document with its paragraphs, in all its versions."""
        own = part(request, names)

        def run() -> None:
            _check_document(own, document_id)
            with _own_only(own, document_id):
                own.delete(document_id)

        await service.memory.change(request, run)
        return _json({"message": "Forgotten.", "deleted": 1})

    # Conversations

    @router.post("/conversations", response_model=MemoryItems)
    async def add_turns(body: ConversationRequest, request: Request) -> Response:
        """Turns at the end of a conversation, all or none. A message whose `id` is known is not added again."""
        own = conversation(request, body.names)
        messages = _messages(body.messages, service.settings.inputs, {})
        note(request, inputs=len(messages))
        return await service.memory.read(request, _characters(messages), lambda: _items(own.add(messages)))

    @router.get("/conversations", response_model=MemoryItems)
    async def list_turns(names: NamesAndPage, request: Request, limit: Limit = 100, offset: Offset = 0) -> Response:
        """The turns of a conversation, in order."""
        own = conversation(request, names)
        return await service.memory.look(request, lambda: _items(own.list(kinds=["turn"], limit=limit, offset=offset)))

    @router.get("/conversations/list", response_model=ConversationItems)
    async def list_conversations(
        names: NamesAndPage, request: Request, limit: Limit = 100, offset: Offset = 0
    ) -> Response:
        """The conversations of exactly this scope, the one that was last spoken in first.

        `run_id` names each of them; it is null for turns that were said without one. `turns` is the number of turns
        that hold, `first_time` and `last_time` say when the first and the last of them were said.
        """
        own = part(request, names)

        def run() -> Response:
            conversations = own.conversations(limit=limit, offset=offset)
            return _json({"results": [one.as_dict() for one in conversations]})

        return await service.memory.look(request, run)

    @router.get("/conversations/gist", response_model=Gist)
    async def gist(
        names: NamesAndFormat, request: Request, encoding_format: Literal["float", "base64"] = "float"
    ) -> Response:
        """The embedding of a conversation as one text; only what is new since the last time is read."""
        own = conversation(request, names)
        vector = await service.memory.read(request, 1, own.gist)
        return _json({"embedding": encoded(vector[None], encoding_format)[0]})

    @router.delete("/conversations", response_model=Forgotten)
    async def delete_conversation(names: Names, request: Request) -> Response:
        """Forget a conversation, and all else that belongs to its run, for good."""
        return await forget_all(request, conversation(request, names))

    return router


# From requests


def _messages(given: Any, most: int, defaults: dict[str, Any]) -> list[Any]:
    """Messages with what the request says of all of them; what each must have is the memory's to check."""
    messages = [given] if isinstance(given, dict) else given
    if not isinstance(messages, list):
        raise InvalidInput("`messages` must be a list of {'role': ..., 'content': ...}.", "messages")
    if len(messages) > most:
        raise InvalidInput(f"`messages` has {len(messages):,} of them, this server takes {most:,} at once.", "messages")
    for number, message in enumerate(messages):
        try:
            check_depth(message.get("metadata") if isinstance(message, dict) else None)
        except ValueError as error:
            raise InvalidInput(f"messages[{number}]['metadata']: {error}.", "messages") from None
    return [{**defaults, **message} if isinstance(message, dict) else message for message in messages]


def _characters(content: str | list[Any]) -> int:
    if isinstance(content, str):
        return len(content)
    texts = [message.get("content") for message in content if isinstance(message, dict)]
    return sum(len(text) for text in texts if isinstance(text, str))


def _with_filters(body: MemorySearchRequest) -> dict[str, Any]:
    """The names of a search, of which mem0's newer clients put some into `filters`."""
    names: dict[str, Any] = dict(body.names)
    for name, value in (body.filters or {}).items():
        if name not in NAMES or names[name] not in (None, value):
            raise InvalidInput(
                f"`filters` may have user_id, agent_id and run_id, each once; {name[:40]!r} is not one of them or is "
                "given twice. For times and kinds there are fields.",
                "filters",
            )
        names[name] = value
    return names


def _check_document(own: ScopedMemory, id: str) -> None:
    """Raises UnknownMemory for what is no document that may be seen."""
    if own.history(id)[-1].kind != "document":
        raise UnknownMemory(f"There is no document {id[:80]!r}.")


@contextlib.contextmanager
def _own_only(own: ScopedMemory, id: str) -> Iterator[None]:
    """Tells what may be seen and not be changed, which is no secret, from what is unknown."""
    try:
        yield
    except UnknownMemory:
        newest = own.history(id)[-1]  # raises UnknownMemory for what is not to be seen
        if own.scope.owns(Scope(newest.user_id or "", newest.agent_id or "", newest.run_id or "")):
            raise
        raise ServeError(
            403,
            "forbidden",
            "This memory may be read and not changed from here: it is shared, or an assistant's.",
            "id",
        ) from None


# To answers


def _json(body: Any) -> Response:
    return Response(json.dumps(body, ensure_ascii=False, allow_nan=False), media_type="application/json")


def _items(records: Sequence[MemoryRecord]) -> Response:
    return _json({"results": [_item(record) for record in records]})


def _item(record: MemoryRecord) -> dict[str, Any]:
    return _renamed(record.as_dict())


def _result(result: SearchResult) -> dict[str, Any]:
    values = _renamed(result.as_dict())
    values["variants"] = [_renamed(variant) for variant in values["variants"]]
    return values


def _renamed(values: dict[str, Any]) -> dict[str, Any]:
    """mem0's clients look for the text under `memory`."""
    return {"memory" if name == "text" else name: value for name, value in values.items()}


def _versions(versions: Sequence[MemoryRecord]) -> list[dict[str, Any]]:
    """A history in mem0's words."""
    texts = [None, *(version.text for version in versions)]
    return [
        {
            "memory_id": version.id,
            "version": version.version,
            "event": "ADD" if before is None else "UPDATE",
            "old_memory": before,
            "new_memory": version.text,
            "time": version.time.isoformat(),
            "superseded": None if version.superseded is None else version.superseded.isoformat(),
            "metadata": version.metadata,
        }
        for version, before in zip(versions, texts, strict=False)
    ]


def _events(happened: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The log, with what was left of the strengths before each time that they were set."""
    answer = []
    last: dict[str, Any] | None = None
    for event in happened:
        shown = {**event, "time": event["time"].isoformat()}
        if "fast" in event:
            if last is not None:
                passed = event["session"] - last["session"]
                shown |= {
                    "fast_before": last["fast"] * FAST_KEPT**passed,
                    "slow_before": last["slow"] * SLOW_KEPT**passed,
                }
            last = event
        answer.append(shown)
    return answer

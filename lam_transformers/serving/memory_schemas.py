"""Bodies of requests to a memory and of its answers, as pydantic reads them and the OpenAPI file shows them.

Fields that are not known are refused here: a misspelt `user_id` would otherwise be a memory for everybody.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from .schemas import Body

DEEPEST = 32  # levels of metadata, which have to be written as JSON again and again
_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"type": "string"},
        "content": {"type": "string"},
        "timestamp": {"anyOf": [{"type": "string"}, {"type": "number"}]},
        "id": {"type": "string"},
        "metadata": {"type": "object"},
    },
}


def check_depth(metadata: Any) -> Any:
    """Raises ValueError for metadata of too many levels."""
    level: list[Any] = [metadata]
    for _ in range(DEEPEST):
        level = [x for value in level for x in _inside(value)]
        if not level:
            return metadata
    raise ValueError(f"it has more than {DEEPEST} levels")


def _inside(value: Any) -> list[Any]:
    inside = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return [x for x in inside if isinstance(x, (dict, list))]


Kind = Literal["memory", "turn", "document", "paragraph"]
# The memory's own check of messages says which of them is wrong, and how.
Messages = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "array", "items": _MESSAGE, "minItems": 1}, _MESSAGE]})]
TextOrMessages = Annotated[
    Any,
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": _MESSAGE, "minItems": 1}, _MESSAGE]}),
]
Moment = Annotated[str | float | None, Field(description="ISO 8601 with a zone, or seconds since 1970.")]
Metadata = Annotated[dict[str, Any] | None, AfterValidator(check_depth)]


class MemoryBody(Body):
    model_config = ConfigDict(strict=True, extra="forbid")


class NamesBody(MemoryBody):
    user_id: str | None = None
    agent_id: str | None = None
    run_id: str | None = None

    @property
    def names(self) -> dict[str, str | None]:
        return {"user_id": self.user_id, "agent_id": self.agent_id, "run_id": self.run_id}


class RememberRequest(NamesBody):
    messages: TextOrMessages
    key: Annotated[str | None, Field(description="Name of the fact; the text supersedes its older value.")] = None
    timestamp: Moment = None
    metadata: Metadata = None
    infer: Annotated[bool | None, Field(description="mem0's; nothing is ever inferred here.")] = None


class CorrectRequest(MemoryBody):
    text: str
    timestamp: Moment = None
    metadata: Metadata = None


class MemorySearchRequest(NamesBody):
    query: str
    top_k: Annotated[int, Field(ge=1, le=1000)] = 10
    limit: Annotated[int | None, Field(ge=1, le=1000, description="Another name of top_k.")] = None
    filters: Annotated[dict[str, Any] | None, Field(description="user_id, agent_id and run_id, as mem0 has them.")] = (
        None
    )
    threshold: Annotated[float | None, Field(description="Leave out results that score less.")] = None
    kinds: list[Kind] | None = None
    after: Moment = None
    before: Moment = None
    as_of: Moment = None
    explain: bool = False


class DocumentRequest(MemoryBody):
    text: str
    title: str | None = None
    user_id: str | None = None
    agent_id: str | None = None
    timestamp: Moment = None
    metadata: Metadata = None


class ConversationRequest(NamesBody):
    messages: Messages


class MemoryItem(BaseModel):
    id: str
    memory: str
    kind: Kind
    version: int
    user_id: str | None
    agent_id: str | None
    run_id: str | None
    role: str | None
    time: str
    superseded: str | None
    key: str | None
    position: int | None
    document_id: str | None
    start: int | None
    end: int | None
    metadata: dict[str, Any]


class MemoryItems(BaseModel):
    results: list[MemoryItem]


class ConversationItem(BaseModel):
    user_id: str | None
    agent_id: str | None
    run_id: str | None
    turns: int
    first_time: str
    last_time: str


class ConversationItems(BaseModel):
    results: list[ConversationItem]


class FoundMemory(MemoryItem):
    score: float
    passage: list[int]
    variants: list[MemoryItem]
    parts: dict[str, float] | None = None


class FoundMemories(BaseModel):
    results: list[FoundMemory]


class MemoryVersion(BaseModel):
    memory_id: str
    version: int
    event: Literal["ADD", "UPDATE"]
    old_memory: str | None
    new_memory: str
    time: str
    superseded: str | None
    metadata: dict[str, Any]


class MemoryEvent(BaseModel):
    model_config = ConfigDict(extra="allow")

    number: int
    time: str
    kind: str
    id: str | None


class Forgotten(BaseModel):
    message: str
    deleted: int


class Gist(BaseModel):
    embedding: list[float] | str

"""A LlamaIndex node parser whose nodes carry late-chunk embeddings, and a block of its memory that LAM keeps."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock
from llama_index.core.bridge.pydantic import Field, model_validator
from llama_index.core.memory import BaseMemoryBlock
from llama_index.core.node_parser import NodeParser
from llama_index.core.node_parser.node_utils import build_nodes_from_splits
from llama_index.core.schema import BaseNode, Document, MetadataMode, TextNode
from llama_index.core.utils import get_tqdm_iterable

from ..encoding import late_chunks
from ..memories import Memory, Scope, SearchResult

Boundaries = str | int | Callable[[str], Sequence[tuple[int, int]]]


class LateChunkNodeParser(NodeParser):
    """Reads each document once, whole, and cuts it into nodes that have their embedding already.

    A node's embedding is made of its own tokens only, but these have seen everything before them in the document. An
    index takes such nodes as they are; its embedding model embeds the questions only. Metadata is not embedded.

    Args:
        model: a SentenceTransformer loaded from a LAM folder, the same as the index's embedding model.
        boundaries: "sentence", "paragraph", a number of tokens, or a function from a document's text to the character
            spans (start, end) of its nodes.
    """

    model: Any = Field(exclude=True, description="SentenceTransformer loaded from a LAM folder.")
    boundaries: Boundaries = Field(default="paragraph", exclude=True, description="Where nodes begin and end.")

    @classmethod
    def class_name(cls) -> str:
        return "LateChunkNodeParser"

    def _parse_nodes(self, nodes: Sequence[BaseNode], show_progress: bool = False, **kwargs: Any) -> list[BaseNode]:
        parsed: list[BaseNode] = []
        for node in get_tqdm_iterable(nodes, show_progress, "Parsing nodes"):
            parsed.extend(self._cut(node))
        return parsed

    def _cut(self, node: BaseNode) -> list[TextNode]:
        text = node.get_content(metadata_mode=MetadataMode.NONE)
        if not text.strip():
            return []
        boundaries = self.boundaries(text) if callable(self.boundaries) else self.boundaries
        chunks = late_chunks(self.model, text, boundaries)
        cut = build_nodes_from_splits([chunk.text for chunk in chunks], node, id_func=self.id_func)
        for part, chunk in zip(cut, chunks, strict=True):
            part.embedding = chunk.embedding.tolist()
            part.start_char_idx, part.end_char_idx = chunk.start, chunk.end
        return cut

    def _postprocess_parsed_nodes(self, nodes: list[BaseNode], parent_doc_map: dict[str, Document]) -> list[BaseNode]:
        # The base class looks for each node's text in the document and may find an earlier one that reads the same.
        places = [(node, node.start_char_idx, node.end_char_idx) for node in nodes if isinstance(node, TextNode)]
        nodes = super()._postprocess_parsed_nodes(nodes, parent_doc_map)
        for node, start, end in places:
            node.start_char_idx, node.end_char_idx = start, end
        return nodes


class LAMMemoryBlock(BaseMemoryBlock[str]):
    """What a user said and was told before, found again by the latest message; for `llama_index.core.memory.Memory`.

    LlamaIndex hands a block the messages that no longer fit into the short-term memory: they are remembered as they
    were said, each session as a conversation of its own. A question is answered from all sessions of the user, and
    from what is shared; another user's memories never appear.

    Args:
        memory: a `lam_transformers.memories.Memory`.
        user_id: whose memories these are.
        agent_id: only this assistant's part of them.
        top_k: number of memories that are given to the model, at most.
    """

    name: str = Field(default="Memories", description="The name of the memory block.")
    memory: Any = Field(exclude=True, description="A Memory of lam_transformers.memories.")
    user_id: str = Field(description="Whose memories these are.")
    agent_id: str | None = Field(default=None, description="The assistant whose memories these are.")
    top_k: int = Field(default=5, ge=1, le=1000, description="Number of memories that are given to the model.")

    @classmethod
    def class_name(cls) -> str:
        return "LAMMemoryBlock"

    @model_validator(mode="after")
    def _check(self) -> "LAMMemoryBlock":
        if not isinstance(self.memory, Memory):
            raise ValueError(f"memory must be a lam_transformers.memories.Memory, got {type(self.memory).__name__}.")
        Scope.of(self.user_id, self.agent_id)
        return self

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        """Memories that answer the latest message of the user, best first, a line each with its date and speaker."""
        asked = [_text_of(message) for message in messages or [] if message.role == MessageRole.USER]
        query = next((text for text in reversed(asked) if text), None)
        if query is None:
            return ""
        scoped = self.memory.within(user_id=self.user_id, agent_id=self.agent_id)
        results = await asyncio.to_thread(scoped.search, query, top_k=self.top_k)
        return "\n".join(_line(result) for result in results)

    async def _aput(self, messages: list[ChatMessage]) -> None:
        """Remembers messages; those without text, such as calls of tools, are left out."""
        sessions: dict[str | None, list[dict[str, Any]]] = {}
        for message in messages:
            session = message.additional_kwargs.get("session_id")
            if text := _text_of(message):
                sessions.setdefault(session, []).append({"role": message.role.value, "content": text})
        for session, turns in sessions.items():
            scoped = self.memory.within(user_id=self.user_id, agent_id=self.agent_id, run_id=session)
            await asyncio.to_thread(scoped.add, turns)

    async def atruncate(self, content: str, tokens_to_truncate: int) -> str | None:
        """Leaves out the memories that fit worst, at four characters a token, until so many tokens are saved."""
        lines = content.split("\n")
        saved = 0
        while lines and saved < 4 * tokens_to_truncate:
            saved += len(lines.pop()) + 1
        return "\n".join(lines) or None


def _text_of(message: ChatMessage) -> str:
    return " ".join(block.text for block in message.blocks if isinstance(block, TextBlock)).strip()


def _line(result: SearchResult) -> str:
    """One line: a text of several is shown in one."""
    speaker = f", {result.memory.role}" if result.memory.role else ""
    return f"{result.memory.time:%Y-%m-%d}{speaker}: {' '.join(result.text.split())}"

"""A LlamaIndex node parser whose nodes carry late-chunk embeddings."""

from collections.abc import Callable, Sequence
from typing import Any

from llama_index.core.bridge.pydantic import Field
from llama_index.core.node_parser import NodeParser
from llama_index.core.node_parser.node_utils import build_nodes_from_splits
from llama_index.core.schema import BaseNode, Document, MetadataMode, TextNode
from llama_index.core.utils import get_tqdm_iterable

from ..encoding import late_chunks

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

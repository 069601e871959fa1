"""Search in the handbook with LlamaIndex: HuggingFaceEmbedding over nodes of 2,000 tokens.

    python examples/llama_index_long_nodes.py [MODEL]

MODEL is a folder or Hub id (default: LAM-base-v1).
"""

from handbook import HANDBOOK, model_from_arguments, read_questions, summary
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.node_parser import SentenceSplitter
from llama_index.embeddings.huggingface import HuggingFaceEmbedding


def load_embeddings(model: str) -> HuggingFaceEmbedding:
    """LlamaIndex wants a number for the longest text; far above the nodes, nothing is ever cut."""
    return HuggingFaceEmbedding(model, trust_remote_code=True, max_length=1_000_000)


def build_index(embeddings: HuggingFaceEmbedding, text: str, chunk_size: int = 2048) -> VectorStoreIndex:
    """LlamaIndex cuts at 1,024 tokens unless told otherwise: the model never sees more than a node."""
    splitter = SentenceSplitter(chunk_size=chunk_size, chunk_overlap=chunk_size // 8)
    return VectorStoreIndex.from_documents([Document(text=text)], embed_model=embeddings, transformations=[splitter])


def search(index: VectorStoreIndex, question: str, k: int = 5) -> list[str]:
    return [result.node.get_content() for result in index.as_retriever(similarity_top_k=k).retrieve(question)]


def main() -> None:
    embeddings, questions = load_embeddings(model_from_arguments()), read_questions()
    index = build_index(embeddings, HANDBOOK.read_text(encoding="utf-8"))
    answers = [search(index, q["question"]) for q in questions]
    print(summary(f"LlamaIndex, {len(index.index_struct.nodes_dict)} long nodes", questions, answers))


if __name__ == "__main__":
    main()

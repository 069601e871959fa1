"""Search in the handbook with LlamaIndex: passages as nodes, embedded in one pass over the whole handbook.

    python examples/llama_index_late_chunks.py [MODEL]

MODEL is a folder or Hub id (default: LAM-base-v1).
"""

from handbook import HANDBOOK, model_from_arguments, passage_spans, read_questions, summary
from llama_index.core import Document, VectorStoreIndex
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from sentence_transformers import SentenceTransformer

from lam_transformers.integrations.llama_index import LateChunkNodeParser


def build_index(model: str, text: str, boundaries="paragraph") -> VectorStoreIndex:
    """The parser embeds the nodes, `embeddings` the questions, both with the same model."""
    parser = LateChunkNodeParser(model=SentenceTransformer(model, trust_remote_code=True), boundaries=boundaries)
    embeddings = HuggingFaceEmbedding(model, trust_remote_code=True, max_length=1_000_000)
    return VectorStoreIndex.from_documents([Document(text=text)], embed_model=embeddings, transformations=[parser])


def search(index: VectorStoreIndex, question: str, k: int = 5) -> list[str]:
    return [result.node.get_content() for result in index.as_retriever(similarity_top_k=k).retrieve(question)]


def main() -> None:
    questions = read_questions()
    # "paragraph" would make nodes of the headings too; these spans leave them out.
    index = build_index(model_from_arguments(), HANDBOOK.read_text(encoding="utf-8"), passage_spans)
    answers = [search(index, q["question"]) for q in questions]
    print(summary(f"LlamaIndex, {len(index.index_struct.nodes_dict)} late chunks", questions, answers))


if __name__ == "__main__":
    main()

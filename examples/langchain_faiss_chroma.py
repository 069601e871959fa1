"""Search in the handbook with LangChain: HuggingFaceEmbeddings in a FAISS and in a Chroma vector store.

    python examples/langchain_faiss_chroma.py [MODEL]

MODEL is a folder or Hub id (default: LAM-base-v1).
"""

import chromadb
from handbook import model_from_arguments, read_passages, read_questions, summary
from langchain_chroma import Chroma
from langchain_community.vectorstores import FAISS
from langchain_core.vectorstores import VectorStore
from langchain_huggingface import HuggingFaceEmbeddings


def load_embeddings(model: str) -> HuggingFaceEmbeddings:
    """LangChain calls `encode` for documents and queries alike: prompts have to be named here."""
    return HuggingFaceEmbeddings(
        model_name=model,
        model_kwargs={"trust_remote_code": True},
        encode_kwargs={"prompt_name": "document"},
        query_encode_kwargs={"prompt_name": "query"},
    )


def build_faiss(embeddings: HuggingFaceEmbeddings, passages: list[str]) -> VectorStore:
    # FAISS orders by Euclidean distance; on vectors of length 1 that is the order of the cosines.
    return FAISS.from_texts(passages, embeddings)


def build_chroma(embeddings: HuggingFaceEmbeddings, passages: list[str], folder: str | None = None) -> VectorStore:
    """A collection "handbook", kept in `folder` or (None) in memory."""
    settings = chromadb.Settings(anonymized_telemetry=False)
    client = chromadb.EphemeralClient(settings) if folder is None else chromadb.PersistentClient(folder, settings)
    return Chroma.from_texts(
        passages,
        embeddings,
        collection_name="handbook",
        client=client,
        collection_configuration={"hnsw": {"space": "cosine"}},
    )


def search(store: VectorStore, question: str, k: int = 5) -> list[str]:
    return [document.page_content for document in store.similarity_search(question, k=k)]


def main() -> None:
    embeddings, passages, questions = load_embeddings(model_from_arguments()), read_passages(), read_questions()
    for name, build in (("FAISS", build_faiss), ("Chroma", build_chroma)):
        store = build(embeddings, passages)
        print(summary(f"LangChain, {name}", questions, [search(store, q["question"]) for q in questions]))


if __name__ == "__main__":
    main()

"""Search in the handbook with Haystack 3: an indexing pipeline, a document store, a retrieval pipeline.

    python examples/haystack_pipeline.py [MODEL]

MODEL is a folder or Hub id (default: LAM-base-v1).
"""

from handbook import model_from_arguments, read_passages, read_questions, summary
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack_integrations.components.embedders.sentence_transformers import (
    SentenceTransformersDocumentEmbedder,
    SentenceTransformersTextEmbedder,
)


def build_index(model: str, passages: list[str]) -> InMemoryDocumentStore:
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    indexing = Pipeline()
    embedder = SentenceTransformersDocumentEmbedder(model=model, trust_remote_code=True, progress_bar=False)
    indexing.add_component("embedder", embedder)
    indexing.add_component("writer", DocumentWriter(store))
    indexing.connect("embedder.documents", "writer.documents")
    indexing.run({"embedder": {"documents": [Document(content=p) for p in passages]}})
    return store


def build_search(model: str, store: InMemoryDocumentStore) -> Pipeline:
    pipeline = Pipeline()
    embedder = SentenceTransformersTextEmbedder(model=model, trust_remote_code=True, progress_bar=False)
    pipeline.add_component("embedder", embedder)
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store))
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    return pipeline


def search(pipeline: Pipeline, question: str, k: int = 5) -> list[str]:
    result = pipeline.run({"embedder": {"text": question}, "retriever": {"top_k": k}})
    return [document.content for document in result["retriever"]["documents"]]


def main() -> None:
    model, questions = model_from_arguments(), read_questions()
    pipeline = build_search(model, build_index(model, read_passages()))
    print(summary("Haystack", questions, [search(pipeline, q["question"]) for q in questions]))


if __name__ == "__main__":
    main()

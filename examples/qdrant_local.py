"""Search in the handbook with Qdrant in local mode: no server, in memory or in a folder.

    python examples/qdrant_local.py [MODEL]

MODEL is a folder or Hub id (default: LAM-base-v1).
"""

from handbook import model_from_arguments, read_passages, read_questions, summary
from qdrant_client import QdrantClient, models
from sentence_transformers import SentenceTransformer


def build_index(encoder: SentenceTransformer, passages: list[str], folder: str | None = None) -> QdrantClient:
    """A collection "handbook", kept in `folder` or (None) in memory."""
    client = QdrantClient(":memory:") if folder is None else QdrantClient(path=folder)
    embeddings = encoder.encode_document(passages)
    size = models.VectorParams(size=embeddings.shape[1], distance=models.Distance.COSINE)
    client.create_collection("handbook", vectors_config=size)
    client.upload_collection("handbook", embeddings, payload=[{"text": p} for p in passages], ids=range(len(passages)))
    return client


def search(client: QdrantClient, encoder: SentenceTransformer, question: str, k: int = 5) -> list[str]:
    nearest = client.query_points("handbook", query=encoder.encode_query(question).tolist(), limit=k)
    return [point.payload["text"] for point in nearest.points]


def main() -> None:
    encoder = SentenceTransformer(model_from_arguments(), trust_remote_code=True)
    client, questions = build_index(encoder, read_passages()), read_questions()
    print(summary("Qdrant", questions, [search(client, encoder, q["question"]) for q in questions]))
    client.close()


if __name__ == "__main__":
    main()

"""Search in the handbook with LanceDB: a table in a folder, no server.

    python examples/lancedb_local.py [MODEL]

MODEL is a folder or Hub id (default: LAM-base-v1).
"""

import tempfile

import lancedb
from handbook import model_from_arguments, read_passages, read_questions, summary
from lancedb.table import Table
from sentence_transformers import SentenceTransformer


def build_index(encoder: SentenceTransformer, passages: list[str], folder: str) -> Table:
    """A table "handbook" of texts and vectors in `folder`."""
    embeddings = encoder.encode_document(passages)
    rows = [{"text": text, "vector": vector} for text, vector in zip(passages, embeddings, strict=True)]
    return lancedb.connect(folder).create_table("handbook", rows)


def search(table: Table, encoder: SentenceTransformer, question: str, k: int = 5) -> list[str]:
    query = table.search(encoder.encode_query(question)).distance_type("cosine").limit(k)
    return [row["text"] for row in query.to_list()]


def main() -> None:
    encoder = SentenceTransformer(model_from_arguments(), trust_remote_code=True)
    with tempfile.TemporaryDirectory() as folder:
        table, questions = build_index(encoder, read_passages(), folder), read_questions()
        print(summary("LanceDB", questions, [search(table, encoder, q["question"]) for q in questions]))


if __name__ == "__main__":
    main()

"""Document retrieval on data sets in the BEIR layout: corpus.jsonl, queries.jsonl, qrels_test.tsv (or .gz)."""

import csv
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from sklearn.metrics import ndcg_score

from ..io.files import read_records


def ndcg(scores: np.ndarray, gains: np.ndarray, depth: int = 10, ignore_ties: bool = False) -> np.ndarray:
    """Normalised discounted cumulative gain of each query (Jaervelin and Kekaelaeinen 2002), linear in the gains.

    This is the package's one nDCG, scikit-learn's: a query without a relevant document has 0.

    Args:
        scores: how well each document fits each query, [queries, documents].
        gains: how relevant it is, not negative, in the same shape.
        depth: number of first documents that count.
        ignore_ties: take documents of equal score in any order, which is faster; otherwise their mean over all orders
            counts.

    Returns:
        nDCG@depth of each query, float64 [queries].
    """
    rows = zip(scores, gains, strict=True)
    return np.array(
        [ndcg_score(gain[None], score[None], k=depth, ignore_ties=ignore_ties) for score, gain in rows],
        dtype=np.float64,
    )


def _find(folder: Path, *names: str) -> Path:
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"{folder} has no {names[0]}; expected the BEIR layout.")


def read_beir(folder: Path) -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, int]]]:
    """Documents (title and text joined by a space) and queries by id, and relevance by query and document.

    Raises FileNotFoundError if a file is missing.
    """
    folder = Path(folder)
    corpus = {
        str(r["_id"]): " ".join(filter(None, (r.get("title", ""), r.get("text", ""))))
        for r in read_records(_find(folder, "corpus.jsonl", "corpus.jsonl.gz"))
    }
    queries = {str(r["_id"]): r["text"] for r in read_records(_find(folder, "queries.jsonl", "queries.jsonl.gz"))}
    relevance: dict[str, dict[str, int]] = defaultdict(dict)
    with _find(folder, "qrels_test.tsv", "qrels/test.tsv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            relevance[row["query-id"]][row["corpus-id"]] = int(row["score"])
    return corpus, queries, dict(relevance)


def evaluate_retrieval(
    encode: Callable[[Sequence[str]], np.ndarray], folder: Path, depth: int = 10
) -> dict[str, float]:
    """Mean nDCG@`depth` over the queries with a relevant document, by cosine similarity.

    Args:
        encode: texts -> embeddings [texts, dimensions].

    Returns:
        {"ndcg@10", "queries", "documents"}.
    """
    corpus, queries, relevance = read_beir(folder)
    document_ids = list(corpus)
    query_ids = [q for q in queries if any(score > 0 for score in relevance.get(q, {}).values())]
    documents, asked = encode([corpus[d] for d in document_ids]), encode([queries[q] for q in query_ids])
    similarity = asked @ (documents / np.linalg.norm(documents, axis=1, keepdims=True)).T
    column = {d: i for i, d in enumerate(document_ids)}
    gains = np.zeros_like(similarity)
    for row, query in zip(gains, query_ids, strict=True):
        for document, relevant in relevance[query].items():
            if document in column:
                row[column[document]] = max(relevant, 0)
    score = float(ndcg_score(gains, similarity, k=depth))
    return {f"ndcg@{depth}": score, "queries": len(query_ids), "documents": len(corpus)}

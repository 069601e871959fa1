"""Retrieval of real long documents: questions about L-Eval documents, passages of held-out books."""

from typing import Any

import numpy as np
from sklearn.metrics import ndcg_score

from ...io.files import read_records
from ...scoring.statistics import bootstrap_mean
from ..data import MissingData, held_out_books
from .long_context import book_ids, score_documents

# Tasks of L-Eval whose questions are about one document each; the others ask the same of every document.
LEVAL_TASKS = (
    "coursera", "financial_qa", "multidoc_qa", "natural_question", "quality", "review_summ", "sci_fi", "scientific_qa",
    "tpo",
)  # fmt: skip
LONGEST_QUESTION = 300  # characters
QUESTIONS = 4  # of each document
BOOK_QUERY = 64  # tokens
BOOK_QUERIES = 4  # of each book


def run(context) -> dict[str, Any]:
    """nDCG@10 with intervals, and the paired difference of LAM to each of the others, on each set that is there.

    Null hypothesis of each difference: the mean nDCG@10 of both is the same (paired bootstrap over the queries).
    """
    numbers: dict[str, Any] = {"sets": {}, "document_tokens": context.settings.document_tokens}
    for name, make in (("L-Eval questions", leval_set), ("passages of held-out books", books_set)):
        with context.may_lack():
            documents, queries, relevant = make(context)
            context.say(f"{name}: {len(documents)} documents, {len(queries)} queries")
            tokens = [len(context.model.token_ids(document)) for document in documents]
            longest = max(tokens)
            scores = score_documents(context, documents, queries)
            for cut in [c for c in (512, 2_048) if c < longest]:
                cut_documents = context.model.encode(documents, cut)
                scores[f"{context.model.name}, cut at {cut:,}"] = context.model.encode(queries) @ cut_documents.T
            numbers["sets"][name] = measure_set(scores, relevant, context)
            numbers["sets"][name] |= {
                "documents": len(documents), "queries": len(queries),
                "tokens": {"median": float(np.median(tokens)), "largest": longest, "all": sum(tokens)},
            }  # fmt: skip
    if not numbers["sets"]:
        raise MissingData("long documents", "Neither leval nor books was found.")
    return numbers


def measure_set(scores: dict[str, np.ndarray], relevant: np.ndarray, context) -> dict[str, Any]:
    """nDCG@10 of each model from its scores [queries, documents]; relevant: 0 or 1 in the same shape."""
    gains = {name: ndcg(x, relevant) for name, x in scores.items()}
    ours, resamples = gains[context.model.name], context.settings.resamples
    models = {name: bootstrap_mean(x, resamples) for name, x in gains.items()}
    others = {name: bootstrap_mean(ours - x, resamples) for name, x in gains.items() if name != context.model.name}
    return {"models": models, "differences": others}


def ndcg(scores: np.ndarray, relevant: np.ndarray, depth: int = 10) -> np.ndarray:
    """nDCG@depth of each query, [queries]."""
    pairs = zip(scores, relevant, strict=True)
    return np.array([ndcg_score(gain[None], score[None], k=depth) for score, gain in pairs])


def _cut(encoder, text: str, tokens: int) -> str:
    """The first `tokens` tokens of a text."""
    return encoder.chunks(text[: 12 * tokens], tokens)[0]


def leval_set(context) -> tuple[list[str], list[str], np.ndarray]:
    """Documents of L-Eval, up to 4 questions about each, and which document a question is about.

    A question that was put to several documents is left out; answers to choose from are cut off.
    """
    settings = context.settings
    documents: dict[str, set[str]] = {}
    for record in read_records(context.data.path("leval")):
        if record["task"] in LEVAL_TASKS:
            texts = record["instructions"]
            questions = [texts] if isinstance(texts, str) else texts
            documents.setdefault(record["input"], set()).update(map(_question, questions))
    kept = list(documents)[:: max(1, len(documents) // settings.leval_documents)][: settings.leval_documents]
    asked: dict[str, list[int]] = {}
    for i, text in enumerate(kept):
        for question in sorted(documents[text]):
            asked.setdefault(question, []).append(i)
    queries, about = [], []
    for i in range(len(kept)):
        own = [q for q, where in asked.items() if where == [i] and 15 <= len(q) <= LONGEST_QUESTION]
        queries += own[:QUESTIONS]
        about += [i] * len(own[:QUESTIONS])
    relevant = np.zeros((len(queries), len(kept)))
    relevant[np.arange(len(queries)), about] = 1
    return [_cut(context.model, text, settings.document_tokens) for text in kept], queries, relevant


def _question(text: str) -> str:
    """The question without the answers to choose from."""
    for mark in ("\nA.", "\n (A)", "\n(A)", "\n\n"):
        text = text.strip().split(mark)[0]
    return text.strip()


def books_set(context, segments: int | None = None, tokens: int | None = None, books: int | None = None):
    """Segments of held-out books; queries are short passages of the same books from elsewhere.

    Returns documents, queries and which documents are of the query's book.
    """
    settings, model = context.settings, context.model
    segments, tokens = segments or settings.book_segments, tokens or settings.book_tokens
    documents, queries, relevant = [], [], []
    chosen = held_out_books(context.data)[: books or settings.retrieval_books]
    for number, book in enumerate(chosen):
        ids = book_ids(model, book, segments * tokens + BOOK_QUERIES * (BOOK_QUERY + 500))
        documents += [model.tokenizer.decode(ids[i * tokens : (i + 1) * tokens]) for i in range(segments)]
        for i in range(BOOK_QUERIES):
            start = segments * tokens + i * (BOOK_QUERY + 500) + 500
            queries.append(model.tokenizer.decode(ids[start : start + BOOK_QUERY]))
            relevant.append(np.repeat(np.arange(len(chosen)) == number, segments))
    return documents, queries, np.array(relevant, dtype=float)

"""Retrieval of real long documents: questions about L-Eval documents, passages of held-out books."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...io.files import read_records
from ...io.results import Numbers, Record, Results, numbers_of
from ...scoring.retrieval import ndcg
from ...scoring.statistics import bootstrap_mean
from .. import drawing
from ..blocks import Block, Figure, Section, Table, prose, with_interval
from ..data import MissingData, held_out_books
from ..models import MeasuredModel, book_ids, score_documents
from ..part import Context, Part

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

# Tasks of L-Eval whose questions are about one document each; the others ask the same of every document.
LEVAL_TASKS = (
    "coursera",
    "financial_qa",
    "multidoc_qa",
    "natural_question",
    "quality",
    "review_summ",
    "sci_fi",
    "scientific_qa",
    "tpo",
)
LONGEST_QUESTION = 300  # characters
QUESTIONS = 4  # of each document
BOOK_QUERY = 64  # tokens
BOOK_QUERIES = 4  # of each book
Corpus = tuple[list[str], list[str], np.ndarray]  # documents, queries, and 0 or 1 in [queries, documents]


@dataclass(frozen=True)
class RetrievalSettings:
    """Number and tokens of the documents: those of L-Eval, and segments of books."""

    document_tokens: int = 16_384
    leval_documents: int = 200
    retrieval_books: int = 17
    book_segments: int = 4
    book_tokens: int = 8_192


def run(context: Context) -> Numbers:
    """nDCG@10 with intervals, and the paired difference of LAM to each of the others, on each set that is there.

    Null hypothesis of each difference: the mean nDCG@10 of both is the same (paired bootstrap over the queries).
    """
    settings = context.settings.of(RetrievalSettings)
    numbers: Numbers = {"sets": {}, "document_tokens": settings.document_tokens}
    for name, make in (("L-Eval questions", leval_set), ("passages of held-out books", books_set)):
        with context.may_lack():
            documents, queries, relevant = make(context)
            context.say(f"{name}: {len(documents)} documents, {len(queries)} queries")
            tokens = [len(context.model.token_ids(document)) for document in documents]
            longest = max(tokens)
            scores = score_documents(context.model, context.baselines, documents, queries)
            for cut in [c for c in (512, 2_048) if c < longest]:
                cut_documents = context.model.encode(documents, cut)
                scores[f"{context.model.name}, cut at {cut:,}"] = context.model.encode(queries) @ cut_documents.T
            numbers["sets"][name] = measure_set(scores, relevant, context)
            numbers["sets"][name] |= {
                "documents": len(documents),
                "queries": len(queries),
                "tokens": {"median": float(np.median(tokens)), "largest": longest, "all": sum(tokens)},
            }
    if not numbers["sets"]:
        raise MissingData("long documents", "Neither leval nor books was found.")
    return numbers


def measure_set(scores: Mapping[str, np.ndarray], relevant: np.ndarray, context: Context) -> Numbers:
    """nDCG@10 of each model from its scores [queries, documents]; relevant: 0 or 1 in the same shape."""
    gains = {name: ndcg(x, relevant) for name, x in scores.items()}
    ours = gains[context.model.name]
    resamples = context.settings.resamples
    models = {name: bootstrap_mean(x, resamples) for name, x in gains.items()}
    others = {name: bootstrap_mean(ours - x, resamples) for name, x in gains.items() if name != context.model.name}
    return {"models": models, "differences": others}


def _cut(encoder: MeasuredModel, text: str, tokens: int) -> str:
    """The first `tokens` tokens of a text."""
    return encoder.chunks(text[: 12 * tokens], tokens)[0]


def leval_set(context: Context) -> Corpus:
    """Documents of L-Eval, up to 4 questions about each, and which document a question is about.

    A question that was put to several documents is left out; answers to choose from are cut off.
    """
    settings = context.settings.of(RetrievalSettings)
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
    queries: list[str] = []
    about: list[int] = []
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


def books_set(
    context: Context, segments: int | None = None, tokens: int | None = None, books: int | None = None
) -> Corpus:
    """Segments of held-out books; queries are short passages of the same books from elsewhere.

    Args:
        context: whose model cuts the books, and whose data has them.
        segments: of each book; this and the following by default as the settings say.
        tokens: of each segment.
        books: number of books.

    Returns:
        documents, queries and which documents are of the query's book.
    """
    settings = context.settings.of(RetrievalSettings)
    model = context.model
    segments = segments or settings.book_segments
    tokens = tokens or settings.book_tokens
    documents: list[str] = []
    queries: list[str] = []
    relevant: list[np.ndarray] = []
    chosen = held_out_books(context.data)[: books or settings.retrieval_books]
    for number, book in enumerate(chosen):
        ids = book_ids(model, book, segments * tokens + BOOK_QUERIES * (BOOK_QUERY + 500))
        documents += [model.tokenizer.decode(ids[i * tokens : (i + 1) * tokens]) for i in range(segments)]
        for i in range(BOOK_QUERIES):
            start = segments * tokens + i * (BOOK_QUERY + 500) + 500
            queries.append(model.tokenizer.decode(ids[start : start + BOOK_QUERY]))
            relevant.append(np.repeat(np.arange(len(chosen)) == number, segments))
    return documents, queries, np.array(relevant, dtype=float)


def section(record: Record) -> Section:
    """nDCG@10 of each set, the best first."""
    blocks: list[Block] = []
    for name, measured in record["numbers"]["sets"].items():
        rows = []
        for model, x in sorted(measured["models"].items(), key=lambda item: -item[1]["mean"]):
            difference = measured["differences"].get(model)
            shown = with_interval(difference["mean"], difference["interval"]) if difference else ""
            rows.append((model, with_interval(x["mean"], x["interval"]), shown))
        description = prose(
            """
            {{ name }}: {{ documents }} documents (median {{ "{:,.0f}".format(tokens.median) }}, largest
            {{ "{:,}".format(tokens.largest) }} tokens), {{ queries }} queries. Null hypothesis of each difference:
            none.
            """,
            name=name,
            documents=measured["documents"],
            queries=measured["queries"],
            tokens=measured["tokens"],
        )
        blocks += [description, Table(("model", "nDCG@10", "LAM minus it"), rows)]
    blocks.append(Figure("long_retrieval", "nDCG@10 on long documents."))
    return Section("Retrieval of long documents", blocks)


def weaknesses(results: Results) -> list[str]:
    """Whatever is significantly better on a set."""
    return [
        f"Long documents ({name}): nDCG@10 differs from {other} by {with_interval(row['mean'], row['interval'])}."
        for name, measured in (numbers_of(results, PART.name) or {"sets": {}})["sets"].items()
        for other, row in measured["differences"].items()
        if row["interval"][1] < 0
    ]


def draw(numbers: Numbers, model: str) -> "Drawing | None":
    """The LAM and, after it, everything else by its score, for each set."""
    sets = numbers["sets"]
    if not sets:
        return None
    height = sum(len(measured["models"]) for measured in sets.values()) * 0.27 + 0.8 * len(sets)
    figure = drawing.new_figure((6.4, height))
    all_axes = figure.subplots(len(sets), 1, squeeze=False)[:, 0]
    for axes, (name, measured) in zip(all_axes, sets.items(), strict=True):
        axes.set_title(f"Finding long documents:\n{name}")
        ranked = sorted(measured["models"].items(), key=lambda item: (item[0] != model, -item[1]["mean"]))
        axes.grid(visible=False)
        drawing.bars(axes, [label for label, _ in ranked], [row for _, row in ranked])
        axes.set_xlabel("nDCG@10, 95 % interval")
        axes.set_xlim(0, 1.08)
    return figure


PART = Part(
    name="retrieval",
    run=run,
    section=section,
    weaknesses=weaknesses,
    figures={"long_retrieval": draw},
    settings=RetrievalSettings,
    quick=RetrievalSettings(
        document_tokens=2_048, leval_documents=8, retrieval_books=6, book_segments=1, book_tokens=1_024
    ),
)

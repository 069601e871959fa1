"""Long texts: does a changed sentence move the embedding, do the memories keep a fact, is a needle found."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...io.results import Numbers, Record, Results, model_name, numbers_of
from ...model.streaming_lam import RunningPool
from ...scoring.statistics import paired_test, proportion
from .. import drawing
from ..blocks import Block, Figure, Section, Table, p_value, prose, with_interval
from ..data import held_out_books
from ..models import MeasuredModel, book_ids, read_ids, score_documents
from ..part import Context, Part
from .probe import NAMES, WORDS, Facts, fact_ids, forgetting_curve, hits, margins, read_facts

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
CHANGED = 24  # tokens of the sentence that is exchanged
CHUNK = 510
BEFORE = 256  # tokens before a fact
Book = dict[str, str]  # _id, title, text


@dataclass(frozen=True)
class LongContextSettings:
    """Tokens and number of the texts, the facts and the documents with a needle."""

    sensitivity_lengths: tuple[int, ...] = (1_000, 10_000, 100_000)
    sensitivity_texts: int = 2
    facts: int = 32
    retention_lags: tuple[int, ...] = (1, 4, 16, 64, 256, 1_024, 4_096)
    probe_lengths: tuple[int, ...] = (512, 2_048, 8_192, 32_768)
    probe_documents: int = 10


def run(context: Context) -> Numbers:
    """Sensitivity, retention and the two lexical probes, on books that no training has seen."""
    books = held_out_books(context.data)
    return {
        "books": [book["title"] for book in books],
        "sensitivity": sensitivity(context, books),
        "retention": retention(context, books),
        "probes": lexical_probes(context, books),
    }


def sensitivity(context: Context, books: list[Book]) -> Numbers:
    """Cosine distance that exchanging 24 tokens at depth d of an n-token text moves the embedding.

    Null hypothesis: the embedding does not depend on text after the 512th token (the distance is 0, as it is for a
    model that cuts there). "share" is the share of tokens that was exchanged.
    """
    settings = context.settings.of(LongContextSettings)
    rows: list[Numbers] = []
    for tokens in settings.sensitivity_lengths:
        context.say(f"sensitivity at {tokens:,} tokens")
        by_model: dict[str, list[list[float]]] = {}
        for i in range(settings.sensitivity_texts):
            ids = book_ids(context.model, books[i], tokens - 2)
            other = book_ids(context.model, books[-1 - i], CHANGED, skip=3_000)
            places = [int(depth * (len(ids) - CHANGED)) for depth in DEPTHS]
            by_model.setdefault(context.model.name, []).append(_lam_distances(context.model, ids, other, places))
            for encoder in context.baselines:
                if encoder.limit is not None and encoder.tokenizer.get_vocab() == context.model.tokenizer.get_vocab():
                    moved = _chunk_distances(encoder, ids, other, places)
                    by_model.setdefault(f"{encoder.name}, mean of chunks", []).append(moved)
        for name, distances in by_model.items():
            for depth, values in zip(DEPTHS, np.array(distances).T, strict=True):
                row = {
                    "model": name,
                    "tokens": tokens,
                    "depth": depth,
                    "texts": len(values),
                    "distance": float(values.mean()),
                    "least": float(values.min()),
                    "share": CHANGED / tokens,
                }
                rows.append(row)
    return {"rows": rows, "changed_tokens": CHANGED}


def _cosine_distance(a: np.ndarray, b: np.ndarray) -> float:
    a = a.astype(np.float64)
    b = b.astype(np.float64)
    return float(max(0.0, 1 - a @ b / np.sqrt((a @ a) * (b @ b))))


def _lam_distances(
    encoder: MeasuredModel, ids: Sequence[int], other: Sequence[int], places: Sequence[int]
) -> list[float]:
    """The text is read once and, from the last state before each place, once more.

    A model that reads two ways has states after whole chunks only.
    """
    lam = encoder.lam
    chunk = lam.config.two_way_chunk or 1
    whole = encoder.with_special(ids)
    state = lam.new_state(1)
    pool = RunningPool("mean")
    done = 0
    changed = []
    with torch.inference_mode():
        for place in places:
            changes = place + 1  # after the opening special token
            ready = changes // chunk * chunk
            read_ids(lam, whole[done:ready], state, pool)
            done = ready
            rest = [*whole[ready:changes], *other, *whole[changes + len(other) :]]
            changed.append(read_ids(lam, rest, state.clone(), pool.clone()).result().numpy())
        read_ids(lam, whole[done:], state, pool)
    original = pool.result().numpy()
    return [_cosine_distance(original, x) for x in changed]


def _chunk_distances(
    encoder: MeasuredModel, ids: Sequence[int], other: Sequence[int], places: Sequence[int]
) -> list[float]:
    """The same for the mean over chunks; only the chunks that hold the exchange are embedded again."""

    def embed(ids: Sequence[int]) -> np.ndarray:
        pieces = [encoder.with_special(ids[i : i + CHUNK]) for i in range(0, len(ids), CHUNK)]
        full = [piece for piece in pieces if len(piece) == CHUNK + 2]
        batches = [encoder.embed_ids(full[i : i + 8]) for i in range(0, len(full), 8)]
        rest = [encoder.embed_ids([piece]) for piece in pieces[len(full) :]]
        return np.concatenate([*batches, *rest])

    chunks = embed(ids)
    distances = []
    for place in places:
        first = place // CHUNK
        last = (place + len(other) - 1) // CHUNK + 1
        changed = [*ids[:place], *other, *ids[place + len(other) :]][first * CHUNK : last * CHUNK]
        moved = chunks.copy()
        moved[first:last] = embed(changed)
        distances.append(_cosine_distance(chunks.mean(0), moved.mean(0)))
    return distances


def retention(context: Context, books: list[Book]) -> Numbers:
    """How well the memories still answer for a fact after `lag` further tokens.

    Each of N texts holds another fact ("NAME keeps the WORD"). The memories are read with the key of the fact's last
    token; what comes out is compared with the values of all N facts. Null hypothesis at each lag: a text with the fact
    answers no better than the same text without it (paired one-sided Wilcoxon test over the facts).
    """
    settings = context.settings.of(LongContextSettings)
    lam = context.model.lam
    facts, filler = prepare_facts(context, books, settings.facts)
    lags = settings.retention_lags
    context.say(f"retention of {len(facts.keys[0])} facts over {lags[-1]:,} tokens")
    rows: list[Numbers] = []
    for point in forgetting_curve(lam, facts, filler, lags):
        for which, scores in point["scores"].items():
            own = margins(scores)
            control = margins(point["control"][which])
            row = {
                "lag": point["lag"],
                "memory": which,
                "margin": float(own.mean()),
                "control_margin": float(control.mean()),
                "p": paired_test(own, control),
                "found": proportion(hits(scores).sum(), len(scores)),
                "control_found": proportion(hits(point["control"][which]).sum(), len(scores)),
            }
            rows.append(row)
    return {"rows": rows, "facts": facts.keys.shape[1], "chance": 1 / facts.keys.shape[1]}


def prepare_facts(context: Context, books: list[Book], count: int, **options: Any) -> tuple[Facts, list[int]]:
    """Facts after 256 tokens of a book, and the tokens of that book that go on from there."""
    longest = max(context.settings.of(LongContextSettings).retention_lags)
    ids = book_ids(context.model, books[0], BEFORE + longest + 64)
    facts = fact_ids(context.model, count)
    length = facts.shape[1]
    read_in = read_facts(context.model.lam, ids[:BEFORE], facts, ids[BEFORE : BEFORE + length], **options)
    return read_in, ids[BEFORE + length :]


def lexical_probes(context: Context, books: list[Book]) -> Numbers:
    """Passkey and needle: share of queries whose document comes first, among documents of n tokens.

    These are lexical probes: the query repeats words that are in one document only, so BM25 and a bag of tokens pass
    them. They say that text at any depth reaches the embedding, not that it is understood.
    """
    settings = context.settings.of(LongContextSettings)
    rows: list[Numbers] = []
    for tokens in settings.probe_lengths:
        context.say(f"passkey and needle at {tokens:,} tokens")
        documents, queries = probe_documents(context.model, books, tokens, settings.probe_documents)
        asked = [query for kind in queries.values() for query in kind]
        for name, scores in score_documents(context.model, context.baselines, documents, asked).items():
            for i, kind in enumerate(queries):
                part = scores[i * len(documents) : (i + 1) * len(documents)]
                rows.append({"probe": kind, "tokens": tokens, "model": name, **proportion(hits(part).sum(), len(part))})
    return {"rows": rows, "documents": settings.probe_documents, "chance": 1 / settings.probe_documents}


def probe_documents(
    encoder: MeasuredModel, books: list[Book], tokens: int, count: int
) -> tuple[list[str], dict[str, list[str]]]:
    """Documents of about `tokens` tokens, each with a pass key and a needle of its own at a depth of its own."""
    random = np.random.default_rng(0)
    documents: list[str] = []
    passkey: list[str] = []
    needle: list[str] = []
    for i in range(count):
        book = books[i % len(books)]
        start = 20_000 * (1 + i // len(books))
        text = encoder.chunks(book["text"][start : start + 8 * tokens + 1_000], max(tokens - 64, 64))[0]
        number = random.integers(10_000, 100_000)
        name = NAMES[i % len(NAMES)]
        word = WORDS[i % len(WORDS)]
        inserts = {
            (i + 0.5) / count: f" The pass key of {name} is {number}. Remember that {number} is {name}'s pass key. ",
            1 - (i + 0.5) / count: f" The best thing to do in the town of {word.title()} is to look at the clouds. ",
        }
        for depth, insert in sorted(inserts.items(), reverse=True):
            place = text.find(" ", int(depth * len(text)))
            place = len(text) if place < 0 else place
            text = text[:place] + insert + text[place:]
        documents.append(text)
        passkey.append(f"What is the pass key of {name}?")
        needle.append(f"What is the best thing to do in the town of {word.title()}?")
    return documents, {"passkey": passkey, "needle": needle}


def section(record: Record) -> Section:
    """Sensitivity, retention and the lexical probes, each with its figure."""
    numbers = record["numbers"]
    moved = [
        (row["model"], f"{row['tokens']:,}", f"{row['depth']:.2f}", f"{row['distance']:.2e}", f"{row['share']:.2%}")
        for row in numbers["sensitivity"]["rows"]
    ]
    kept = [
        (
            f"{row['lag']:,}",
            row["memory"],
            with_interval(row["found"]["mean"], row["found"]["interval"], 2),
            f"{row['control_found']['mean']:.2f}",
            f"{row['margin']:.3f}",
            f"{row['control_margin']:.3f}",
            p_value(row["p"]),
        )
        for row in numbers["retention"]["rows"]
    ]
    first = [
        (row["probe"], f"{row['tokens']:,}", row["model"], with_interval(row["mean"], row["interval"], 2))
        for row in numbers["probes"]["rows"]
    ]
    blocks: list[Block] = [
        prose("Texts are from {{ books | length }} books that no training reads.", books=numbers["books"]),
        prose(
            """
            Sensitivity: {{ tokens }} tokens are exchanged at a depth of the text. Null hypothesis: text behind the
            512th token does not matter (distance 0, as for a model that cuts there).
            """,
            tokens=numbers["sensitivity"]["changed_tokens"],
        ),
        Table(("model", "tokens", "depth", "cosine distance", "share exchanged"), moved),
        Figure("sensitivity", "Distance by depth, for texts of several lengths."),
        prose(
            """
            Retention: {{ facts }} facts, read out of the memories themselves. Null hypothesis: a text with the fact
            answers no better than the same text without it.
            """,
            facts=numbers["retention"]["facts"],
        ),
        Table(("tokens since", "memory", "found", "found without the fact", "margin", "margin without", "p"), kept),
        Figure("retention", "Facts that the memories still answer for; dotted: chance."),
        prose(
            """
            Passkey and needle are lexical probes: the query repeats words that stand in one document only. Whoever
            counts words can pass them; they say nothing about understanding.
            """
        ),
        Table(("probe", "tokens", "model", "found first"), first),
        Figure("lexical_probes", "Lexical probe by length of the documents; dotted: chance."),
    ]
    return Section("Long texts", blocks)


def weaknesses(results: Results) -> list[str]:
    """The distances at which facts are lost, and the probes on which BM25 is better."""
    numbers = numbers_of(results, PART.name)
    if numbers is None:
        return []
    rows = [row for row in numbers["retention"]["rows"] if row["memory"] == "both"]
    lost = next((row for row in rows if row["found"]["mean"] < 0.5), None)
    gone = next((row for row in rows if row["p"] >= 0.05), None)
    lines = []
    if lost:
        shown = f"{lost['found']['mean']:.0%} of facts found"
        lines.append(f"Its memories lose single facts within {lost['lag']:,} tokens: {shown}.")
    if gone:
        lines.append(f"After {gone['lag']:,} tokens nothing of a fact can be shown in them (p = {gone['p']:.2g}).")
    rows = numbers["probes"]["rows"]
    own = {(row["probe"], row["tokens"]): row["mean"] for row in rows if row["model"] == model_name(results)}
    lines += [
        f"Lexical probe {row['probe']} at {row['tokens']:,} tokens: {own[row['probe'], row['tokens']]:.2f} against "
        f"{row['mean']:.2f} of BM25."
        for row in rows
        if row["model"] == "BM25" and row["mean"] > own[row["probe"], row["tokens"]]
    ]
    return lines


def draw_sensitivity(numbers: Numbers, model: str) -> "Drawing":
    """Distance against depth, a line for each model and length."""
    title = "One changed sentence moves the embedding"
    figure, axes = drawing.new_axes(title, "depth of the sentence in the text", "cosine distance moved", (6.4, 4.4))
    series: drawing.Series = {}
    for row in numbers["sensitivity"]["rows"]:
        label = f"{row['model']}, {row['tokens']:,} tokens"
        drawing.add_point(series, label, row["depth"], max(row["distance"], 1e-9))
    drawing.lines(axes, series, model, legend=False)
    figure.legend(loc="outside lower center", ncols=2)  # six lines leave no room inside
    axes.set_yscale("log")
    return figure


def draw_retention(numbers: Numbers, model: str) -> "Drawing":
    """Share of facts that the memories answer for, against the tokens read since."""
    retained = numbers["retention"]
    title = "The memories answer for a fact"
    figure, axes = drawing.new_axes(title, "tokens read since the fact", "share of facts found")
    labels = {"fast": "fast memory", "slow": "slow memory", "both": "both memories"}
    series: drawing.Series = {}
    for row in retained["rows"]:
        drawing.add_point(series, labels[row["memory"]], row["lag"], row["found"]["mean"])
        if row["memory"] == "both":
            drawing.add_point(series, "text without the fact", row["lag"], row["control_found"]["mean"])
    drawing.lines(axes, series, model)
    axes.axhline(retained["chance"], color="black", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.05)
    return figure


def draw_passkey(numbers: Numbers, model: str) -> "Drawing":
    """Share of pass keys whose document comes first, against the length of the documents."""
    title = "Lexical probe: the document with the pass key"
    figure, axes = drawing.new_axes(title, "tokens of a document", "found first (share)")
    series: drawing.Series = {}
    for row in numbers["probes"]["rows"]:
        if row["probe"] == "passkey":
            drawing.add_point(series, row["model"], row["tokens"], row["mean"])
    drawing.lines(axes, series, model)
    axes.axhline(numbers["probes"]["chance"], color="black", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_ylim(-0.02, 1.05)
    return figure


PART = Part(
    name="long_context",
    run=run,
    section=section,
    weaknesses=weaknesses,
    figures={"sensitivity": draw_sensitivity, "retention": draw_retention, "lexical_probes": draw_passkey},
    settings=LongContextSettings,
    quick=LongContextSettings(
        sensitivity_lengths=(1_000, 4_000),
        sensitivity_texts=1,
        facts=16,
        retention_lags=(1, 4, 16, 64, 256),
        probe_lengths=(512, 2_048),
        probe_documents=6,
    ),
)

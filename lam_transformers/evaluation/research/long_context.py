"""Long texts: does a changed sentence move the embedding, do the memories keep a fact, is a needle found."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...model.streaming_lam import RunningPool
from ...scoring.statistics import paired_test, proportion
from ..data import held_out_books
from ..models import BM25, BagOfTokens, Encoder, read_ids
from .probe import NAMES, WORDS, Facts, fact_ids, forgetting_curve, hits, margins, read_facts

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
CHANGED = 24  # tokens of the sentence that is exchanged
CHUNK = 510
BEFORE = 256  # tokens ahead of a fact


def run(context) -> dict[str, Any]:
    """Sensitivity, retention and the two lexical probes, on books that no training has seen."""
    books = held_out_books(context.data)
    return {
        "books": [book["title"] for book in books],
        "sensitivity": sensitivity(context, books),
        "retention": retention(context, books),
        "probes": lexical_probes(context, books),
    }


def book_ids(encoder: Encoder, book: dict, tokens: int, skip: int = 2_000) -> list[int]:
    """`tokens` token ids of a book behind the first `skip`. Raises ValueError if it is too short."""
    ids = encoder.token_ids(book["text"][: 8 * (tokens + skip) + 10_000])[skip : skip + tokens]
    if len(ids) < tokens:
        raise ValueError(f"{book['title']} holds only {skip + len(ids):,} tokens, {skip + tokens:,} are needed.")
    return ids


def sensitivity(context, books: list[dict]) -> dict[str, Any]:
    """Cosine distance that exchanging 24 tokens at depth d of an n-token text moves the embedding.

    Null hypothesis: the embedding does not depend on text behind the 512th token (the distance is 0, as it is for a
    model that cuts there). "share" is the share of tokens that was exchanged.
    """
    settings, rows = context.settings, []
    for tokens in settings.sensitivity_lengths:
        context.say(f"sensitivity at {tokens:,} tokens")
        found: dict[str, list[list[float]]] = {}
        for i in range(settings.sensitivity_texts):
            ids = book_ids(context.model, books[i], tokens - 2)
            other = book_ids(context.model, books[-1 - i], CHANGED, skip=3_000)
            places = [int(depth * (len(ids) - CHANGED)) for depth in DEPTHS]
            found.setdefault(context.model.name, []).append(_lam_distances(context.model, ids, other, places))
            for encoder in context.baselines:
                if encoder.limit is not None and encoder.tokenizer.get_vocab() == context.model.tokenizer.get_vocab():
                    moved = _chunk_distances(encoder, ids, other, places)
                    found.setdefault(f"{encoder.name}, mean of chunks", []).append(moved)
        for name, distances in found.items():
            for depth, values in zip(DEPTHS, np.array(distances).T, strict=True):
                rows.append({
                    "model": name, "tokens": tokens, "depth": depth, "texts": len(values),
                    "distance": float(values.mean()), "least": float(values.min()), "share": CHANGED / tokens,
                })  # fmt: skip
    return {"rows": rows, "changed_tokens": CHANGED}


def _cosine_distance(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(max(0.0, 1 - a @ b / np.sqrt((a @ a) * (b @ b))))


def _lam_distances(encoder: Encoder, ids: Sequence[int], other: Sequence[int], places: Sequence[int]) -> list[float]:
    """The text is read once and, from each place on, once more from the state there."""
    lam, whole = encoder.lam, encoder.with_special(ids)
    state, pool, done, changed = lam.new_state(1), RunningPool("mean"), 0, []
    with torch.inference_mode():
        for place in places:
            read_ids(lam, whole[done : place + 1], state, pool)
            done = place + 1
            rest = [*other, *whole[done + len(other) :]]
            changed.append(read_ids(lam, rest, state.clone(), pool.clone()).result().numpy())
        read_ids(lam, whole[done:], state, pool)
    original = pool.result().numpy()
    return [_cosine_distance(original, x) for x in changed]


def _chunk_distances(encoder: Encoder, ids: Sequence[int], other: Sequence[int], places: Sequence[int]) -> list[float]:
    """The same for the mean over chunks; only the chunks that hold the exchange are embedded again."""

    def embed(ids):
        pieces = [encoder.with_special(ids[i : i + CHUNK]) for i in range(0, len(ids), CHUNK)]
        full = [piece for piece in pieces if len(piece) == CHUNK + 2]
        found = [encoder.embed_ids(full[i : i + 8]) for i in range(0, len(full), 8)]
        rest = [encoder.embed_ids([piece]) for piece in pieces[len(full) :]]
        return np.concatenate([*found, *rest])

    chunks, distances = embed(ids), []
    for place in places:
        first, last = place // CHUNK, (place + len(other) - 1) // CHUNK + 1
        changed = [*ids[:place], *other, *ids[place + len(other) :]][first * CHUNK : last * CHUNK]
        moved = chunks.copy()
        moved[first:last] = embed(changed)
        distances.append(_cosine_distance(chunks.mean(0), moved.mean(0)))
    return distances


def retention(context, books: list[dict]) -> dict[str, Any]:
    """How well the memories still answer for a fact after `lag` further tokens.

    Each of N texts holds another fact ("NAME keeps the WORD"). The memories are read with the key of the fact's last
    token; what comes out is compared with the values of all N facts. Null hypothesis at each lag: a text with the fact
    answers no better than the same text without it (paired one-sided Wilcoxon test over the facts).
    """
    settings, lam = context.settings, context.model.lam
    facts, filler = prepare_facts(context, books, settings.facts)
    lags = settings.retention_lags
    context.say(f"retention of {len(facts.keys[0])} facts over {lags[-1]:,} tokens")
    rows = []
    for point in forgetting_curve(lam, facts, filler, lags):
        for which, scores in point["scores"].items():
            own, control = margins(scores), margins(point["control"][which])
            rows.append({
                "lag": point["lag"], "memory": which, "margin": float(own.mean()),
                "control_margin": float(control.mean()), "p": paired_test(own, control),
                "found": proportion(hits(scores).sum(), len(scores)),
                "control_found": proportion(hits(point["control"][which]).sum(), len(scores)),
            })  # fmt: skip
    return {"rows": rows, "facts": facts.keys.shape[1], "chance": 1 / facts.keys.shape[1]}


def prepare_facts(context, books: list[dict], count: int, **options) -> tuple[Facts, list[int]]:
    """Facts behind 256 tokens of a book, and the tokens of that book that go on from there."""
    longest = max(context.settings.retention_lags)
    ids = book_ids(context.model, books[0], BEFORE + longest + 64)
    facts = fact_ids(context.model, count)
    length = facts.shape[1]
    read_in = read_facts(context.model.lam, ids[:BEFORE], facts, ids[BEFORE : BEFORE + length], **options)
    return read_in, ids[BEFORE + length :]


def lexical_probes(context, books: list[dict]) -> dict[str, Any]:
    """Passkey and needle: share of queries whose document comes first, among documents of n tokens.

    These are lexical probes: the query repeats words that stand in one document only, so BM25 and a bag of tokens pass
    them. They say that text at any depth reaches the embedding, not that it is understood.
    """
    settings, rows = context.settings, []
    for tokens in settings.probe_lengths:
        context.say(f"passkey and needle at {tokens:,} tokens")
        documents, queries = probe_documents(context.model, books, tokens, settings.probe_documents)
        for name, found in score_documents(context, documents, [q for kind in queries.values() for q in kind]).items():
            for i, kind in enumerate(queries):
                part = found[i * len(documents) : (i + 1) * len(documents)]
                rows.append({"probe": kind, "tokens": tokens, "model": name, **proportion(hits(part).sum(), len(part))})
    return {"rows": rows, "documents": settings.probe_documents, "chance": 1 / settings.probe_documents}


def probe_documents(
    encoder: Encoder, books: list[dict], tokens: int, count: int
) -> tuple[list[str], dict[str, list[str]]]:
    """Documents of about `tokens` tokens, each with a pass key and a needle of its own at a depth of its own."""
    random, documents = np.random.default_rng(0), []
    passkey, needle = [], []
    for i in range(count):
        book = books[i % len(books)]
        start = 20_000 * (1 + i // len(books))
        text = encoder.chunks(book["text"][start : start + 8 * tokens + 1_000], max(tokens - 64, 64))[0]
        number, name, word = random.integers(10_000, 100_000), NAMES[i % len(NAMES)], WORDS[i % len(WORDS)]
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


def score_documents(context, documents: list[str], queries: list[str]) -> dict[str, np.ndarray]:
    """Scores [queries, documents] of the LAM on whole documents and of everything that stands beside it."""
    found = {f"{context.model.name}": context.model.encode(queries) @ context.model.encode(documents).T}
    for encoder in context.baselines:
        asked = encoder.encode(queries)
        if encoder.limit is None:
            found[encoder.name] = asked @ encoder.encode(documents).T
            continue
        found[f"{encoder.name}, cut at {encoder.limit}"] = asked @ encoder.encode(documents).T
        pieces = [encoder.chunks(document, encoder.limit - 2) for document in documents]
        embedded = encoder.encode([piece for chunks in pieces for piece in chunks])
        split = np.split(embedded, np.cumsum([len(chunks) for chunks in pieces])[:-1])
        means = np.stack([chunks.mean(0) / np.linalg.norm(chunks.mean(0)) for chunks in split])
        found[f"{encoder.name}, mean of chunks"] = asked @ means.T
        found[f"{encoder.name}, best chunk"] = np.stack([(asked @ chunks.T).max(1) for chunks in split], axis=1)
    found[BM25.name] = BM25(documents).scores(queries)
    bag = BagOfTokens(context.model, documents)
    found[bag.name] = bag.encode(queries) @ bag.encode(documents).T
    return found

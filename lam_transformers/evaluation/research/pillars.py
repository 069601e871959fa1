"""The six pillars of the LAM documents, each as one statement that a measurement on the real model can refute."""

import copy
from typing import Any

import numpy as np
import torch
from scipy import stats

from ...model.delta_rule_lam import dual_delta_rule
from ...scoring.statistics import bootstrap_correlations, bootstrap_mean, curve_fits, interval, paired_test
from ...scoring.sts import read_pairs, similarities, spread
from ..data import MissingData, held_out_books
from ..models import BagOfTokens
from .ablation import without
from .long_context import book_ids, prepare_facts
from .probe import (
    by_layer,
    fact_ids,
    forgetting_curve,
    hits,
    margins,
    memories,
    read,
    read_facts,
    replaced_rule,
    write_to_fast_only,
)

ALPHA = 0.05
LAG = 16  # tokens between a fact and the question
SIMILAR = 4.0  # human score from which a pair of STS-B counts as similar


def run(context) -> dict[str, Any]:
    """One entry a pillar: statement, null hypothesis, measurement, and whether the model passes (p < 0.05)."""
    pillars = []
    for measure in (
        cross_timescale, pattern_separation, reconsolidation, semantic_projection, cognitive_realism, salience_gating,
    ):  # fmt: skip
        context.say(f"pillar: {measure.__name__.replace('_', ' ')}")
        with context.may_lack():
            pillars.append({"pillar": measure.__name__.replace("_", " "), **measure(context)})
    if not pillars:
        raise MissingData("the pillars' data", "They need stsb_dev and books.")
    return {"pillars": pillars, "alpha": ALPHA}


def cross_timescale(context) -> dict[str, Any]:
    """Facts are written to the fast memory alone; the slow one is read later, with the exchange and without it."""
    books, count = held_out_books(context.data), context.settings.facts
    found = {}
    for name, lam in (("exchange", context.model.lam), ("none", without(context.model.lam, "cross-timescale"))):
        moved = copy.copy(context.model)
        moved.lam = lam
        changed = copy.copy(context)
        changed.model = moved
        facts, filler = prepare_facts(changed, books, count, rule=write_to_fast_only(lam))
        found[name] = forgetting_curve(lam, facts, filler, (LAG,), ("slow",))[0]["scores"]["slow"]
    p = paired_test(margins(found["exchange"]), margins(found["none"]))
    return {
        "statement": f"What was written to the fast memory alone is found in the slow one {LAG} tokens later.",
        "null": "With the exchange between the memories the slow one answers no better than without it.",
        "measured": {
            "found_with_exchange": float(hits(found["exchange"]).mean()),
            "found_without_exchange": float(hits(found["none"]).mean()),
            "margin_with_exchange": float(margins(found["exchange"]).mean()),
            "margin_without_exchange": float(margins(found["none"]).mean()),
            "chance": 1 / len(found["none"]),
        },
        "p": p, "passes": p < ALPHA,
    }  # fmt: skip


def pattern_separation(context) -> dict[str, Any]:
    """Distance of similar sentences relative to that of unrelated ones, in the memories and in the embeddings."""
    first, second, scores = read_pairs(context.data.path("stsb_dev"))
    chosen = [i for i in np.flatnonzero(scores >= SIMILAR) if first[i] != second[i]]
    chosen = chosen[: context.settings.separation_pairs]
    texts = [[first[i] for i in chosen], [second[i] for i in chosen]]
    spaces = {
        "embeddings": [context.model.encode(side) for side in texts],
        "memories": [_flat_memories(context.model, side) for side in texts],
    }
    relative = {name: _relative_distances(*sides) for name, sides in spaces.items()}
    p = paired_test(relative["memories"], relative["embeddings"])
    return {
        "statement": "Relative to unrelated sentences, similar ones lie farther apart in the memories than in the "
        "embeddings.",
        "null": "Their relative distance in the memories is not larger than in the embeddings.",
        "measured": {
            "relative_distance_in_memories": float(relative["memories"].mean()),
            "relative_distance_in_embeddings": float(relative["embeddings"].mean()),
            "pairs": len(chosen),
        },
        "p": p, "passes": p < ALPHA,
    }  # fmt: skip


@torch.inference_mode()
def _flat_memories(encoder, texts: list[str]) -> np.ndarray:
    """The memories after each text, float32 [texts, layers H 2 K V]."""
    lam, rows = encoder.lam, []
    for text in texts:
        state = read(lam, torch.tensor([encoder.with_special(encoder.token_ids(text))]), lam.new_state(1))
        rows.append(memories(lam, state)[:, 0].flatten().numpy())
    return np.stack(rows)


def _relative_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Euclidean distance of each pair over the mean distance of firsts to the seconds of other pairs, [pairs]."""
    own = np.linalg.norm(first - second, axis=1)
    shifts = range(1, min(len(first), 21))
    others = np.mean([np.linalg.norm(first - np.roll(second, shift, axis=0), axis=1).mean() for shift in shifts])
    return own / others


def reconsolidation(context) -> dict[str, Any]:
    """A fact is read, then 16 tokens, then the fact again or as many other tokens, then 16 tokens."""
    lam, model = context.model.lam, context.model
    ids = book_ids(model, held_out_books(context.data)[0], 600)
    facts = fact_ids(model, context.settings.facts)
    length = facts.shape[1]
    found = {}
    for name in ("once", "twice"):
        before, filler = ids[:256], ids[256:]
        reading = read_facts(lam, before, facts, filler[-length:])
        state = reading.state
        if name == "twice":
            piece = torch.tensor([filler[:LAG]]).expand(state.batch_size, -1)
            again = torch.cat([facts, torch.tensor([filler[-length:]])])
            state = read(lam, again, read(lam, piece, state.clone()))
        state = read(lam, torch.tensor([filler[LAG : 2 * LAG]]).expand(state.batch_size, -1), state.clone())
        found[name] = reading.scores(lam, state, "both")
    p = paired_test(margins(found["twice"]), margins(found["once"]))
    return {
        "statement": f"A fact that is read a second time answers better, {LAG} tokens after its last reading.",
        "null": "After the second reading the memories answer no better than after the first, equally long after it.",
        "measured": {
            "margin_once": float(margins(found["once"]).mean()),
            "margin_twice": float(margins(found["twice"]).mean()),
            "difference": bootstrap_mean(margins(found["twice"]) - margins(found["once"])),
            "found_once": float(hits(found["once"]).mean()),
            "found_twice": float(hits(found["twice"]).mean()),
        },
        "p": p, "passes": p < ALPHA,
    }  # fmt: skip


def semantic_projection(context) -> dict[str, Any]:
    """STS-B dev: cosines of the embeddings against those of a bag of tokens."""
    first, second, scores = spread(read_pairs(context.data.path("stsb_dev")), context.settings.sts_pairs)
    bag = BagOfTokens(context.model, first + second)
    found = {"model": context.model, "bag": bag}
    values = {name: similarities(encoder.encode, first, second) for name, encoder in found.items()}
    drawn = bootstrap_correlations(values, scores, context.settings.resamples)["pearson"]
    difference = drawn["model"] - drawn["bag"]
    p = float((1 + (difference <= 0).sum()) / (1 + len(difference)))
    return {
        "statement": "Cosines of the embeddings follow human similarity better than those of a bag of tokens.",
        "null": "On STS-B dev the Pearson correlation is not higher than that of the bag of tokens.",
        "measured": {
            **{name: float(np.corrcoef(x, scores)[0, 1]) for name, x in values.items()},
            "difference_interval": interval(difference), "pairs": len(scores),
        },
        "p": p, "passes": p < ALPHA,
    }  # fmt: skip


def cognitive_realism(context) -> dict[str, Any]:
    """The forgetting curve: how well the memories answer against the number of tokens read since."""
    lags = [lag for lag in (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if lag <= max(context.settings.retention_lags)]
    facts, filler = prepare_facts(context, held_out_books(context.data), context.settings.facts)
    points = forgetting_curve(context.model.lam, facts, filler, lags, ("both",))
    curve = [
        float((margins(point["scores"]["both"]) - margins(point["control"]["both"])).mean()) for point in points
    ]  # fmt: skip
    fits = curve_fits(lags, curve)
    falls = stats.kendalltau(lags, curve, method="exact", alternative="less")
    best = min(fits, key=lambda name: fits[name]["aic"])
    return {
        "statement": "Recall falls with distance as human forgetting does: by a power law or a logarithm of time.",
        "null": "Recall does not fall with distance, or an exponential describes it at least as well (by AIC).",
        "measured": {
            "lags": lags, "recall": curve, "fits": fits, "best_fit": best, "rank_correlation": float(falls.statistic),
        },
        "p": float(falls.pvalue), "passes": bool(falls.pvalue < ALPHA and best != "exponential"),
    }  # fmt: skip


def salience_gating(context) -> dict[str, Any]:
    """psi (the share of a token that goes to the slow memory) against the inverse document frequency of the token."""
    model, books = context.model, held_out_books(context.data)
    each = context.settings.salience_tokens // 4
    texts = [book_ids(model, book, each) for book in books[:4]]
    pages = [set(ids[i : i + 250]) for ids in texts for i in range(0, each, 250)]
    psi = [_psi(model.lam, ids) for ids in texts]
    sums: dict[int, list[float]] = {}
    for ids, values in zip(texts, psi, strict=True):
        for token, value in zip(ids, values, strict=True):
            sums.setdefault(token, []).append(float(value))
    tokens = [token for token, values in sums.items() if len(values) >= 3]
    idf = np.array([np.log(len(pages) / sum(token in page for page in pages)) for token in tokens])
    means = np.array([np.mean(sums[token]) for token in tokens])
    found = stats.spearmanr(means, idf, alternative="greater")
    drawn = bootstrap_correlations({"psi": means}, idf, min(context.settings.resamples, 2_000))["spearman"]["psi"]
    edges = np.quantile(idf, np.linspace(0, 1, 9))
    bins = np.clip(np.searchsorted(edges, idf, side="right") - 1, 0, 7)
    return {
        "statement": "Rarer tokens, which say more, go to the slow memory more (psi rises with inverse document "
        "frequency).",
        "null": "The rank correlation of psi with inverse document frequency over token types is not positive.",
        "measured": {
            "spearman": float(found.statistic), "interval": interval(drawn), "token_types": len(tokens),
            "psi_mean": float(means.mean()), "psi_deviation": float(means.std()),
            "bins": [
                {"idf": float(idf[inside].mean()), "psi": float(means[inside].mean()), "types": int(inside.sum())}
                for inside in (bins == i for i in range(8))
                if inside.any()
            ],
        },
        "p": float(found.pvalue), "passes": bool(found.pvalue < ALPHA),
    }  # fmt: skip


@torch.inference_mode()
def _psi(lam, ids: list[int]) -> np.ndarray:
    """Mean of psi over layers and heads for each token, [T]."""
    kept: list[torch.Tensor] = []
    hooks = [layer.memory.flux.register_forward_hook(lambda *x: kept.append(x[2])) for layer in lam.layers]
    try:
        with replaced_rule(lam, dual_delta_rule):
            read(lam, torch.tensor([ids]), lam.new_state(1))
    finally:
        for hook in hooks:
            hook.remove()
    return by_layer(kept, len(lam.layers))[:, 0].float().mean((0, -1)).numpy()

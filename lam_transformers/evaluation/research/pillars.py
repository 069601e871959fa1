"""The six pillars of the LAM documents, each as one statement that a measurement on the real model can refute."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import stats

from ...io.results import Numbers, Record, Results, numbers_of
from ...model.delta_rule_lam import dual_delta_rule
from ...scoring.statistics import CURVES, bootstrap_correlations, bootstrap_mean, curve_fits, interval, paired_test
from ...scoring.sts import read_pairs, similarities, spread
from .. import drawing
from ..blocks import Figure, Section, Table, p_value
from ..data import MissingData, held_out_books
from ..models import BagOfTokens, MeasuredModel, book_ids
from ..part import Context, Part
from ..parts.sts import StsSettings
from .ablation import without
from .long_context import LongContextSettings, prepare_facts
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

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

ALPHA = 0.05
LAG = 16  # tokens between a fact and the question
SIMILAR = 4.0  # human score from which a pair of STS-B counts as similar


@dataclass(frozen=True)
class PillarSettings:
    """Number of similar pairs, and tokens of the text whose psi is looked at."""

    separation_pairs: int = 300
    salience_tokens: int = 40_000


def run(context: Context) -> Numbers:
    """One entry a pillar: statement, null hypothesis, measurement, and whether the model passes (p < 0.05)."""
    pillars: list[Numbers] = []
    for measure in (
        cross_timescale,
        pattern_separation,
        reconsolidation,
        semantic_projection,
        cognitive_realism,
        salience_gating,
    ):
        context.say(f"pillar: {measure.__name__.replace('_', ' ')}")
        with context.may_lack():
            pillars.append({"pillar": measure.__name__.replace("_", " "), **measure(context)})
    if not pillars:
        raise MissingData("the pillars' data", "They need stsb_dev and books.")
    return {"pillars": pillars, "alpha": ALPHA}


def cross_timescale(context: Context) -> Numbers:
    """Facts are written to the fast memory alone; the slow one is read later, with the exchange and without it."""
    books = held_out_books(context.data)
    count = context.settings.of(LongContextSettings).facts
    scores = {}
    for name, lam in (("exchange", context.model.lam), ("none", without(context.model.lam, "cross-timescale"))):
        moved = copy.copy(context.model)
        moved.lam = lam
        changed = copy.copy(context)
        changed.model = moved
        facts, filler = prepare_facts(changed, books, count, rule=write_to_fast_only(lam))
        scores[name] = forgetting_curve(lam, facts, filler, (LAG,), ("slow",))[0]["scores"]["slow"]
    p = paired_test(margins(scores["exchange"]), margins(scores["none"]))
    return {
        "statement": f"What was written to the fast memory alone is found in the slow one {LAG} tokens later.",
        "null": "With the exchange between the memories the slow one answers no better than without it.",
        "measured": {
            "found_with_exchange": float(hits(scores["exchange"]).mean()),
            "found_without_exchange": float(hits(scores["none"]).mean()),
            "margin_with_exchange": float(margins(scores["exchange"]).mean()),
            "margin_without_exchange": float(margins(scores["none"]).mean()),
            "chance": 1 / len(scores["none"]),
        },
        "p": p,
        "passes": p < ALPHA,
    }


def pattern_separation(context: Context) -> Numbers:
    """Distance of similar sentences relative to that of unrelated ones, in the memories and in the embeddings."""
    first, second, scores = read_pairs(context.data.path("stsb_dev"))
    chosen = [i for i in np.flatnonzero(scores >= SIMILAR) if first[i] != second[i]]
    chosen = chosen[: context.settings.of(PillarSettings).separation_pairs]
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
        "p": p,
        "passes": p < ALPHA,
    }


@torch.inference_mode()
def _flat_memories(encoder: MeasuredModel, texts: Sequence[str]) -> np.ndarray:
    """The memories after each text, float32 [texts, layers H 2 K V]."""
    lam = encoder.lam
    rows = []
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


def reconsolidation(context: Context) -> Numbers:
    """A fact is read, then 16 tokens, then the fact again or as many other tokens, then 16 tokens."""
    model = context.model
    lam = model.lam
    ids = book_ids(model, held_out_books(context.data)[0], 600)
    facts = fact_ids(model, context.settings.of(LongContextSettings).facts)
    length = facts.shape[1]
    scores = {}
    before = ids[:256]
    filler = ids[256:]
    for name in ("once", "twice"):
        learnt = read_facts(lam, before, facts, filler[-length:])
        reading = learnt.copy()
        if name == "twice":
            reading.read(torch.tensor([filler[:LAG]]))
            reading.read(torch.cat([facts, torch.tensor([filler[-length:]])]))
        reading.read(torch.tensor([filler[LAG : 2 * LAG]]))
        scores[name] = learnt.scores(lam, reading.now(), "both")
    p = paired_test(margins(scores["twice"]), margins(scores["once"]))
    return {
        "statement": f"A fact that is read a second time answers better, {LAG} tokens after its last reading.",
        "null": "After the second reading the memories answer no better than after the first, equally long after it.",
        "measured": {
            "margin_once": float(margins(scores["once"]).mean()),
            "margin_twice": float(margins(scores["twice"]).mean()),
            "difference": bootstrap_mean(margins(scores["twice"]) - margins(scores["once"])),
            "found_once": float(hits(scores["once"]).mean()),
            "found_twice": float(hits(scores["twice"]).mean()),
        },
        "p": p,
        "passes": p < ALPHA,
    }


def semantic_projection(context: Context) -> Numbers:
    """STS-B dev: cosines of the embeddings against those of a bag of tokens."""
    pairs = read_pairs(context.data.path("stsb_dev"))
    first, second, scores = spread(pairs, context.settings.of(StsSettings).sts_pairs)
    bag = BagOfTokens(context.model, first + second)
    values = {
        "model": similarities(context.model.encode, first, second),
        "bag": similarities(bag.encode, first, second),
    }
    drawn = bootstrap_correlations(values, scores, context.settings.resamples)["pearson"]
    difference = drawn["model"] - drawn["bag"]
    p = float((1 + (difference <= 0).sum()) / (1 + len(difference)))
    return {
        "statement": "Cosines of the embeddings follow human similarity better than those of a bag of tokens.",
        "null": "On STS-B dev the Pearson correlation is not higher than that of the bag of tokens.",
        "measured": {
            **{name: float(np.corrcoef(x, scores)[0, 1]) for name, x in values.items()},
            "difference_interval": interval(difference),
            "pairs": len(scores),
        },
        "p": p,
        "passes": p < ALPHA,
    }


def cognitive_realism(context: Context) -> Numbers:
    """The forgetting curve: how well the memories answer against the number of tokens read since."""
    settings = context.settings.of(LongContextSettings)
    lags = [lag for lag in (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if lag <= max(settings.retention_lags)]
    facts, filler = prepare_facts(context, held_out_books(context.data), settings.facts)
    points = forgetting_curve(context.model.lam, facts, filler, lags, ("both",))
    curve = [float((margins(point["scores"]["both"]) - margins(point["control"]["both"])).mean()) for point in points]
    fits = curve_fits(lags, curve)
    falls = stats.kendalltau(lags, curve, method="exact", alternative="less")
    best = min(fits, key=lambda name: fits[name]["aic"])
    return {
        "statement": "Recall falls with distance as human forgetting does: by a power law or a logarithm of time.",
        "null": "Recall does not fall with distance, or an exponential describes it at least as well (by AIC).",
        "measured": {
            "lags": lags,
            "recall": curve,
            "fits": fits,
            "best_fit": best,
            "rank_correlation": float(falls.statistic),
        },
        "p": float(falls.pvalue),
        "passes": bool(falls.pvalue < ALPHA and best != "exponential"),
    }


def salience_gating(context: Context) -> Numbers:
    """psi (the share of a token that goes to the slow memory) against the inverse document frequency of the token."""
    model = context.model
    books = held_out_books(context.data)
    each = context.settings.of(PillarSettings).salience_tokens // 4
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
    rises = stats.spearmanr(means, idf, alternative="greater")
    drawn = bootstrap_correlations({"psi": means}, idf, min(context.settings.resamples, 2_000))["spearman"]["psi"]
    edges = np.quantile(idf, np.linspace(0, 1, 9))
    bins = np.clip(np.searchsorted(edges, idf, side="right") - 1, 0, 7)
    return {
        "statement": "Rarer tokens, which say more, go to the slow memory more (psi rises with inverse document "
        "frequency).",
        "null": "The rank correlation of psi with inverse document frequency over token types is not positive.",
        "measured": {
            "spearman": float(rises.statistic),
            "interval": interval(drawn),
            "token_types": len(tokens),
            "psi_mean": float(means.mean()),
            "psi_deviation": float(means.std()),
            "bins": [
                {"idf": float(idf[inside].mean()), "psi": float(means[inside].mean()), "types": int(inside.sum())}
                for inside in (bins == i for i in range(8))
                if inside.any()
            ],
        },
        "p": float(rises.pvalue),
        "passes": bool(rises.pvalue < ALPHA),
    }


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


def section(record: Record) -> Section:
    """Statement, null hypothesis and verdict of each pillar."""
    rows = [
        (
            row["pillar"],
            row["statement"],
            row["null"],
            _shown(row["measured"]),
            p_value(row["p"]),
            "passes" if row["passes"] else "fails",
        )
        for row in record["numbers"]["pillars"]
    ]
    return Section(
        "Six pillars",
        [
            Table(("pillar", "statement", "null hypothesis", "measured", "p", "verdict"), rows),
            Figure("forgetting", "Recall against the number of tokens read since, and three curves."),
            Figure("salience", "psi by rarity of the token."),
        ],
    )


def _shown(measured: Numbers) -> str:
    """The plain numbers of a pillar."""
    plain = {name.replace("_", " "): x for name, x in measured.items() if isinstance(x, int | float | str)}
    return ", ".join(f"{name} {x:.3f}" if isinstance(x, float) else f"{name} {x}" for name, x in plain.items())


def weaknesses(results: Results) -> list[str]:
    """Pillars that fail."""
    rows = (numbers_of(results, PART.name) or {"pillars": []})["pillars"]
    return [f"Fails the pillar {row['pillar']} (p = {row['p']:.2g})." for row in rows if not row["passes"]]


def _measured(numbers: Numbers, pillar: str) -> Numbers | None:
    return next((row["measured"] for row in numbers["pillars"] if row["pillar"] == pillar), None)


def draw_forgetting(numbers: Numbers, model: str) -> "Drawing | None":
    """The forgetting curve and what was fitted to it."""
    measured = _measured(numbers, "cognitive realism")
    if measured is None:
        return None
    title = "Forgetting curve of the memories"
    figure, axes = drawing.new_axes(title, "1 + tokens read since the fact", "recall (margin)")
    t = np.array(measured["lags"], dtype=float)
    axes.plot(1 + t, measured["recall"], "o", color="black", label="measured", markersize=4)
    fine = np.geomspace(1, 1 + t.max(), 200) - 1
    for i, (name, fit) in enumerate(measured["fits"].items()):
        curve = CURVES[name](fine, fit["a"], fit["b"])
        axes.plot(1 + fine, curve, color=drawing.COLOURS[i], label=f"{name}, R2 {fit['r2']:.3f}")
    axes.set_xscale("log")
    axes.legend(fontsize=8)
    return figure


def draw_salience(numbers: Numbers, model: str) -> "Drawing | None":
    """Mean psi against inverse document frequency."""
    measured = _measured(numbers, "salience gating")
    if measured is None:
        return None
    title = "Share of a token that goes to the slow memory"
    figure, axes = drawing.new_axes(title, "inverse document frequency", "psi, mean")
    bins = measured["bins"]
    axes.plot([row["idf"] for row in bins], [row["psi"] for row in bins], "o-", color=drawing.COLOURS[0])
    return figure


PART = Part(
    name="pillars",
    run=run,
    section=section,
    weaknesses=weaknesses,
    figures={"forgetting": draw_forgetting, "salience": draw_salience},
    settings=PillarSettings,
    quick=PillarSettings(separation_pairs=60, salience_tokens=4_000),
)

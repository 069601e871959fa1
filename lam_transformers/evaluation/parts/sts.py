"""Semantic textual similarity: how well cosine similarities follow human scores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from ...scoring.statistics import bootstrap_correlations, interval
from ...scoring.sts import read_pairs, similarities, spread
from ..data import MissingData
from ..models import BagOfTokens

ERROR_CASES = 8


def run(context) -> dict[str, Any]:
    """Correlations with intervals, calibration error and error cases on STS-B dev and test and the given pair files.

    Null hypothesis of each difference: model and baseline correlate equally with the human scores (paired bootstrap).
    """
    files: dict[str, Path] = {}
    for name in ("stsb_dev", "stsb_test"):
        with context.may_lack():
            files[name] = context.data.path(name)
    files |= {Path(path).name.split(".")[0]: Path(path) for path in context.pairs}
    if not files:
        raise MissingData("STS-B", "Neither dev nor test was found, and no --pairs file was given.")
    numbers: dict[str, Any] = {"sets": {}, "resamples": context.settings.resamples}
    lines: dict[str, tuple[float, float]] = {}
    for name, path in files.items():
        context.say(f"{name}")
        texts = spread(read_pairs(path), context.settings.sts_pairs)
        found = {encoder.name: similarities(encoder.encode, *texts[:2]) for encoder in context.encoders}
        bag = BagOfTokens(context.model, texts[0] + texts[1])
        found[bag.name] = similarities(bag.encode, *texts[:2])
        numbers["sets"][name] = measure_set(found, texts, context.model.name, context.settings, lines, name)
    return numbers


def measure_set(
    found: Mapping[str, np.ndarray], texts, ours: str, settings, lines: dict[str, tuple[float, float]], name: str
) -> dict[str, Any]:
    """All numbers of one pair file.

    Args:
        found: similarities [pairs] by model.
        texts: what `read_pairs` returned.
        ours: which of `found` is compared with all others.
        lines: slope and intercept of the linear calibration by model; fitted here on "stsb_dev", or on the file itself
            where that was not read before.
    """
    first, second, scores = texts
    resampled = bootstrap_correlations(found, scores, settings.resamples)
    fitted_on = "stsb_dev" if lines or name == "stsb_dev" else name
    models: dict[str, Any] = {}
    for model, x in found.items():
        if model not in lines:
            line = stats.linregress(x, scores)
            lines[model] = (float(line.slope), float(line.intercept))
        slope, intercept = lines[model]
        error = slope * x + intercept - scores
        pearson, spearman = stats.pearsonr(x, scores), stats.spearmanr(x, scores)
        models[model] = {
            "pearson": float(pearson.statistic), "pearson_p": float(pearson.pvalue),
            "pearson_interval": interval(resampled["pearson"][model]),
            "spearman": float(spearman.statistic), "spearman_p": float(spearman.pvalue),
            "spearman_interval": interval(resampled["spearman"][model]),
            "mae": float(np.abs(error).mean()), "rmse": float(np.sqrt((error**2).mean())),
            "calibration": {"slope": slope, "intercept": intercept, "fitted_on": fitted_on},
            "ranges": score_ranges(x, scores),
        }  # fmt: skip
    differences = {
        model: {
            kind: {
                "difference": models[ours][kind] - models[model][kind],
                "interval": interval(resampled[kind][ours] - resampled[kind][model]),
            }
            for kind in ("pearson", "spearman")
        }
        for model in found
        if model != ours
    }
    slope, intercept = lines[ours]
    predicted = slope * found[ours] + intercept
    worst = np.argsort(-np.abs(predicted - scores))[:ERROR_CASES]
    cases = [
        {"sentence1": first[i], "sentence2": second[i], "score": float(scores[i]), "predicted": float(predicted[i])}
        for i in worst
    ]
    return {"pairs": len(scores), "models": models, "differences": differences, "error_cases": cases}


def score_ranges(similarity: np.ndarray, scores: np.ndarray, count: int = 5) -> list[dict[str, Any]]:
    """Correlation within ranges of the human score; None where all scores of a range are equal or it holds under 3."""
    edges = np.linspace(scores.min(), scores.max(), count + 1)
    rows = []
    for i in range(count):
        inside = (scores >= edges[i]) & ((scores < edges[i + 1]) if i + 1 < count else True)
        enough = inside.sum() >= 3 and np.ptp(scores[inside]) > 0 and np.ptp(similarity[inside]) > 0
        rows.append({
            "from": float(edges[i]), "to": float(edges[i + 1]), "pairs": int(inside.sum()),
            "pearson": float(stats.pearsonr(similarity[inside], scores[inside]).statistic) if enough else None,
            "mean_similarity": float(similarity[inside].mean()) if inside.any() else None,
        })  # fmt: skip
    return rows

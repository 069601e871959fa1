"""Semantic textual similarity: how well cosine similarities follow human scores."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from ..training.data import read_records


def read_pairs(path: Path) -> tuple[list[str], list[str], np.ndarray]:
    """sentence1, sentence2 and score of a JSON-lines file (plain, .gz or .xz).

    Raises ValueError for a record without these fields.
    """
    first, second, scores = [], [], []
    for record in read_records(path):
        try:
            first.append(record["sentence1"])
            second.append(record["sentence2"])
            scores.append(float(record["score"]))
        except KeyError as error:
            raise ValueError(f"{path}: a record has no field {error}, only {sorted(record)}.") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: score must be a number, got {record['score']!r}.") from error
    return first, second, np.array(scores)


def evaluate_sts(
    encode: Callable[[Sequence[str]], np.ndarray], path: Path, dimensions: Sequence[int] = (), resamples: int = 0
) -> dict[str, Any]:
    """Correlations of cosine similarities with the scores of a pair file.

    Args:
        encode: texts -> embeddings [texts, dimensions].
        path: pair file, see `read_pairs`.
        dimensions: also for embeddings cut to these numbers of leading dimensions, each under "pearson@64" and so on.
        resamples: bootstrap samples of the pairs for 95 % intervals, under "pearson_interval" and "spearman_interval".

    Returns:
        {"pearson", "spearman", "pairs"}; correlations as fractions of 1.
    """
    first, second, scores = read_pairs(path)
    embeddings = np.asarray(encode(first + second), dtype=np.float64)
    found: dict[str, Any] = {"pairs": len(scores)}
    for size in (None, *dimensions):
        cut = embeddings[:, :size] / np.linalg.norm(embeddings[:, :size], axis=1, keepdims=True)
        similarity, ending = (cut[: len(first)] * cut[len(first) :]).sum(1), "" if size is None else f"@{size}"
        found[f"pearson{ending}"] = float(stats.pearsonr(similarity, scores).statistic)
        found[f"spearman{ending}"] = float(stats.spearmanr(similarity, scores).statistic)
        if size is None and resamples:
            found |= bootstrap_intervals(similarity, scores, resamples)
    return found


def bootstrap_intervals(similarity: np.ndarray, scores: np.ndarray, resamples: int, seed: int = 0) -> dict[str, list]:
    """95 % percentile intervals of both correlations over pairs drawn with replacement (Efron 1979)."""
    random, drawn = np.random.default_rng(seed), []
    for _ in range(resamples):
        rows = random.integers(0, len(scores), len(scores))
        x, y = similarity[rows], scores[rows]
        drawn.append((stats.pearsonr(x, y).statistic, stats.spearmanr(x, y).statistic))
    low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
    names = ("pearson_interval", "spearman_interval")
    return {name: [float(low[i]), float(high[i])] for i, name in enumerate(names)}

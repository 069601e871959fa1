"""Semantic textual similarity: how well cosine similarities follow human scores."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from ..io.files import read_records
from .statistics import bootstrap_correlations, interval

Pairs = tuple[list[str], list[str], np.ndarray]  # sentence1, sentence2, score


def read_pairs(path: Path) -> Pairs:
    """sentence1, sentence2 and score of a JSON-lines file (plain, .gz or .xz).

    Args:
        path: the pair file.

    Returns:
        the first texts, the second texts, and the scores, float64 [pairs].

    Raises:
        ValueError: for a record without these fields, or a file without a record.
    """
    first: list[str] = []
    second: list[str] = []
    scores: list[float] = []
    for record in read_records(path):
        try:
            first.append(record["sentence1"])
            second.append(record["sentence2"])
            scores.append(float(record["score"]))
        except KeyError as error:
            raise ValueError(f"{path}: a record has no field {error}, only {sorted(record)}.") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: score must be a number, got {record['score']!r}.") from error
    if not scores:
        raise ValueError(f"{path} holds no pair: expected JSON lines with sentence1, sentence2 and score.")
    return first, second, np.array(scores)


def cosines(embeddings: np.ndarray) -> np.ndarray:
    """Cosine similarity of each pair, [P].

    Args:
        embeddings: of all first texts and then of all second ones, [2 P, D]. A zero vector has similarity 0.

    Returns:
        [P], in the dtype of the embeddings.
    """
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    first, second = np.split(embeddings / np.where(length > 0, length, 1), 2)
    return np.asarray((first * second).sum(1))


def spread(pairs: Pairs, count: int | None) -> Pairs:
    """At most `count` pairs of what `read_pairs` returned, evenly spread over the file; None: all."""
    first, second, scores = pairs
    step = 1 if count is None else max(1, len(scores) // count)
    return first[::step][:count], second[::step][:count], scores[::step][:count]


def similarities(encode: Callable[[Sequence[str]], np.ndarray], first: list[str], second: list[str]) -> np.ndarray:
    """Cosine similarity of each pair of texts, float64 [pairs].

    Args:
        encode: texts -> embeddings [texts, dimensions].
        first: first text of each pair.
        second: second text of each pair.
    """
    return cosines(np.asarray(encode(first + second), dtype=np.float64))


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
    result: dict[str, Any] = {"pairs": len(scores)}
    for size in (None, *dimensions):
        similarity = cosines(embeddings[:, :size])
        ending = "" if size is None else f"@{size}"
        result[f"pearson{ending}"] = float(stats.pearsonr(similarity, scores).statistic)
        result[f"spearman{ending}"] = float(stats.spearmanr(similarity, scores).statistic)
        if size is None and resamples:
            drawn = bootstrap_correlations({"model": similarity}, scores, resamples)
            result |= {f"{kind}_interval": interval(drawn[kind]["model"]) for kind in ("pearson", "spearman")}
    return result

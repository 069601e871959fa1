"""Semantic textual similarity: how well cosine similarities follow human scores."""

from collections.abc import Callable, Sequence
from pathlib import Path

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


def evaluate_sts(encode: Callable[[Sequence[str]], np.ndarray], path: Path) -> dict[str, float]:
    """Correlations of cosine similarities with the scores of a pair file.

    Args:
        encode: texts -> embeddings [texts, dimensions].
        path: pair file, see `read_pairs`.

    Returns:
        {"pearson", "spearman", "pairs"}; correlations as fractions of 1.
    """
    first, second, scores = read_pairs(path)
    embeddings = np.asarray(encode(first + second), dtype=np.float64)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    similarity = (embeddings[: len(first)] * embeddings[len(first) :]).sum(1)
    return {
        "pearson": float(stats.pearsonr(similarity, scores).statistic),
        "spearman": float(stats.spearmanr(similarity, scores).statistic),
        "pairs": len(scores),
    }

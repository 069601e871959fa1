"""Dev scores of an encoder during training: correlations on sentence pairs, nDCG and recall at 10 of retrieval."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from ...scoring.statistics import pearson, spearman
from .texts import Texts, embed

ALL_SETS = ("stsb_dev", "sickr_dev", "cranfield", "cisi", "arxiv", "medquad", "scitldr", "beam")
DEPTH = 10


class DevScores:
    """The dev sets of a pool on a device.

    Args:
        path: dev.npz of the pool.
        special: ids of the special tokens, as the pool's meta.json has them.
        device: where they are embedded.
    """

    def __init__(self, path: Path, special: dict[str, int], device: torch.device):
        with np.load(path) as file:
            self.arrays = {name: file[name] for name in file.files}
        names = sorted(name.removesuffix(".ids") for name in self.arrays if name.endswith(".ids"))
        self.texts = {
            name: Texts(self.arrays[f"{name}.ids"], self.arrays[f"{name}.lengths"], special, device) for name in names
        }
        self.device = device

    def __call__(
        self,
        encode: Callable,
        width: int,
        limit: int = 510,
        sets: Sequence[str] = ALL_SETS,
        dimensions: Sequence[int] = (),
    ) -> dict[str, float]:
        """Scores by name.

        Args:
            encode: (ids, mask) -> states [B, T, width].
            limit: tokens of a text that are read.
            dimensions: leading dimensions that also get a Spearman correlation of their own.
        """
        scores: dict[str, float] = {}
        for name in sets:
            sides = (".a", ".b") if name.endswith("_dev") else (".queries", ".docs")
            first, second = (embed(encode, self.texts[name + side], width, limit).float() for side in sides)
            if name.endswith("_dev"):
                scores |= self._similarity(name, first, second, dimensions)
            else:
                scores |= self._retrieval(name, first, second)
        return scores

    def _similarity(self, name: str, first, second, dimensions: Sequence[int]) -> dict[str, float]:
        """first, second: [pairs, D]."""
        labels = self.arrays[f"{name}.score"]
        cosine = (first * second).sum(1).cpu().numpy()
        scores = {
            f"{name}.pearson": float(pearson(cosine, labels)),
            f"{name}.spearman": float(spearman(cosine, labels)),
        }
        for size in dimensions:
            cosine = F.cosine_similarity(first[:, :size], second[:, :size]).cpu().numpy()
            scores[f"{name}.spearman.{size}"] = float(spearman(cosine, labels))
        return scores

    def _retrieval(self, name: str, queries, documents) -> dict[str, float]:
        """queries [Q, D], documents [N, D]."""
        similarity = queries @ documents.T
        if f"{name}.group" in self.arrays:
            asked = torch.from_numpy(self.arrays[f"{name}.qgroup"]).to(self.device)
            held = torch.from_numpy(self.arrays[f"{name}.group"]).to(self.device)
            similarity = similarity.masked_fill(asked[:, None] != held, -9)
        best = similarity.topk(min(DEPTH, len(documents)), 1).indices.cpu().numpy()
        grades: list[dict[int, int]] = [{} for _ in range(len(queries))]
        for query, document, grade in self.arrays[f"{name}.qrels"].tolist():
            grades[query][document] = max(grade, grades[query].get(document, 0))
        gains = []
        recalls = []
        for row, relevant in zip(best.tolist(), grades, strict=True):
            found = [relevant.get(document, 0) for document in row]
            ideal = _discounted(sorted(relevant.values(), reverse=True)[:DEPTH])
            if ideal > 0:
                gains.append(_discounted(found) / ideal)
                recalls.append(sum(g > 0 for g in found) / sum(g > 0 for g in relevant.values()))
        return {f"{name}.ndcg": float(np.mean(gains)), f"{name}.recall": float(np.mean(recalls))}


def _discounted(grades: Sequence[int]) -> float:
    """Discounted cumulative gain, linear in the grades."""
    return sum(grade / math.log2(place + 2) for place, grade in enumerate(grades))

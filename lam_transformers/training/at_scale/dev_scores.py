"""Dev scores of an encoder during training: correlations on sentence pairs, nDCG and recall at 10 of retrieval."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from ...scoring.retrieval import ndcg
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

    def __init__(self, path: Path, special: dict[str, int], device: torch.device) -> None:
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

    def _similarity(
        self, name: str, first: torch.Tensor, second: torch.Tensor, dimensions: Sequence[int]
    ) -> dict[str, float]:
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

    def _retrieval(self, name: str, queries: torch.Tensor, documents: torch.Tensor) -> dict[str, float]:
        """queries [Q, D], documents [N, D]."""
        similarity = queries @ documents.T
        if f"{name}.group" in self.arrays:
            of_query = torch.from_numpy(self.arrays[f"{name}.qgroup"]).to(self.device)
            of_document = torch.from_numpy(self.arrays[f"{name}.group"]).to(self.device)
            similarity = similarity.masked_fill(of_query[:, None] != of_document, -9)
        best = similarity.topk(min(DEPTH, len(documents)), 1).indices.cpu().numpy()
        gains = np.zeros(similarity.shape)
        for query, document, grade in self.arrays[f"{name}.qrels"].tolist():
            gains[query, document] = max(gains[query, document], grade)
        asked = gains.max(1) > 0
        gains = gains[asked]
        best = best[asked]
        relevant = np.count_nonzero(gains, 1)
        first = np.take_along_axis(gains, best, 1)
        # Of the other documents only the gains count, and of those the highest: the rest of the matrix only takes time.
        np.put_along_axis(gains, best, 0, 1)
        others = -np.sort(-gains, 1)[:, :DEPTH]
        columns = np.concatenate([first, others], 1)
        ranks = np.broadcast_to(-np.arange(columns.shape[1]), columns.shape)
        return {
            f"{name}.ndcg": float(ndcg(ranks, columns, DEPTH, ignore_ties=True).mean()),
            f"{name}.recall": float((np.count_nonzero(first, 1) / relevant).mean()),
        }

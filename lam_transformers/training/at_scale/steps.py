"""The four kinds of training steps. Each draws a batch and returns its loss.

`share` is the part of the run that has passed, from 0 to 1. Alphabet: N texts of a batch, D width of the student.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ...scoring.pooling import mean_pool
from ..losses import similarity_loss
from .losses import hidden_loss, row_divergence
from .pool_teacher import PoolTeacher
from .settings import RunSettings
from .student import Student
from .texts import Pool, half_precision


@dataclass
class StepResult:
    """What a step gives.

    Attributes:
        loss: scalar with gradients.
        parts: scalars for the log, without weights.
        tokens: tokens of the student's batches.
    """

    loss: torch.Tensor
    parts: dict[str, torch.Tensor]
    tokens: int


class TeacherData:
    """A folder that teachers.py wrote, for the texts of `pool` that are in use.

    Attributes:
        base, large: [texts, D] and [texts, D'] embeddings, float16.
        clusters: [texts].
        queries, near: [Q] and [Q, 64] mined documents, on the CPU like all that follows.
        row_of_query: [texts], a query's row in `near`; -1 for other texts.
        near_pairs, near_scores: [P, 2] and [P], scored by the cross-encoder.
    """

    def __init__(self, folder: Path, pool: Pool) -> None:
        device = pool.device
        count = len(pool)
        self.base = torch.load(folder / "base.pt", map_location=device)
        self.large = torch.load(folder / "large.pt", map_location=device)
        if len(self.base) != count:
            raise ValueError(f"{folder} was made for {len(self.base)} texts, the pool has {count}; use one --limit.")
        self.clusters = torch.load(folder / "clusters.pt").numpy()
        mined = torch.load(folder / "mined.pt")
        self.queries = mined["queries"].numpy()
        self.near = mined["near"].numpy()
        self.row_of_query = np.full(count, -1)
        self.row_of_query[self.queries] = np.arange(len(self.queries))
        pairs = torch.load(folder / "near.pt")
        self.near_pairs = torch.stack([pairs["i"], pairs["j"]], 1).numpy()
        self.near_scores = pairs["score"].float().numpy()


class Targets:
    """What the teachers ask of embeddings, and the map from the student's space to the larger teacher's.

    Args:
        data: the teachers' embeddings.
        alpha: share of the larger teacher in a cosine.
    """

    def __init__(self, data: TeacherData, alpha: float) -> None:
        self.data = data
        self.alpha = alpha
        width = data.base.shape[1]
        self.projection = nn.Linear(width, data.large.shape[1], bias=False).to(data.base.device)
        self._start_projection()

    @torch.no_grad()
    def _start_projection(self, texts: int = 20_000) -> None:
        """Start at the least-squares map from the base teacher's embeddings to the larger teacher's."""
        device = self.data.base.device
        rows = torch.randperm(len(self.data.base), device=device)[:texts]
        x = self.data.base[rows].float()
        y = self.data.large[rows].float()
        width = x.shape[1]
        ridge = 1e-3 * len(rows) / width * torch.eye(width, device=device)
        self.projection.weight.copy_(torch.linalg.solve(x.T @ x + ridge, x.T @ y).T)

    def similarity(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Weighted mean of the teachers' cosines, [len(rows), len(columns)] float32."""
        base = (self.data.base[rows] @ self.data.base[columns].T).float()
        large = (self.data.large[rows] @ self.data.large[columns].T).float()
        return (1 - self.alpha) * base + self.alpha * large

    def anchors(self, embeddings: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean 1 - cosine of embeddings [N, D] of texts `rows` to the base teacher's, and, mapped, to the larger's."""
        base = (1 - (embeddings * self.data.base[rows].float()).sum(-1)).mean()
        mapped = F.cosine_similarity(self.projection(embeddings), self.data.large[rows].float(), dim=-1)
        return base, (1 - mapped).mean()


class Reader:
    """Embeddings of the pool's texts by the student.

    Args:
        student, pool, settings: of the run.
    """

    def __init__(self, student: Student, pool: Pool, settings: RunSettings) -> None:
        self.student = student
        self.texts = pool.texts
        self.limit = settings.max_tokens

    def __call__(self, rows: np.ndarray) -> torch.Tensor:
        """[N, D] embeddings of texts of like length, in one batch."""
        with half_precision(self.texts.device):
            ids, mask = self.texts.batch(rows, self.limit)
            states = self.student(ids, mask)
        return mean_pool(states, mask)

    def with_states(self, rows: np.ndarray) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor, torch.Tensor]:
        """Embeddings [N, D], all states, ids [N, T] and mask [N, T] of texts of like length."""
        with half_precision(self.texts.device):
            ids, mask = self.texts.batch(rows, self.limit)
            states = self.student(ids, mask, all_states=True)
        return mean_pool(states[-1], mask), states, ids, mask

    def in_parts(self, rows: np.ndarray, parts: int) -> torch.Tensor:
        """[N, D] embeddings of texts of unlike length, in `parts` batches by length."""
        order = np.argsort(self.texts.cpu_lengths[rows], kind="stable")
        embeddings = torch.cat([self(rows[part]) for part in np.array_split(order, parts) if len(part)])
        return embeddings[self.texts.to_device(np.argsort(order))]

    def token_count(self, rows: np.ndarray) -> int:
        """Tokens of these texts, special ones included."""
        return self.texts.token_count(rows, self.limit)


class Distillation:
    """Embeddings, similarities and, at first (`hidden_until`), hidden states as the teachers'.

    The batches go over a weighted part of the pool; every second pass puts texts of neighbouring clusters together, so
    that a batch holds near texts.
    """

    # How much of a source a pass takes; 1 for those not named.
    SOURCE_SHARES = {
        "tatoeba_en": 0.5,
        "dstc8_sgd_utterances": 0.4,
        "social_reddit_twitter": 0.7,
        "intents_tech": 0.6,
        "oewn_definitions_examples": 0.6,
        "corpora_nltk_mixed": 0.6,
    }
    SIMILARITY_TEXTS = 1536
    TEMPERATURE = 0.05

    def __init__(
        self,
        reader: Reader,
        targets: Targets,
        teacher: PoolTeacher,
        pool: Pool,
        settings: RunSettings,
        random: np.random.Generator,
    ) -> None:
        self.reader = reader
        self.targets = targets
        self.teacher = teacher
        self.pool = pool
        self.settings = settings
        self.random = random
        self._batches = self._endless_batches()

    def _endless_batches(self) -> Iterator[np.ndarray]:
        shares = np.array([self.SOURCE_SHARES.get(name, 1.0) for name in self.pool.source_names])
        limit = self.settings.max_tokens
        clustered = False
        while True:
            rows = np.flatnonzero(self.random.random(len(self.pool)) < shares[self.pool.source])
            lengths = np.minimum(self.pool.lengths[rows], limit) + 2
            if clustered:
                bucket = np.round(np.log2(lengths) * 3).astype(int)
                place = self.targets.data.clusters[rows] // 2
                order = np.lexsort((lengths + self.random.random(len(lengths)), place, bucket))
            else:
                jitter = np.exp(0.03 * self.random.standard_normal(len(lengths)))
                order = np.argsort(lengths * jitter, kind="stable")
            batches = self._cut(rows[order], lengths[order])
            self.random.shuffle(batches)
            clustered = not clustered
            yield from batches

    def _cut(self, rows: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        """Batches of about `budget` padded tokens; those of 8 texts or fewer are left out."""
        batches = []
        start = 0
        while start < len(rows):
            count = max(int(self.settings.budget // lengths[start : start + 64].max()), 2)
            batches.append(rows[start : start + count])
            start += count
        return [batch for batch in batches if len(batch) > 8]

    def __call__(self, share: float) -> StepResult:
        batch = next(self._batches)
        rows = self.pool.texts.to_device(batch)
        early = share < self.settings.hidden_until
        hidden = torch.zeros((), device=self.pool.device)
        if early:
            embeddings, states, ids, mask = self.reader.with_states(batch)
            with torch.no_grad(), half_precision(self.pool.device):
                teacher_states = self.teacher.all_states(ids, mask)
            hidden = hidden_loss(states, teacher_states, mask)
        else:
            embeddings = self.reader(batch)
        base, large = self.targets.anchors(embeddings, rows)
        some = embeddings[: self.SIMILARITY_TEXTS]
        wanted = self.targets.similarity(rows[: self.SIMILARITY_TEXTS], rows[: self.SIMILARITY_TEXTS])
        ours = some @ some.T
        short = F.normalize(some[:, : self.settings.short_dimensions], dim=-1)
        similarity = similarity_loss(ours, wanted) + 0.5 * similarity_loss(short @ short.T, wanted)
        not_itself = 9 * torch.eye(len(some), device=some.device)
        divergence = row_divergence(ours - not_itself, wanted - not_itself, self.TEMPERATURE)
        loss = (
            (10 if early else 3) * base
            + 4 * large
            + 150 * similarity
            + 0.5 * divergence
            + (1.0 if share < 0.1 else 0.2) * hidden
        )
        parts = {"base": base, "large": large, "similarity": similarity, "divergence": divergence}
        if early:
            parts["hidden"] = hidden
        return StepResult(loss, parts, self.reader.token_count(batch))


class Retrieval:
    """Queries find their documents, and the similarities of queries and documents are the teachers'.

    A batch holds labelled pairs of one kind, each with a hard negative, or mined queries with two near documents each.
    """

    LABELLED_SHARE = 0.55
    # Drawn in proportion to this times the root of the number of pairs.
    KIND_WEIGHTS = {
        "arxiv_title": 1.5,
        "medquad": 1.0,
        "squad": 1.0,
        "trecqa": 0.5,
        "trivia": 0.25,
        "altlex": 0.35,
        "wikisplit": 0.25,
        "simplify": 0.2,
        "mrpc": 0.3,
        "nli": 1.0,
        "scitldr": 1.0,
        "sentence_of_passage": 0.8,
        "next_chunk": 0.4,
        "leading_sentence": 0.8,
    }
    FEWEST_PAIRS = 64
    DIVERGENCE_TEMPERATURE = 0.04
    CONTRAST_TEMPERATURE = 0.03
    MARGIN = 0.01

    def __init__(
        self,
        reader: Reader,
        targets: Targets,
        pool: Pool,
        settings: RunSettings,
        random: np.random.Generator,
    ) -> None:
        self.reader = reader
        self.targets = targets
        self.device = pool.device
        self.queries = settings.queries
        self.random = random
        self.pairs = pool.read("pairs.npy", 3)
        rows = {name: np.flatnonzero(self.pairs[:, 3] == number) for number, name in enumerate(pool.kinds)}
        self.rows_of_kind = [rows[name] for name in self.KIND_WEIGHTS if len(rows[name]) > self.FEWEST_PAIRS]
        if not self.rows_of_kind:
            raise ValueError(f"The pool has no kind of pairs with more than {self.FEWEST_PAIRS} of them.")
        weights = [w for name, w in self.KIND_WEIGHTS.items() if len(rows[name]) > self.FEWEST_PAIRS]
        drawn = np.array([w * math.sqrt(len(r)) for w, r in zip(weights, self.rows_of_kind, strict=True)])
        self.kind_shares = drawn / drawn.sum()

    def _labelled(self) -> tuple[np.ndarray, np.ndarray]:
        """Queries [N] and their documents followed by one negative each, [2 N]."""
        rows = self.rows_of_kind[self.random.choice(len(self.kind_shares), p=self.kind_shares)]
        chosen = self.random.choice(rows, min(self.queries, len(rows)), replace=False)
        query, document, negative = self.pairs[chosen, :3].astype(np.int64).T
        mined = self.targets.data.row_of_query[query]
        hard = self.targets.data.near[mined.clip(0), self.random.integers(2, 40, len(query))]
        otherwise = np.where(mined >= 0, hard, np.roll(document, 1))
        return query, np.concatenate([document, np.where(negative >= 0, negative, otherwise)])

    def _mined(self) -> tuple[np.ndarray, np.ndarray]:
        """Queries [N] and two near documents of each, [2 N]."""
        data = self.targets.data
        rows = self.random.integers(0, len(data.queries), self.queries)
        nearest = data.near[rows, self.random.integers(0, 4, self.queries)]
        farther = data.near[rows, self.random.integers(4, 48, self.queries)]
        return data.queries[rows], np.concatenate([nearest, farther])

    def __call__(self, share: float) -> StepResult:
        labelled = self.random.random() < self.LABELLED_SHARE
        asking, answering = self._labelled() if labelled else self._mined()
        asked = self.reader.in_parts(asking, 2)
        read = self.reader.in_parts(answering, 4)
        queries = self.reader.texts.to_device(asking)
        documents = self.reader.texts.to_device(answering)
        with torch.no_grad():
            wanted = self.targets.similarity(queries, documents)
            same = documents[None, :] == queries[:, None]
        ours = asked @ read.T
        divergence = row_divergence(
            ours.masked_fill(same, -9), wanted.masked_fill(same, -9), self.DIVERGENCE_TEMPERATURE
        )
        error = (ours - wanted).square().mean()
        contrast = torch.zeros((), device=self.device)
        if labelled:
            contrast = self._contrast(ours, wanted, same, documents)
        rows = torch.cat([queries, documents])
        base, large = self.targets.anchors(torch.cat([asked, read]), rows)
        loss = 1.5 * divergence + 60 * error + 0.35 * contrast + 2 * base + 3 * large
        parts = {
            "retrieval divergence": divergence,
            "retrieval error": error,
            "retrieval base": base,
            "retrieval large": large,
        }
        if labelled:
            parts["contrast"] = contrast
        tokens = self.reader.token_count(asking) + self.reader.token_count(answering)
        return StepResult(loss, parts, tokens)

    def _contrast(
        self, ours: torch.Tensor, wanted: torch.Tensor, same: torch.Tensor, documents: torch.Tensor
    ) -> torch.Tensor:
        """Cross entropy of finding the document of each query, and half of it for the query of each document.

        What the teachers hold for as near as the labelled document, less a margin, is no negative. ours, wanted, same:
        [N, 2 N]; documents: [2 N].
        """
        count = len(ours)
        own = wanted.diagonal()[:, None]
        label = torch.zeros_like(same)
        label.fill_diagonal_(True)
        repeated = documents[None, :] == documents[:count, None]
        too_near = ((wanted > own - self.MARGIN) | same | repeated) & ~label
        logits = (ours / self.CONTRAST_TEMPERATURE).masked_fill(too_near, -1e4)
        too_near = (own - self.MARGIN < wanted[:, :count].T) & ~label[:, :count]
        back = (ours[:, :count].T / self.CONTRAST_TEMPERATURE).masked_fill(too_near, -1e4)
        target = torch.arange(count, device=ours.device)
        return F.cross_entropy(logits, target) + 0.5 * F.cross_entropy(back, target)


class SentenceSimilarity:
    """Cosines of pairs as the cross-encoder's scores, three times in four, or as STS-B train's."""

    LABELLED_SHARE = 0.75
    NEAR_PAIRS = 1024
    STSB_PAIRS = 768
    ORDERED_PAIRS = 512
    TIE = 0.02

    def __init__(
        self,
        reader: Reader,
        targets: Targets,
        pool: Pool,
        settings: RunSettings,
        random: np.random.Generator,
    ) -> None:
        self.reader = reader
        self.targets = targets
        self.pool = pool
        self.random = random
        self.stsb = pool.read("stsb_train.npy", 2)
        # Width and weight of each part of the embedding that is compared.
        self.parts = ((targets.data.base.shape[1], 1.0), (settings.short_dimensions, 0.4))
        self._batches = self._endless_batches()

    def _endless_batches(self) -> Iterator[np.ndarray]:
        lengths = self.pool.lengths[self.targets.data.near_pairs].max(1).astype(float)
        while True:
            order = np.argsort(lengths * np.exp(0.25 * self.random.standard_normal(len(lengths))))
            batches = np.array_split(order, max(len(order) // self.NEAR_PAIRS, 1))
            self.random.shuffle(batches)
            yield from batches

    def _draw(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of texts [N, 2] and scores [N] from 0 to 1."""
        if self.random.random() < self.LABELLED_SHARE:
            rows = next(self._batches)
            return self.targets.data.near_pairs[rows], self.targets.data.near_scores[rows]
        rows = self.random.choice(len(self.stsb), min(self.STSB_PAIRS, len(self.stsb)), replace=False)
        return self.stsb[rows, :2].astype(np.int64), self.stsb[rows, 2] / 5

    def __call__(self, share: float) -> StepResult:
        pairs, scores = self._draw()
        both = np.concatenate([pairs[:, 0], pairs[:, 1]])
        rows = self.pool.texts.to_device(both)
        wanted = torch.from_numpy(np.asarray(scores, np.float32)).to(self.pool.device)
        embeddings = self.reader.in_parts(both, 3)
        count = len(wanted)
        loss = torch.zeros((), device=self.pool.device)
        for width, weight in self.parts:
            cosine = F.cosine_similarity(embeddings[:count, :width], embeddings[count:, :width], dim=-1)
            covariance = ((cosine - cosine.mean()) * (wanted - wanted.mean())).mean()
            correlation = covariance / (cosine.std(correction=0) * wanted.std(correction=0) + 1e-6)
            order = self._order_loss(cosine, wanted)
            error = (cosine - wanted).square().mean()
            loss = loss + weight * (4 * (1 - correlation) + 0.08 * order + error)
        base, large = self.targets.anchors(embeddings, rows)
        parts = {"1 - correlation": 1 - correlation, "order": order, "similarity base": base}
        return StepResult(loss + base + 2 * large, parts, self.reader.token_count(both))

    def _order_loss(self, cosine: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """CoSENT over the first pairs [N]: pairs with a higher score should have a higher cosine."""
        cosine = cosine[: self.ORDERED_PAIRS]
        wanted = wanted[: self.ORDERED_PAIRS]
        difference = (cosine[None, :] - cosine[:, None]) * 20
        ordered = (wanted[:, None] - wanted[None, :]) > self.TIE
        difference = difference.masked_fill(~ordered, -torch.inf).flatten()
        return torch.logsumexp(torch.cat([difference.new_zeros(1), difference]), 0)


class LongTexts:
    """Embeddings of long passages as the mean of their chunks'; chunks inside a passage as chunks alone."""

    CONTRAST_TEMPERATURE = 0.05

    def __init__(
        self,
        student: Student,
        teacher: PoolTeacher,
        pool: Pool,
        settings: RunSettings,
        random: np.random.Generator,
    ) -> None:
        self.student = student
        self.teacher = teacher
        self.device = pool.device
        self.special = pool.special
        self.settings = settings
        self.random = random
        with np.load(pool.folder / "long.npz") as file:
            self.flat = torch.from_numpy(file["ids"].astype(np.int32)).to(self.device)
            self.lengths = file["lengths"].astype(np.int64)
        self.offsets = self.lengths.cumsum() - self.lengths

    def _draw(self) -> tuple[torch.Tensor, np.ndarray]:
        """Token ids of passages [N, T] without special tokens, two of each document, and their documents [N]."""
        time = self.settings.long_lengths[
            self.random.choice(len(self.settings.long_lengths), p=self.settings.long_shares)
        ]
        rows = max(2, self.settings.long_budget // time)
        candidates = np.flatnonzero(self.lengths > time + 10)
        documents = self.random.choice(candidates, rows // 2 + rows % 2)
        documents = np.concatenate([documents, documents])[:rows]
        starts = [self.offsets[d] + self.random.integers(0, self.lengths[d] - time) for d in documents]
        first = torch.from_numpy(np.array(starts)).to(self.device)
        ids = self.flat[first[:, None] + torch.arange(time, device=self.device)].long()
        return ids, documents

    def _framed(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[N, T] -> ids with special tokens [N, T + 2], and a mask of ones."""
        ids = F.pad(ids, (1, 1))
        ids[:, 0] = self.special["cls"]
        ids[:, -1] = self.special["sep"]
        return ids, torch.ones_like(ids, dtype=torch.bool)

    def __call__(self, share: float) -> StepResult:
        passages, documents = self._draw()
        rows, time = passages.shape
        size = self.settings.chunk_tokens
        chunks = time // size
        ids, mask = self._framed(passages)
        chunk_ids, chunk_mask = self._framed(passages[:, : chunks * size].reshape(-1, size))
        with half_precision(self.device):
            with torch.no_grad():
                taught = mean_pool(self.teacher(chunk_ids, chunk_mask), chunk_mask)
            states = self.student(ids, mask)
            alone = mean_pool(self.student(chunk_ids, chunk_mask), chunk_mask)
        whole = mean_pool(states, mask)
        inside = states[:, 1 : 1 + chunks * size].float().unflatten(1, (chunks, size)).mean(2)
        inside = F.normalize(inside, dim=-1).flatten(0, 1)
        target = alone.detach()
        document = F.normalize(target.unflatten(0, (rows, chunks)).sum(1), dim=-1)
        late = (1 - (inside * target).sum(-1)).mean()
        mean = (1 - (whole * document).sum(-1)).mean()
        short = (1 - (alone * taught).sum(-1)).mean()
        similarity = similarity_loss(inside @ inside.T, target @ target.T)
        contrast = self._contrast(whole, documents)
        loss = 10 * late + 10 * mean + 2 * short + 40 * similarity + 0.1 * contrast
        parts = {"late chunks": late, "mean of chunks": mean, "chunks alone": short, "long contrast": contrast}
        return StepResult(loss, parts, ids.numel() + chunk_ids.numel())

    def _contrast(self, whole: torch.Tensor, documents: np.ndarray) -> torch.Tensor:
        """Cross entropy of finding the document's other passages in the batch. whole: [N, D], documents: [N]."""
        count = len(whole)
        if count < 4:
            return torch.zeros((), device=self.device)
        itself = torch.eye(count, dtype=torch.bool, device=self.device)
        same = torch.from_numpy(documents[:, None] == documents[None]).to(self.device) & ~itself
        logits = (whole @ whole.T / self.CONTRAST_TEMPERATURE).masked_fill(itself, -1e4).log_softmax(-1)
        return -(logits * same).sum(-1).div(same.sum(-1).clamp(min=1)).mean()

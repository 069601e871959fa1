"""A cross-encoder that scores pairs of sentences, tuned on NLI and STS-B train; it labels near pairs of the pool."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ...scoring.statistics import pearson, spearman
from .dev_scores import DevScores
from .mining import Mixture, near_texts
from .pool_teacher import PoolTeacher
from .texts import Pool, Texts, half_precision, say

# Entailment near 1, neutral between, contradiction low; the ordinal labels of JOCI lie between.
NLI_SCORES = {
    "entailment": 1.0,
    "entailed": 1.0,
    "neutral": 0.5,
    "not_entailment": 0.35,
    "not-entailed": 0.35,
    "contradiction": 0.0,
} | {f"ordinal_{i}": max(i - 1, 0) / 4 * 0.8 for i in range(6)}

NEAR_PAIR_SOURCES = (
    "multi30k_captions", "news_reuters_bbc", "nli", "mrpc", "altlex", "wikisplit", "simplify", "atomic_caption",
    "paralex_query_wellformedness", "wiki_textbooks", "social_reddit_twitter", "corpora_nltk_mixed", "tatoeba_en",
    "stsb", "intents_tech", "squad_question", "oewn_definitions_examples", "trec_million_query", "webqa",
)  # fmt: skip
# How much more often than others a text of these sources is drawn.
NEAR_PAIR_WEIGHTS = {
    "multi30k_captions": 2.5,
    "news_reuters_bbc": 2.5,
    "stsb": 6.0,
    "mrpc": 3.0,
    "nli": 1.5,
    "altlex": 1.5,
}


@dataclass(kw_only=True)
class CrossEncoderSettings:
    """What decides the cross-encoder and its labels; the defaults are those of the run in docs/TRAINING.md.

    Attributes:
        nli_pairs: drawn for the first stage, one epoch of them.
        nli_rows, stsb_rows: pairs of a batch.
        stsb_epochs: of the second stage.
        learning_rate: of both; linear warm-up over a tenth of the updates, linear decay to zero.
        near_pairs: pairs of near texts that get a score.
        random_pairs: pairs of texts drawn at random that get one too.
        max_tokens: of each of the two texts.
    """

    nli_pairs: int = 80_000
    nli_rows: int = 128
    stsb_rows: int = 32
    stsb_epochs: int = 5
    learning_rate: float = 2e-5
    near_pairs: int = 240_000
    random_pairs: int = 20_000
    max_tokens: int = 126


class CrossEncoder(nn.Module):
    """A teacher's encoder that reads two texts at once, with a scorer on the first token.

    Args:
        teacher: its weights are copied, in float32.
        max_tokens: of each of the two texts.
    """

    def __init__(self, teacher: PoolTeacher, max_tokens: int) -> None:
        super().__init__()
        self.body = copy.deepcopy(teacher.model).float().requires_grad_(True)
        width = teacher.width
        self.head = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
        self.table = teacher.table
        self.special = teacher.special
        self.max_tokens = max_tokens

    def forward(self, texts: Texts, first: np.ndarray, second: np.ndarray) -> torch.Tensor:
        """Logits [B] of the pairs (first[i], second[i]), numbers of texts [B] each."""
        ids, mask = self._join(texts, first, second)
        states = self.body(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return self.head(states[:, 0].float()).squeeze(-1)

    def _join(self, texts: Texts, first: np.ndarray, second: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """ids and mask [B, T] of [cls] a [sep] [sep] b [sep], as MPNet joins two texts."""
        device = texts.device
        first_rows = torch.as_tensor(first, device=device)
        second_rows = torch.as_tensor(second, device=device)
        first_length = texts.lengths[first_rows].clamp(max=self.max_tokens)[:, None]
        second_length = texts.lengths[second_rows].clamp(max=self.max_tokens)[:, None]
        total = first_length + second_length + 4
        place = torch.arange(int(total.max()), device=device)[None]
        second_start = first_length + 3
        in_first = (place >= 1) & (place <= first_length)
        in_second = (place >= second_start) & (place < second_start + second_length)
        last = len(texts.flat) - 1
        first_ids = texts.flat[(texts.offsets[first_rows][:, None] + place - 1).clamp(0, last)].long()
        second_ids = texts.flat[(texts.offsets[second_rows][:, None] + place - second_start).clamp(0, last)].long()
        if self.table is not None:
            first_ids = self.table[first_ids]
            second_ids = self.table[second_ids]
        ids = torch.full(in_first.shape, self.special["pad"], device=device)
        ids = torch.where(in_first, first_ids, torch.where(in_second, second_ids, ids))
        ids[:, 0] = self.special["cls"]
        separator = (place == first_length + 1) | (place == first_length + 2) | (place == total - 1)
        ids = torch.where(separator, torch.full_like(ids, self.special["sep"]), ids)
        return ids, place < total


def train_cross_encoder(
    model: CrossEncoder,
    texts: Texts,
    pairs: np.ndarray,
    scores: np.ndarray,
    *,
    epochs: int,
    rows: int,
    learning_rate: float,
    name: str,
) -> None:
    """Binary cross entropy of the scores.

    Args:
        model: trained in place.
        texts: of the pool.
        pairs: [N, 2] numbers of texts.
        scores: [N] from 0 to 1.
        epochs, rows, learning_rate: see `CrossEncoderSettings`.
        name: for the log.
    """
    device = texts.device
    cuda = device.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01, fused=cuda)
    random = np.random.default_rng(0)
    total = max(epochs * (len(pairs) // rows), 1)
    target = torch.from_numpy(scores).float().to(device)
    step = 0
    model.train()
    for _ in range(epochs):
        for batch in _epoch(texts.cpu_lengths[pairs].sum(1), rows, random):
            rate = learning_rate * min(1, (step + 1) / (0.1 * total)) * max(0, 1 - step / total)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with half_precision(device):
                logits = model(texts, pairs[batch, 0], pairs[batch, 1])
            loss = F.binary_cross_entropy_with_logits(logits, target[torch.as_tensor(batch, device=device)])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step % 300 == 0:
                say(name, step, "of", total, float(loss.detach()))


def _epoch(lengths: np.ndarray, rows: int, random: np.random.Generator) -> list[np.ndarray]:
    """Batches of `rows` pairs, of like length inside blocks of 32 batches, in random order."""
    order = random.permutation(len(lengths))
    blocks = np.array_split(order, max(len(order) // (32 * rows), 1))
    order = np.concatenate([block[np.argsort(lengths[block], kind="stable")] for block in blocks])
    batches = [order[start : start + rows] for start in range(0, len(order) - rows + 1, rows)]
    random.shuffle(batches)  # type: ignore[arg-type]
    return batches


@torch.no_grad()
def score_pairs(
    model: CrossEncoder, texts: Texts, first: np.ndarray, second: np.ndarray, rows: int = 1024
) -> torch.Tensor:
    """Scores [N] from 0 to 1 of the pairs, float32."""
    model.eval()
    order = np.argsort(-(texts.cpu_lengths[first] + texts.cpu_lengths[second]), kind="stable")
    scores = torch.empty(len(first), device=texts.device)
    for start in range(0, len(order), rows):
        batch = order[start : start + rows]
        with half_precision(texts.device):
            logits = model(texts, first[batch], second[batch])
        scores[torch.as_tensor(batch, device=texts.device)] = torch.sigmoid(logits.float())
    return scores


def dev_correlations(model: CrossEncoder, dev: DevScores) -> tuple[float, float]:
    """Pearson and Spearman correlation on STS-B dev."""
    sides = [f"stsb_dev.{side}" for side in ("a", "b")]
    ids = np.concatenate([dev.arrays[f"{side}.ids"] for side in sides])
    lengths = np.concatenate([dev.arrays[f"{side}.lengths"] for side in sides])
    special = dev.texts[sides[0]].special
    count = len(lengths) // 2
    texts = Texts(ids, lengths, special, dev.device)
    first = np.arange(count)
    scores = score_pairs(model, texts, first, first + count).cpu().numpy()
    labels = dev.arrays["stsb_dev.score"]
    return float(pearson(scores, labels)), float(spearman(scores, labels))


def label_near_pairs(
    pool: Pool, mixture: Mixture, teacher: PoolTeacher, settings: CrossEncoderSettings
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tune a cross-encoder and let it score pairs of the pool: numbers of texts [N] and [N], scores [N] from 0 to 1."""
    texts = pool.texts
    dev = DevScores(pool.folder / "dev.npz", pool.special, pool.device)
    torch.manual_seed(0)
    model = CrossEncoder(teacher, settings.max_tokens).to(pool.device)
    random = np.random.default_rng(1)
    pairs, scores = _nli(pool)
    drawn = random.permutation(len(pairs))[: settings.nli_pairs]
    train_cross_encoder(
        model,
        texts,
        pairs[drawn],
        scores[drawn],
        epochs=1,
        rows=settings.nli_rows,
        learning_rate=settings.learning_rate,
        name="nli",
    )
    say("cross-encoder after NLI, STS-B dev:", dev_correlations(model, dev))
    stsb = pool.read("stsb_train.npy", 2)
    train_cross_encoder(
        model,
        texts,
        stsb[:, :2].astype(np.int64),
        stsb[:, 2] / 5,
        epochs=settings.stsb_epochs,
        rows=settings.stsb_rows,
        learning_rate=settings.learning_rate,
        name="stsb",
    )
    say("cross-encoder after STS-B, STS-B dev:", dev_correlations(model, dev))
    first, second = _candidate_pairs(pool, mixture, random, settings)
    labels = score_pairs(model, texts, first, second)
    return torch.from_numpy(first), torch.from_numpy(second), labels.cpu()


def _nli(pool: Pool) -> tuple[np.ndarray, np.ndarray]:
    """The labelled pairs [N, 2] and their scores [N]; labels without a score are left out."""
    rows = pool.read("nli.npy", 2)
    names = {number: label for label, number in pool.nli_labels.items()}
    scores = np.array([NLI_SCORES.get(names[int(label)], np.nan) for label in rows[:, 2]])
    known = ~np.isnan(scores)
    return rows[known, :2].astype(np.int64), scores[known]


def _candidate_pairs(
    pool: Pool, mixture: Mixture, random: np.random.Generator, settings: CrossEncoderSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of near texts and pairs drawn at random, numbers of texts [N] and [N]."""
    short = (pool.lengths >= 5) & (pool.lengths <= 60)
    candidates = np.flatnonzero(short & pool.rows_of(NEAR_PAIR_SOURCES))
    weights = np.ones(len(candidates))
    for name, weight in NEAR_PAIR_WEIGHTS.items():
        weights[pool.rows_of((name,))[candidates]] = weight
    count = min(settings.near_pairs // 3, len(candidates))
    drawn = random.choice(candidates, size=count, replace=False, p=weights / weights.sum())
    near = near_texts(mixture, torch.from_numpy(drawn).to(pool.device), torch.from_numpy(candidates).to(pool.device))
    first = np.concatenate([near[0].cpu().numpy(), random.choice(candidates, settings.random_pairs)])
    second = np.concatenate([near[1].cpu().numpy(), random.choice(candidates, settings.random_pairs)])
    different = first != second
    return first[different], second[different]

"""What lies near what by the teachers' embeddings: clusters of texts, documents near a query, near texts."""

import math

import numpy as np
import torch
from torch.nn import functional as F

from .texts import Pool

QUERY_SOURCES = (
    "trec_million_query", "webqa", "edis", "paralex_query_wellformedness", "medquad_question", "squad_question",
    "trecqa", "trivia", "arxiv_title",
)  # fmt: skip
DOCUMENT_SOURCES = (
    "arxiv", "medquad_answer", "scitldr", "squad_sentence", "altlex", "wikisplit", "book_passages", "book_chunks",
    "news_reuters_bbc", "wiki_textbooks", "corpora_nltk_mixed", "nli", "book_sentences", "mrpc",
)  # fmt: skip
DOCUMENT_TOKENS = 24  # at least, unless a pair names the text as a document
NEAR_DOCUMENTS = 96  # of which the nearest 32 and every second one of the others are kept
LARGEST_CLUSTERING = 2048
CLUSTERING_SAMPLE = 200_000


class Mixture:
    """The embeddings of both teachers.

    Args:
        base, large: [texts, D] and [texts, D'], normalised, float16.
        share: of the larger teacher in a cosine.
    """

    def __init__(self, base: torch.Tensor, large: torch.Tensor, share: float = 0.6) -> None:
        self.base = base
        self.large = large
        self.share = share

    def __len__(self) -> int:
        return len(self.base)

    def joint(self, rows: torch.Tensor) -> torch.Tensor:
        """[N, D + D']: embeddings whose products are the weighted means of the two teachers' cosines."""
        return torch.cat([self.base[rows] * math.sqrt(1 - self.share), self.large[rows] * math.sqrt(self.share)], 1)

    def concatenated(self, rows: torch.Tensor) -> torch.Tensor:
        """[N, D + D']: both with the same weight."""
        return torch.cat([self.base[rows], self.large[rows]], 1)


@torch.no_grad()
def cluster_texts(mixture: Mixture, rounds: int = 6, seed: int = 0) -> torch.Tensor:
    """Spherical k-means: the cluster of each text [texts], numbered so that near numbers are near clusters."""
    count = len(mixture)
    device = mixture.base.device
    generator = torch.Generator(device=device).manual_seed(seed)
    clusters = max(min(LARGEST_CLUSTERING, count // 50), 1)
    sample = torch.randperm(count, generator=generator, device=device)[:CLUSTERING_SAMPLE]
    x = mixture.concatenated(sample).float()
    centres = x[:clusters].clone()
    for _ in range(rounds):
        unit = F.normalize(centres, dim=-1)
        nearest = torch.cat([(part @ unit.T).argmax(1) for part in x.split(50_000)])
        centres = torch.zeros_like(centres).index_add_(0, nearest, x)
    unit = F.normalize(centres, dim=-1).half()
    place = _chain(unit)
    parts = torch.arange(count, device=device).split(100_000)
    return torch.cat([place[(mixture.concatenated(part) @ unit.T).argmax(1)] for part in parts])


def _chain(centres: torch.Tensor) -> torch.Tensor:
    """The place [clusters] of each centre in a chain that goes from a centre to the nearest one that is left."""
    device = centres.device
    similarity = (centres @ centres.T).float()
    # From the centre that is nearest to the mean of all.
    current = int((centres.float() @ centres.float().mean(0)).argmax())
    left = torch.ones(len(centres), dtype=torch.bool, device=device)
    chain = [current]
    left[current] = False
    while len(chain) < len(centres):
        current = int(similarity[current].masked_fill(~left, -9).argmax())
        chain.append(current)
        left[current] = False
    place = torch.empty(len(centres), dtype=torch.long, device=device)
    place[torch.tensor(chain, device=device)] = torch.arange(len(centres), device=device)
    return place


@torch.no_grad()
def mine_documents(pool: Pool, mixture: Mixture) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries [Q] and the documents near each of them [Q, 64] int32, the nearest first.

    Queries are questions, titles and the first sides of the pairs; documents are texts of at least 24 tokens and the
    second sides of the pairs. Raises ValueError if there are fewer than 96 documents.
    """
    pairs = torch.from_numpy(pool.read("pairs.npy", 3)).long().to(pool.device)
    is_chunk = pairs[:, 3] == pool.kinds.index("next_chunk")
    asked = torch.from_numpy(np.flatnonzero(pool.rows_of(QUERY_SOURCES))).to(pool.device)
    queries = torch.unique(torch.cat([asked, pairs[~is_chunk, 0]]))
    long_enough = (pool.lengths >= DOCUMENT_TOKENS) & pool.rows_of(DOCUMENT_SOURCES)
    passages = torch.from_numpy(np.flatnonzero(long_enough)).to(pool.device)
    documents = torch.unique(torch.cat([passages, pairs[:, 1]]))
    if len(documents) < NEAR_DOCUMENTS:
        raise ValueError(f"At least {NEAR_DOCUMENTS} documents are needed, the pool has {len(documents)}.")
    candidates = mixture.joint(documents)
    kept = torch.cat([torch.arange(32), torch.arange(32, NEAR_DOCUMENTS, 2)]).to(pool.device)
    near = torch.empty(len(queries), len(kept), dtype=torch.int32, device=pool.device)
    for rows in torch.arange(len(queries), device=pool.device).split(1024):
        similarity = mixture.joint(queries[rows]) @ candidates.T
        near[rows] = documents[similarity.topk(NEAR_DOCUMENTS, 1).indices[:, kept]].int()
    return queries, near


@torch.no_grad()
def near_texts(mixture: Mixture, rows: torch.Tensor, candidates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Three neighbours of each of the texts `rows` [N] among `candidates`: two tensors [3 N] of text numbers.

    One neighbour is drawn from ranks 1 to 3, one from 4 to 19, one from 20 to 79 (rank 0 is the text itself). Raises
    ValueError if there are fewer than 80 candidates.
    """
    if len(candidates) < 80:
        raise ValueError(f"At least 80 texts are needed, the pool has {len(candidates)}.")
    embeddings = mixture.joint(candidates)
    first = []
    second = []
    for part in rows.split(1024):
        nearest = (mixture.joint(part) @ embeddings.T).topk(80, 1).indices
        ranks = [
            torch.randint(low, high, (len(part),), device=rows.device) for low, high in ((1, 4), (4, 20), (20, 80))
        ]
        second.append(candidates[nearest.gather(1, torch.stack(ranks, 1))].flatten())
        first.append(part[:, None].expand(-1, 3).flatten())
    return torch.cat(first), torch.cat(second)

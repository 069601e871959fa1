"""The models that the suite measures: a LAM, its baselines, a bag of tokens and BM25."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from ..io.loading import is_lam, load_lam, load_sentence_transformer, weights_identity
from ..model.packing_lam import SEGMENT
from ..model.streaming_lam import RunningPool, stream

PROBES = ["A man plays the guitar.", "The committee postponed its decision.", "ice", "Seven dogs sleep in the snow."]


def check_embeddings(name: str, texts: Sequence[str], embeddings: np.ndarray) -> np.ndarray:
    """Return the embeddings, [texts, D].

    Raises:
        FloatingPointError: for NaN, infinity or one vector for all texts.
    """
    bad = ~np.isfinite(embeddings).all(1)
    if bad.any():
        shown = texts[int(bad.argmax())][:60]
        raise FloatingPointError(
            f"{name} returns NaN or infinity for {int(bad.sum())} of {len(texts)} texts, first for {shown!r}. "
            "Its weights are damaged or do not belong to its code; nothing was measured with them."
        )
    if len(texts) > 1 and float(np.ptp(embeddings, axis=0).max()) < 1e-6 and len(set(texts)) > 1:
        raise FloatingPointError(
            f"{name} returns the same vector for {len(set(texts))} different texts, such as {texts[0][:60]!r}. "
            "Its weights were not loaded or it was never trained; nothing was measured with them."
        )
    return embeddings


class MeasuredModel:
    """A sentence-transformers model in the suite. Embeddings are float32 and have length 1.

    Attributes:
        name: as given.
        model: the SentenceTransformer.
        lam: the `LAMModel` inside, or None for any other model.
        limit: tokens at which texts are cut, special tokens included; None: never.
    """

    def __init__(self, name: str, model: SentenceTransformer, lam: Any = None, limit: int | None = None):
        self.name = name
        self.model = model
        self.lam = lam
        self.limit = limit

    @property
    def tokenizer(self):
        """The model's tokenizer."""
        return self.model.tokenizer

    def encode(self, texts: Sequence[str], max_tokens: int | None = None) -> np.ndarray:
        """Texts -> [texts, D]. `max_tokens` cuts texts there, special tokens included.

        Raises:
            FloatingPointError: as `check_embeddings`.
        """
        module: Any = self.model[0]
        before = module.max_seq_length
        limits = [x for x in (max_tokens, self.limit) if x is not None]
        module.max_seq_length = min(limits) if limits else before
        try:
            embeddings = self.model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        finally:
            module.max_seq_length = before
        return check_embeddings(self.name, texts, np.asarray(embeddings, dtype=np.float32))

    def token_ids(self, text: str) -> list[int]:
        """Ids without special tokens, uncut."""
        return self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]

    def with_special(self, ids: Sequence[int]) -> list[int]:
        """The ids between the special tokens that open and close a text."""
        return [self.tokenizer.cls_token_id, *ids, self.tokenizer.sep_token_id]

    @torch.inference_mode()
    def embed_ids(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """Embeddings [B, D] of token ids [B, T] of one length, taken as they are (special tokens included).

        A LAM reads in segments with carried state. A BERT takes its position table over again beyond the table's end.
        Raises:
            ValueError: for a model of another kind and more tokens than it can read.
        """
        if self.lam is not None:
            return _unit(np.stack([read_ids(self.lam, row).result().numpy() for row in rows]))
        ids = torch.as_tensor(np.asarray(rows), dtype=torch.long)
        features = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        config = getattr(getattr(self.model[0], "auto_model", None), "config", None)
        if getattr(config, "model_type", None) == "bert":
            places = torch.arange(ids.shape[1]) % config.max_position_embeddings  # type: ignore[union-attr]
            features |= {"position_ids": places.expand_as(ids), "token_type_ids": torch.zeros_like(ids)}
        elif config is None or (self.limit is not None and ids.shape[1] > self.limit):
            most = "no token ids" if config is None else f"at most {self.limit:,} tokens"
            raise ValueError(f"{self.name} reads {most}.")
        return _unit(self.model(features)["sentence_embedding"].float().numpy())

    def chunks(self, text: str, size: int) -> list[str]:
        """The text in pieces of at most `size` tokens, cut between tokens; an empty text is one piece."""
        offsets = self.tokenizer(
            text, add_special_tokens=False, truncation=False, return_offsets_mapping=True, verbose=False
        )["offset_mapping"]
        pieces = [offsets[i : i + size] for i in range(0, len(offsets), size)]
        return [text[piece[0][0] : piece[-1][1]] for piece in pieces] or [text]

    def encode_chunks(self, texts: Sequence[str], size: int) -> list[np.ndarray]:
        """For each text the embeddings [chunks, D] of its `chunks`, each read alone."""
        pieces = [self.chunks(text, size) for text in texts]
        embedded = self.encode([piece for chunks in pieces for piece in chunks])
        return np.split(embedded, np.cumsum([len(chunks) for chunks in pieces])[:-1])


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def read_ids(lam, ids: Sequence[int], state=None, pool: RunningPool | None = None) -> RunningPool:
    """Read token ids in segments with carried state, which is updated if given; returns the running mean."""
    pool = RunningPool("mean") if pool is None else pool
    segments = (list(ids[i : i + SEGMENT]) for i in range(0, len(ids), SEGMENT))
    for states, _ in stream(lam, segments, state):
        pool.add(states)
    return pool


def load_encoder(name: str | os.PathLike) -> MeasuredModel:
    """A LAM folder or any sentence-transformers model by folder or Hub id; no code that comes with it runs.

    Raises:
        OSError: if there is no such model.
        ValueError: if it cannot be loaded.
        FloatingPointError: if its embeddings are NaN or constant.
    """
    if is_lam(name):
        model = load_lam(name)
        encoder = MeasuredModel(os.fspath(name), model, lam=model[0].model.eval())
    else:
        model = load_sentence_transformer(name)
        inner = getattr(getattr(model[0], "auto_model", None), "config", None)
        encoder = MeasuredModel(os.fspath(name), model, limit=getattr(inner, "max_position_embeddings", None))
    encoder.encode(PROBES)
    return encoder


def model_record(name: str, encoder: MeasuredModel) -> dict[str, Any]:
    """What identifies a model in a result file."""
    parameters = sum(p.numel() for p in encoder.model.parameters())
    return {
        "name": Path(name).name if Path(name).exists() else name,
        "checksum": weights_identity(name),
        "parameters": parameters,
        "backend": None if encoder.lam is None else encoder.lam.backend,
    }


class BagOfTokens:
    """A static baseline: the mean of a model's input embeddings, weighted by inverse document frequency.

    It knows neither order nor context. Document frequencies come from the texts of the task itself.

    Args:
        encoder: whose tokenizer and table of input embeddings to take.
        texts: the texts to count documents in.
    """

    name = "bag of tokens"

    def __init__(self, encoder: MeasuredModel, texts: Iterable[str]):
        self.encoder = encoder
        module: Any = encoder.model[0]
        inner = module.model if encoder.lam is not None else module.auto_model
        self.table = inner.get_input_embeddings().weight.detach().float().cpu().numpy()
        count = 0
        frequency = np.zeros(len(self.table))
        for text in texts:
            count += 1
            frequency[np.unique(np.asarray(encoder.token_ids(text), dtype=np.int64))] += 1
        self.idf = np.log((1 + count) / (1 + frequency)) + 1e-3

    def encode(self, texts: Sequence[str], max_tokens: int | None = None) -> np.ndarray:
        """As `MeasuredModel.encode`; a text without tokens is the zero vector."""
        embeddings = np.zeros((len(texts), self.table.shape[1]), dtype=np.float32)
        for row, text in zip(embeddings, texts, strict=True):
            ids = np.asarray(self.encoder.token_ids(text)[:max_tokens], dtype=np.int64)
            kinds, counts = np.unique(ids, return_counts=True)
            row += (counts * self.idf[kinds]) @ self.table[kinds]
        length = np.linalg.norm(embeddings, axis=1, keepdims=True)
        return embeddings / np.where(length > 0, length, 1)


class BM25:
    """Okapi BM25 (Robertson and Zaragoza 2009) over words in lower case, k1 = 1.2, b = 0.75."""

    name = "BM25"

    def __init__(self, documents: Sequence[str], k1: float = 1.2, b: float = 0.75):
        from sklearn.feature_extraction.text import CountVectorizer

        self.vectorizer = CountVectorizer(token_pattern=r"(?u)\b\w+\b")
        counts = self.vectorizer.fit_transform(documents).tocsr().astype(np.float64)
        length = np.asarray(counts.sum(1)).ravel()
        present = np.asarray((counts > 0).sum(0)).ravel()
        idf = np.log1p((len(documents) - present + 0.5) / (present + 0.5))
        norm = k1 * (1 - b + b * length / length.mean())
        counts.data *= (k1 + 1) / (counts.data + np.repeat(norm, np.diff(counts.indptr)))
        self.weights = counts.multiply(idf).tocsr()

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """Scores of all documents for each query, [queries, documents]."""
        return (self.vectorizer.transform(queries) @ self.weights.T).toarray()


def book_ids(encoder: MeasuredModel, book: dict[str, str], tokens: int, skip: int = 2_000) -> list[int]:
    """`tokens` token ids of a book after the first `skip`.

    Raises:
        ValueError: if the book is too short.
    """
    ids = encoder.token_ids(book["text"][: 8 * (tokens + skip) + 10_000])[skip : skip + tokens]
    if len(ids) < tokens:
        raise ValueError(f"{book['title']} holds only {skip + len(ids):,} tokens, {skip + tokens:,} are needed.")
    return ids


def best_chunk(asked: np.ndarray, documents: Sequence[np.ndarray]) -> np.ndarray:
    """Scores [queries, documents] of the chunk that is nearest to each query.

    Args:
        asked: embeddings of the queries [queries, D].
        documents: embeddings of the chunks of each document [chunks, D].
    """
    return np.stack([(asked @ chunks.T).max(1) for chunks in documents], axis=1)


def score_documents(
    model: MeasuredModel, baselines: Sequence[MeasuredModel], documents: list[str], queries: list[str]
) -> dict[str, np.ndarray]:
    """Scores [queries, documents] by name: of the LAM on whole documents, and of all that is measured beside it.

    A baseline with a limit is used in three ways: documents cut there, the mean of their chunks, their best chunk.
    """
    scores = {model.name: model.encode(queries) @ model.encode(documents).T}
    for encoder in baselines:
        asked = encoder.encode(queries)
        if encoder.limit is None:
            scores[encoder.name] = asked @ encoder.encode(documents).T
            continue
        scores[f"{encoder.name}, cut at {encoder.limit}"] = asked @ encoder.encode(documents).T
        split = encoder.encode_chunks(documents, encoder.limit - 2)
        means = np.stack([chunks.mean(0) / np.linalg.norm(chunks.mean(0)) for chunks in split])
        scores[f"{encoder.name}, mean of chunks"] = asked @ means.T
        scores[f"{encoder.name}, best chunk"] = best_chunk(asked, split)
    scores[BM25.name] = BM25(documents).scores(queries)
    bag = BagOfTokens(model, documents)
    scores[bag.name] = bag.encode(queries) @ bag.encode(documents).T
    return scores

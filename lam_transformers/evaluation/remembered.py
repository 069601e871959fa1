"""A conversation in a memory of the service, where it is asked about, and the measures of what comes back."""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..memories import Memory, Ranking
from ..memories.ranking import scaled
from ..memories.reading import Reader
from ..scoring.statistics import resample_indices
from .conversations import Conversation

MEASURES = ("recall@5", "recall@10", "hit@10", "ndcg@10")
DEPTH = 10
FUSED = 0.4  # weight of BM25 in the fused ways
DAY = 86_400.0
STRENGTHS = 0.05  # what strengths may add to a score, where they are switched on
MOST = 1_000  # results that a search gives at most; what comes after them counts as last
USER = "user"
RUN = "conversation"


def measures(order: Sequence[int], evidence: frozenset[int]) -> tuple[float, float, float, float]:
    """R@5, R@10, hit@10 and nDCG@10 of a list of places, best first, which may be shorter than ten."""
    hits = np.array([place in evidence for place in order[:DEPTH]], np.float64)
    gains = 1 / np.log2(np.arange(2, DEPTH + 2))
    ideal = gains[: min(len(evidence), DEPTH)].sum()
    return (
        float(hits[:5].sum() / len(evidence)),
        float(hits.sum() / len(evidence)),
        float(hits.any()),
        float((hits * gains[: len(hits)]).sum() / ideal),
    )


def fused(cosines: np.ndarray, words: np.ndarray, weight: float = FUSED) -> np.ndarray:
    """Cosines, scaled from the lowest to the highest, and BM25, scaled from 0 to the highest."""
    return (1 - weight) * scaled(cosines) + weight * scaled(words, 0.0)


def ranked(scores: np.ndarray) -> list[int]:
    """Places, best first; the earlier one of two that are equal."""
    return [int(place) for place in np.argsort(-scores, kind="stable")]


def first_place(order: Sequence[int], evidence: frozenset[int]) -> float:
    """1 / the rank of the first turn of the evidence; 0 if there is none."""
    return next((1 / rank for rank, place in enumerate(order, 1) if place in evidence), 0.0)


def macro_means(
    tables: Mapping[str, np.ndarray], kinds: Sequence[str], resamples: int
) -> dict[str, dict[str, tuple[float, np.ndarray]]]:
    """The mean over kinds of the mean over questions, and its bootstrap values, all tables on the same resamples.

    Args:
        tables: [questions, measures] by name.
        kinds: of the questions.
        resamples: bootstrap samples of the questions of each kind.

    Returns:
        for each name and measure the mean and [resamples] values.
    """
    sums = {name: np.zeros((resamples, len(MEASURES))) for name in tables}
    means = {name: np.zeros(len(MEASURES)) for name in tables}
    present = sorted(set(kinds))
    for seed, kind in enumerate(present):
        inside = np.flatnonzero(np.array(kinds) == kind)
        start = 0
        for rows in resample_indices(len(inside), resamples, seed):
            for name, table in tables.items():
                sums[name][start : start + len(rows)] += table[inside[rows]].mean(1)
            start += len(rows)
        for name, table in tables.items():
            means[name] += table[inside].mean(0)
    return {
        name: {
            measure: (float(means[name][i] / len(present)), sums[name][:, i] / len(present))
            for i, measure in enumerate(MEASURES)
        }
        for name in tables
    }


class Clock:
    """Seconds since 1970, as the measurement wants them."""

    def __init__(self) -> None:
        self.seconds = 1_700_000_000.0

    def __call__(self) -> float:
        self.seconds += 1e-3
        return self.seconds

    def wait(self, seconds: float = DAY) -> None:
        self.seconds += seconds


class Remembered:
    """A conversation in a memory of its own, with strengths, a session a day.

    Attributes:
        conversation: as it was read.
        reader: the model.
        folder: where its files are.
        place: the database.
        clock: of all memories of it.
        ids: of each turn.
    """

    def __init__(self, conversation: Conversation, reader: Reader, folder: Path) -> None:
        self.conversation = conversation
        self.reader = reader
        self.folder = folder
        self.place = folder / "memory.db"
        self.clock = Clock()
        self.ids: list[str] = []
        with self.open(strengths=True) as memory:
            for part in conversation.parts():
                self.clock.wait()
                # As an assistant writes them, what was said and what was answered: a call is new to what was before it.
                for start in part[::2]:
                    both = range(start, min(start + 2, part.stop))
                    turns = [{"role": conversation.roles[i], "content": conversation.texts[i]} for i in both]
                    self.ids += [record.id for record in memory.add(turns, user_id=USER, run_id=RUN)]
            self.novelty = _novelty(memory, self.ids)
        self._places = {id: place for place, id in enumerate(self.ids)}

    def open(self, place: Path | None = None, strengths: bool = False, ranking: Ranking | None = None) -> Memory:
        """The memory, or a copy of it; without strengths a search changes nothing."""
        return Memory(place or self.place, model=self.reader, strengths=strengths, ranking=ranking, now=self.clock)

    def copy(self, name: str) -> Path:
        """A copy of the database."""
        place = self.folder / name
        with sqlite3.connect(self.place) as source, sqlite3.connect(place) as target:
            source.backup(target)
        source.close()
        target.close()
        return place

    def order(self, memory: Memory, question: str, ranking: Ranking | None = None, top_k: int = DEPTH) -> list[int]:
        """Places of the turns that a search gives, best first."""
        results = memory.search(question, user_id=USER, top_k=top_k, kinds=["turn"], ranking=ranking)
        return [self._places[result.id] for result in results if result.id in self._places]

    def signals(self, memory: Memory, question: str) -> dict[str, np.ndarray]:
        """[turns] of BM25 ("bm25") and the cosines ("cosine alone", "cosine carried") of all turns."""
        count = len(self.ids)
        ranking = replace(memory.ranking, duplicates=None)
        results = memory.search(question, user_id=USER, top_k=MOST, kinds=["turn"], explain=True, ranking=ranking)
        signals = {"bm25": np.zeros(count), "cosine alone": np.full(count, np.nan)}
        signals["cosine carried"] = signals["cosine alone"].copy()
        for result in results:
            for name, values in signals.items():
                values[self._places[result.id]] = (result.parts or {}).get(name, np.nan)
        for name in ("cosine alone", "cosine carried"):
            values = signals[name]
            lowest = float(np.nanmin(values)) if np.isfinite(values).any() else 0.0
            signals[name] = np.where(np.isfinite(values), values, lowest)
        return signals


def _novelty(memory: Memory, ids: list[str]) -> np.ndarray:
    """[turns] the slow strength that each turn began with: its novelty."""
    begun = {event["id"]: event["slow"] for event in memory.events(user_id=USER) if event["kind"] == "strength"}
    return np.array([begun.get(id, np.nan) for id in ids])

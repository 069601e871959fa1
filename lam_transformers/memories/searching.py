"""A search, from the question to the results."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .engine import Engine
from .index import Partition
from .ranking import Ranking, Signals, scores
from .records import KINDS, MemoryRecord, Scope, SearchResult, Time, check_kinds, check_text, check_time
from .rows import RECORD, record_of
from .store import Transaction
from .strengths import boosts, recalled
from .words import bm25, wording

# Candidates beyond the results asked for: near-duplicates are taken out, and rows that were deleted meanwhile.
_SPARE = 40


@dataclass(frozen=True)
class Question:
    """What is asked for; the attributes are the arguments of `Memory.search`, checked, times in seconds since 1970.

    Attributes:
        only: ids of the memories that may be answers, of those that the scope may see; None for all of them.
    """

    text: str
    scope: Scope
    top_k: int
    kinds: tuple[str, ...] | None
    after: float | None
    before: float | None
    as_of: float | None
    explain: bool
    ranking: Ranking
    only: frozenset[str] | None = None

    @classmethod
    def of(
        cls,
        text: str,
        scope: Scope,
        top_k: int,
        kinds: Iterable[str] | None,
        after: Time | None,
        before: Time | None,
        as_of: Time | None,
        explain: bool,
        ranking: Ranking,
    ) -> "Question":
        """Raises ValueError for arguments that do not fit, naming them."""
        check_text("The query", text, 100_000)
        if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= 1000:
            raise ValueError(f"top_k must be a whole number from 1 to 1000, got {top_k!r}.")
        return cls(
            text=text,
            scope=scope,
            top_k=top_k,
            kinds=None if kinds is None else check_kinds(kinds),
            after=None if after is None else check_time("after", after),
            before=None if before is None else check_time("before", before),
            as_of=None if as_of is None else check_time("as_of", as_of),
            explain=explain,
            ranking=ranking,
        )


class _View:
    """What a search needs of a partition, taken while nobody changes it; what is written later does not appear in it.

    Attributes:
        visible: [memories] bool, what the one who asks may see, and asked for.
        own: whether it is the user's own part, and not what is shared.
        alone, best, carried: [memories] cosines of each text's vector, its best passage and its carried vector with
            the question's; of the mix of the first and the last alone where the parts are not asked for.
    """

    def __init__(self, partition: Partition, question: Question) -> None:
        self.visible = _visible(partition, question)
        self.own = partition.user_id != ""
        self.dimension = partition.dimension
        self.ids = partition.ids
        self.row_ids = partition.row_ids
        self.first = partition.first
        self.vectors = partition.vectors
        self.carried_vectors = partition.carried
        # Where nobody wants to know the parts, one product gives the cosines as the ranking mixes them.
        plain = not (question.explain or question.ranking.passages)
        self.mixed = partition.mixed(question.ranking.carried) if plain else None
        self.words = partition.words.copy()
        self.said = partition.said
        self.agents = partition.agents
        self.alone: np.ndarray | None = None
        self.best: np.ndarray | None = None
        self.carried: np.ndarray | None = None

    def compare(self, asked: np.ndarray) -> None:
        """The cosines of all texts with the question's vector [D]."""
        if not len(self.first) or len(asked) != self.dimension:
            return
        if self.mixed is not None:
            self.alone = self.best = _cosines(self.mixed, asked)
            return
        cosines = _cosines(self.vectors, asked)
        plain = len(cosines) == len(self.first)  # no text has passages
        self.alone = cosines if plain else cosines[self.first]
        self.best = cosines if plain else np.maximum.reduceat(cosines, self.first)
        if self.carried_vectors is not None:
            self.carried = _cosines(self.carried_vectors, asked)


def _cosines(vectors: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The products [N] of vectors [N, D] with one [D], float32.

    By torch, whose threads have just made `asked` and still hold the cores: NumPy's own would compete with them, and a
    search of 30,000 texts took 56 to 85 ms instead of 38 (two cores).
    """
    return torch.mv(torch.from_numpy(vectors), torch.from_numpy(np.array(asked, np.float32))).numpy()


@dataclass(frozen=True)
class _Candidates:
    """All texts that may be seen, with their scores.

    Attributes:
        views: of the partitions that are searched.
        asked: the question's vector [D], or None.
        owners, places: [texts] the view of each text, and its place there.
        signals: what is known of each.
        total: [texts] scores.
        pieces: the parts of the scores, each [texts], by name.
    """

    views: list[_View]
    asked: np.ndarray | None
    owners: np.ndarray
    places: np.ndarray
    signals: Signals
    total: np.ndarray
    pieces: dict[str, np.ndarray]

    def view(self, i: int) -> _View:
        """The view of a text."""
        return self.views[self.owners[i]]

    def row_id(self, i: int) -> int:
        """The row of a text."""
        return int(self.view(i).row_ids[self.places[i]])


def search(engine: Engine, question: Question) -> list[SearchResult]:
    """See `Memory.search`."""
    asked = engine.reader.query(question.text) if engine.model_fits() else None
    with engine.store.read() as transaction:
        candidates = _candidates(engine, transaction, question, asked)
        if not len(candidates.owners):
            return []
        groups = _groups(transaction, candidates, question)
        results = _results(transaction, candidates, groups, question)
    if engine.keeps_strengths and results:
        recalled(engine, [result.memory for result in results])
    return results


def _candidates(engine: Engine, transaction: Transaction, question: Question, asked: np.ndarray | None) -> _Candidates:
    views = []
    for name in [question.scope.user_id, ""] if question.scope.user_id else [""]:
        partition = engine.partitions.get(name)
        with partition.lock:
            partition.refresh(transaction)
            views.append(_View(partition, question))
    if asked is not None:
        for view in views:
            view.compare(asked)
    words = bm25(question.text, [(view.words, view.visible) for view in views])
    signals, owners, places = _signals(views, words)
    total, pieces = scores(signals, question.ranking)
    if question.ranking.strengths and len(owners):
        ids = [views[owner].ids[place] for owner, place in zip(owners, places, strict=True)]
        pieces["strength"] = question.ranking.strengths * boosts(engine, transaction, ids, total)
        total = total + pieces["strength"]
    return _Candidates(views, asked, owners, places, signals, total, pieces)


def _visible(partition: Partition, question: Question) -> np.ndarray:
    """[memories] bool: what the one who asks may see, and asked for."""
    scope = question.scope
    if question.as_of is None:
        visible = np.isinf(partition.superseded)
    else:
        visible = (partition.times <= question.as_of) & (partition.superseded > question.as_of)
    if partition.user_id == "" or scope.agent_id:
        visible &= (partition.agents == 0) | (partition.agents == partition.code(scope.agent_id))
    if scope.run_id:
        visible &= (partition.runs == 0) | (partition.runs == partition.code(scope.run_id))
    if question.kinds is not None:
        visible &= np.isin(partition.kinds, [KINDS.index(kind) for kind in question.kinds])
    if question.after is not None:
        visible &= partition.times >= question.after
    if question.before is not None:
        visible &= partition.times < question.before
    if question.only is not None:
        visible &= np.fromiter((id in question.only for id in partition.ids), bool, len(partition))
    return visible


def _signals(views: list[_View], words: list[np.ndarray]) -> tuple[Signals, np.ndarray, np.ndarray]:
    """The signals of all visible texts, and which view and place each has."""
    places = [np.flatnonzero(view.visible) for view in views]
    owners = np.repeat(np.arange(len(views)), [len(place) for place in places])

    def joined(values: list[np.ndarray | None]) -> np.ndarray | None:
        if all(value is None for value in values):
            return None
        filled = [
            np.zeros(len(place), np.float32) if value is None else value[place]
            for value, place in zip(values, places, strict=True)
        ]
        return np.concatenate(filled)

    def given(values: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([value[place] for value, place in zip(values, places, strict=True)])

    personal = [np.ones(len(view.agents)) if view.own else np.where(view.agents == 0, 0.0, 0.5) for view in views]
    signals = Signals(
        alone=joined([view.alone for view in views]),
        passage=joined([view.best for view in views]),
        # A text without a carried vector counts as it is, here as in `Partition.carried`.
        carried=joined([view.alone if view.carried is None else view.carried for view in views])
        if any(view.carried is not None for view in views)
        else None,
        words=given(words),
        lengths=given([view.words.lengths for view in views]),
        said=given([view.said for view in views]).astype(np.float32),
        personal=given(personal).astype(np.float32),
    )
    return signals, owners, np.concatenate(places)


def _groups(transaction: Transaction, candidates: _Candidates, question: Question) -> list[list[int]]:
    """The best candidates in order, near-duplicates together: texts of one user that are near and say the same."""
    signals = candidates.signals
    # A text that neither shares a word with the question nor has a vector is no answer.
    possible = signals.words > 0 if signals.alone is None else (signals.words > 0) | (signals.alone != 0)
    best = [int(i) for i in _best(candidates.total, question.top_k * 5 + _SPARE) if possible[i]]
    least = question.ranking.duplicates
    if signals.alone is None:
        least = None
    most = question.top_k + _SPARE
    groups: list[list[int]] = []
    wordings = _Wordings(transaction, candidates, best)
    vectors = np.zeros((most, candidates.views[0].dimension), np.float32)  # of the first text of each group
    owners = np.full(most, -1)
    for i in best:
        view = candidates.view(i)
        if least is not None and view.alone is not None:
            vector = view.vectors[view.first[candidates.places[i]]]
            cosines = np.where(owners[: len(groups)] == candidates.owners[i], vectors[: len(groups)] @ vector, -1.0)
            near = np.flatnonzero(cosines >= least)
            nearest_first = near[np.argsort(-cosines[near], kind="stable")]
            same = next((groups[j] for j in nearest_first if wordings.same(i, groups[j][0])), None)
            if same is not None:
                same.append(i)
                continue
            vectors[len(groups)] = vector
            owners[len(groups)] = candidates.owners[i]
        groups.append([i])
        if len(groups) == most:
            break
    return groups


class _Wordings:
    """What candidates say, read from the store when two of them are near each other, which is seldom.

    Args:
        transaction: one that reads.
        candidates: all texts.
        chosen: the candidates that may be asked for.
    """

    def __init__(self, transaction: Transaction, candidates: _Candidates, chosen: list[int]) -> None:
        self._transaction = transaction
        self._candidates = candidates
        self._chosen = chosen
        self._texts: dict[int, str] | None = None
        self._wordings: dict[int, tuple[str, ...] | None] = {}

    def same(self, i: int, j: int) -> bool:
        """Whether two candidates say the same in the same words; not where one was deleted meanwhile."""
        first = self._of(i)
        return first is not None and first == self._of(j)

    def _of(self, i: int) -> tuple[str, ...] | None:
        if self._texts is None:
            wanted = [self._candidates.row_id(k) for k in self._chosen]
            self._texts = dict(_rows(self._transaction, "row_id, text", wanted))
        if i not in self._wordings:
            text = self._texts.get(self._candidates.row_id(i))
            self._wordings[i] = None if text is None else wording(text)
        return self._wordings[i]


def _best(total: np.ndarray, count: int) -> np.ndarray:
    """The places of the highest numbers, highest first, of equal ones the first."""
    if count >= len(total):
        return np.argsort(-total, kind="stable")
    least = np.partition(total, len(total) - count)[len(total) - count]
    places = np.flatnonzero(total >= least)
    return places[np.argsort(-total[places], kind="stable")][:count]


def _results(
    transaction: Transaction, candidates: _Candidates, groups: list[list[int]], question: Question
) -> list[SearchResult]:
    results: list[SearchResult] = []
    for start in range(0, len(groups), question.top_k):
        part = groups[start : start + question.top_k]
        records = _records(transaction, [candidates.row_id(i) for group in part for i in group])
        for group in part:
            left = [i for i in group if candidates.row_id(i) in records]  # others were deleted meanwhile
            if not left:
                continue
            best, *others = left
            record = records[candidates.row_id(best)]
            result = SearchResult(
                memory=record,
                score=float(candidates.total[best]),
                passage=_passage(transaction, candidates, best, len(record.text)),
                variants=tuple(records[candidates.row_id(i)] for i in others),
                parts=_explained(candidates, best) if question.explain else None,
            )
            results.append(result)
            if len(results) == question.top_k:
                return results
    return results


def _records(transaction: Transaction, wanted: list[int]) -> dict[int, MemoryRecord]:
    """The records of rows, by row_id; those that are gone are left out."""
    return {row[0]: record_of(row[1:]) for row in _rows(transaction, f"row_id, {RECORD}", wanted)}


def _rows(transaction: Transaction, columns: str, wanted: list[int]) -> list[tuple[Any, ...]]:
    """Columns of the rows with these row_ids, in any order."""
    rows: list[tuple[Any, ...]] = []
    for start in range(0, len(wanted), 500):
        part = wanted[start : start + 500]
        marks = ", ".join("?" * len(part))
        rows += transaction.rows(f"SELECT {columns} FROM memories WHERE row_id IN ({marks})", *part)
    return rows


def _explained(candidates: _Candidates, i: int) -> dict[str, float]:
    """The parts of a score, then the signals that it was made of."""
    signals = candidates.signals
    explained = {name: float(values[i]) for name, values in candidates.pieces.items()}
    explained["bm25"] = float(signals.words[i])
    cosines = {"alone": signals.alone, "passage": signals.passage, "carried": signals.carried}
    explained |= {f"cosine {name}": float(values[i]) for name, values in cosines.items() if values is not None}
    return explained


def _passage(transaction: Transaction, candidates: _Candidates, i: int, length: int) -> tuple[int, int]:
    """The characters of a text that fit best."""
    view = candidates.view(i)
    place = candidates.places[i]
    first = int(view.first[place])
    last = int(view.first[place + 1]) if place + 1 < len(view.first) else len(view.vectors)
    if candidates.asked is None or last - first < 2:
        return 0, length
    rows = transaction.rows("SELECT spans FROM vectors WHERE row_id = ?", candidates.row_id(i))
    spans = np.frombuffer(rows[0][0], "<i4").reshape(-1, 2) if rows and rows[0][0] is not None else np.zeros((0, 2))
    best = int(np.argmax(view.vectors[first + 1 : last] @ candidates.asked))
    return (int(spans[best, 0]), int(spans[best, 1])) if best < len(spans) else (0, length)

"""A search, from the question to the results."""

from typing import TYPE_CHECKING

import numpy as np

from .index import Partition
from .ranking import Ranking, Signals, scores
from .records import Scope, SearchResult
from .store import Transaction
from .words import bm25

if TYPE_CHECKING:
    from .memory import Memory

# Candidates beyond the results asked for: near-duplicates are taken out, and rows that were deleted meanwhile.
_SPARE = 40


def search(
    memory: "Memory",
    query: str,
    scope: Scope,
    top_k: int,
    kinds: tuple[str, ...] | None,
    after: float | None,
    before: float | None,
    as_of: float | None,
    explain: bool,
    ranking: Ranking,
) -> list[SearchResult]:
    """See `Memory.search`; the arguments are checked."""
    with_vectors = memory.model_fits()
    asked = memory.reader.query(query) if with_vectors else None
    names = [scope.user_id, ""] if scope.user_id else [""]
    with memory.store.read() as transaction:
        parts = []
        for name in names:
            partition = memory.partitions.get(name)
            with partition.lock:
                partition.refresh(transaction)
                visible = _visible(partition, scope, kinds, after, before, as_of)
                parts.append(_View(partition, visible, asked))
        words = bm25(query, [(view.words, view.visible) for view in parts])
        signals, owners, places = _signals(parts, words)
        if not len(owners):
            return []
        total, pieces = scores(signals, ranking)
        if ranking.strengths:
            from .strengths import boosts

            strength = boosts(
                memory, transaction, [parts[o].ids[p] for o, p in zip(owners, places, strict=True)], total
            )
            pieces["strength"] = ranking.strengths * strength
            total = total + pieces["strength"]
        # A text that neither shares a word with the question nor has a vector is no answer.
        possible = signals.words > 0 if signals.alone is None else (signals.words > 0) | (signals.alone != 0)
        order = [i for i in np.argsort(-total, kind="stable")[: top_k * 5 + _SPARE] if possible[i]]
        groups = _groups(order, parts, owners, places, ranking, top_k)
        results = _results(transaction, groups, parts, owners, places, total, pieces, signals, explain, asked, top_k)
    if memory._strengths and results:
        from .strengths import recalled

        recalled(memory, scope, [result.memory for result in results])
    return results


class _View:
    """What a search needs of a partition, taken while nobody changes it."""

    def __init__(self, partition: Partition, visible: np.ndarray, asked: np.ndarray | None):
        self.partition = partition
        self.visible = visible
        self.ids = partition.ids
        self.row_ids = partition.row_ids
        self.first = partition.first
        self.vectors = partition.vectors
        self.words = partition.words.copy()
        self.roles = partition.roles
        self.agents = partition.agents
        self.alone = None
        self.best = None
        self.carried = None
        if asked is not None and len(partition) and len(asked) == partition.dimension:
            cosines = self.vectors @ asked
            self.alone = cosines[self.first]
            self.best = np.maximum.reduceat(cosines, self.first) if len(cosines) else cosines
            if partition.carried is not None:
                self.carried = partition.carried @ asked


def _visible(
    partition: Partition,
    scope: Scope,
    kinds: tuple[str, ...] | None,
    after: float | None,
    before: float | None,
    as_of: float | None,
) -> np.ndarray:
    """[memories] bool: what the one who asks may see, and asked for."""
    if as_of is None:
        visible = np.isinf(partition.superseded)
    else:
        visible = (partition.times <= as_of) & (partition.superseded > as_of)
    if partition.user_id == "" or scope.agent_id:
        visible &= (partition.agents == "") | (partition.agents == scope.agent_id)
    if scope.run_id:
        visible &= (partition.runs == "") | (partition.runs == scope.run_id)
    if kinds is not None:
        visible &= np.isin(partition.kinds.astype(str), kinds)
    if after is not None:
        visible &= partition.times >= after
    if before is not None:
        visible &= partition.times < before
    return visible


def _signals(parts: list[_View], words: list[np.ndarray]) -> tuple[Signals, np.ndarray, np.ndarray]:
    """The signals of all visible texts, and which part and place each has."""
    places = [np.flatnonzero(view.visible) for view in parts]
    owners = np.repeat(np.arange(len(parts)), [len(place) for place in places])

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

    personal = [
        np.where(view.agents == "", 0.0, 0.5) if view.partition.user_id == "" else np.ones(len(view.agents))
        for view in parts
    ]
    signals = Signals(
        alone=joined([view.alone for view in parts]),
        passage=joined([view.best for view in parts]),
        carried=joined([view.carried for view in parts]),
        words=given(words),
        lengths=given([view.words.lengths for view in parts]),
        said=given([(view.roles == "user").astype(np.float32) for view in parts]),
        personal=given(personal).astype(np.float32),
    )
    return signals, owners, np.concatenate(places)


def _groups(
    order: list[int], parts: list[_View], owners: np.ndarray, places: np.ndarray, ranking: Ranking, top_k: int
) -> list[list[int]]:
    """Candidates in order, near-duplicates of one scope together."""
    groups: list[list[int]] = []
    vectors: list[np.ndarray] = []
    for i in order:
        view = parts[owners[i]]
        if ranking.duplicates is not None and view.alone is not None:
            vector = view.vectors[view.first[places[i]]]
            near = _nearest(vector, vectors, [owners[group[0]] == owners[i] for group in groups], ranking.duplicates)
            if near is not None:
                groups[near].append(i)
                continue
            vectors.append(vector)
        else:
            vectors.append(np.zeros(1, np.float32))
        groups.append([i])
        if len(groups) >= top_k + _SPARE:
            break
    return groups


def _nearest(vector: np.ndarray, others: list[np.ndarray], same_scope: list[bool], least: float) -> int | None:
    """The vector of the same scope that is nearest, if it is near enough."""
    cosines = [
        float(other @ vector) if same and len(other) == len(vector) else -1.0
        for other, same in zip(others, same_scope, strict=True)
    ]
    best = int(np.argmax(cosines)) if cosines else -1
    return best if best >= 0 and cosines[best] >= least else None


def _results(
    transaction: Transaction, groups, parts, owners, places, total, pieces, signals, explain, asked, top_k
) -> list[SearchResult]:
    from .memory import RECORD, record_of

    wanted = [int(parts[owners[i]].row_ids[places[i]]) for group in groups for i in group]
    records = {}
    for start in range(0, len(wanted), 500):
        part = wanted[start : start + 500]
        rows = transaction.rows(
            f"SELECT row_id, {RECORD} FROM memories WHERE row_id IN ({', '.join('?' * len(part))})", *part
        )
        records |= {row[0]: record_of(row[1:]) for row in rows}
    results = []
    for group in groups:
        here = [(i, int(parts[owners[i]].row_ids[places[i]])) for i in group]
        here = [(i, row) for i, row in here if row in records]  # deleted meanwhile
        if not here:
            continue
        i, row = here[0]
        record = records[row]
        explained = None
        if explain:
            explained = {name: float(values[i]) for name, values in pieces.items()}
            explained["bm25"] = float(signals.words[i])
            for name in ("alone", "passage", "carried"):
                if getattr(signals, name) is not None:
                    explained[f"cosine {name}"] = float(getattr(signals, name)[i])
        passage = _passage(transaction, parts[owners[i]], places[i], row, len(record.text), asked)
        results.append(
            SearchResult(record, float(total[i]), passage, tuple(records[row] for _, row in here[1:]), explained)
        )
        if len(results) == top_k:
            break
    return results


def _passage(
    transaction: Transaction, view: _View, place: int, row: int, length: int, asked: np.ndarray | None
) -> tuple[int, int]:
    """The characters of a text that fit best."""
    first = int(view.first[place])
    last = int(view.first[place + 1]) if place + 1 < len(view.first) else len(view.vectors)
    if asked is None or last - first < 2:
        return 0, length
    rows = transaction.rows("SELECT spans FROM vectors WHERE row_id = ?", row)
    spans = np.frombuffer(rows[0][0], "<i4").reshape(-1, 2) if rows and rows[0][0] is not None else np.zeros((0, 2))
    best = int(np.argmax(view.vectors[first + 1 : last] @ asked))
    return (int(spans[best, 0]), int(spans[best, 1])) if best < len(spans) else (0, length)

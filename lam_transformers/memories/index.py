"""The vectors and words of one user's memories, held in memory to be searched exactly, and kept up to date."""

import threading
from collections import OrderedDict
from typing import Any

import numpy as np

from .ranking import carried_shares
from .records import KINDS
from .store import Store, Transaction
from .words import ENTRY, WordIndex

_COLUMNS = (
    "m.row_id, m.id, m.kind, m.agent_id, m.run_id, m.role, m.time, m.superseded, m.position, m.changed, "
    "v.alone, v.passages, v.carried, v.words"
)
_BATCH = 5_000  # rows that are taken from the store at once


class Partition:
    """All memories of one user (or the shared ones), in the order in which they were written.

    Attributes:
        ids, row_ids: of each memory's versions.
        times, superseded: since when each version holds, and until when (infinity: still), in seconds.
        kinds: [memories] int8, places in `KINDS`.
        agents, runs: [memories] int32, what `code` gives for their names; 0 where there is none.
        said: [memories] bool, whether the user said it.
        vectors: [vectors, D] float32: for each memory the vector of its text alone, then those of its passages.
        first: [memories] its first row in `vectors`.
        carried: [memories, D] float32, that of the text alone where there is none; None if there are none at all.
        words: a `WordIndex`.
    """

    def __init__(self, user_id: str, dimension: int) -> None:
        self.user_id = user_id
        self.dimension = dimension
        self.lock = threading.RLock()
        self._clear()

    def _clear(self) -> None:
        self.ids: list[str] = []
        self.row_ids = np.zeros(0, np.int64)
        self.times = np.zeros(0)
        self.superseded = np.zeros(0)
        self.kinds = np.zeros(0, np.int8)
        self.agents = np.zeros(0, np.int32)
        self.runs = np.zeros(0, np.int32)
        self.said = np.zeros(0, bool)
        self.first = np.zeros(0, np.int64)
        self.words = WordIndex()
        self._matrix = np.zeros((0, self.dimension), np.float32)
        self._rows = 0
        self._carried = np.zeros((0, self.dimension), np.float32)
        self._has_carried = False
        self._mixed = np.zeros((0, self.dimension), np.float32)
        self._mixed_carried = 0.0
        self._mixed_rows = 0
        self._names = {"": 0}
        self._place: dict[int, int] = {}
        self._changed = -1
        self._deletions = -1

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def vectors(self) -> np.ndarray:
        """[vectors, D] float32: of each memory its own vector, then those of its passages."""
        return self._matrix[: self._rows]

    @property
    def carried(self) -> np.ndarray | None:
        """[memories, D] float32 carried vectors, None if there are none at all."""
        return self._carried[: len(self.ids)] if self._has_carried else None

    def mixed(self, carried: float) -> np.ndarray:
        """[memories, D] float32: the vectors of the texts alone, mixed with their carried ones as `Ranking` says.

        Its product with a question's vector is the mix of both cosines, for half of the reading. It is kept for the
        `Ranking.carried` that was asked for last.
        """
        if not self._has_carried:
            carried = 0.0
            if self._rows == len(self.ids):  # no text has passages
                return self.vectors
        if carried != self._mixed_carried:
            self._mixed_carried = carried
            self._mixed_rows = 0
            self._mixed = np.zeros((0, self.dimension), np.float32)
        new = slice(self._mixed_rows, len(self.ids))
        if self._mixed_rows < len(self.ids):
            self._mixed = _grown(self._mixed, self._mixed_rows, len(self.ids))
            self._mixed[new] = self.vectors[self.first[new]]
            if carried:
                shares = carried_shares(carried, self.words.lengths[new])[:, None]
                self._mixed[new] *= 1 - shares
                self._mixed[new] += shares * self._carried[new]
            self._mixed_rows = len(self.ids)
        return self._mixed[: len(self.ids)]

    @property
    def nbytes(self) -> int:
        """Of the vectors that are kept."""
        return self._matrix.nbytes + self._carried.nbytes + self._mixed.nbytes

    def code(self, name: str) -> int:
        """The number of an agent's or run's name, -1 for one that no memory has."""
        return self._names.get(name, -1)

    def refresh(self, transaction: Transaction) -> None:
        """Take over what was written since the last time."""
        rows = transaction.rows("SELECT number FROM deletions WHERE user_id = ?", self.user_id)
        deletions = int(rows[0][0]) if rows else 0
        if deletions != self._deletions:
            self._clear()
            self._deletions = deletions
        # Rows are numbered in the order of their transactions, so that nothing can appear below what was seen.
        while True:
            rows = transaction.rows(
                f"SELECT {_COLUMNS} FROM memories m JOIN vectors v ON v.row_id = m.row_id "
                "WHERE m.user_id = ? AND m.changed > ? ORDER BY m.changed, m.row_id LIMIT ?",
                *(self.user_id, self._changed, _BATCH),
            )
            if len(rows) == _BATCH and rows[0][9] != rows[-1][9]:
                # The last event's rows may go on in the next batch: they are taken whole, then.
                rows = [row for row in rows if row[9] != rows[-1][9]]
            elif len(rows) == _BATCH:
                rows = transaction.rows(
                    f"SELECT {_COLUMNS} FROM memories m JOIN vectors v ON v.row_id = m.row_id "
                    "WHERE m.user_id = ? AND m.changed = ? ORDER BY m.row_id",
                    *(self.user_id, rows[0][9]),
                )
            if not rows:
                break
            self._take(rows)
        self.words.settle()

    def _take(self, rows: list[tuple[Any, ...]]) -> None:
        new = [row for row in rows if row[0] not in self._place]
        old = [row for row in rows if row[0] in self._place]
        if old:
            superseded = self.superseded.copy()
            for row in old:
                superseded[self._place[row[0]]] = np.inf if row[7] is None else row[7]
            self.superseded = superseded
        if new:
            self._append(new)
        self._changed = int(rows[-1][9])

    def _append(self, rows: list[tuple[Any, ...]]) -> None:
        count = len(self.ids)
        width = 4 * self.dimension
        blank = bytes(width)
        # A vector of another size was written for another model: such a memory is found by its words.
        blobs = [
            (alone if alone is not None and len(alone) == width else blank)
            + (passages if passages is not None and len(passages) % width == 0 else b"")
            for alone, passages in ((row[10], row[11]) for row in rows)
        ]
        sizes = np.array([len(blob) // width for blob in blobs], dtype=np.int64)
        self._grow(int(sizes.sum()))
        total = self._rows + int(sizes.sum())
        self._matrix[self._rows : total] = np.frombuffer(b"".join(blobs), "<f4").reshape(-1, self.dimension)
        self.first = np.concatenate([self.first, self._rows + np.cumsum(sizes) - sizes])
        self._rows = total
        self._append_carried([row[12] for row in rows], count, width)
        self.words.append([np.frombuffer(row[13], ENTRY) for row in rows])
        for i, row in enumerate(rows):
            self._place[row[0]] = count + i
        self.row_ids = np.concatenate([self.row_ids, np.array([row[0] for row in rows], np.int64)])
        self.kinds = np.concatenate([self.kinds, np.array([KINDS.index(row[2]) for row in rows], np.int8)])
        self.agents = np.concatenate([self.agents, self._codes([row[3] for row in rows])])
        self.runs = np.concatenate([self.runs, self._codes([row[4] for row in rows])])
        self.said = np.concatenate([self.said, np.array([row[5] == "user" for row in rows], bool)])
        self.times = np.concatenate([self.times, np.array([row[6] for row in rows], np.float64)])
        ends = [np.inf if row[7] is None else row[7] for row in rows]
        self.superseded = np.concatenate([self.superseded, np.array(ends, np.float64)])
        self.ids += [row[1] for row in rows]

    def _codes(self, names: list[str]) -> np.ndarray:
        return np.array([self._names.setdefault(name, len(self._names)) for name in names], np.int32)

    def _append_carried(self, blobs: list[bytes | None], count: int, width: int) -> None:
        """The carried vectors of the rows from `count` on, whose own vectors are there already."""
        total = count + len(blobs)
        own = self.vectors[self.first[count:total]]
        fits = [place for place, blob in enumerate(blobs) if blob is not None and len(blob) == width]
        if not self._has_carried:
            if not fits:
                return
            self._has_carried = True
            own = self.vectors[self.first[:total]]
        if fits:
            carried = np.frombuffer(b"".join(blobs[place] or b"" for place in fits), "<f4")
            own[len(own) - len(blobs) + np.array(fits)] = carried.reshape(-1, self.dimension)
        self._carried = _grown(self._carried, count, total)
        self._carried[total - len(own) : total] = own

    def _grow(self, more: int) -> None:
        self._matrix = _grown(self._matrix, self._rows, self._rows + more)


def _grown(matrix: np.ndarray, used: int, needed: int) -> np.ndarray:
    """A matrix with room for `needed` rows that begins with the first `used` of the given one; it, if it has room.

    Rows that were written are never changed, so that who looks at them need not be waited for.
    """
    if needed <= len(matrix):
        return matrix
    larger = np.zeros((max(needed, len(matrix) * 3 // 2), matrix.shape[1]), np.float32)
    kept = matrix[:used]
    larger[: len(kept)] = kept
    return larger


class Partitions:
    """The partitions that were used last.

    Args:
        store: where the memories are.
        dimension: of the vectors.
        most: bytes of vectors to keep in memory; those of the current search are kept in any case.
    """

    def __init__(self, store: Store, dimension: int, most: int = 2 << 30) -> None:
        self._store = store
        self.dimension = dimension
        self._most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Partition] = OrderedDict()

    def get(self, user_id: str) -> Partition:
        """The partition of a user, "" for what is shared; the caller refreshes it."""
        with self._lock:
            partition = self._kept.get(user_id)
            if partition is None:
                partition = self._kept[user_id] = Partition(user_id, self.dimension)
            self._kept.move_to_end(user_id)
            size = sum(part.nbytes for part in self._kept.values())
            for name in list(self._kept):
                if size <= self._most or name == user_id or name == "":
                    continue
                size -= self._kept.pop(name).nbytes
            return partition

    def clear(self) -> None:
        """Let go of all of them."""
        with self._lock:
            self._kept.clear()

"""Token ids of many texts on one device, batches of them, and their embeddings."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from ...scoring.pooling import mean_pool

_START = time.time()


def say(*what: object) -> None:
    """Print a line with the seconds since the program began."""
    print(f"[{time.time() - _START:7.1f}]", *what, flush=True)


def half_precision(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 on a GPU; on a CPU everything stays float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


class Texts:
    """Texts as token ids without special tokens, on a device.

    Args:
        ids: [tokens], the texts one after the other.
        lengths: [texts].
        special: ids of the tokens "cls" and "sep" that a batch puts around each text.
        device: where the ids go.
    """

    def __init__(self, ids: np.ndarray, lengths: np.ndarray, special: dict[str, int], device: torch.device) -> None:
        self.device = device
        self.special = special
        self.flat = torch.from_numpy(ids.astype(np.int32)).to(device)
        self.cpu_lengths = lengths.astype(np.int64)
        self.lengths = torch.from_numpy(self.cpu_lengths).to(device)
        self.offsets = F.pad(self.lengths.cumsum(0), (1, 0))[:-1]

    def __len__(self) -> int:
        return len(self.cpu_lengths)

    def to_device(self, rows: np.ndarray) -> torch.Tensor:
        """Numbers of texts as a tensor of the device; the program does not wait for a GPU."""
        return torch.from_numpy(np.asarray(rows, np.int64)).to(self.device, non_blocking=True)

    def batch(self, rows: np.ndarray, limit: int = 254) -> tuple[torch.Tensor, torch.Tensor]:
        """Texts `rows` [B], padded at the right with 0: ids [B, T] and mask [B, T] bool, special tokens included."""
        longest = int(np.minimum(self.cpu_lengths[rows], limit).max())
        numbers = self.to_device(rows)
        lengths = self.lengths[numbers].clamp(max=limit)
        place = torch.arange(longest, device=self.device)
        real = place < lengths[:, None]
        where = (self.offsets[numbers][:, None] + place).clamp(max=len(self.flat) - 1)
        ids = F.pad(self.flat[where].long() * real, (1, 1))
        ids[:, 0] = self.special["cls"]
        ids.scatter_(1, (lengths + 1)[:, None], self.special["sep"])
        mask = torch.arange(longest + 2, device=self.device) < (lengths + 2)[:, None]
        return ids, mask

    def token_count(self, rows: np.ndarray, limit: int = 254) -> int:
        """Tokens of these texts, special ones included."""
        return int((np.minimum(self.cpu_lengths[rows], limit) + 2).sum())


class Pool:
    """A folder that pool.py wrote.

    Args:
        folder: the pool.
        device: where the texts go.
        limit: number of first texts that are used, with the pairs among them; None: all.
    """

    def __init__(self, folder: Path, device: torch.device, limit: int | None = None) -> None:
        self.folder = folder
        self.device = device
        meta = json.loads((folder / "meta.json").read_text())
        self.source_names: list[str] = meta["sources"]
        self.kinds: list[str] = meta["kinds"]
        self.nli_labels: dict[str, int] = meta["nli"]
        self.special: dict[str, int] = meta["special"]
        ids = np.load(folder / "ids.npy")
        lengths = np.load(folder / "lengths.npy")[:limit]
        ids = ids[: int(lengths.astype(np.int64).sum())]
        self.texts = Texts(ids, lengths, self.special, device)
        self.lengths = self.texts.cpu_lengths
        self.source = np.load(folder / "source.npy")[:limit]

    def __len__(self) -> int:
        return len(self.texts)

    def rows_of(self, names: tuple[str, ...]) -> np.ndarray:
        """[texts] bool: whether a text comes from one of these sources; names that the pool lacks are no texts'."""
        return np.isin(self.source, [self.source_names.index(name) for name in names if name in self.source_names])

    def read(self, name: str, columns: int) -> np.ndarray:
        """The rows of a file of the pool whose first `columns` columns are numbers of texts that are in use."""
        rows = np.load(self.folder / name)
        return rows[(rows[:, :columns] < len(self)).all(1)]


def length_batches(
    lengths: np.ndarray, random: np.random.Generator, budget: int, limit: int = 254, jitter: float = 0.03
) -> Iterator[np.ndarray]:
    """Endless batches of texts of like length, about `budget` tokens each, in random order. Yields rows [B]."""
    full = np.minimum(lengths, limit) + 2
    while True:
        order = np.argsort(full * np.exp(jitter * random.standard_normal(len(full))), kind="stable")
        ordered = full[order]
        batches = []
        start = 0
        while start < len(order):
            last = min(start + int(budget // ordered[start]), len(order) - 1)
            count = max(int(budget // ordered[last]), 2)
            batches.append(order[start : start + count])
            start += count
        batches = [batch for batch in batches if len(batch) > 1]
        random.shuffle(batches)  # type: ignore[arg-type]
        yield from batches


def longest_first(lengths: np.ndarray, budget: int, limit: int) -> Iterator[np.ndarray]:
    """Every text once, the longest first, at most `budget` padded tokens in a batch. Yields rows [B]."""
    full = np.minimum(lengths, limit) + 2
    order = np.argsort(-full, kind="stable")
    start = 0
    while start < len(order):
        count = max(int(budget // full[order[start]]), 1)
        yield order[start : start + count]
        start += count


@torch.no_grad()
def embed(encode: Callable, texts: Texts, width: int, limit: int = 254, budget: int = 131072) -> torch.Tensor:
    """Mean-pooled, normalised embeddings, float16 [texts, width]. encode: (ids, mask) -> states [B, T, width]."""
    result = torch.empty(len(texts), width, device=texts.device, dtype=torch.float16)
    for batch in longest_first(texts.cpu_lengths, budget, limit):
        ids, mask = texts.batch(batch, limit)
        with half_precision(texts.device):
            result[texts.to_device(batch)] = mean_pool(encode(ids, mask), mask).half()
    return result

"""Text for training: files and Hub data sets in, token ids grouped by length out."""

import functools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..io.atomic import atomic_file
from ..io.files import find_files, open_text, read_records

Item = TypeVar("Item")

# The evaluation sets that the package's recipes keep out of training, see `read_file_list`.
EVALUATION_FILES = Path(__file__).parent / "recipes" / "evaluation_files.txt"
TEXT_FIELDS = (
    "text", "premise", "hypothesis", "anchor", "positive", "negative", "sentence", "sentence1", "sentence2",
    "query", "passage", "question", "answer", "title", "abstract", "complex", "original",
)  # fmt: skip


def read_texts(
    files: Iterable[Path], hub_dataset: str | None = None, limits: dict[str, int] | None = None
) -> Iterator[tuple[str, str]]:
    """(name of the source, text) of every non-empty text field of the files and of a Hub data set's train split.

    Args:
        limits: texts to take of a file, by its name; they are chosen at random, always the same, and keep their order.

    Raises ValueError for a file in which no record has a text field.
    """
    for path in files:
        texts: Iterable[str] = _texts_of_file(path)
        if limits and path.name in limits:
            texts = sample(texts, limits[path.name])
        empty = True
        for text in texts:
            empty = False
            yield path.name, text
        if empty:
            raise ValueError(f"{path} has no text: expected one of the fields {', '.join(TEXT_FIELDS)}.")
    if hub_dataset is not None:
        from datasets import load_dataset

        for record in load_dataset(hub_dataset, split="train", streaming=True):
            for text in _texts_of(record):
                yield hub_dataset, text


def _texts_of_file(path: Path) -> Iterator[str]:
    """The non-empty texts of a file, which is closed at the end, or when nobody asks for more."""
    for record in _read_lines(path) if path.suffix == ".txt" else read_records(path):
        yield from _texts_of(record)


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a plain text file as records."""
    with open_text(path) as file:
        for line in file:
            yield {"text": line}


def sample(items: Iterable[Item], count: int, seed: int = 0) -> list[Item]:
    """`count` of the items, each as likely as another, in their order (reservoir sampling)."""
    pick = random.Random(seed)
    kept: dict[int, tuple[int, Item]] = {}
    for i, item in enumerate(items):
        place = i if i < count else pick.randrange(i + 1)
        if place < count:
            kept[place] = (i, item)
    return [item for _, item in sorted(kept.values(), key=lambda pair: pair[0])]


def _texts_of(record: dict[str, Any]) -> list[str]:
    """The non-empty text fields of a record."""
    values = (record.get(field) for field in TEXT_FIELDS)
    return [value.strip() for value in values if isinstance(value, str) and value.strip()]


def normalise(text: str) -> str:
    """Letters and digits of any script in lower case: two texts that agree in these count as the same text."""
    return "".join(c for c in text.lower() if c.isalnum())


@dataclass
class TokenTable:
    """Token ids of many texts: text i is ids[starts[i]:starts[i + 1]].

    With `utf8`, also the texts themselves (cut where their ids end), for teachers with another tokenizer: text i is
    utf8[text_starts[i]:text_starts[i + 1]].
    """

    ids: np.ndarray  # int32 [tokens]
    starts: np.ndarray  # int64 [texts + 1]
    utf8: np.ndarray | None = None  # uint8 [bytes]
    text_starts: np.ndarray | None = None  # int64 [texts + 1]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each text, int64 [texts]."""
        return np.diff(self.starts)

    def save(self, path: Path) -> None:
        """Write an .npz file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {"ids": self.ids, "starts": self.starts, "utf8": self.utf8, "text_starts": self.text_starts}
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **{name: x for name, x in arrays.items() if x is not None})

    @classmethod
    def load(cls, path: Path) -> "TokenTable":
        """What `save` wrote."""
        with np.load(path) as file:
            return cls(**{name: file[name] for name in file.files})

    def text(self, i: int) -> str:
        """Text i. Raises ValueError if the table was made without texts."""
        if self.utf8 is None or self.text_starts is None:
            raise ValueError("This table has token ids only; tokenize with keep_texts=True.")
        return self.utf8[self.text_starts[i] : self.text_starts[i + 1]].tobytes().decode("utf-8")


def tokenize_texts(
    texts: Iterable[tuple[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    exclude: frozenset[str] = frozenset(),
    progress: Callable[[int], None] | None = None,
    keep_texts: bool = False,
) -> tuple[TokenTable, Counter[str]]:
    """Token ids of every distinct text, cut at `max_length`, and a count of what happened to each source.

    Args:
        texts: pairs (source, text).
        exclude: normalised texts to drop, such as the sentences of an evaluation set.
        progress: called with the number of texts read since the last call.
        keep_texts: keep the texts too, cut where their ids are cut.

    The counter holds, by source, the texts kept under "SOURCE" and the dropped ones under "SOURCE: duplicate" and
    "SOURCE: in evaluation".
    """
    seen: set[int] = set()
    counts: Counter[str] = Counter()
    ids: list[np.ndarray] = []
    lengths: list[int] = []
    kept: list[bytes] = []
    block: list[str] = []

    def flush() -> None:
        options = {"truncation": True, "max_length": max_length, "return_attention_mask": False}
        encoded = tokenizer(block, **options, return_offsets_mapping=keep_texts)
        ids.append(np.fromiter((i for text in encoded["input_ids"] for i in text), dtype=np.int32))
        lengths.extend(map(len, encoded["input_ids"]))
        if keep_texts:
            ends = [max((end for _, end in spans), default=0) for spans in encoded["offset_mapping"]]
            # A text that was not cut keeps what follows its last token.
            whole = [len(row) < max_length for row in encoded["input_ids"]]
            kept.extend((x if w else x[:end]).encode() for x, w, end in zip(block, whole, ends, strict=True))
        block.clear()

    for source, text in texts:
        if progress is not None:
            progress(1)
        normal = normalise(text)
        if normal in exclude:
            counts[f"{source}: in evaluation"] += 1
            continue
        key = hash(normal)
        if key in seen:
            counts[f"{source}: duplicate"] += 1
            continue
        seen.add(key)
        counts[source] += 1
        block.append(text)
        if len(block) == 4096:
            flush()
    if block:
        flush()
    table = TokenTable(np.concatenate(ids) if ids else np.empty(0, np.int32), _bounds(lengths))
    if keep_texts:
        table.utf8 = np.frombuffer(b"".join(kept), dtype=np.uint8)
        table.text_starts = _bounds([len(text) for text in kept])
    return table, counts


def _bounds(lengths: Sequence[int]) -> np.ndarray:
    """Where parts of these lengths begin and end when they are concatenated, int64 [parts + 1]."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


class LengthBatches:
    """Batches of texts of one and the same length: every token is a real one, nothing is padded.

    Batch `index` is a pure function of the seed: epoch index // batches_per_epoch shuffles the texts within each length
    and then the batches, so that a run resumes at any index without replaying what came before. Texts left over by the
    last batch of a length sit out that epoch. The first `ordered` batches of the first epoch come short to long.
    """

    def __init__(
        self, table: TokenTable, tokens_per_batch: int, seed: int = 0, min_texts: int = 8, ordered: int = 0
    ) -> None:
        self.table = table
        self.tokens_per_batch = tokens_per_batch
        self.seed = seed
        self.min_texts = min_texts
        self.ordered = ordered
        order = np.argsort(table.lengths, kind="stable")
        values, first = np.unique(table.lengths[order], return_index=True)
        self._groups = [
            (int(length), group)
            for length, group in zip(values, np.split(order, first[1:]), strict=True)
            if length > 0 and len(group) >= min_texts
        ]
        if not self._groups:
            raise ValueError(f"Too few texts: no length has {min_texts} of them. Give more text or a smaller batch.")
        self.batches_per_epoch = sum(len(group) // self._texts(length, group) for length, group in self._groups)
        self._epoch = -1
        self._batches: list[np.ndarray] = []

    def _texts(self, length: int, group: np.ndarray) -> int:
        return min(max(self.tokens_per_batch // length, self.min_texts), len(group))

    def _prepare(self, epoch: int) -> None:
        random = np.random.default_rng([self.seed, epoch])
        self._batches = []
        for length, group in self._groups:
            size = self._texts(length, group)
            group = random.permutation(group)
            self._batches += [group[i : i + size] for i in range(0, len(group) - size + 1, size)]
        self._batches = [self._batches[i] for i in random.permutation(len(self._batches))]
        if epoch == 0:
            first = self._batches[: self.ordered]
            self._batches[: self.ordered] = sorted(first, key=lambda batch: self.table.lengths[batch[0]])
        self._epoch = epoch

    def __getitem__(self, index: int) -> np.ndarray:
        """Token ids [B, T] of batch `index`, int64."""
        epoch, position = divmod(index, self.batches_per_epoch)
        if epoch != self._epoch:
            self._prepare(epoch)
        starts = self.table.starts
        return np.stack([self.table.ids[starts[i] : starts[i + 1]] for i in self._batches[position]]).astype(np.int64)


class PackedBatches:
    """Batches of texts of any length, concatenated, for a student that needs no padding.

    A batch is made of groups of `group` texts that follow each other in the table: sentences of one book,
    captions of one image, premise and hypothesis. So it holds near texts as well as far ones, which is what
    similarities are learnt from. Batch `index` is a pure function of the seed, as in `LengthBatches`; every epoch holds
    every group once.

    Args:
        tokens_per_batch: number of tokens of a batch, about; at least that of the longest group.
        max_texts: use a random part of the table with about this many texts; None: all.
    """

    def __init__(
        self, table: TokenTable, tokens_per_batch: int, seed: int = 0, group: int = 4, max_texts: int | None = None
    ) -> None:
        self.table = table
        self.tokens_per_batch = tokens_per_batch
        self.seed = seed
        starts = np.arange(0, len(table) - group + 1, group)
        if max_texts is not None:
            starts = np.sort(np.random.default_rng(seed).permutation(starts)[: max(max_texts // group, 1)])
        if not len(starts):
            raise ValueError(f"Too few texts: a group has {group}, the table {len(table)}.")
        self.regroup(starts[:, None] + np.arange(group))

    def regroup(self, groups: np.ndarray) -> None:
        """Make batches of these groups. groups: rows of the table [groups, texts of a group]."""
        self._groups = groups
        self._tokens = self.table.lengths[groups].sum(1)
        longest = max(self.tokens_per_batch, int(self._tokens.max()))
        self.batches_per_epoch = max(int(self._tokens.sum()) // longest, 1)
        self._epoch = -1
        self._batches: list[np.ndarray] = []

    def _prepare(self, epoch: int) -> None:
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self._groups))
        filled = np.cumsum(self._tokens[order]) - self._tokens[order]
        # Equal shares of the epoch's tokens: a group goes to the batch in which it begins.
        share = filled * self.batches_per_epoch // int(self._tokens.sum())
        cuts = np.searchsorted(share, np.arange(1, self.batches_per_epoch))
        self._batches = [batch.ravel() for batch in np.split(self._groups[order], cuts)]
        self._epoch = epoch

    def rows(self, index: int) -> np.ndarray:
        """The texts of batch `index`, as rows of the table."""
        epoch, position = divmod(index, self.batches_per_epoch)
        if epoch != self._epoch:
            self._prepare(epoch)
        return self._batches[position]

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of batch `index`: rows of the table [N], their token ids concatenated [T], bounds [N + 1]; int64."""
        rows = self.rows(index)
        ids = [self.table.ids[self.table.starts[i] : self.table.starts[i + 1]] for i in rows]
        return rows, np.concatenate(ids).astype(np.int64), _bounds([len(x) for x in ids])


def nearest_groups(embeddings: np.ndarray, size: int, seed: int = 0, reach: int = 64) -> np.ndarray:
    """Groups of texts near each other: row numbers [N // size, size], each row at most once.

    In random order, a text that is still free takes the nearest free ones among its `reach` nearest; those that find
    too few make groups of what is left.

    Args:
        embeddings: [N, D], L2-normalised.
    """
    count = len(embeddings)
    random = np.random.default_rng(seed)
    x = torch.from_numpy(np.ascontiguousarray(embeddings, dtype=np.float32))
    near = np.concatenate([(part @ x.T).topk(min(reach + 1, count)).indices.numpy() for part in x.split(1024)])
    free = np.ones(count, dtype=bool)
    groups: list[list[int]] = []
    for i in random.permutation(count):
        if not free[i]:
            continue
        others = [j for j in near[i] if free[j] and j != i][: size - 1]
        if len(others) == size - 1:
            groups.append([i, *others])
            free[groups[-1]] = False
    left = random.permutation(np.flatnonzero(free))
    left = left[: len(left) // size * size].reshape(-1, size)
    return np.concatenate([np.array(groups, dtype=np.int64).reshape(-1, size), left])


def read_file_list(path: Path) -> list[str]:
    """The names in a list of files: one a line; empty lines and those that begin with # do not count."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def evaluation_sentences(files: Iterable[str | Path]) -> frozenset[str]:
    """The sentences of evaluation sets, normalised: what training must not see.

    Args:
        files: pair files (sentence1, sentence2), corpora and queries (title, text), any file of `TEXT_FIELDS`.

    Raises ValueError for a file without any such field.
    """
    return frozenset(normalise(text) for _, text in read_texts(map(Path, files)))


def dropped(counts: Counter[str]) -> dict[str, int]:
    """Texts dropped over all sources, by reason."""
    totals: Counter[str] = Counter()
    for name, count in counts.items():
        _, colon, reason = name.rpartition(": ")
        if colon:
            totals[reason] += count
    return dict(totals)


def load_or_tokenize(
    folder: str | Path,
    sources: Iterable[str | Path],
    hub_dataset: str | None,
    exclude: Iterable[str | Path],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    progress: Callable[[int], None] | None = None,
    keep_texts: bool = False,
    limits: dict[str, int] | None = None,
) -> TokenTable:
    """The token table of a run, from `folder`/tokens.npz or else made from the sources and kept there.

    `folder`/data.json records what the table was made from, with the texts kept and dropped by source.

    Args:
        folder: of the run.
        sources: files and folders of texts.
        hub_dataset: Hub data set with a text column, besides or instead of them.
        exclude: evaluation sets, see `evaluation_sentences`.
        tokenizer: of the student.
        max_length: texts are cut after this number of tokens.
        progress: called with the number of texts read since the last call.
        keep_texts: keep the texts too, cut where their ids are cut.
        limits: see `read_texts`.

    Raises ValueError if the kept table was made from other sources or with another length.
    """
    folder = Path(folder)
    files = find_files(sources)
    excluded = [Path(path) for path in exclude]
    if unknown := set(limits or {}) - {path.name for path in files}:
        raise ValueError(
            f"text_limits names {', '.join(sorted(unknown))}, which is none of the files: "
            f"{', '.join(sorted(path.name for path in files))}."
        )
    made_from: dict[str, Any] = {
        "files": {path.name: path.stat().st_size for path in files},
        "hub_dataset": hub_dataset,
        "excluded": [path.name for path in excluded],
        "max_length": max_length,
    }
    # Only where they are used: tables of earlier versions lack these.
    if keep_texts:
        made_from["texts_kept"] = True
    if limits:
        made_from["limits"] = limits
    table_path = folder / "tokens.npz"
    record_path = folder / "data.json"
    if table_path.exists() and record_path.exists():
        kept = json.loads(record_path.read_text())
        if kept["made_from"] != made_from:
            raise ValueError(
                f"{table_path} was made from {kept['made_from']}, not from {made_from}; use another folder."
            )
        return TokenTable.load(table_path)
    texts = read_texts(files, hub_dataset, limits)
    sentences = evaluation_sentences(excluded)
    table, counts = tokenize_texts(texts, tokenizer, max_length, sentences, progress, keep_texts)
    table.save(table_path)
    record = {
        "made_from": made_from,
        "excluded_sentences": len(sentences),
        "dropped": dropped(counts),
        "texts": dict(sorted(counts.items())),
        "tokens": len(table.ids),
    }
    record_path.write_text(json.dumps(record, indent=1))
    return table

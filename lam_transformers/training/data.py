"""Text for training: files and Hub data sets in, token ids grouped by length out."""

import functools
import gzip
import json
import logging
import lzma
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)

TEXT_FIELDS = ("text", "premise", "hypothesis", "anchor", "positive", "negative", "sentence", "sentence1", "sentence2")


def open_text(path: Path):
    """Open a plain, .gz or .xz text file for reading, as UTF-8."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def read_records(path: Path) -> Iterator[dict]:
    """The objects of a JSON-lines file; broken lines are skipped, counted and reported."""
    broken = 0
    with open_text(path) as file:
        for line in file:
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                broken += 1
                continue
            if isinstance(record, dict):
                yield record
            else:
                broken += 1
    if broken:
        logger.warning("%s: skipped %d lines that are not JSON objects.", path, broken)


def find_files(sources: Iterable[str | Path]) -> list[Path]:
    """The .jsonl, .jsonl.gz, .jsonl.xz and .txt files named by or lying under `sources`, sorted.

    Raises FileNotFoundError for a source that is no such file or holds none.
    """
    files: list[Path] = []
    for source in map(Path, sources):
        endings = (".jsonl", ".jsonl.gz", ".jsonl.xz", ".txt")
        found = [source] if source.is_file() else [p for p in source.rglob("*") if p.name.endswith(endings)]
        if not found:
            raise FileNotFoundError(f"{source} is neither a text file nor a folder with {', '.join(endings)} files.")
        files += found
    return sorted(set(files))


def read_texts(files: Iterable[Path], hub_dataset: str | None = None) -> Iterator[tuple[str, str]]:
    """(name of the source, text) of every non-empty text field of the files and of a Hub data set's train split.

    Raises ValueError for a file in which no record has a text field.
    """
    for path in files:
        count = 0
        if path.suffix == ".txt":
            records: Iterable[dict] = ({"text": line} for line in open_text(path))
        else:
            records = read_records(path)
        for record in records:
            for text in _texts_of(record):
                count += 1
                yield path.name, text
        if not count:
            raise ValueError(f"{path} has no text: expected one of the fields {', '.join(TEXT_FIELDS)}.")
    if hub_dataset is not None:
        from datasets import load_dataset

        for record in load_dataset(hub_dataset, split="train", streaming=True):
            for text in _texts_of(record):
                yield hub_dataset, text


def _texts_of(record: dict) -> list[str]:
    """The non-empty text fields of a record."""
    values = (record.get(field) for field in TEXT_FIELDS)
    return [value.strip() for value in values if isinstance(value, str) and value.strip()]


def normalise(text: str) -> str:
    """Letters and digits in lower case: two texts that agree in these count as the same text."""
    return "".join(c for c in text.lower() if c.isalnum())


@dataclass
class TokenTable:
    """Token ids of many texts: text i is ids[starts[i]:starts[i + 1]]."""

    ids: np.ndarray  # int32 [tokens]
    starts: np.ndarray  # int64 [texts + 1]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp.npz")
        np.savez(temporary, ids=self.ids, starts=self.starts)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> "TokenTable":
        with np.load(path) as file:
            return cls(file["ids"], file["starts"])


def tokenize_texts(
    texts: Iterable[tuple[str, str]], tokenizer, max_length: int, exclude: frozenset[str] = frozenset(), progress=None
) -> tuple[TokenTable, Counter]:
    """Token ids of every distinct text, cut at `max_length`, and a count of what happened to each source.

    Args:
        texts: pairs (source, text).
        exclude: normalised texts to drop, such as the sentences of an evaluation set.
        progress: called with the number of texts read since the last call.

    The counter holds, by source, the texts kept under "SOURCE" and the dropped ones under "SOURCE: duplicate" and
    "SOURCE: in evaluation".
    """
    seen: set[int] = set()
    counts: Counter = Counter()
    ids: list[np.ndarray] = []
    lengths: list[int] = []
    block: list[str] = []

    def flush():
        encoded = tokenizer(block, truncation=True, max_length=max_length, return_attention_mask=False)["input_ids"]
        ids.append(np.fromiter((i for text in encoded for i in text), dtype=np.int32))
        lengths.extend(map(len, encoded))
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
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return TokenTable(np.concatenate(ids) if ids else np.empty(0, np.int32), starts), counts


class LengthBatches:
    """Batches of texts of one and the same length: every token is a real one, nothing is padded.

    Batch `index` is a pure function of the seed: epoch index // batches_per_epoch shuffles the texts within each length
    and then the batches, so that a run resumes at any index without replaying what came before. Texts left over by the
    last batch of a length sit out that epoch. The first `ordered` batches of the first epoch come short to long.
    """

    def __init__(self, table: TokenTable, tokens_per_batch: int, seed: int = 0, min_texts: int = 8, ordered: int = 0):
        self.table, self.tokens_per_batch, self.seed, self.min_texts = table, tokens_per_batch, seed, min_texts
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
            group, size = random.permutation(group), self._texts(length, group)
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


def evaluation_sentences(files: Iterable[Path]) -> frozenset[str]:
    """The sentences of pair files (sentence1, sentence2), normalised: what training must not see."""
    found = set()
    for path in files:
        for record in read_records(path):
            found |= {normalise(record[name]) for name in ("sentence1", "sentence2") if record.get(name)}
    return frozenset(found)


def load_or_tokenize(folder, sources, hub_dataset, exclude, tokenizer, max_length, progress=None) -> TokenTable:
    """The token table of a run, from `folder`/tokens.npz or else made from the sources and kept there.

    `folder`/data.json records what the table was made from, with the texts kept and dropped by source.

    Raises ValueError if the kept table was made from other sources or with another length.
    """
    folder = Path(folder)
    files = find_files(sources)
    made_from = {
        "files": {path.name: path.stat().st_size for path in files},
        "hub_dataset": hub_dataset,
        "excluded": [Path(path).name for path in exclude],
        "max_length": max_length,
    }
    table_path, record_path = folder / "tokens.npz", folder / "data.json"
    if table_path.exists() and record_path.exists():
        kept = json.loads(record_path.read_text())
        if kept["made_from"] != made_from:
            raise ValueError(
                f"{table_path} was made from {kept['made_from']}, not from {made_from}; use another folder."
            )
        return TokenTable.load(table_path)
    texts = read_texts(files, hub_dataset)
    table, counts = tokenize_texts(texts, tokenizer, max_length, evaluation_sentences(exclude), progress)
    table.save(table_path)
    record = {"made_from": made_from, "texts": dict(sorted(counts.items())), "tokens": len(table.ids)}
    record_path.write_text(json.dumps(record, indent=1))
    return table

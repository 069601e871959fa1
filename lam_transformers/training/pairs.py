"""Pairs, triplets and scored pairs for fine-tuning, from files in the layouts that such data sets come in."""

import json
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..io.files import find_files, read_records
from .data import normalise

# (field of the anchor, field of the positive, whether a list there is one text in parts or several texts)
FIELDS = (
    ("anchor", "positive", "several"),
    ("question", "answer", "several"),
    ("question", "sentence", "several"),
    ("query", "passage", "several"),
    ("title", "abstract", "parts"),
    ("title", "tldr", "several"),
    ("complex", "simple", "parts"),
    ("original", "simplifications", "several"),
    ("sentence1", "sentence2", "several"),
    ("premise", "hypothesis", "several"),
)


@dataclass
class PairSource:
    """One source of pairs.

    Attributes:
        path: file or folder.
        name: of the source in logs; the path's by default.
        labels: label -> score, for records whose `label` says how alike a pair is (entailment: 1, neutral: 0.5).
        highest_score: the score of two texts that mean the same, 5 in STS-B; None: the highest that the source has. The
            scores of the rows are divided by it.
        max_records: number of records at most, chosen at random.
        hard_negatives: number of negatives of each pair, mined with the model before the stage.
        word_dropout: one more copy of each record, with this share of the words of its anchor left out.
        keep_overlap: keep all records, also those that share a sentence with an evaluation set, and duplicates. Only
            for official train splits.
    """

    path: str
    name: str = ""
    labels: dict[str, float] | None = None
    highest_score: float | None = None
    max_records: int | None = None
    hard_negatives: int = 0
    word_dropout: float = 0.0
    keep_overlap: bool = False

    def __post_init__(self) -> None:
        self.name = self.name or Path(self.path).name.split(".")[0]


def texts_of(row: dict[str, Any]) -> list[str]:
    """The texts of a row, without its score."""
    return [value for name, value in row.items() if name != "score"]


def _rows_of(record: dict[str, Any], labels: dict[str, float] | None) -> Iterator[dict[str, Any] | str]:
    """The rows of a record, or why there is none: scored pairs (with `score`), else pairs or triplets."""
    fields = next((f for f in FIELDS if record.get(f[0]) is not None and record.get(f[1]) is not None), None)
    if fields is None:
        yield "missing fields"
        return
    first, second, lists = fields
    anchor = record[first]
    positives = record[second]
    if isinstance(positives, list):
        positives = [" ".join(map(str, positives))] if lists == "parts" else positives
    else:
        positives = [positives]
    score = record.get("score")
    if labels is not None:
        score = labels.get(str(record.get("label")))
        if score is None:
            yield "label not asked for"
            return
    elif score is None and str(record.get("label", 1)) not in ("1", "1.0", "True"):
        yield "not a positive pair"
        return
    for positive in positives:
        texts = [anchor, positive] + ([record["negative"]] if record.get("negative") and score is None else [])
        if not all(isinstance(x, str) and x.strip() for x in texts):
            yield "empty"
            continue
        texts = [x.strip() for x in texts]
        if score is None:
            yield dict(zip(("anchor", "positive", "negative"), texts, strict=False))
            continue
        try:
            number = float(score)
        except (TypeError, ValueError):
            number = math.nan
        if math.isfinite(number):
            yield {"sentence1": texts[0], "sentence2": texts[1], "score": number}
        else:
            yield "score is no number"


def read_source(
    source: PairSource,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    exclude: frozenset[str] = frozenset(),
    seed: int = 0,
    root: Path = Path(),
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The rows of a source, texts cut at `max_length` tokens, and counts of what was kept and dropped, by reason.

    The source's path may be relative to `root`.

    A row is {"sentence1", "sentence2", "score"} or {"anchor", "positive"} and perhaps "negative"; all rows of a source
    have the same fields (those of the first row; others are counted as "other fields").

    Raises ValueError if nothing is left.
    """
    rows: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    seen: set[int] = set()
    names: set[str] = set()
    for path in find_files([root / source.path]):
        for record in read_records(path):
            names |= record.keys()
            for row in _rows_of(record, source.labels):
                if isinstance(row, str):
                    counts[row] += 1
                    continue
                reason = _reason(row, rows, seen, exclude, source.keep_overlap)
                if reason is not None:
                    counts[reason] += 1
                if reason in (None, "overlap kept"):
                    rows.append(row)
    if not rows:
        raise ValueError(
            f"{source.path} gives no pairs ({dict(counts)}). Its fields are {sorted(names)}; expected two of "
            f"{', '.join(f'{a} and {b}' for a, b, _ in FIELDS)}."
        )
    if source.max_records is not None and len(rows) > source.max_records:
        counts["over max_records"] = len(rows) - source.max_records
        rows = random.Random(seed).sample(rows, source.max_records)
    if "score" in rows[0]:
        highest = max(row["score"] for row in rows) if source.highest_score is None else source.highest_score
        if not highest > 0:
            raise ValueError(f"The highest score of {source.path} must be above 0, got {highest}.")
        rows = [row | {"score": row["score"] / highest} for row in rows]
    rows = _cut(rows, tokenizer, max_length)
    counts["kept"] = len(rows)
    if source.word_dropout:
        rows += [_dropped_words(row, source.word_dropout, random.Random(f"{seed} {i}")) for i, row in enumerate(rows)]
        counts["copies with words left out"] = counts["kept"]
    return rows, counts


def _reason(
    row: dict[str, Any], rows: list[dict[str, Any]], seen: set[int], exclude: frozenset[str], keep_overlap: bool
) -> str | None:
    """Why a row is not taken, or that it is although it overlaps; None for a plain row."""
    if rows and row.keys() != rows[0].keys():
        return "other fields"
    normal = [normalise(text) for text in texts_of(row)]
    if any(text in exclude for text in normal):
        return "overlap kept" if keep_overlap else "in evaluation"
    key = hash(tuple(normal))
    if key in seen and not keep_overlap:
        return "duplicate"
    seen.add(key)
    return None


def _cut(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[dict[str, Any]]:
    """The rows with every text cut after `max_length` tokens, special ones included."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    for name, texts in columns.items():
        if name != "score":
            columns[name] = cut_texts(texts, tokenizer, max_length)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def cut_texts(texts: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[str]:
    """Texts cut after `max_length` tokens, special ones included."""
    # No token is longer than its text: shorter ones need no look.
    long = [i for i, text in enumerate(texts) if len(text) + 2 > max_length]
    if not long:
        return texts
    encoded = tokenizer([texts[i] for i in long], truncation=True, max_length=max_length, return_offsets_mapping=True)[
        "offset_mapping"
    ]
    texts = list(texts)
    for i, spans in zip(long, encoded, strict=True):
        if len(spans) >= max_length:
            texts[i] = texts[i][: max(end for _, end in spans)]
    return texts


def _dropped_words(row: dict[str, Any], share: float, pick: random.Random) -> dict[str, Any]:
    first = next(iter(row))
    words = row[first].split()
    kept = [word for word in words if pick.random() >= share] or words
    return row | {first: " ".join(kept)}


def write_report(folder: Path, counts: dict[str, Counter[str]], sources: list[PairSource], excluded: int) -> None:
    """`folder`/data.json: what each source gave, what was dropped and why."""
    record = {
        "excluded_sentences": excluded,
        "sources": {s.name: {**asdict(s), "counts": dict(counts[s.name])} for s in sources},
    }
    (folder / "data.json").write_text(json.dumps(record, indent=1) + "\n")

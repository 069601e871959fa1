"""The suite's data sets: found in a folder or fetched from the Hub, and named with a way to get them where missing."""

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..io.files import read_records

ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.xz")


class MissingData(FileNotFoundError):
    """A data set (or a package) that a part needs is not there; the rest of the suite goes on.

    Attributes:
        name: what is missing.
        how: how to get it.
    """

    def __init__(self, name: str, how: str):
        super().__init__(f"{name} is missing. {how}")
        self.name = name
        self.how = how


@dataclass(frozen=True)
class DataSet:
    """Where a data set comes from.

    Attributes:
        file: path below the data folder, without the ending.
        how: how to get it, in words.
        hub: Hub data set and split with the columns of a pair file, or None.
    """

    file: str
    how: str
    hub: tuple[str, str] | None = None


def _pairs(name: str, hub: str, split: str) -> DataSet:
    return DataSet(f"sts/{name}", f"It is {hub} (split {split}) on the Hub.", (hub, split))


DATA_SETS = {
    "stsb_dev": _pairs("stsb_dev", "mteb/stsbenchmark-sts", "validation"),
    "stsb_test": _pairs("stsb_test", "mteb/stsbenchmark-sts", "test"),
    "books": DataSet(
        "longdoc/books",
        "Long public-domain books (docs/EVALUATION.md lists 34; Project Gutenberg has them) as _id, title, text.",
    ),
    "leval": DataSet("longdoc/leval", "L4NLP/LEval on the Hub, as task, input, instructions."),
    "babi": DataSet("longdoc/babi", "bAbI tasks 1.2, the archive tasks_1-20_v1-2 of Weston et al. (2015)."),
}


class Data:
    """The data sets in `folder` (None: LAM_DATA_DIR, or else only the Hub's).

    Raises:
        FileNotFoundError: if the folder does not exist.
    """

    def __init__(self, folder: str | os.PathLike | None = None):
        named = folder or os.environ.get("LAM_DATA_DIR")
        self.folder = None if named is None else Path(named)
        if self.folder is not None and not self.folder.is_dir():
            raise FileNotFoundError(f"The data folder {self.folder} does not exist; give --data or LAM_DATA_DIR.")

    def path(self, name: str) -> Path:
        """File (or folder) of a data set.

        Raises:
            MissingData: if it is not there; the message says how to get it.
        """
        data_set = DATA_SETS[name]
        if self.folder is not None:
            for path in (self.folder / f"{data_set.file}{ending}" for ending in (*ENDINGS, "")):
                if path.exists():
                    return path
            if named := sorted(self.folder.glob(f"{data_set.file}*")):
                return named[0]
        if data_set.hub is not None and (fetched := _fetch_pairs(*data_set.hub)) is not None:
            return fetched
        place = "--data DIR or LAM_DATA_DIR" if self.folder is None else "the data folder"
        raise MissingData(name, f"Expected {data_set.file}.jsonl[.gz|.xz] below {place}. {data_set.how}")


def _fetch_pairs(hub: str, split: str) -> Path | None:
    """A split of a Hub data set as a pair file in the Hub's cache, or None where that cannot be had."""
    from huggingface_hub.constants import HF_HOME

    path = Path(HF_HOME) / "lam-evaluation" / f"{hub.replace('/', '--')}-{split}.jsonl"
    if path.exists():
        return path
    try:
        from datasets import load_dataset

        rows = load_dataset(hub, split=split)
    except (ImportError, OSError, ValueError):
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({name: row[name] for name in ("sentence1", "sentence2", "score")}) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def held_out_books(data: Data) -> list[dict]:
    """The second half of the books by sorted _id: no training stage reads them."""
    books = sorted(read_records(data.path("books")), key=lambda book: book["_id"])
    return books[len(books) // 2 :]


def read_babi(path: Path, task: int, split: str) -> Iterator[tuple[str, str, str]]:
    """(story so far, question, answer) of every question of a bAbI task.

    Args:
        path: the archive (.tar.*) or the folder tasks_1-20_v1-2 (its folder en is read, 1,000 questions a split).
        task: 1 to 20.
        split: "train" or "test".

    Raises:
        MissingData: if the archive has no such task.
    """
    end = f"_{split}.txt"
    if path.is_dir():
        files = sorted(path.glob(f"**/en/qa{task}_*{end}"))
        text = files[0].read_text(encoding="utf-8") if files else None
    else:
        with tarfile.open(path) as archive:
            wanted = (m for m in archive if f"/en/qa{task}_" in m.name and m.name.endswith(end))
            member = next(wanted, None)
            file = archive.extractfile(member) if member is not None else None
            text = None if file is None else file.read().decode("utf-8")
    if text is None:
        raise MissingData(f"bAbI task {task}", f"{path} holds no en/qa{task}_*{end}.")
    story: list[str] = []
    for line in text.splitlines():
        number, sentence = line.split(" ", 1)
        if number == "1":
            story = []
        if "\t" in sentence:
            question, answer, _ = sentence.split("\t")
            yield " ".join(story), question.strip(), answer
        else:
            story.append(sentence.strip())

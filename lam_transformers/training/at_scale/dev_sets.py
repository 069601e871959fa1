"""The dev sets of training at scale, packed into one file of token ids."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...io.files import read_records

SIMILARITY_SETS = ("stsb_dev", "sickr_dev")
RETRIEVAL_SETS = ("cranfield", "cisi")


class DevSets:
    """Writes dev.npz: for each set its texts (`NAME.ids`, `NAME.lengths`) and what is right about them.

    Similarity sets have the sides `.a` and `.b` and `.score`; retrieval sets have `.docs`, `.queries` and `.qrels`
    [judgements, 3]: query, document, grade. In "beam" a query is answered from the messages of its own conversation
    (`.group` of each document, `.qgroup` of each query).

    Args:
        data: the data folder.
        encoder: texts and a limit -> arrays of token ids.
        limit: tokens of a text that are kept.
    """

    def __init__(
        self, data: Path, encoder: Callable[[Sequence[str], int | None], list[np.ndarray]], limit: int
    ) -> None:
        self.data = data
        self.encoder = encoder
        self.limit = limit
        self.arrays: dict[str, np.ndarray] = {}

    def write(self, path: Path, title_sets: Mapping[str, Sequence[tuple[str, str]]]) -> None:
        """Write all sets. title_sets: (query, document) by name, row by row."""
        for name in SIMILARITY_SETS:
            self._add_similarity(name)
        for name in RETRIEVAL_SETS:
            self._add_retrieval(name)
        for name, rows in title_sets.items():
            self._add_texts(f"{name}.queries", [query for query, _ in rows])
            self._add_texts(f"{name}.docs", [document for _, document in rows])
            self.arrays[f"{name}.qrels"] = np.array([(i, i, 1) for i in range(len(rows))], np.int32)
        self._add_conversations()
        np.savez_compressed(path, **self.arrays)  # type: ignore[arg-type]

    def _add_texts(self, name: str, texts: Sequence[str]) -> None:
        rows = self.encoder(texts, self.limit)
        self.arrays[f"{name}.ids"] = np.concatenate(rows)
        self.arrays[f"{name}.lengths"] = np.array([len(row) for row in rows], np.uint32)

    def _add_similarity(self, name: str) -> None:
        rows = list(read_records(self.data / f"sts/{name}.jsonl.gz"))
        self._add_texts(f"{name}.a", [row["sentence1"] for row in rows])
        self._add_texts(f"{name}.b", [row["sentence2"] for row in rows])
        self.arrays[f"{name}.score"] = np.array([float(row["score"]) for row in rows])

    def _add_retrieval(self, name: str) -> None:
        folder = self.data / "retrieval" / name
        documents = list(read_records(folder / "corpus.jsonl.gz"))
        lines = (folder / "qrels_test.tsv").read_text().splitlines()[1:]
        judgements = [line.split() for line in lines]
        judged = {query for query, *_ in judgements}
        queries = [row for row in read_records(folder / "queries.jsonl.gz") if row["_id"] in judged]
        self._add_texts(f"{name}.docs", [((row.get("title") or "") + " " + row["text"]).strip() for row in documents])
        self._add_texts(f"{name}.queries", [row["text"] for row in queries])
        query_number = {row["_id"]: i for i, row in enumerate(queries)}
        document_number = {row["_id"]: i for i, row in enumerate(documents)}
        known = [
            (query_number[query], document_number[document], int(float(grade)))
            for query, document, grade in judgements
            if document in document_number
        ]
        self.arrays[f"{name}.qrels"] = np.array(known, np.int32)

    def _add_conversations(self) -> None:
        messages: list[str] = []
        group: list[int] = []
        questions: list[str] = []
        question_group: list[int] = []
        judgements: list[tuple[int, int, int]] = []
        for number, row in enumerate(read_records(self.data / "memory/beam_100K.jsonl.gz")):
            place = {message["id"]: len(messages) + i for i, message in enumerate(row["messages"])}
            messages += [message["content"] for message in row["messages"]]
            group += [number] * len(row["messages"])
            for probes in row["probing_questions"].values():
                for probe in probes:
                    evidence = {place[i] for i in message_ids(probe.get("source_chat_ids")) if i in place}
                    if not evidence:
                        continue
                    judgements += [(len(questions), message, 1) for message in evidence]
                    questions.append(probe["question"])
                    question_group.append(number)
        self._add_texts("beam.docs", messages)
        self._add_texts("beam.queries", questions)
        self.arrays["beam.qrels"] = np.array(judgements, np.int32)
        self.arrays["beam.group"] = np.array(group, np.uint8)
        self.arrays["beam.qgroup"] = np.array(question_group, np.uint8)


def message_ids(given: Any) -> list[int]:
    """The numbers in BEAM's `source_chat_ids`, which is a number, a text, or any nesting of lists and dicts of them."""
    if isinstance(given, int | float):
        return [int(given)]
    if isinstance(given, dict):
        return [number for value in given.values() for number in message_ids(value)]
    if isinstance(given, list):
        return [number for value in given for number in message_ids(value)]
    try:
        return [int(given)]
    except (TypeError, ValueError):
        return []

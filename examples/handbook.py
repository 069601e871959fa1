"""What the examples share: the handbook of an invented library in passages, 25 questions about it, recall@k.

Every question has exactly one right passage.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HANDBOOK = ROOT / "examples/data/handbook.md"
QUESTIONS = ROOT / "examples/data/questions.jsonl"


def passage_spans(text: str) -> list[tuple[int, int]]:
    """Where the paragraphs of a Markdown text begin and end, in characters; headings are left out."""
    paragraphs = re.finditer(r"\S(?:.|\n(?!\s*\n))*(?<!\s)", text)
    return [p.span() for p in paragraphs if not p.group().startswith("#")]


def read_passages() -> list[str]:
    text = HANDBOOK.read_text(encoding="utf-8")
    return [text[start:end] for start, end in passage_spans(text)]


def read_questions() -> list[dict[str, str]]:
    """Records with id, question, passage (the right one, word for word) and answer."""
    return [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]


def recall(questions: Iterable[dict[str, str]], answers: Iterable[Sequence[str]], k: int = 5) -> float:
    """Share of the questions whose right passage is, whole, in one of the first k texts that answer it."""
    hits = [any(q["passage"] in text for text in texts[:k]) for q, texts in zip(questions, answers, strict=True)]
    return sum(hits) / len(hits)


def trained_model() -> Path:
    """LAM_MODEL (a folder), or else LAM-base-v1 of this checkout."""
    return Path(os.environ.get("LAM_MODEL") or ROOT / "LAM-base-v1")


def model_from_arguments() -> str:
    """The first argument (a folder or Hub id), or else `trained_model()`; ends the program if that has no weights."""
    if len(sys.argv) > 1 and sys.argv[1] != "LAM-base-v1":
        return sys.argv[1]
    if not (trained_model() / "model.safetensors").exists():
        sys.exit(f"{trained_model()} has no weights. Name another model: python {sys.argv[0]} FOLDER")
    return str(trained_model())


def summary(name: str, questions: Sequence[dict[str, str]], answers: Sequence[Sequence[str]]) -> str:
    first = recall(questions, answers, 1)
    five = recall(questions, answers, 5)
    return f"{name}: {len(questions)} questions, recall@1 {first:.2f}, recall@5 {five:.2f}"

"""Files of training data, and what the trainers of all stages are tested with."""

import gzip
import json
import lzma
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from ..conftest import WORDS


def write_records(path: Path, records: Iterable[dict | str]) -> Path:
    """A file of JSON lines (.gz and .xz compressed), its folder made; strings are lines as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opened(path, "wt", encoding="utf-8") as file:
        file.writelines((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in records)
    return path


def read_log(folder: Path) -> list[dict]:
    """The records of a run's log.jsonl."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def sentence(pick: random.Random, words: int = 6) -> str:
    """Words of the toy vocabulary."""
    return " ".join(pick.choices(WORDS, k=words))


def scored_pairs(pick: random.Random, count: int, words: int = 6) -> Iterator[dict]:
    """Pairs of sentences whose score is the number of first words that they share."""
    for _ in range(count):
        first = sentence(pick, words).split()
        shared = pick.randint(0, words)
        second = first[:shared] + sentence(pick, words - shared).split()
        yield {"sentence1": " ".join(first), "sentence2": " ".join(second), "score": float(shared)}


@pytest.fixture
def lam(fresh_accelerator):
    """Runs the command `lam` as a new process would; what it printed, in one line."""
    from typer.testing import CliRunner

    from lam_transformers.cli.app import app

    def run(*arguments, code: int = 0) -> str:
        fresh_accelerator()
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output
        return " ".join(result.output.split())

    return run

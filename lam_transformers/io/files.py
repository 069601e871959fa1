"""Files of text: found, opened and read record by record."""

import gzip
import json
import logging
import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..model.checks_lam import check_regular

logger = logging.getLogger(__name__)


def open_text(path: str | Path):
    """Open a plain, .gz or .xz text file for reading, as UTF-8."""
    path = Path(path)
    check_regular(path)
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def read_records(path: str | Path) -> Iterator[dict]:
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
        found = (
            [source] if source.is_file() else [p for p in source.rglob("*") if p.name.endswith(endings) and p.is_file()]
        )
        if not found:
            raise FileNotFoundError(f"{source} is neither a text file nor a folder with {', '.join(endings)} files.")
        files += found
    return sorted(set(files))

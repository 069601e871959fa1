"""Files of text: looked for, opened and read record by record."""

import gzip
import json
import logging
import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from ..model.checks_lam import check_regular

logger = logging.getLogger(__name__)

ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.xz", ".txt")


def open_text(path: str | Path) -> TextIO:
    """Open a plain, .gz or .xz text file for reading, as UTF-8.

    Args:
        path: the file; its ending says how it is compressed.

    Returns:
        The open file, to be used as a context manager.

    Raises:
        OSError: if there is none, or something else than a file.
    """
    path = Path(path)
    check_regular(path)
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def read_records(path: str | Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file; broken lines are skipped, counted and reported.

    Args:
        path: the file, see `open_text`.

    Yields:
        One dictionary a line.

    Raises:
        OSError: if the file cannot be read.
    """
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
    """The .jsonl, .jsonl.gz, .jsonl.xz and .txt files that `sources` name or hold.

    Args:
        sources: files, and folders that are searched to any depth.

    Returns:
        The files, each once, sorted.

    Raises:
        FileNotFoundError: for a source that is no such file or holds none.
    """
    files: list[Path] = []
    for source in map(Path, sources):
        if source.is_file():
            files.append(source)
            continue
        inside = [path for path in source.rglob("*") if path.name.endswith(ENDINGS) and path.is_file()]
        if not inside:
            raise FileNotFoundError(f"{source} is neither a text file nor a folder with {', '.join(ENDINGS)} files.")
        files += inside
    return sorted(set(files))

"""JSON lines and plain text, line by line: plain, .gz or .xz, in memory that does not grow with the file."""

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

# Bytes. A longer line is no text, and would not fit into the memory of every machine.
LONGEST_LINE = 1 << 26
# JSON records in which the chosen columns must occur at least once.
LOOK_AHEAD = 100


class Line(NamedTuple):
    """A line of a file.

    Attributes:
        number: counted from 0.
        text: without its end; "" where there is an error.
        error: what keeps it from being a text, or None.
        bytes_read: of the file, as it is on the disk, when the line had been read.
    """

    number: int
    text: str
    error: str | None
    bytes_read: int


class Record(NamedTuple):
    """A JSON object on a line of a file; as `Line`, with the object in place of the text."""

    number: int
    content: dict[str, Any]
    error: str | None
    bytes_read: int


def place(name: str, number: int) -> str:
    """How messages name a line of a file."""
    return f"{name}, row {number} (line {number + 1})"


def check_columns(path: str, name: str, columns: list[str]) -> None:
    """Look for the columns in the first records of a file of JSON lines.

    Args:
        path: the file.
        name: what messages call it.
        columns: what each record is to have.

    Raises:
        ValueError: if none of the first records has one of the columns; a file without records has nothing to refuse.
        OSError: if the file cannot be read.
    """
    known: set[str] = set()
    any_record = False
    for record in islice(read_records(path, name, 0), LOOK_AHEAD):
        if record.error is None:
            any_record = True
            known |= record.content.keys()
            if known.issuperset(columns):
                return
    if any_record:
        missing = next(column for column in columns if column not in known)
        shown = ", ".join(sorted(known)[:20]) or "none"
        raise ValueError(f"{name} has no column '{missing}'; its first rows have: {shown}.")


def read_records(path: str, name: str, first: int) -> Iterator[Record]:
    """Every line that is not blank as a JSON object, from line `first` on.

    Args:
        path: the file.
        name: what messages call it.
        first: the number of the first line to give.

    Yields:
        One `Record` a line, with an error where it holds no object.

    Raises:
        OSError: naming the line where the file cannot be read on.
    """
    for line in read_lines(path, name, first):
        content: Any = {}
        error = line.error
        if error is None:
            if not line.text.strip():
                continue
            try:
                content = json.loads(line.text)
            except (ValueError, RecursionError) as problem:
                error = f"broken JSON ({problem})"
            else:
                if not isinstance(content, dict):
                    error = f"not a JSON object but of type {type(content).__name__}"
                    content = {}
        yield Record(line.number, content, error, line.bytes_read)


def read_lines(path: str, name: str, first: int) -> Iterator[Line]:
    """The lines of a file from number `first` on. Only a line feed ends a line.

    Args:
        path: the file.
        name: what messages call it.
        first: the number of the first line to give.

    Yields:
        One `Line` a line, with an error where it is no UTF-8 or too long.

    Raises:
        OSError: naming the line where the file cannot be read on.
    """
    number = -1
    try:
        with open(path, "rb") as raw, _decompressed(raw, path) as file:
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE and not line.endswith(b"\n"):
                    if number >= first:
                        yield Line(number, "", f"the line is longer than {LONGEST_LINE >> 20} MiB", raw.tell())
                    while line and not line.endswith(b"\n"):
                        line = file.readline(1 << 20)
                    continue
                if number < first:
                    continue
                line = line.removesuffix(b"\n").removesuffix(b"\r")
                if number == 0:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                try:
                    text = line.decode("utf-8")
                    error = None
                except UnicodeDecodeError as problem:
                    text = ""
                    error = f"not UTF-8 (byte {problem.start} of the line)"
                yield Line(number, text, error, raw.tell())
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as problem:
        raise OSError(f"{place(name, number + 1)}: the file cannot be read on ({problem}); get it again.") from problem


def _decompressed(raw: io.BufferedReader, path: str) -> io.BufferedIOBase:
    if path.endswith(".gz"):
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), 1 << 16)  # type: ignore[arg-type]
    if path.endswith(".xz"):
        return io.BufferedReader(lzma.LZMAFile(raw), 1 << 16)  # type: ignore[arg-type]
    return raw

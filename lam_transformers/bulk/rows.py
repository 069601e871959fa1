"""Rows of JSON lines, Parquet and plain text files, in memory that does not grow with the files."""

import gzip
import hashlib
import io
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

COMPRESSED = ("", ".gz", ".xz")
LINE_ENDINGS = {"json": (".jsonl", ".ndjson"), "text": (".txt",)}
BLOCK_CHARACTERS = 1 << 22  # a block closes after this many, so that long texts do not pile up
WHOLE_FINGERPRINT = 1 << 26  # larger files are fingerprinted by samples
SAMPLES, SAMPLE_BYTES = 64, 1 << 16
LONGEST_LINE = 1 << 26  # bytes; a longer line is no text, and would not fit into the memory of every machine
LOOK_AHEAD = 100  # JSON records in which the chosen column must occur at least once


class Row(NamedTuple):
    """A row of an input: its file (index), its number there (from 0), its id and its text, or else what is wrong."""

    file: int
    number: int
    id: str | None
    text: str | None
    error: str | None


@dataclass
class Block:
    """Some consecutive rows."""

    rows: list[Row]
    bytes_read: int  # of all inputs together, up to the last of the rows


@dataclass(frozen=True)
class Source:
    """One input file."""

    name: str  # as the caller wrote it; what the output calls it
    path: str  # absolute
    kind: str  # "json", "text" or "parquet"
    size: int  # bytes
    fingerprint: str

    def identity(self) -> dict[str, Any]:
        return {"file": self.name, "size": self.size, "fingerprint": self.fingerprint}

    def place(self, number: int) -> str:
        """How messages name a row."""
        return f"{self.name}, row {number}" + ("" if self.kind == "parquet" else f" (line {number + 1})")


def kind_of(path: Path) -> str:
    """ "json", "text" or "parquet", by the ending. Raises ValueError for any other."""
    if path.name.endswith(".parquet"):
        return "parquet"
    for kind, endings in LINE_ENDINGS.items():
        if path.name.endswith(tuple(e + c for e in endings for c in COMPRESSED)):
            return kind
    raise ValueError(
        f"{path} has no known ending: give .jsonl or .ndjson (an object a line), .txt (a text a line), each also .gz "
        "or .xz, or .parquet."
    )


def fingerprint_file(path: Path) -> str:
    """SHA-256 of the size and the bytes; above 64 MiB of 64 pieces of 64 KiB spread over the file, ends included."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= WHOLE_FINGERPRINT:
            while piece := file.read(1 << 20):
                digest.update(piece)
        else:
            for i in range(SAMPLES):
                file.seek((size - SAMPLE_BYTES) * i // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def open_sources(files: Iterable[str | Path], text_column: str, id_column: str | None) -> list[Source]:
    """The input files, each looked into as far as it costs nothing: what can be refused is refused before the work.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: for no file at all, a folder, a pipe or device, an unknown ending, a file given twice, a missing
            column, a column of another type, or an id column asked of plain text.
        OSError: for a Parquet file whose footer cannot be read, or an archive of 0 bytes.
    """
    sources: list[Source] = []
    for name in map(str, files):
        if text_error(name, "name"):
            raise ValueError(f"{name!r} is not a name in UTF-8; rename the file.")
        path = Path(name).resolve()
        if path.is_dir():
            raise ValueError(f"{name} is a folder; name the files in it.")
        if not path.exists():
            raise FileNotFoundError(f"{name} does not exist.")
        if not path.is_file():
            raise ValueError(
                f"{name} is a pipe, a socket or a device, which cannot be read twice, as a resume has to; write its "
                "rows to a file first."
            )
        if any(source.path == str(path) for source in sources):
            raise ValueError(f"{name} is given twice; its rows would be too.")
        source = Source(name, str(path), kind_of(path), path.stat().st_size, fingerprint_file(path))
        if not source.size and path.name.endswith(COMPRESSED[1:]):
            raise OSError(f"{name} has 0 bytes, which is no archive, not even of an empty file; get it again.")
        _check_columns(source, text_column, id_column)
        sources.append(source)
    if not sources:
        raise ValueError("Give at least one file to encode.")
    return sources


def _check_columns(source: Source, text_column: str, id_column: str | None) -> None:
    columns = [text_column] if id_column is None else [text_column, id_column]
    if source.kind == "parquet":
        from .read_parquet import check_parquet

        check_parquet(source, text_column, id_column)
    elif source.kind == "json":
        found: set[str] | None = None
        for _, record, error, _ in islice(_records(source, 0), LOOK_AHEAD):
            if error is None:
                found = (found or set()) | record.keys()
                if found.issuperset(columns):
                    return
        if found is not None:
            missing, known = next(x for x in columns if x not in found), ", ".join(sorted(found)[:20]) or "none"
            raise ValueError(f"{source.name} has no column '{missing}'; its first rows have: {known}.")
    elif id_column is not None:
        raise ValueError(f"{source.name} is plain text and has no column '{id_column}'; leave --id-column out for it.")


def text_error(value: Any, column: str) -> str | None:
    """What keeps a value from being a text, or None."""
    if value is None:
        return f"'{column}' is null"
    if isinstance(value, bytes):
        return f"'{column}' holds bytes, not a string; decode them first"
    if not isinstance(value, str):
        return f"'{column}' is of type {type(value).__name__}, not a string"
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            return f"'{column}' holds a lone surrogate at character {error.start}"
    return None


def id_text(value: Any, column: str) -> tuple[str | None, str | None]:
    """(id, None) or (None, what is wrong). Integers become their decimal digits."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value), None
    error = text_error(value, column)
    return (None, error) if error else (value, None)


def make_row(file: int, number: int, text: Any, id_: Any, text_column: str, id_column: str | None) -> Row:
    """A row from the values found for it, with the error if one of them is unfit."""
    name, error = (None, None) if id_column is None else id_text(id_, id_column)
    error = text_error(text, text_column) or error
    return Row(file, number, name, None if error else text, error)


def read_blocks(
    sources: Sequence[Source],
    start: tuple[int, int],
    text_column: str,
    id_column: str | None,
    block_rows: int,
    shard_rows: int,
) -> Iterator[Block]:
    """Blocks of all rows from row start[1] of file start[0] on.

    A block ends after `block_rows` rows or 4 Mi characters, and at every multiple of `shard_rows` rows from the start:
    the blocks of a shard are then the same ones whether or not a run was interrupted before it.

    Raises OSError, naming file and row, where a file cannot be read on.
    """
    rows: list[Row] = []
    characters, read, before = 0, 0, sum(source.size for source in sources[: start[0]])
    for index in range(start[0], len(sources)):
        first = start[1] if index == start[0] else 0
        for row, offset in _rows(sources[index], index, first, text_column, id_column):
            rows.append(row)
            read += 1
            characters += len(row.text or "")
            if len(rows) == block_rows or characters >= BLOCK_CHARACTERS or read % shard_rows == 0:
                yield Block(rows, before + offset)
                rows, characters = [], 0
        before += sources[index].size
    if rows:
        yield Block(rows, before)


def _rows(source: Source, index: int, first: int, text_column: str, id_column: str | None) -> Iterator[tuple[Row, int]]:
    """The rows of one file from number `first` on, each with the bytes of the file read by then."""
    if source.kind == "parquet":
        from .read_parquet import parquet_values

        for number, text, id_, error, offset in parquet_values(source, first, text_column, id_column):
            row = make_row(index, number, text, id_, text_column, id_column)
            yield (row if error is None else Row(index, number, None, None, error)), offset
    elif source.kind == "json":
        for number, record, error, offset in _records(source, first):
            if error is not None:
                yield Row(index, number, None, None, error), offset
                continue
            missing = [c for c in (text_column, id_column) if c is not None and c not in record]
            if missing:
                yield Row(index, number, None, None, f"column '{missing[0]}' is missing"), offset
                continue
            id_ = None if id_column is None else record[id_column]
            yield make_row(index, number, record[text_column], id_, text_column, id_column), offset
    else:
        for number, line, error, offset in _lines(source, first):
            yield Row(index, number, None, None if error else line, error), offset


def _records(source: Source, first: int) -> Iterator[tuple[int, dict, str | None, int]]:
    """(number, object, error, bytes read) of every line that is not blank."""
    for number, line, error, offset in _lines(source, first):
        record: Any = {}
        if error is None:
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as problem:
                error = f"broken JSON ({problem})"
            else:
                if not isinstance(record, dict):
                    record, error = {}, f"not a JSON object but of type {type(record).__name__}"
        yield number, record, error, offset


def _lines(source: Source, first: int) -> Iterator[tuple[int, str, str | None, int]]:
    """(number, line without its end, error, bytes read) from line `first` on. Only a line feed ends a line."""
    number = -1
    try:
        with open(source.path, "rb") as raw, _decompressed(raw, source.path) as file:
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE and not line.endswith(b"\n"):
                    if number >= first:
                        yield number, "", f"the line is longer than {LONGEST_LINE >> 20} MiB", raw.tell()
                    while line and not line.endswith(b"\n"):
                        line = file.readline(1 << 20)
                    continue
                if number < first:
                    continue
                line = line.removesuffix(b"\n").removesuffix(b"\r")
                if number == 0:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                try:
                    text, error = line.decode("utf-8"), None
                except UnicodeDecodeError as problem:
                    text, error = "", f"not UTF-8 (byte {problem.start} of the line)"
                yield number, text, error, raw.tell()
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as problem:
        raise OSError(f"{source.place(number + 1)}: the file cannot be read on ({problem}); get it again.") from problem


def _decompressed(raw: io.BufferedReader, path: str) -> io.BufferedIOBase:
    if path.endswith(".gz"):
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), 1 << 16)  # type: ignore[arg-type]
    if path.endswith(".xz"):
        return io.BufferedReader(lzma.LZMAFile(raw), 1 << 16)  # type: ignore[arg-type]
    return raw

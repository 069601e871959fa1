"""Rows: what a row of an input file is, and all rows of several files in blocks, whichever kinds of files they are."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from . import read_lines, read_parquet

COMPRESSED = ("", ".gz", ".xz")
LINE_ENDINGS = {"json": (".jsonl", ".ndjson"), "text": (".txt",)}
# A block closes after this many characters, so that long texts do not pile up.
BLOCK_CHARACTERS = 1 << 22
# Bytes. Larger files are identified by samples.
LARGEST_WHOLE = 1 << 26
SAMPLES = 64
SAMPLE_BYTES = 1 << 16


class Row(NamedTuple):
    """A row of an input.

    Attributes:
        file: its file, by the index among the inputs.
        number: its number there, from 0.
        id: its id, or None.
        text: its text; None where there is an error, or once it has been encoded.
        error: what is wrong with it, or None.
    """

    file: int
    number: int
    id: str | None
    text: str | None
    error: str | None


@dataclass
class Block:
    """Some consecutive rows.

    Attributes:
        rows: the rows.
        bytes_read: of all inputs together, up to the last of the rows.
    """

    rows: list[Row]
    bytes_read: int


@dataclass(frozen=True)
class InputFile:
    """One input file.

    Attributes:
        name: as the caller wrote it; what the output calls it.
        path: absolute.
        kind: "json", "text" or "parquet".
        size: in bytes.
        fingerprint: see `fingerprint_file`.
    """

    name: str
    path: str
    kind: str
    size: int
    fingerprint: str

    def identity(self) -> dict[str, Any]:
        """What a manifest says of the file, as JSON."""
        return {"file": self.name, "size": self.size, "fingerprint": self.fingerprint}

    def place(self, number: int) -> str:
        """How messages name a row."""
        reader = read_parquet if self.kind == "parquet" else read_lines
        return reader.place(self.name, number)


def kind_of(path: Path) -> str:
    """Return "json", "text" or "parquet", by the ending. Raises ValueError for any other."""
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
        if size <= LARGEST_WHOLE:
            while piece := file.read(1 << 20):
                digest.update(piece)
        else:
            for i in range(SAMPLES):
                file.seek((size - SAMPLE_BYTES) * i // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def open_inputs(names: Iterable[str | Path], text_column: str, id_column: str | None) -> list[InputFile]:
    """The input files, each looked into as far as it costs nothing: what can be refused is refused before the work.

    Args:
        names: the files.
        text_column: the column of the texts.
        id_column: the column of the ids, or None.

    Returns:
        One `InputFile` a name, in the order given.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: for no file at all, a folder, a pipe or device, an unknown ending, a file given twice, a missing
            column, a column of another type, or an id column asked of plain text.
        OSError: for a Parquet file whose footer cannot be read, or an archive of 0 bytes.
    """
    inputs: list[InputFile] = []
    for name in map(str, names):
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
        if any(other.path == str(path) for other in inputs):
            raise ValueError(f"{name} is given twice; its rows would be too.")
        file = InputFile(name, str(path), kind_of(path), path.stat().st_size, fingerprint_file(path))
        if not file.size and path.name.endswith(COMPRESSED[1:]):
            raise OSError(f"{name} has 0 bytes, which is no archive, not even of an empty file; get it again.")
        _check_columns(file, text_column, id_column)
        inputs.append(file)
    if not inputs:
        raise ValueError("Give at least one file to encode.")
    return inputs


def _check_columns(file: InputFile, text_column: str, id_column: str | None) -> None:
    if file.kind == "parquet":
        read_parquet.check_columns(file.path, file.name, text_column, id_column)
    elif file.kind == "json":
        columns = [text_column] if id_column is None else [text_column, id_column]
        read_lines.check_columns(file.path, file.name, columns)
    elif id_column is not None:
        raise ValueError(f"{file.name} is plain text and has no column '{id_column}'; leave --id-column out for it.")


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
    """A row from the values read for it, with the error if one of them is unfit."""
    name, error = (None, None) if id_column is None else id_text(id_, id_column)
    error = text_error(text, text_column) or error
    return Row(file, number, name, None if error else text, error)


def read_blocks(
    inputs: Sequence[InputFile],
    start: tuple[int, int],
    text_column: str,
    id_column: str | None,
    block_rows: int,
    shard_rows: int,
) -> Iterator[Block]:
    """Blocks of all rows from row start[1] of file start[0] on.

    A block ends after `block_rows` rows or 4 Mi characters, and at every multiple of `shard_rows` rows from the start:
    the blocks of a shard are then the same ones whether or not a run was interrupted before it.

    Args:
        inputs: the files, in order.
        start: the index of the first file to read, and the number of the first row in it.
        text_column: the column of the texts.
        id_column: the column of the ids, or None.
        block_rows: the most rows of a block.
        shard_rows: rows of a shard of the output.

    Yields:
        One `Block` after the other, none of them empty.

    Raises:
        OSError: naming file and row where a file cannot be read on.
    """
    rows: list[Row] = []
    characters = 0
    rows_read = 0
    before = sum(file.size for file in inputs[: start[0]])
    for index in range(start[0], len(inputs)):
        first = start[1] if index == start[0] else 0
        for row, bytes_read in _rows(inputs[index], index, first, text_column, id_column):
            rows.append(row)
            rows_read += 1
            characters += len(row.text or "")
            if len(rows) == block_rows or characters >= BLOCK_CHARACTERS or rows_read % shard_rows == 0:
                yield Block(rows, before + bytes_read)
                rows = []
                characters = 0
        before += inputs[index].size
    if rows:
        yield Block(rows, before)


def _rows(
    file: InputFile, index: int, first: int, text_column: str, id_column: str | None
) -> Iterator[tuple[Row, int]]:
    """The rows of one file from number `first` on, each with the bytes of the file read by then."""
    if file.kind == "parquet":
        for number, text, id_, error, bytes_read in read_parquet.read_rows(
            file.path, file.name, first, text_column, id_column
        ):
            if error is None:
                yield make_row(index, number, text, id_, text_column, id_column), bytes_read
            else:
                yield Row(index, number, None, None, error), bytes_read
    elif file.kind == "json":
        columns = [text_column] if id_column is None else [text_column, id_column]
        for number, record, error, bytes_read in read_lines.read_records(file.path, file.name, first):
            if error is None:
                missing = next((column for column in columns if column not in record), None)
                error = None if missing is None else f"column '{missing}' is missing"
            if error is None:
                id_ = None if id_column is None else record[id_column]
                yield make_row(index, number, record[text_column], id_, text_column, id_column), bytes_read
            else:
                yield Row(index, number, None, None, error), bytes_read
    else:
        for number, line, error, bytes_read in read_lines.read_lines(file.path, file.name, first):
            yield Row(index, number, None, None if error else line, error), bytes_read

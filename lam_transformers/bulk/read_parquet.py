"""What touches pyarrow: reading Parquet by row groups, writing it by blocks. Needs the extra `bulk`."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from .rows import Row, Source

READ_ROWS = 256  # rows decoded at a time


def require_pyarrow() -> None:
    """Raises ValueError, with the mend, where pyarrow is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ValueError("Parquet needs pyarrow: pip install 'lam-transformers[bulk]', or --format npy.") from error


def _open(source: Source):
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(source.path, pre_buffer=False, page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise OSError(f"{source.name} is not a Parquet file that can be read ({error}); get it again.") from error


def check_parquet(source: Source, text_column: str, id_column: str | None) -> None:
    """Raises ValueError for a missing column or one of another type than text (ids: text or integers), OSError for a
    file without a readable footer."""
    require_pyarrow()
    import pyarrow as pa

    with _open(source) as file:
        schema = file.schema_arrow
    for column in filter(None, (text_column, id_column)):
        count = schema.names.count(column)
        if count != 1:
            what = "no column" if count == 0 else f"{count} columns"
            raise ValueError(f"{source.name} has {what} '{column}'; it has: {', '.join(schema.names[:20]) or 'none'}.")
        found = schema.field(column).type
        value = found.value_type if pa.types.is_dictionary(found) else found
        text = pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)
        if not text and not (column == id_column and pa.types.is_integer(value)):
            need = "strings" if column == text_column else "strings or integers"
            raise ValueError(f"{source.name}: column '{column}' holds {found}, {need} are needed; cast it first.")


def parquet_values(
    source: Source, first: int, text_column: str, id_column: str | None
) -> Iterator[tuple[int, Any, Any, str | None, int]]:
    """(number, text, id, error, bytes of the file read, by share of its rows) from row `first` on.

    Raises OSError, naming the row group and its rows, where the file is damaged.
    """
    import pyarrow as pa

    columns = [text_column] if id_column is None else [text_column, id_column]
    with _open(source) as file:
        total, number = file.metadata.num_rows, 0
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            end = number + rows
            if end <= first:
                number = end
                continue
            try:
                for batch in file.iter_batches(READ_ROWS, row_groups=[group], columns=columns):
                    texts = _values(batch.column(text_column))
                    ids = texts if id_column is None else _values(batch.column(id_column))
                    for (text, text_error), (id_, id_error) in zip(texts, ids, strict=True):
                        if number >= first:
                            yield number, text, id_, text_error or id_error, source.size * (number + 1) // total
                        number += 1
            except (pa.ArrowException, OSError, ValueError) as error:
                place = f"row group {group} (rows {end - rows} to {end - 1})"
                raise OSError(
                    f"{source.place(number)}: {place} cannot be read ({error}); get the file again."
                ) from error
            if number != end:
                raise OSError(f"{source.name}: row group {group} ends at row {number}, not {end}; get the file again.")


def _values(column) -> list[tuple[Any, str | None]]:
    """(value, None) or (None, error) of every entry; a string that is not UTF-8 does not spoil its neighbours."""
    try:
        return [(value, None) for value in column.to_pylist()]
    except UnicodeDecodeError:
        found: list[tuple[Any, str | None]] = []
        for entry in column:
            try:
                found.append((entry.as_py(), None))
            except UnicodeDecodeError as error:
                found.append((None, f"not UTF-8 (byte {error.start} of the text)"))
        return found


class ParquetShard:
    """Writes one Parquet file, a row group a block: file, row, id if there is one, embedding."""

    def __init__(self, path: Path, sources: list[Source], with_ids: bool):
        self.path, self.sources, self.with_ids = path, sources, with_ids
        self._file: Any = None
        self._writer: Any = None

    def add(self, rows: list[Row], embeddings: np.ndarray) -> None:
        """Append rows and their embeddings [rows, D]."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        width = embeddings.shape[1]
        flat = pa.array(np.ascontiguousarray(embeddings).reshape(-1))
        columns = {
            "file": pa.array([self.sources[row.file].name for row in rows], pa.string()),
            "row": pa.array([row.number for row in rows], pa.int64()),
            "id": pa.array([row.id for row in rows], pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, width),
        }
        if not self.with_ids:
            del columns["id"]
        table = pa.table(columns)
        if self._writer is None:
            self._file = self.path.open("wb")
            self._writer = pq.ParquetWriter(
                self._file, table.schema, use_dictionary=["file"], write_page_checksum=True
            )  # fmt: skip
        self._writer.write_table(table)

    def close(self) -> None:
        """Write what is outstanding."""
        self._writer.close()
        self._file.close()

    def abandon(self) -> None:
        """Let go of the file without a word: something has gone wrong already."""
        for part in (self._writer, self._file):
            with suppress(Exception):
                part.close()

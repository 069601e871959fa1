"""Parquet, row group by row group. Needs pyarrow, the extra `bulk`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

READ_ROWS = 256  # rows decoded at a time


class ParquetRow(NamedTuple):
    """The values of a row.

    Attributes:
        number: counted from 0.
        text: of the text column.
        id: of the id column; of the text column where there is none.
        error: what keeps one of them from being read, or None.
        bytes_read: of the file, by the share of its rows.
    """

    number: int
    text: Any
    id: Any
    error: str | None
    bytes_read: int


def place(name: str, number: int) -> str:
    """How messages name a row of a file."""
    return f"{name}, row {number}"


def require_pyarrow() -> None:
    """Raise ValueError, with the mend, where pyarrow is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ValueError("Parquet needs pyarrow: pip install 'lam-transformers[bulk]', or --format npy.") from error


def check_columns(path: str, name: str, text_column: str, id_column: str | None) -> None:
    """Look for the columns in the footer of a file.

    Args:
        path: the file.
        name: what messages call it.
        text_column: the column of the texts.
        id_column: the column of the ids, or None.

    Raises:
        ValueError: for a missing column, or one of another type than text (ids: text or integers).
        OSError: for a file without a readable footer.
    """
    require_pyarrow()
    import pyarrow as pa

    with _open(path, name) as file:
        schema = file.schema_arrow
    for column in filter(None, (text_column, id_column)):
        count = schema.names.count(column)
        if count != 1:
            what = "no column" if count == 0 else f"{count} columns"
            raise ValueError(f"{name} has {what} '{column}'; it has: {', '.join(schema.names[:20]) or 'none'}.")
        kind = schema.field(column).type
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        text = pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)
        if not text and not (column == id_column and pa.types.is_integer(value)):
            need = "strings" if column == text_column else "strings or integers"
            raise ValueError(f"{name}: column '{column}' holds {kind}, {need} are needed; cast it first.")


def read_rows(path: str, name: str, first: int, text_column: str, id_column: str | None) -> Iterator[ParquetRow]:
    """The rows of a file from number `first` on.

    Args:
        path: the file.
        name: what messages call it.
        first: the number of the first row to give.
        text_column: the column of the texts.
        id_column: the column of the ids, or None.

    Yields:
        One `ParquetRow` a row.

    Raises:
        OSError: naming the row group and its rows where the file is damaged.
    """
    import pyarrow as pa

    size = Path(path).stat().st_size
    columns = [text_column] if id_column is None else [text_column, id_column]
    with _open(path, name) as file:
        total = file.metadata.num_rows
        number = 0
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
                            yield ParquetRow(number, text, id_, text_error or id_error, size * (number + 1) // total)
                        number += 1
            except (pa.ArrowException, OSError, ValueError) as error:
                where = f"row group {group} (rows {end - rows} to {end - 1})"
                raise OSError(
                    f"{place(name, number)}: {where} cannot be read ({error}); get the file again."
                ) from error
            if number != end:
                raise OSError(f"{name}: row group {group} ends at row {number}, not {end}; get the file again.")


def _open(path: str, name: str) -> "pq.ParquetFile":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise OSError(f"{name} is not a Parquet file that can be read ({error}); get it again.") from error


def _values(column: "pa.Array") -> list[tuple[Any, str | None]]:
    """(value, None) or (None, error) of every entry; a string that is not UTF-8 does not spoil its neighbours."""
    try:
        return [(value, None) for value in column.to_pylist()]
    except UnicodeDecodeError:
        values: list[tuple[Any, str | None]] = []
        for entry in column:
            try:
                values.append((entry.as_py(), None))
            except UnicodeDecodeError as error:
                values.append((None, f"not UTF-8 (byte {error.start} of the text)"))
        return values

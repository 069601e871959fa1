"""Rows of a database that may be damaged: what can be read is given, what cannot is named."""

import logging
from collections.abc import Iterator
from typing import Any

from .errors import MemoryFileDamaged
from .store import Store, Transaction

logger = logging.getLogger(__name__)

BATCH = 64  # rows that are read, or imported, at once


def intact_rows(store: Store, columns: str, table: str, problems: list[str] | None = None) -> Iterator[tuple[Any, ...]]:
    """All rows of a table with a row_id that can be read.

    Args:
        store: where the table is.
        columns: to read, in SQL.
        table: its name.
        problems: takes a line for each row that cannot be read; it is logged in any case.
    """
    with store.read() as transaction:
        last = _last_row(transaction, table)
    start = 0
    while start < last:
        end = min(start + BATCH, last)
        try:
            rows = _read(store, columns, table, start, end)
        except (MemoryFileDamaged, UnicodeDecodeError):
            rows = []
            for row in range(start + 1, end + 1):
                try:
                    rows += _read(store, columns, table, row - 1, row)
                except (MemoryFileDamaged, UnicodeDecodeError) as error:
                    logger.warning("Row %d of %s cannot be read: %s", row, table, error)
                    if problems is not None:
                        problems.append(f"row {row} of {table} cannot be read")
        yield from rows
        start = end


def _last_row(transaction: Transaction, table: str) -> int:
    try:
        return int(transaction.rows(f"SELECT max(row_id) FROM {table}")[0][0] or 0)
    except Exception as error:
        logger.warning("The end of %s cannot be read: %s", table, error)
        return 1_000_000


def _read(store: Store, columns: str, table: str, after: int, last: int) -> list[tuple[Any, ...]]:
    with store.read() as transaction:
        return transaction.rows(
            f"SELECT {columns} FROM {table} WHERE row_id > ? AND row_id <= ? ORDER BY row_id", after, last
        )

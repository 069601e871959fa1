"""Shards as Parquet files. Needs pyarrow, the extra `bulk`."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from .rows import InputFile, Row


class ParquetShard:
    """Writes one Parquet file, a row group a block: file, row, id if there is one, embedding.

    Args:
        paths: the one file.
        inputs: the input files, for the names in the rows.
        with_ids: whether the rows have ids.
    """

    def __init__(self, paths: Sequence[Path], inputs: Sequence[InputFile], with_ids: bool):
        self.path = paths[0]
        self.inputs = inputs
        self.with_ids = with_ids
        self._file: Any = None
        self._writer: Any = None

    def add(self, rows: Sequence[Row], embeddings: np.ndarray) -> None:
        """Append rows.

        Args:
            rows: the rows, without errors.
            embeddings: [rows, D], of one width and type in all calls.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        width = embeddings.shape[1]
        flat = pa.array(np.ascontiguousarray(embeddings).reshape(-1))
        columns = {
            "file": pa.array([self.inputs[row.file].name for row in rows], pa.string()),
            "row": pa.array([row.number for row in rows], pa.int64()),
            "id": pa.array([row.id for row in rows], pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, width),
        }
        if not self.with_ids:
            del columns["id"]
        table = pa.table(columns)
        if self._writer is None:
            self._file = self.path.open("wb")
            self._writer = pq.ParquetWriter(self._file, table.schema, use_dictionary=["file"], write_page_checksum=True)
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

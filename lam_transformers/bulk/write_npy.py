"""Shards as .npy arrays, with their rows as JSON lines beside them."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from .rows import InputFile, Row


class NpyShard:
    """Writes one .npy array [rows, D] and beside it, as JSON lines, the rows that it holds.

    Args:
        paths: the file of the array and that of the rows.
        inputs: the input files, for the names in the rows.
        with_ids: whether the rows have ids.
    """

    def __init__(self, paths: Sequence[Path], inputs: Sequence[InputFile], with_ids: bool):
        self.inputs = inputs
        self.with_ids = with_ids
        self.count = 0
        self._array = paths[0].open("wb")
        self._rows = paths[1].open("w", encoding="utf-8")
        self._width = 0
        self._dtype: np.dtype[Any] = np.dtype(np.float32)

    def _write_header(self) -> None:
        # numpy leaves room in the header for the number of rows to grow, so that its size stays the same.
        shape = (self.count, self._width)
        fields = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._array, fields)

    def add(self, rows: Sequence[Row], embeddings: np.ndarray) -> None:
        """Append rows.

        Args:
            rows: the rows, without errors.
            embeddings: [rows, D], of one width and type in all calls.
        """
        if not self.count:
            self._width = embeddings.shape[1]
            self._dtype = embeddings.dtype
            self._write_header()
        self._array.write(np.ascontiguousarray(embeddings).tobytes())
        for row in rows:
            record: dict[str, Any] = {"file": self.inputs[row.file].name, "row": row.number}
            if self.with_ids:
                record["id"] = row.id
            self._rows.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.count += len(rows)

    def close(self) -> None:
        """Write what is outstanding."""
        end = self._array.tell()
        self._array.seek(0)
        self._write_header()
        self._array.seek(end)
        self._array.close()
        self._rows.close()

    def abandon(self) -> None:
        """Let go of the files without a word: something has gone wrong already."""
        for part in (self._array, self._rows):
            with suppress(OSError):
                part.close()

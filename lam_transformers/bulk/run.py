"""The whole of a bulk run: inputs, model, output folder, engine."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..io.loading import pin_model
from ..io.progress import Progress, Silent
from .block_encoder import encode_locally
from .options import EncodeOptions
from .output import OutputFolder
from .read_parquet import require_pyarrow
from .rows import open_inputs, read_blocks

# encode sorts the texts of a block by length.
BATCHES_PER_BLOCK = 32


@dataclass(frozen=True)
class Counts:
    """How far a run is; the counts are of this process, without what a resume found finished.

    Attributes:
        rows: embedded.
        skipped: rows left out.
        tokens: 0 where the model does not tell.
        seconds: since the first block was asked for.
        bytes_read: of all inputs, from their beginning.
        bytes_total: of all inputs.
    """

    rows: int = 0
    skipped: int = 0
    tokens: int = 0
    seconds: float = 0.0
    bytes_read: int = 0
    bytes_total: int = 0

    @property
    def speed(self) -> str:
        """Texts and, where the model tells, tokens a second, in words."""
        seconds = max(self.seconds, 1e-9)
        texts = f"{self.rows / seconds:,.0f} texts/s"
        return f"{texts}, {self.tokens / seconds:,.0f} tokens/s" if self.tokens else texts


@dataclass(frozen=True)
class Summary:
    """What a run came to.

    Attributes:
        rows: in the output folder.
        skipped: in skipped.jsonl.
        shards: in the output folder.
        resumed_rows: of the rows, those that were there before.
        counts: of this process.
    """

    rows: int
    skipped: int
    shards: int
    resumed_rows: int
    counts: Counts


def encode_files(
    files: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    model: str = "LAM-base-v1",
    options: EncodeOptions | None = None,
    engine: Literal["local", "ray"] = "local",
    workers: int | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Embed the rows of files into shards in a folder. Called again with the same arguments, it resumes.

    Rows keep their order. Row i of the output is the i-th row of the inputs that was not skipped; it carries the name
    of its file, its number there (from 0; the line of a text file) and its id if one is asked for.

    Args:
        files: .jsonl, .ndjson, .txt (each also .gz or .xz) and .parquet.
        out: a folder that is new, empty, or holds an earlier part of this run.
        model: folder or Hub id, see `io.loading.locate_model`; code that comes with it runs only with
            `trust_remote_code` of the options.
        options: see `EncodeOptions`.
        engine: "local", or "ray" for the machines of a Ray cluster (the model folder must be on all of them).
        workers: Ray actors that each hold the model; None for one a GPU, or one a CPU where there is no GPU.
        progress: gets one task, the bytes of the inputs, which advances after every block.

    Returns:
        What the run came to.

    Raises:
        ValueError: for options, files, columns and rows that do not fit (naming file and row), or an output folder that
            holds something else.
        OSError: for a model or file that cannot be read, or an output that cannot be written.
    """
    options = options or EncodeOptions()
    if engine not in ("local", "ray"):
        raise ValueError(f"engine is '{engine}'; choose local or ray.")
    if workers is not None and (engine == "local" or workers < 1):
        raise ValueError(f"workers is {workers}; it needs the ray engine and a number of at least 1.")
    if options.format == "parquet":
        require_pyarrow()
    names = [os.fspath(file) for file in files]
    inputs = open_inputs(names, options.text_column, options.id_column)
    pinned = pin_model(model)
    identity: dict[str, Any] = {
        "model": {"name": pinned.name, "fingerprint": pinned.identity},
        "options": options.identity(),
        "inputs": [file.identity() for file in inputs],
    }
    with OutputFolder(out, identity, inputs, options) as folder:
        before = folder.rows
        counts = Counts(bytes_total=sum(file.size for file in inputs))
        if not folder.complete:
            task = (progress or Silent()).task("Encoding", max(counts.bytes_total, 1))
            arguments = (
                inputs,
                folder.start,
                options.text_column,
                options.id_column,
                options.batch_size * BATCHES_PER_BLOCK,
                options.shard_rows,
            )
            if engine == "ray":
                from .ray_engine import encode_with_ray

                encoded = encode_with_ray(pinned, options, arguments, workers)
            else:
                encoded = encode_locally(pinned, options, read_blocks(*arguments))
            began = time.perf_counter()
            for block in encoded:
                folder.add(block.rows, block.embeddings, block.tokens)
                good = 0 if block.embeddings is None else len(block.embeddings)
                advanced = block.bytes_read - counts.bytes_read
                counts = replace(
                    counts,
                    rows=counts.rows + good,
                    skipped=counts.skipped + len(block.rows) - good,
                    tokens=counts.tokens + block.tokens,
                    seconds=time.perf_counter() - began,
                    bytes_read=block.bytes_read,
                )
                task.advance(advanced, f"Encoding  {counts.rows:,} texts  {counts.speed}")
            if open_inputs(names, options.text_column, options.id_column) != inputs:
                raise ValueError("An input file changed while it was read; encode into a new folder.")
            folder.finish()
        return Summary(folder.rows, folder.skipped, len(folder.manifest["shards"]), before, counts)

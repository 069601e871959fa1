"""The whole of a bulk run: sources, model, output folder, engine."""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from .block_encoder import encode_locally, find_model
from .options import EncodeOptions
from .output import OutputFolder
from .rows import open_sources, read_blocks

BATCHES_PER_BLOCK = 32  # encode sorts the texts of a block by length


@dataclass(frozen=True)
class Progress:
    """How far a run is; counts are of this process, without what a resume found finished."""

    rows: int = 0  # embedded
    skipped: int = 0
    tokens: int = 0  # 0 where the model does not tell
    seconds: float = 0.0  # since the first block was asked for
    bytes_read: int = 0  # of all inputs, from their beginning
    bytes_total: int = 0


@dataclass(frozen=True)
class Summary:
    """What a run came to."""

    rows: int  # in the output folder
    skipped: int  # in skipped.jsonl
    shards: int
    resumed_rows: int  # of these, rows that were there before
    progress: Progress


def encode_files(
    files: Iterable[str | os.PathLike],
    out: str | os.PathLike,
    model: str = "LAM-base-v1",
    options: EncodeOptions | None = None,
    engine: Literal["local", "ray"] = "local",
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Embed the rows of files into shards in a folder. Called again with the same arguments, it resumes.

    Rows keep their order. Row i of the output is the i-th row of the inputs that was not skipped; it carries the name
    of its file, its number there (from 0; the line of a text file) and its id if one is asked for.

    Args:
        files: .jsonl, .ndjson, .txt (each also .gz or .xz) and .parquet.
        out: a folder that is new, empty, or holds an earlier part of this run.
        model: folder or Hub id for SentenceTransformer; code that comes with it runs only with `trust_remote_code`
            of the options.
        options: see `EncodeOptions`.
        engine: "local", or "ray" for the machines of a Ray cluster (the model folder must be on all of them).
        workers: Ray actors that each hold the model; None for one a GPU, or one a CPU where there is no GPU.
        progress: called after every block.

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
        from .read_parquet import require_pyarrow

        require_pyarrow()
    names = [os.fspath(file) for file in files]
    sources = open_sources(names, options.text_column, options.id_column)
    source_model = find_model(model)
    identity: dict[str, Any] = {
        "model": {"name": source_model.name, "fingerprint": source_model.fingerprint},
        "options": options.identity(),
        "inputs": [source.identity() for source in sources],
    }
    with OutputFolder(out, identity, sources, options) as folder:
        before = folder.rows
        state = Progress(bytes_total=sum(source.size for source in sources))
        if not folder.complete:
            arguments = (
                sources, folder.start, options.text_column, options.id_column,
                options.batch_size * BATCHES_PER_BLOCK, options.shard_rows,
            )  # fmt: skip
            if engine == "ray":
                from .ray_engine import encode_with_ray

                encoded = encode_with_ray(source_model, options, arguments, workers)
            else:
                encoded = encode_locally(source_model, options, read_blocks(*arguments))
            began = time.perf_counter()
            for block in encoded:
                folder.add(block.rows, block.embeddings, block.tokens)
                good = 0 if block.embeddings is None else len(block.embeddings)
                state = Progress(
                    state.rows + good, state.skipped + len(block.rows) - good, state.tokens + block.tokens,
                    time.perf_counter() - began, block.bytes_read, state.bytes_total,
                )  # fmt: skip
                if progress is not None:
                    progress(state)
            if open_sources(names, options.text_column, options.id_column) != sources:
                raise ValueError("An input file changed while it was read; encode into a new folder.")
            folder.finish()
        return Summary(folder.rows, folder.skipped, len(folder.manifest["shards"]), before, state)

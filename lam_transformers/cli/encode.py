"""`lam encode`: files of texts into files of embeddings."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .console import clear_errors, say, show_progress


def encode(
    files: Annotated[list[Path], typer.Argument(help=".jsonl, .ndjson, .txt (also .gz, .xz) and .parquet files.")],
    out: Annotated[Path, typer.Option(help="Folder to write; the same command again resumes an interrupted run.")],
    model: Annotated[str, typer.Option(help="Model folder, the name of one in LAM_MODELS, or Hub id.")] = "LAM-base-v1",
    text_column: Annotated[str, typer.Option(help="Column of the texts (JSON lines, Parquet).")] = "text",
    id_column: Annotated[str | None, typer.Option(help="Column of ids to copy to the output.")] = None,
    format: Annotated[Literal["parquet", "npy"], typer.Option(help="Format of the shards.")] = "parquet",
    batch_size: Annotated[int, typer.Option(help="Texts in a batch.")] = 32,
    shard_rows: Annotated[int, typer.Option(help="Input rows to a shard.")] = 100_000,
    normalize: Annotated[bool, typer.Option(help="Embeddings of length 1.")] = True,
    truncate_dim: Annotated[int | None, typer.Option(help="Number of leading dimensions to keep.")] = None,
    precision: Annotated[
        Literal["float32", "float16", "binary", "ubinary"], typer.Option(help="Numbers, or packed bits.")
    ] = "float32",
    prompt_name: Annotated[str | None, typer.Option(help="Prompt of the model to put before every text.")] = None,
    device: Annotated[str | None, typer.Option(help="As torch names it, such as cpu or cuda.")] = None,
    on_error: Annotated[
        Literal["stop", "skip"], typer.Option(help="At a bad row: stop, or note it in skipped.jsonl and go on.")
    ] = "stop",
    engine: Annotated[Literal["local", "ray"], typer.Option(help="This process, or a Ray cluster.")] = "local",
    workers: Annotated[int | None, typer.Option(help="Ray actors; default one a GPU, without GPUs one a CPU.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model. LAM folders need none.")
    ] = False,
) -> None:
    """Embed large corpora: streaming, in shards, resumable. docs/BULK.md has the details."""
    with clear_errors():
        from ..bulk import EncodeOptions, encode_files

        options = EncodeOptions(
            text_column=text_column,
            id_column=id_column,
            format=format,
            shard_rows=shard_rows,
            batch_size=batch_size,
            normalize=normalize,
            truncate_dim=truncate_dim,
            precision=precision,
            prompt_name=prompt_name,
            device=device,
            on_error=on_error,
            trust_remote_code=trust_remote_code,
        )
        with show_progress() as progress:
            summary = encode_files(files, out, model, options, engine, workers, progress)
        skipped = ""
        if summary.skipped:
            skipped = f" {summary.skipped:,} rows were skipped: {out / 'skipped.jsonl'}."
        say(f"{out}: {summary.rows:,} texts in {summary.shards:,} shards.{skipped}")
        if summary.resumed_rows:
            say(f"{summary.resumed_rows:,} of them were there before.")
        counts = summary.counts
        if counts.rows:
            tokens = f" ({counts.tokens:,} tokens)" if counts.tokens else ""
            say(f"{counts.rows:,} texts{tokens} in {counts.seconds:,.1f} s: {counts.speed}.")

"""The command `lam`: a thin layer over the package."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .base import base_path
from .cli_encode import encode
from .cli_evaluate import compare, evaluate, report
from .cli_train import train

app = typer.Typer(help="LAM: linear-time sentence and document embeddings.", no_args_is_help=True, add_completion=False)
app.add_typer(train, name="train")
app.add_typer(evaluate, name="evaluate")
for command in (encode, report, compare):
    app.command()(command)
console = Console(stderr=True)


@contextmanager
def _clear_errors() -> Iterator[None]:
    """What a user can mend is said in one line; anything else keeps its traceback."""
    try:
        yield
    except (OSError, ValueError, FloatingPointError, ImportError) as error:
        console.print(f"[red]lam:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


@app.callback()
def main(verbose: Annotated[bool, typer.Option(help="Log what is done.")] = False) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(name)s: %(message)s")


@app.command()
def init(
    base: Annotated[str, typer.Argument(help="Hub id or folder of a MiniLM-type BERT, such as all-MiniLM-L6-v2.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    gate: Annotated[str, typer.Option(help="Output gate: full, none, or its rank.")] = "32",
    seed: Annotated[int, typer.Option(help="Seed of the weights that have no counterpart in the base.")] = 0,
) -> None:
    """Start an untrained LAM from a BERT: embeddings, feed-forward layers and norms are copied."""
    with _clear_errors(), console.status(f"Starting from {base}"):
        from .conversion.from_bert import init_model, parse_gate

        model = init_model(base_path(base), out, parse_gate(gate), seed)
        console.print(f"Wrote {out}: {model.num_parameters():,} parameters. It needs training: lam train distill.")


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="LAM folder, such as RUN/best.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; may be SOURCE itself to refresh its code files.")],
    card: Annotated[Path | None, typer.Option(help="Markdown file to become README.md.")] = None,
    float32: Annotated[bool, typer.Option(help="Store the weights in float32 instead of float16.")] = False,
    stock: Annotated[bool, typer.Option(help="Use sentence-transformers' own modules only.")] = False,
) -> None:
    """Write a folder that loads as a stranger: weights, tokenizer, code, sentence-transformers modules."""
    with _clear_errors(), console.status(f"Exporting {source}"):
        import torch

        from .conversion.export import export_model

        text = None if card is None else card.read_text(encoding="utf-8")
        export_model(source, out, torch.float32 if float32 else torch.float16, text, stock)
        console.print(f"Wrote {out}.")


@app.command()
def export_onnx(
    source: Annotated[Path, typer.Argument(help="LAM folder.")],
    out: Annotated[Path, typer.Argument(help="File to write, such as lam.onnx.")],
    tokens: Annotated[int, typer.Option(help="Tokens of each text in one segment.")] = 128,
    batch: Annotated[int, typer.Option(help="Texts in one segment.")] = 1,
) -> None:
    """Write one segment, with its state in and out, as ONNX."""
    with _clear_errors(), console.status(f"Exporting {source}"):
        from .conversion.onnx import export_onnx

        export_onnx(source, out, batch, tokens)
        console.print(f"Wrote {out}.")


@app.command()
def convert(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE... OUT", help="File, folder, or two files; then OUT.")
    ],
    base: Annotated[
        str | None, typer.Option(help="Model a training checkpoint started from: file, folder, Hub id.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Folder, tokenizer.json, vocab.txt or Hub id.")] = None,
    to: Annotated[str, typer.Option(help="published (same embeddings) or gated_delta (start of a LAM).")] = "published",
    rule: Annotated[str | None, typer.Option(help="flat or main, in place of the checkpoint's own.")] = None,
    gate: Annotated[str | None, typer.Option(help="Output gate of a started LAM: full, none, or its rank.")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="Leave out unknown tensors whose names begin so.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the weights of a started LAM that have no source.")] = 0,
) -> None:
    """Convert a published LAM checkpoint to one safetensors folder, with an account of every number."""
    with _clear_errors(), console.status("Converting"):
        import torch

        from .conversion.convert import convert
        from .conversion.report import format_report

        if len(sources) < 2:
            raise ValueError("Give the source, one file or folder or two files, and then the folder to write.")
        torch.manual_seed(seed)
        report = convert(
            [base_path(source) for source in sources[:-1]], sources[-1], base=None if base is None else base_path(base),
            tokenizer=None if tokenizer is None else base_path(tokenizer), to=to, rule=rule, gate=gate, drop=drop or [],
        )  # fmt: skip
    typer.echo(format_report(report))
    console.print(f"Wrote {sources[-1]}.", highlight=False, soft_wrap=True)


@app.command()
def inspect(
    source: Annotated[Path, typer.Argument(help="Checkpoint file or folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a checkpoint is, what is in it, and whether it loads (exit status 1 if not)."""
    with _clear_errors():
        import json

        from .conversion.inspect import format_inspection, inspect

        found = inspect(source)
    typer.echo(json.dumps(found, indent=2) if as_json else format_inspection(found))
    if not found["loads"]:
        raise typer.Exit(1)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="Model folder, from lam convert or lam export.")],
    repository: Annotated[str, typer.Argument(help="org/name on the Hub.")],
    upload: Annotated[bool, typer.Option("--upload", help="Really upload; without it only say what would be.")] = False,
    private: Annotated[bool, typer.Option(help="Make a new repository private.")] = False,
) -> None:
    """Upload a model folder to the Hub, with pinned revisions in its model card. A dry run unless --upload."""
    with _clear_errors():
        from .conversion.push import push

        for line in push(folder, repository, dry_run=not upload, private=private):
            typer.echo(line)


if __name__ == "__main__":
    app()

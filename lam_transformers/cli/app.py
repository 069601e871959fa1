"""The command `lam`: a thin layer over the package."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from huggingface_hub.errors import StrictDataclassError
from rich.console import Console
from rich.text import Text

from ..io.loading import base_path
from ..io.terminal import one_line, printable
from .encode import encode
from .evaluate import compare, evaluate, report
from .memory import memory
from .train import train

app = typer.Typer(help="LAM: linear-time sentence and document embeddings.", no_args_is_help=True, add_completion=False)
app.add_typer(train, name="train")
app.add_typer(evaluate, name="evaluate")
app.add_typer(memory, name="memory")
for command in (encode, report, compare):
    app.command()(command)
# Names of files and words from files are shown as they are: nothing in them is markup, a link or an emoji.
console = Console(stderr=True, markup=False, emoji=False, highlight=False)


def say(line: object, before: str = "", style: str = "") -> None:
    """One line to the terminal's error stream, after a coloured word."""
    console.print(Text.assemble((before, style), one_line(line)), soft_wrap=True)


def echo(text: str) -> None:
    """Lines to the standard output; what files put into them cannot command the terminal."""
    typer.echo(printable(text, keep="\n\t"))


def working(what: object):
    """A sign of life while something runs: a context manager."""
    return console.status(Text(one_line(what)))


@contextmanager
def _clear_errors() -> Iterator[None]:
    """What a user can mend is said in one line; anything else keeps its traceback."""
    try:
        yield
    except (OSError, ValueError, FloatingPointError, ImportError, MemoryError, StrictDataclassError) as error:
        say(str(error) or type(error).__name__, "lam: ", "red")
        raise typer.Exit(1) from error


def _check_seed(seed: int) -> int:
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed must be a whole number from 0 to 2^63 - 1, got {seed}.")
    return seed


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
    with _clear_errors(), working(f"Starting from {base}"):
        from ..checkpoints.init import init_model, parse_gate

        model = init_model(base_path(base), out, parse_gate(gate), _check_seed(seed))
        say(f"Wrote {out}: {model.num_parameters():,} parameters. It needs training: lam train distill.")


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="LAM folder, such as RUN/best.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; may be SOURCE itself to refresh its code files.")],
    card: Annotated[Path | None, typer.Option(help="Markdown file to become README.md.")] = None,
    float32: Annotated[bool, typer.Option(help="Store the weights in float32 instead of float16.")] = False,
    stock: Annotated[bool, typer.Option(help="Use sentence-transformers' own modules only.")] = False,
) -> None:
    """Write a folder that loads as a stranger: weights, tokenizer, code, sentence-transformers modules."""
    with _clear_errors(), working(f"Exporting {source}"):
        import torch

        from ..checkpoints.export import export_model

        text = None if card is None else _read_card(card)
        export_model(source, out, torch.float32 if float32 else torch.float16, text, stock)
        say(f"Wrote {out}.")


def _read_card(path: Path) -> str:
    from ..model.checks_lam import check_regular

    check_regular(path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}).") from error


@app.command()
def export_onnx(
    source: Annotated[Path, typer.Argument(help="LAM folder.")],
    out: Annotated[Path, typer.Argument(help="File to write, such as lam.onnx.")],
    tokens: Annotated[int, typer.Option(help="Tokens of each text in one segment.")] = 128,
    batch: Annotated[int, typer.Option(help="Texts in one segment.")] = 1,
) -> None:
    """Write one segment, with its state in and out, as ONNX."""
    with _clear_errors(), working(f"Exporting {source}"):
        from ..checkpoints.onnx import export_onnx

        export_onnx(source, out, batch, tokens)
        say(f"Wrote {out}.")


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
    with _clear_errors(), working("Converting"):
        import torch

        from ..checkpoints.convert import convert
        from ..checkpoints.report import format_report

        if len(sources) < 2:
            raise ValueError("Give the source, one file or folder or two files, and then the folder to write.")
        torch.manual_seed(_check_seed(seed))
        report = convert(
            [base_path(source) for source in sources[:-1]], sources[-1], base=None if base is None else base_path(base),
            tokenizer=None if tokenizer is None else base_path(tokenizer), to=to, rule=rule, gate=gate, drop=drop or [],
        )  # fmt: skip
    echo(format_report(report))
    say(f"Wrote {sources[-1]}.")


@app.command()
def inspect(
    source: Annotated[Path, typer.Argument(help="Checkpoint file or folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a checkpoint is, what is in it, and whether it loads (exit status 1 if not)."""
    with _clear_errors():
        import json

        from ..checkpoints.inspect import format_inspection, inspect

        found = inspect(source)
    echo(json.dumps(found, indent=2) if as_json else format_inspection(found))
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
        from ..checkpoints.push import push

        for line in push(folder, repository, dry_run=not upload, private=private):
            echo(line)

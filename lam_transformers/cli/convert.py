"""`lam init`, `lam export`, `lam export-onnx`, `lam convert`, `lam inspect`, `lam push`: model folders."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .console import clear_errors, echo, say, working


def _locate(name: str | Path) -> str:
    """Where a model of that name is, see `locate_model`; torch is not imported before a command needs it."""
    from ..io.loading import locate_model

    return locate_model(name)


def _check_seed(seed: int) -> int:
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed must be a whole number from 0 to 2^63 - 1, got {seed}.")
    return seed


def init(
    base: Annotated[str, typer.Argument(help="Hub id or folder of a MiniLM-type BERT, such as all-MiniLM-L6-v2.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    gate: Annotated[str, typer.Option(help="Output gate: full, none, or its rank.")] = "32",
    seed: Annotated[int, typer.Option(help="Seed of the weights that have no counterpart in the base.")] = 0,
) -> None:
    """Start an untrained LAM from a BERT: embeddings, feed-forward layers and norms are copied."""
    with clear_errors(), working(f"Starting from {base}"):
        from ..checkpoints.init import init_model, parse_gate

        model = init_model(_locate(base), out, parse_gate(gate), _check_seed(seed))
        say(f"Wrote {out}: {model.num_parameters():,} parameters. It needs training: lam train distill.")


def export(
    source: Annotated[Path, typer.Argument(help="LAM folder, such as RUN/best.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; may be SOURCE itself to refresh its code files.")],
    card: Annotated[Path | None, typer.Option(help="Markdown file to become README.md.")] = None,
    float32: Annotated[bool, typer.Option(help="Store the weights in float32 instead of float16.")] = False,
    stock: Annotated[bool, typer.Option(help="Use sentence-transformers' own modules only.")] = False,
) -> None:
    """Write a folder that loads as a stranger: weights, tokenizer, code, sentence-transformers modules."""
    with clear_errors(), working(f"Exporting {source}"):
        import torch

        from ..checkpoints.export import export_model

        text = None if card is None else _read_card(card)
        export_model(_locate(source), out, torch.float32 if float32 else torch.float16, text, stock)
        say(f"Wrote {out}.")


def _read_card(path: Path) -> str:
    from ..model.checks_lam import check_regular

    check_regular(path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}).") from error


def export_onnx(
    source: Annotated[Path, typer.Argument(help="LAM folder.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    precision: Annotated[str, typer.Option(help="Of the large matrices: float32, float16 or int8.")] = "float32",
) -> None:
    """Write a folder for onnxruntime, which needs no torch: graphs for texts of any length, and their reader."""
    with clear_errors(), working(f"Exporting {source}"):
        from ..checkpoints.onnx import export_onnx

        export_onnx(_locate(source), out, precision)
        say(f"Wrote {out}.")


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
    with clear_errors(), working("Converting"):
        import torch

        from ..checkpoints.convert import convert
        from ..checkpoints.report import format_report

        if len(sources) < 2:
            raise ValueError("Give the source, one file or folder or two files, and then the folder to write.")
        torch.manual_seed(_check_seed(seed))
        report = convert(
            [_locate(source) for source in sources[:-1]],
            sources[-1],
            base=None if base is None else _locate(base),
            tokenizer=None if tokenizer is None else _locate(tokenizer),
            to=to,
            rule=rule,
            gate=gate,
            drop=drop or [],
        )
    echo(format_report(report))
    say(f"Wrote {sources[-1]}.")


def inspect(
    source: Annotated[Path, typer.Argument(help="Checkpoint file or folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a checkpoint is, what is in it, and whether it loads (exit status 1 if not)."""
    with clear_errors():
        from ..checkpoints.inspect import format_inspection, inspect

        inspection = inspect(_locate(source))
    echo(json.dumps(inspection, indent=2) if as_json else format_inspection(inspection))
    if not inspection["loads"]:
        raise typer.Exit(1)


def push(
    folder: Annotated[Path, typer.Argument(help="Model folder, from lam convert or lam export.")],
    repository: Annotated[str, typer.Argument(help="org/name on the Hub.")],
    upload: Annotated[bool, typer.Option("--upload", help="Really upload; without it only say what would be.")] = False,
    private: Annotated[bool, typer.Option(help="Make a new repository private.")] = False,
) -> None:
    """Upload a model folder to the Hub, with pinned revisions in its model card. A dry run unless --upload."""
    with clear_errors():
        from ..checkpoints.push import push

        for line in push(_locate(folder), repository, dry_run=not upload, private=private):
            echo(line)

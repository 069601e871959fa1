"""`lam train`: the stages of training, one by one or by a recipe."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..io.terminal import one_line
from .console import clear_errors, console, say

train = typer.Typer(help="Train a LAM.", no_args_is_help=True)

Student = Annotated[Path, typer.Argument(help="LAM folder to start from (lam init, or best/ of a run).")]
Out = Annotated[Path, typer.Argument(help="Folder of the run: checkpoints, log.jsonl, best/.")]
Data = Annotated[Path, typer.Option(envvar="LAM_DATA_DIR", help="Folder that relative paths of a recipe start from.")]
Cache = Annotated[Path | None, typer.Option(help="Folder for the embeddings of teachers; default OUT/teachers.")]
RecipeName = Annotated[str, typer.Option(help="Stage recipe: a file, or one of the package.")]
Changes = Annotated[list[str] | None, typer.Option("--set", help="name=value of the recipe; may be repeated.")]


@contextmanager
def _working() -> Iterator[tuple[Callable, Callable]]:
    """Errors in one line; and what `run_stage` calls to show its progress: (show, a function giving on_step)."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading and saving weights, it would stand across our own
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with clear_errors(), Progress(*columns, TimeRemainingColumn(), console=console) as bar:

        def show(what: str, total: int | None) -> Callable[[int], None]:
            task = bar.add_task(one_line(what), total=total)
            return lambda count: bar.advance(task, count)

        def watch(name: str, steps: int) -> Callable[[Any], None]:
            task = bar.add_task(one_line(name), total=steps)

            def on_step(state) -> None:
                bar.update(task, completed=state.step)
                if state.step % 10 == 0:
                    speed, best = state.tokens / max(state.seconds, 1e-9), state.best_score
                    loss = state.losses.get("loss", float("nan"))
                    note = f"{one_line(name)}  loss {loss:.4f}  {speed:,.0f} tokens/s  best dev {best:.4f}"
                    bar.update(task, description=note)

            return on_step

        yield show, watch


def _run(stage, student: Path, out: Path, data: Path, cache: Path | None) -> None:
    from ..training.recipe import run_stage

    with _working() as (show, watch):
        on_step = watch(stage.name, stage.config.steps)
        state = run_stage(stage, student, out, data, cache, show, on_step)
    _say_dropped(out)
    what = "dev score" if stage.stage == "longtext" else "STS-B dev Pearson"
    say(f"Best {what} {state.best_score:.4f} at step {state.best_step}: {out / 'best'}")


def _say_dropped(out: Path) -> None:
    """How many training texts were dropped, and why."""
    from ..model.checks_lam import read_json

    record = read_json(out / "data.json")
    totals = dict(record.get("dropped", {}))
    for source in record.get("sources", {}).values():
        for reason, count in source["counts"].items():
            totals[reason] = totals.get(reason, 0) + count
    say(", ".join(f"{reason}: {count:,}" for reason, count in totals.items()))


def _changes(given: list[str] | None) -> dict[str, Any]:
    """name=value, values as YAML reads them."""
    import yaml

    found = {}
    for item in given or []:
        name, equals, value = item.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set wants name=value, got {item!r}.")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise typer.BadParameter(
                f"--set {name}: {value!r} is not YAML ({' '.join(str(error).split())})."
            ) from error
    return found


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
    teacher_forced_steps: Annotated[
        int, typer.Option(help="First updates, in which each layer reads the teacher's states below it.")
    ] = 0,
    curriculum_steps: Annotated[int, typer.Option(help="First batches, that come short to long.")] = 0,
    feed_forward_learning_rate: Annotated[
        float, typer.Option(help="Also train feed-forward layers and norms, with this learning rate.")
    ] = 0.0,
    tensorboard: Annotated[bool, typer.Option(help="Also log for TensorBoard.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the order of the data.")] = 0,
) -> None:
    """Stage 1: distil a teacher into a LAM, layer by layer. Run again with the same OUT to resume."""
    with clear_errors():
        from ..training.recipe import Stage

        if not text and hub_dataset is None:
            raise ValueError("Give some text: --text PATH or --hub-dataset NAME.")
        settings = {
            "steps": steps, "warmup_steps": warmup_steps, "decay_steps": decay_steps,
            "tokens_per_batch": tokens_per_batch, "max_length": max_length, "learning_rate": learning_rate,
            "feed_forward_learning_rate": feed_forward_learning_rate, "hidden_weight": hidden_weight,
            "embedding_weight": embedding_weight, "similarity_weight": similarity_weight,
            "orthogonality_weight": orthogonality_weight, "teacher_forced_steps": teacher_forced_steps,
            "curriculum_steps": curriculum_steps, "train_everything": train_everything, "bf16": bf16, "seed": seed,
        }  # fmt: skip
        stage = Stage(
            stage="distill", dev=str(dev), settings=settings, text=[str(x) for x in text or []],
            hub_dataset=hub_dataset, exclude=[str(x) for x in exclude or []], teacher=teacher,
            evaluate_every=evaluate_every, checkpoint_every=checkpoint_every, tensorboard=tensorboard,
        )  # fmt: skip
    _run(stage, student, out, Path(), None)


def _stage_command(recipe: str, student: Path, out: Path, data: Path, cache: Path | None, changes, kind: str) -> None:
    with clear_errors():
        from ..training.recipe import read_stage

        stage = read_stage(recipe, _changes(changes))
        if stage.stage != kind:
            raise ValueError(f"{recipe} is a recipe of stage {stage.stage}, not {kind}.")
    _run(stage, student, out, data, cache)


@train.command()
def relational(
    student: Student,
    out: Out,
    recipe: Annotated[
        str, typer.Option(help="Stage recipe: a file, or one of the package.")
    ] = "stage2_relational.yaml",
    data: Data = Path(),
    cache: Cache = None,
    changes: Changes = None,
) -> None:
    """Stage 2: distil how stronger teachers see texts relate. Run again with the same OUT to resume."""
    _stage_command(recipe, student, out, data, cache, changes, "relational")


@train.command()
def finetune(
    student: Student,
    out: Out,
    recipe: RecipeName = "stage3_finetune.yaml",
    data: Data = Path(),
    cache: Cache = None,
    changes: Changes = None,
) -> None:
    """Stage 3: fine-tune on pairs, triplets and scored pairs. Run again with the same OUT to resume."""
    _stage_command(recipe, student, out, data, cache, changes, "finetune")


@train.command()
def longtext(
    student: Student,
    out: Out,
    recipe: RecipeName = "stage4_longtext.yaml",
    data: Data = Path(),
    cache: Cache = None,
    changes: Changes = None,
) -> None:
    """Stage 4: a short stage on documents of thousands of tokens. Run again with the same OUT to resume."""
    _stage_command(recipe, student, out, data, cache, changes, "longtext")


@train.command(name="run")
def run_whole(
    recipe: Annotated[str, typer.Argument(help="Recipe: a file, or one of the package: recipes/lam_base_v1.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/recipe"),
    data: Data = Path(),
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="STAGE.name=value of the recipe; may be repeated.")
    ] = None,
) -> None:
    """All stages of a recipe, evaluation, and a model folder with its card. Run again to resume."""
    by_stage: dict[str, dict] = {}
    for name, value in _changes(changes).items():
        stage, dot, setting = name.partition(".")
        if not dot:
            raise typer.BadParameter(f"--set wants STAGE.name=value, got {name!r}.")
        by_stage.setdefault(stage, {})[setting] = value
    with _working() as (show, watch):
        from ..training.recipe import run_recipe

        model = run_recipe(recipe, out, data, by_stage, show, lambda stage: watch(stage.name, stage.config.steps))
    say(f"Wrote {model}; scores are in {out / 'results.json'}.")


@train.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs; RUN.png is named after each.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("docs/training"),
) -> None:
    """Draw losses and dev scores of runs as PNG (needs matplotlib)."""
    with clear_errors():
        from ..training.plots import plot_run

        for run in runs:
            plot_run(run, out / f"{run.name}.png")
            say(f"Wrote {out / run.name}.png.")

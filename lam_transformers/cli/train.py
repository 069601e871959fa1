"""`lam train`: the stages of training, one by one or by a recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import MofNCompleteColumn

from .console import clear_errors, say, show_progress

if TYPE_CHECKING:
    from ..training.recipe import Stage

train = typer.Typer(help="Train a LAM.", no_args_is_help=True)

Student = Annotated[Path, typer.Argument(help="LAM folder to start from (lam init, or best/ of a run).")]
Out = Annotated[Path, typer.Argument(help="Folder of the run: checkpoints, log.jsonl, best/.")]
Data = Annotated[Path, typer.Option(envvar="LAM_DATA_DIR", help="Folder that relative paths of a recipe start from.")]
Cache = Annotated[Path | None, typer.Option(help="Folder for the embeddings of teachers; default OUT/teachers.")]
RecipeName = Annotated[str, typer.Option(help="Stage recipe: a file, or one of the package.")]
Changes = Annotated[list[str] | None, typer.Option("--set", help="name=value of the recipe; may be repeated.")]


def _run(stage: "Stage", student: Path, out: Path, data: Path, cache: Path | None) -> None:
    from ..training.run import run_stage

    with clear_errors(), show_progress(MofNCompleteColumn()) as shown:
        progress = run_stage(stage, student, out, data, cache, shown)
    _say_dropped(out)
    what = "dev score" if stage.stage == "longtext" else "STS-B dev Pearson"
    say(f"Best {what} {progress.best_score:.4f} at step {progress.best_step}: {out / 'best'}")


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

    changes: dict[str, Any] = {}
    for item in given or []:
        name, equals, value = item.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set wants name=value, got {item!r}.")
        try:
            changes[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise typer.BadParameter(
                f"--set {name}: {value!r} is not YAML ({' '.join(str(error).split())})."
            ) from error
    return changes


@train.command()
def distill(
    student: Student,
    out: Out,
    recipe: Annotated[
        str | None,
        typer.Option(help="Stage recipe: a file, or one of the package. Without it, give --dev and some text."),
    ] = None,
    data: Data = Path(),
    changes: Changes = None,
    dev: Annotated[Path | None, typer.Option(help="Pair file for validation and selection (STS-B dev).")] = None,
    text: Annotated[list[Path] | None, typer.Option(help="Text file or folder; may be given several times.")] = None,
    hub_dataset: Annotated[str | None, typer.Option(help="Hub data set with a text column.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Hub id or folder of the teacher.")] = None,
    exclude: Annotated[list[Path] | None, typer.Option(help="Pair files whose sentences are dropped.")] = None,
    steps: Annotated[int | None, typer.Option(help="Updates.")] = None,
    warmup_steps: Annotated[int | None, typer.Option(help="Updates of rising learning rate.")] = None,
    decay_steps: Annotated[int | None, typer.Option(help="Last updates, of falling learning rate.")] = None,
    tokens_per_batch: Annotated[int | None, typer.Option(help="Tokens in a batch.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Texts are cut after this many tokens.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    hidden_weight: Annotated[float | None, typer.Option(help="Weight of the hidden-state loss.")] = None,
    embedding_weight: Annotated[float | None, typer.Option(help="Weight of the embedding loss.")] = None,
    similarity_weight: Annotated[float | None, typer.Option(help="Weight of the in-batch similarity loss.")] = None,
    orthogonality_weight: Annotated[float | None, typer.Option(help="Weight of the orthogonal regularisation.")] = None,
    train_everything: Annotated[
        bool | None,
        typer.Option("--train-everything/--no-train-everything", help="Also train embeddings, FFN and norms."),
    ] = None,
    bf16: Annotated[bool | None, typer.Option("--bf16/--no-bf16", help="bf16 autocast.")] = None,
    evaluate_every: Annotated[int | None, typer.Option(help="Updates between validations.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Updates between checkpoints.")] = None,
    teacher_forced_steps: Annotated[
        int | None, typer.Option(help="First updates, in which each layer reads the teacher's states below it.")
    ] = None,
    curriculum_steps: Annotated[int | None, typer.Option(help="First batches, that come short to long.")] = None,
    feed_forward_learning_rate: Annotated[
        float | None, typer.Option(help="Also train feed-forward layers and norms, with this learning rate.")
    ] = None,
    tensorboard: Annotated[
        bool | None, typer.Option("--tensorboard/--no-tensorboard", help="Also log for TensorBoard.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the order of the data.")] = None,
) -> None:
    """Stage 1: distil a teacher into a LAM, layer by layer. Run again with the same OUT to resume.

    A setting that no option gives is that of the recipe or, without a recipe, the default of the stage
    (docs/TRAINING.md). --set wins over the other options.
    """
    options = {
        "hub_dataset": hub_dataset,
        "teacher": teacher,
        "steps": steps,
        "warmup_steps": warmup_steps,
        "decay_steps": decay_steps,
        "tokens_per_batch": tokens_per_batch,
        "max_length": max_length,
        "learning_rate": learning_rate,
        "hidden_weight": hidden_weight,
        "embedding_weight": embedding_weight,
        "similarity_weight": similarity_weight,
        "orthogonality_weight": orthogonality_weight,
        "train_everything": train_everything,
        "bf16": bf16,
        "evaluate_every": evaluate_every,
        "checkpoint_every": checkpoint_every,
        "teacher_forced_steps": teacher_forced_steps,
        "curriculum_steps": curriculum_steps,
        "feed_forward_learning_rate": feed_forward_learning_rate,
        "tensorboard": tensorboard,
        "seed": seed,
    }
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    # Paths of a recipe start from --data, those of the command line from where it is given.
    if dev is not None:
        given["dev"] = str(dev.absolute())
    if text:
        given["text"] = [str(path.absolute()) for path in text]
    if exclude:
        given["exclude"] = [str(path.absolute()) for path in exclude]
    _stage_command(recipe or {"stage": "distill"}, student, out, data, None, changes, "distill", given)


def _stage_command(
    recipe: str | dict[str, Any],
    student: Path,
    out: Path,
    data: Path,
    cache: Path | None,
    changes: list[str] | None,
    kind: str,
    given: dict[str, Any] | None = None,
) -> None:
    """Run the stage of a recipe; `given` and `changes` are further fields of it, by name and as --set has them."""
    with clear_errors():
        from ..training.recipe import read_stage

        fields = (given or {}) | _changes(changes)
        if isinstance(recipe, dict) and "dev" not in fields:
            raise ValueError("Give a pair file for validation, --dev FILE, or a --recipe.")
        if isinstance(recipe, dict) and not ("text" in fields or "hub_dataset" in fields):
            raise ValueError("Give some text: --text PATH or --hub-dataset NAME.")
        stage = read_stage(recipe, fields)
        if stage.stage != kind:
            raise ValueError(f"{recipe} is a recipe of stage {stage.stage}, not {kind}.")
    _run(stage, student, out, data, cache)


@train.command()
def relational(
    student: Student,
    out: Out,
    recipe: RecipeName = "stage2_relational.yaml",
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
    by_stage: dict[str, dict[str, Any]] = {}
    for name, value in _changes(changes).items():
        stage, dot, setting = name.partition(".")
        if not dot:
            raise typer.BadParameter(f"--set wants STAGE.name=value, got {name!r}.")
        by_stage.setdefault(stage, {})[setting] = value
    with clear_errors(), show_progress(MofNCompleteColumn()) as shown:
        from ..training.run import run_recipe

        model = run_recipe(recipe, out, data, by_stage, shown)
    say(f"Wrote {model}; scores are in {out / 'results.json'}.")


@train.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs; RUN.png is named after each.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("plots"),
) -> None:
    """Draw losses and dev scores of runs as PNG (needs matplotlib)."""
    with clear_errors():
        from ..training.plots import plot_run

        for run in runs:
            plot_run(run, out / f"{run.name}.png")
            say(f"Wrote {out / run.name}.png.")

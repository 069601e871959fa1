"""`lam evaluate`, `lam evaluate ablation`, `lam report`, `lam compare`."""

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from .console import clear_errors, echo, say, show_progress

Model = Annotated[str, typer.Argument(help="LAM folder.")]
DataFolder = Annotated[Path | None, typer.Option("--data", help="Folder of data sets; default LAM_DATA_DIR, the Hub.")]
Out = Annotated[Path, typer.Option(help="Folder of the results; the same command again resumes.")]


class _MeasureByDefault(TyperGroup):
    """`lam evaluate MODEL` without naming the subcommand."""

    def parse_args(self, ctx, args):
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["all", *args]
        return super().parse_args(ctx, args)


evaluate = typer.Typer(
    cls=_MeasureByDefault,
    no_args_is_help=True,
    help="Measure a LAM: lam evaluate MODEL; lam evaluate ablation.",
)


@evaluate.command("all")
def evaluate_all(
    model: Model,
    baseline: Annotated[
        list[str] | None, typer.Option(help="Model to measure beside it; may be given several times.")
    ] = None,
    data: DataFolder = None,
    out: Out = Path("results"),
    only: Annotated[list[str] | None, typer.Option(help="Measure only this part, again if need be.")] = None,
    pairs: Annotated[
        list[Path] | None, typer.Option(help="Further pair file (sentence1, sentence2, score) for the part sts.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A look in a few minutes, not for a report.")] = False,
    max_conversations: Annotated[
        int | None, typer.Option(min=1, help="Conversations of each file that the part memory reads; all without it.")
    ] = None,
) -> None:
    """Measure a LAM in all parts, or in those named by --only. docs/EVALUATION.md says what each number means."""
    with clear_errors():
        import dataclasses

        from ..evaluation.data import Data
        from ..evaluation.part import Settings
        from ..evaluation.parts.memory import MemorySettings
        from ..evaluation.report import write_report
        from ..evaluation.suite import QUICK, evaluate

        settings = QUICK if quick else Settings()
        if max_conversations is not None:
            fewer = dataclasses.replace(settings.of(MemorySettings), memory_conversations=max_conversations)
            settings = dataclasses.replace(settings, parts=(fewer, *settings.parts))
        with show_progress() as shown:
            missing = evaluate(
                model,
                baseline or ["all-MiniLM-L6-v2"],
                Data(data),
                out,
                only or [],
                settings,
                pairs or [],
                shown,
            )
        for line in missing:
            say(line, "Not measured: ", "yellow")
        say(f"Wrote {write_report(out)}.")


@evaluate.command()
def ablation(
    model: Annotated[str, typer.Argument(help="LAM folder whose results the ablations stand beside.")],
    text: Annotated[list[Path], typer.Option(help="Training text, file or folder; may be given several times.")],
    data: DataFolder = None,
    out: Out = Path("results"),
    base: Annotated[str, typer.Option(help="Teacher, and where every run starts.")] = "all-MiniLM-L6-v2",
    runs: Annotated[Path, typer.Option(help="Folder of the training runs; a run that is there is resumed.")] = Path(
        "runs/ablation"
    ),
    steps: Annotated[int, typer.Option(help="Updates of each run.")] = 200,
    tokens_per_batch: Annotated[int, typer.Option(help="Tokens in a batch.")] = 1536,
    seed: Annotated[list[int] | None, typer.Option(help="Seed of a start and order of data; several.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this ablation; may be given several times.")] = None,
) -> None:
    """Train the ablated models from one start with the same data and measure what each component contributes."""
    with clear_errors():
        from ..evaluation.data import Data
        from ..training.retraining import retrain_ablations

        with show_progress() as shown:
            path = retrain_ablations(
                model,
                base,
                text,
                Data(data),
                out,
                runs,
                steps,
                tokens_per_batch,
                seed or [0, 1],
                only or [],
                shown,
            )
        say(f"Wrote {path}; lam report {out} puts it into the report.")


def report(
    results: Annotated[Path, typer.Argument(help="Folder of results, from lam evaluate.")] = Path("results"),
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Write figures, EVALUATION_REPORT.md and report.html from the result files of a folder."""
    with clear_errors():
        from ..evaluation.report import write_report

        page = write_report(results)
    say(f"Wrote {page}.")
    if open_page:
        typer.launch(str(page))


def compare(
    first: Annotated[str, typer.Argument(help="Result file, folder of results, or model.")],
    second: Annotated[str, typer.Argument(help="What to set beside it, of the same kind.")],
    data: DataFolder = None,
) -> None:
    """Two results, or two checkpoints (measured now, on STS-B), side by side."""
    with clear_errors():
        from ..evaluation.compare import compare_results

        lines = compare_results(first, second, data)
    for line in lines:
        echo(line)

"""What came of a recipe: scores of the model and its baselines in one harness, the model card."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..io.loading import load_sentence_transformer
from ..io.progress import Progress
from ..io.results import write_result
from ..io.templates import render
from ..model.checks_lam import read_json
from ..model.modeling_lam import LAMModel
from ..scoring.retrieval import evaluate_retrieval
from ..scoring.sts import evaluate_sts
from .recipe import Recipe, Stage
from .trainer import RunProgress

RESAMPLES = 1000


class FinishedStage(NamedTuple):
    """A stage of a recipe that was run, the folder of its run, and where it ended."""

    stage: Stage
    folder: Path
    progress: RunProgress


def evaluate_models(recipe: Recipe, model: Path, data: Path, path: Path, reports_to: Progress) -> list[dict[str, Any]]:
    """Scores of a model folder and of the recipe's baselines, also written to `path`.

    Every model encodes through sentence-transformers as it comes (its own pooling and longest text). STS with 95 %
    bootstrap intervals over the pairs, retrieval by nDCG@10.
    """
    rows = []
    for name in (str(model), *recipe.baselines):
        tasks = len(recipe.sts) + len(recipe.retrieval)
        evaluating = reports_to.task(f"Evaluating {Path(name).name}", tasks)
        encoder = load_sentence_transformer(name)

        def encode(texts: Sequence[str], encoder: Any = encoder) -> np.ndarray:
            return encoder.encode(list(texts), batch_size=64, show_progress_bar=False)

        row: dict[str, Any] = {"model": Path(name).name, "sts": {}, "retrieval": {}}
        for task, file in recipe.sts.items():
            sizes = [size for size in recipe.dimensions if size < encoder.get_embedding_dimension()]
            row["sts"][task] = evaluate_sts(encode, data / file, sizes, RESAMPLES)
            evaluating.advance()
        for task, folder in recipe.retrieval.items():
            row["retrieval"][task] = evaluate_retrieval(encode, data / folder)
            evaluating.advance()
        rows.append(row)
    write_result(path, {"models": rows})
    return rows


def model_card(recipe: Recipe, model: Path, done: Sequence[FinishedStage], results: Sequence[dict[str, Any]]) -> str:
    """The card of a model folder, from the template recipes/model_card.md.j2.

    Args:
        recipe: whose stages were run.
        model: the model folder.
        done: the stages that were run.
        results: of `evaluate_models`.
    """
    used = [source for one in done for source in one.stage.settings.get("sources", [])]
    weights = " + ".join(f"{share:g} x {name}" for name, share in recipe.average.items()).replace("+ -", "- ")
    return render(
        Path(__file__).parent / "recipes" / "model_card.md.j2",
        name=recipe.name,
        base=recipe.base,
        base_id=recipe.base if "/" in recipe.base else f"sentence-transformers/{recipe.base}",
        parameters=f"{LAMModel.from_pretrained(model).num_parameters():,}",
        labelled=any("stsb_train" in source["path"] for source in used),
        similarity=[(task, _similarity_rows(results, task)) for task in results[0]["sts"]],
        retrieval=_retrieval_rows(results),
        stages=[_stage_row(stage, progress) for stage, _, progress in done],
        average=weights,
        sources=_source_rows(done),
    )


def _percent(score: dict[str, Any], name: str) -> str:
    low, high = score[f"{name}_interval"]
    return f"{100 * score[name]:.2f} ({100 * low:.1f} to {100 * high:.1f})"


def _similarity_rows(results: Sequence[dict[str, Any]], task: str) -> list[tuple[str, str, str]]:
    """Model, Pearson and Spearman correlation of each model, and of its first dimensions where they were measured."""
    rows = []
    for row in results:
        score = row["sts"][task]
        rows.append((row["model"], _percent(score, "pearson"), _percent(score, "spearman")))
        for n in [name.split("@")[1] for name in score if name.startswith("pearson@")]:
            correlations = [f"{100 * score[f'{kind}@{n}']:.2f}" for kind in ("pearson", "spearman")]
            rows.append((f"{row['model']}, first {n} dimensions", *correlations))
    return rows


def _retrieval_rows(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each model with its nDCG@10 by task; empty where there is no retrieval task."""
    return [
        {"model": row["model"], "ndcg": {task: f"{x['ndcg@10']:.4f}" for task, x in row["retrieval"].items()}}
        for row in results
        if row["retrieval"]
    ]


def _stage_row(stage: Stage, progress: RunProgress) -> tuple[str, ...]:
    """Name, teachers, updates, tokens and best dev score of a stage."""
    teachers = {
        "distill": [stage.teacher],
        "relational": [teacher["name"] for teacher in stage.settings.get("teachers", [])],
        "longtext": [stage.settings.get("teacher", "self")],
    }.get(stage.stage, [])
    return (
        stage.name,
        ", ".join(teachers) or "none",
        f"{progress.step:,}",
        f"{progress.tokens / 1e6:.1f} million",
        f"{progress.best_score:.4f} at update {progress.best_step:,}",
    )


def _source_rows(done: Sequence[FinishedStage]) -> list[tuple[str, ...]]:
    """Sources of each stage with their counts, from data.json of its folder."""
    rows: list[tuple[str, ...]] = []
    for stage, folder, _ in done:
        record = read_json(folder / "data.json")
        if "sources" in record:
            for name, source in record["sources"].items():
                counts = dict(source["counts"])
                kept = counts.pop("kept")
                rows.append((stage.name, name, f"{kept:,}", _reasons(counts)))
            continue
        kept = {name: count for name, count in record["texts"].items() if ": " not in name}
        for name, count in kept.items():
            reasons = {r: record["texts"].get(f"{name}: {r}", 0) for r in ("duplicate", "in evaluation")}
            rows.append((stage.name, name, f"{count:,}", _reasons(reasons)))
    return rows


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items() if count) or "none"

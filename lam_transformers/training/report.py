"""What came of a recipe: scores of the model and its baselines in one harness, the model card."""

from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np

from ..io.loading import base_path, load_sentence_transformer
from ..io.results import write_result
from ..model.checks_lam import read_json
from ..model.modeling_lam import LAMModel
from ..scoring.retrieval import evaluate_retrieval
from ..scoring.sts import evaluate_sts
from .recipe import Recipe, Stage
from .trainer import RunProgress, Show

RESAMPLES = 1000


class FinishedStage(NamedTuple):
    """A stage of a recipe that was run, the folder of its run, and where it ended."""

    stage: Stage
    folder: Path
    progress: RunProgress


def evaluate_models(
    recipe: Recipe, model: Path, data: Path, path: Path, show: Show | None = None
) -> list[dict[str, Any]]:
    """Scores of a model folder and of the recipe's baselines, also written to `path`.

    Every model encodes through sentence-transformers as it comes (its own pooling and longest text). STS with 95 %
    bootstrap intervals over the pairs, retrieval by nDCG@10.
    """
    rows = []
    for name in (str(model), *recipe.baselines):
        tasks = len(recipe.sts) + len(recipe.retrieval)
        advance = None if show is None else show(f"Evaluating {Path(name).name}", tasks)
        encoder = load_sentence_transformer(name if name == str(model) else base_path(name))

        def encode(texts: Sequence[str], encoder: Any = encoder) -> np.ndarray:
            return encoder.encode(list(texts), batch_size=64, show_progress_bar=False)

        row: dict[str, Any] = {"model": Path(name).name, "sts": {}, "retrieval": {}}
        for task, file in recipe.sts.items():
            sizes = [size for size in recipe.dimensions if size < encoder.get_embedding_dimension()]
            row["sts"][task] = evaluate_sts(encode, data / file, sizes, RESAMPLES)
            if advance is not None:
                advance(1)
        for task, folder in recipe.retrieval.items():
            row["retrieval"][task] = evaluate_retrieval(encode, data / folder)
            if advance is not None:
                advance(1)
        rows.append(row)
    write_result(path, {"models": rows})
    return rows


def model_card(recipe: Recipe, model: Path, done: Sequence[FinishedStage], results: Sequence[dict[str, Any]]) -> str:
    """The card of a model folder.

    Args:
        recipe: of the model.
        model: the folder.
        done: the stages that were run.
        results: of `evaluate_models`.
    """
    template = Template((Path(__file__).parent / "recipes" / "model_card.md").read_text(encoding="utf-8"))
    sources = [source for one in done for source in one.stage.settings.get("sources", [])]
    labelled = any("stsb_train" in source["path"] for source in sources)
    return template.substitute(
        name=recipe.name,
        base=recipe.base,
        base_id=recipe.base if "/" in recipe.base else f"sentence-transformers/{recipe.base}",
        parameters=f"{LAMModel.from_pretrained(model).num_parameters():,}",
        scores=_scores(results),
        stages=_stages(done, recipe.average),
        sources=_sources(done),
        stsb="STS-B train was used in fine-tuning." if labelled else "STS-B train was not used.",
    )


def _percent(score: dict[str, Any], name: str) -> str:
    low, high = score[f"{name}_interval"]
    return f"{100 * score[name]:.2f} ({100 * low:.1f} to {100 * high:.1f})"


def _scores(results: Sequence[dict[str, Any]]) -> str:
    lines = []
    for task in results[0]["sts"]:
        lines += ["", f"| {task} | Pearson (95 % interval) | Spearman (95 % interval) |", "|---|---|---|"]
        for row in results:
            score = row["sts"][task]
            lines.append(f"| {row['model']} | {_percent(score, 'pearson')} | {_percent(score, 'spearman')} |")
            sizes = [name.split("@")[1] for name in score if name.startswith("pearson@")]
            lines += [
                f"| {row['model']}, first {n} dimensions | {100 * score[f'pearson@{n}']:.2f} "
                f"| {100 * score[f'spearman@{n}']:.2f} |"
                for n in sizes
            ]
    tasks = list(results[0]["retrieval"])
    if tasks:
        lines += ["", f"| nDCG@10 | {' | '.join(tasks)} |", "|---" * (len(tasks) + 1) + "|"]
        for row in results:
            cells = [f"{row['retrieval'][task]['ndcg@10']:.4f}" for task in tasks]
            lines.append(f"| {row['model']} | {' | '.join(cells)} |")
    return "\n".join(lines).strip()


def _stages(done: Sequence[FinishedStage], average: dict[str, float]) -> str:
    lines = ["| stage | teachers | updates | tokens | best dev score |", "|---|---|---|---|---|"]
    for stage, _, progress in done:
        names = {
            "distill": [stage.teacher],
            "relational": [teacher["name"] for teacher in stage.settings.get("teachers", [])],
            "longtext": [stage.settings.get("teacher", "self")],
        }.get(stage.stage, [])
        lines.append(
            f"| {stage.name} | {', '.join(names) or 'none'} | {progress.step:,} | {progress.tokens / 1e6:.1f} million "
            f"| {progress.best_score:.4f} at update {progress.best_step:,} |"
        )
    if average:
        shares = " + ".join(f"{share:g} x {name}" for name, share in average.items()).replace("+ -", "- ")
        lines += ["", f"The released weights are a weighted mean of these stages' best weights: {shares}."]
    return "\n".join(lines)


def _sources(done: Sequence[FinishedStage]) -> str:
    """Sources of each stage with their counts, from data.json of its folder."""
    lines = ["| stage | source | kept | dropped |", "|---|---|---|---|"]
    for stage, folder, _ in done:
        record = read_json(folder / "data.json")
        if "sources" in record:
            for name, source in record["sources"].items():
                counts = dict(source["counts"])
                kept = counts.pop("kept")
                lines.append(f"| {stage.name} | {name} | {kept:,} | {_reasons(counts)} |")
            continue
        kept = {name: count for name, count in record["texts"].items() if ": " not in name}
        for name, count in kept.items():
            reasons = {r: record["texts"].get(f"{name}: {r}", 0) for r in ("duplicate", "in evaluation")}
            lines.append(f"| {stage.name} | {name} | {count:,} | {_reasons(reasons)} |")
    return "\n".join(lines)


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items() if count) or "none"

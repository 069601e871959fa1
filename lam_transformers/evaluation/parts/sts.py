"""Semantic textual similarity: how well cosine similarities follow human scores."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from ...io.results import Numbers, Record, Results, model_name, numbers_of
from ...scoring.statistics import bootstrap_correlations, interval
from ...scoring.sts import Pairs, read_pairs, similarities, spread
from .. import drawing
from ..blocks import Block, Figure, Section, Table, Text, p_value, prose, with_interval
from ..data import MissingData
from ..models import BagOfTokens
from ..part import Context, Part

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

ERROR_CASES = 8
HARDLY = 0.3  # a correlation below that


@dataclass(frozen=True)
class StsSettings:
    """How many pairs of each pair file are scored; None: all."""

    sts_pairs: int | None = None


def run(context: Context) -> Numbers:
    """Correlations with intervals, calibration error and error cases on STS-B dev and test and the given pair files.

    Null hypothesis of each difference: model and baseline correlate equally with the human scores (paired bootstrap).
    """
    files: dict[str, Path] = {}
    for name in ("stsb_dev", "stsb_test"):
        with context.may_lack():
            files[name] = context.data.path(name)
    files |= {Path(path).name.split(".")[0]: Path(path) for path in context.pairs}
    if not files:
        raise MissingData("STS-B", "Neither dev nor test was found, and no --pairs file was given.")
    settings = context.settings
    numbers: Numbers = {"sets": {}, "resamples": settings.resamples}
    lines: dict[str, tuple[float, float]] = {}
    for name, path in files.items():
        context.say(name)
        pairs = spread(read_pairs(path), settings.of(StsSettings).sts_pairs)
        first, second, _ = pairs
        scored = {encoder.name: similarities(encoder.encode, first, second) for encoder in context.encoders}
        bag = BagOfTokens(context.model, first + second)
        scored[bag.name] = similarities(bag.encode, first, second)
        numbers["sets"][name] = measure_set(scored, pairs, context.model.name, settings.resamples, lines, name)
    return numbers


def measure_set(
    scored: Mapping[str, np.ndarray],
    pairs: Pairs,
    ours: str,
    resamples: int,
    lines: dict[str, tuple[float, float]],
    name: str,
) -> Numbers:
    """All numbers of one pair file.

    Args:
        scored: similarities [pairs] by model.
        pairs: what `read_pairs` returned.
        ours: which of `scored` is compared with all others.
        resamples: bootstrap samples of the pairs.
        lines: slope and intercept of the linear calibration by model; fitted here on "stsb_dev", or on the file itself
            where that was not read before.
        name: of the pair file.
    """
    first, second, scores = pairs
    resampled = bootstrap_correlations(scored, scores, resamples)
    fitted_on = "stsb_dev" if lines or name == "stsb_dev" else name
    models: dict[str, Any] = {}
    for model, x in scored.items():
        if model not in lines:
            line = stats.linregress(x, scores)
            lines[model] = (float(line.slope), float(line.intercept))
        slope, intercept = lines[model]
        error = slope * x + intercept - scores
        pearson = stats.pearsonr(x, scores)
        spearman = stats.spearmanr(x, scores)
        models[model] = {
            "pearson": float(pearson.statistic),
            "pearson_p": float(pearson.pvalue),
            "pearson_interval": interval(resampled["pearson"][model]),
            "spearman": float(spearman.statistic),
            "spearman_p": float(spearman.pvalue),
            "spearman_interval": interval(resampled["spearman"][model]),
            "mae": float(np.abs(error).mean()),
            "rmse": float(np.sqrt((error**2).mean())),
            "calibration": {"slope": slope, "intercept": intercept, "fitted_on": fitted_on},
            "ranges": score_ranges(x, scores),
        }
    differences = {
        model: {
            kind: {
                "difference": models[ours][kind] - models[model][kind],
                "interval": interval(resampled[kind][ours] - resampled[kind][model]),
            }
            for kind in ("pearson", "spearman")
        }
        for model in scored
        if model != ours
    }
    slope, intercept = lines[ours]
    predicted = slope * scored[ours] + intercept
    worst = np.argsort(-np.abs(predicted - scores))[:ERROR_CASES]
    cases = [
        {"sentence1": first[i], "sentence2": second[i], "score": float(scores[i]), "predicted": float(predicted[i])}
        for i in worst
    ]
    return {"pairs": len(scores), "models": models, "differences": differences, "error_cases": cases}


def score_ranges(similarity: np.ndarray, scores: np.ndarray, count: int = 5) -> list[dict[str, Any]]:
    """Correlation within ranges of the human score; None where all scores of a range are equal or it holds under 3."""
    edges = np.linspace(scores.min(), scores.max(), count + 1)
    rows = []
    for i in range(count):
        inside = (scores >= edges[i]) & ((scores < edges[i + 1]) if i + 1 < count else True)
        enough = inside.sum() >= 3 and np.ptp(scores[inside]) > 0 and np.ptp(similarity[inside]) > 0
        row = {
            "from": float(edges[i]),
            "to": float(edges[i + 1]),
            "pairs": int(inside.sum()),
            "pearson": float(stats.pearsonr(similarity[inside], scores[inside]).statistic) if enough else None,
            "mean_similarity": float(similarity[inside].mean()) if inside.any() else None,
        }
        rows.append(row)
    return rows


def section(record: Record) -> Section:
    """Scores, figures and the largest errors of each pair file."""
    blocks: list[Block] = []
    sets = record["numbers"]["sets"]
    for name, measured in sets.items():
        rows = []
        for model, x in measured["models"].items():
            row = (
                model,
                with_interval(x["pearson"], x["pearson_interval"], 4),
                with_interval(x["spearman"], x["spearman_interval"], 4),
                p_value(x["pearson_p"]),
                f"{x['mae']:.3f}",
                f"{x['rmse']:.3f}",
                _difference(measured["differences"].get(model)),
            )
            rows.append(row)
        description = prose(
            "{{ name }}: {{ pairs }} pairs; MAE and RMSE after a linear calibration fitted on {{ fitted_on }}.",
            name=name,
            pairs=f"{measured['pairs']:,}",
            fitted_on=next(iter(measured["models"].values()))["calibration"]["fitted_on"],
        )
        header = ("model", "Pearson", "Spearman", "p", "MAE", "RMSE", "LAM minus it (Pearson)")
        blocks += [description, Table(header, rows)]
    blocks += [
        Figure("sts", "Pearson correlation with human scores."),
        Figure("sts_ranges", "Correlation within ranges of the human score: a narrow range leaves little to follow."),
    ]
    for name, measured in sets.items():
        cases = [
            (f"{case['score']:.1f}", f"{case['predicted']:.1f}", case["sentence1"], case["sentence2"])
            for case in measured["error_cases"]
        ]
        blocks.append(Text(f"The largest errors on {name}:"))
        blocks.append(Table(("people", "model", "sentence 1", "sentence 2"), cases))
    return Section("Similarity of sentences", blocks)


def _difference(difference: dict[str, Any] | None) -> str:
    """LAM minus a baseline; empty for the LAM itself."""
    if difference is None:
        return ""
    return with_interval(difference["pearson"]["difference"], difference["pearson"]["interval"], 4)


def weaknesses(results: Results) -> list[str]:
    """Baselines that are significantly better, and the range of scores that the similarities hardly follow."""
    lines = []
    for name, measured in (numbers_of(results, PART.name) or {"sets": {}})["sets"].items():
        for other, row in measured["differences"].items():
            if row["pearson"]["interval"][1] < 0:
                lines.append(f"Similarity on {name} is below {other}: Pearson differs by {_difference(row)}.")
        ranges = [r for r in measured["models"][model_name(results)]["ranges"] if r["pearson"] is not None]
        low = min(ranges, key=lambda r: r["pearson"]) if ranges else None
        if low and low["pearson"] < HARDLY:
            lines.append(
                f"Within human scores of {low['from']:.0f} to {low['to']:.0f} on {name} its similarities hardly follow "
                f"people: Pearson {low['pearson']:.2f}."
            )
    return lines


def _shown_set(numbers: Numbers) -> str | None:
    """The pair file that is drawn: STS-B test, or else dev."""
    return next((name for name in ("stsb_test", "stsb_dev") if name in numbers["sets"]), None)


def draw_correlations(numbers: Numbers, model: str) -> "Drawing | None":
    """Pearson correlation of each model, with intervals."""
    name = _shown_set(numbers)
    if name is None:
        return None
    models = numbers["sets"][name]["models"]
    title = f"Agreement with human similarity ({name})"
    figure, axes = drawing.new_axes(title, "Pearson correlation, 95 % interval", "", (6.4, 2.6))
    rows = [{"mean": x["pearson"], "interval": x["pearson_interval"]} for x in models.values()]
    drawing.bars(axes, list(models), rows)
    axes.set_xlim(min(0.5, *(row["interval"][0] for row in rows)), 1)
    return figure


def draw_ranges(numbers: Numbers, model: str) -> "Drawing | None":
    """Pearson correlation within ranges of the human score."""
    name = _shown_set(numbers)
    if name is None:
        return None
    title = f"Where similarities agree with people ({name})"
    figure, axes = drawing.new_axes(title, "human score", "Pearson within the range")
    series: drawing.Series = {}
    for encoder, measured in numbers["sets"][name]["models"].items():
        ranges = [r for r in measured["ranges"] if r["pearson"] is not None]
        series[encoder] = ([(r["from"] + r["to"]) / 2 for r in ranges], [r["pearson"] for r in ranges])
    drawing.lines(axes, series, model)
    axes.axhline(0, color="black", linewidth=0.6)
    return figure


PART = Part(
    name="sts",
    run=run,
    section=section,
    weaknesses=weaknesses,
    figures={"sts": draw_correlations, "sts_ranges": draw_ranges},
    settings=StsSettings,
    quick=StsSettings(sts_pairs=300),
)

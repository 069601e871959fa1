"""What each component of a LAM contributes: switched off in the trained model, or (retraining.py) trained without."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...io.results import Numbers, Record, Results, numbers_of
from ...model.memory_lam import LAMMemory
from ...model.modeling_lam import LAMModel
from ...scoring.retrieval import ndcg
from ...scoring.statistics import bootstrap_correlations, bootstrap_mean, interval
from ...scoring.sts import read_pairs, similarities, spread
from .. import drawing
from ..blocks import Figure, Section, Table, prose, with_interval
from ..models import MeasuredModel
from ..part import Context, Part
from ..parts.retrieval import books_set
from ..parts.sts import StsSettings
from .probe import additive_rule

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

FULL = "full model"
Scores = tuple[np.ndarray, np.ndarray]  # similarities [pairs], nDCG@10 [queries]


@dataclass(frozen=True)
class AblationSettings:
    """Number of the books of the retrieval task, and tokens of their segments."""

    ablation_books: int = 17
    ablation_tokens: int = 2_048


@dataclass(frozen=True)
class Ablation:
    """A component and how to do without it.

    Attributes:
        label: what the reader is told.
        change: sets a memory's parameters, or its rule, so that the component does nothing.
        frozen: parameters of a memory that training must leave alone then, by name; the rows of in_proj given by
            `rows` keep their zeros too.
    """

    label: str
    change: Callable[[LAMMemory], None]
    frozen: tuple[str, ...] = ()
    rows: Callable[[LAMMemory], slice] | None = None


def _decay_rows(memory: LAMMemory) -> slice:
    """Rows of in_proj that make the decays depend on the token: slow, then fast."""
    start = 3 * memory.heads * memory.width + memory.heads
    return slice(start, start + 2 * memory.heads)


def _additive(memory: LAMMemory) -> None:
    memory.rule = additive_rule


def _one_way(memory: LAMMemory) -> None:
    memory.two_way_chunk = None


@torch.no_grad()
def _no_exchange(memory: LAMMemory) -> None:
    memory.cos, memory.sin = 1.0, 0.0


@torch.no_grad()
def _flux_at(memory: LAMMemory, psi: float) -> None:
    memory.flux.out_proj.weight.zero_()
    memory.flux.out_proj.bias.fill_(float(torch.logit(torch.tensor(psi, dtype=torch.float64))))


def _one_memory(memory: LAMMemory) -> None:
    _no_exchange(memory)
    _flux_at(memory, 1 - 1e-7)


@torch.no_grad()
def _constant_decay(memory: LAMMemory) -> None:
    memory.in_proj.weight[_decay_rows(memory)] = 0


@torch.no_grad()
def _no_convolution(memory: LAMMemory) -> None:
    memory.conv1d.weight.zero_()
    memory.conv1d.weight[..., -1] = 1


FLUX = (
    "flux.bilinear",
    "flux.temperature",
    "flux.in_proj.weight",
    "flux.in_proj.bias",
    "flux.out_proj.weight",
    "flux.out_proj.bias",
)
ABLATIONS = {
    "delta rule": Ablation("delta rule off: additive memory", _additive),
    "two memories": Ablation("one memory: slow only", _one_memory, FLUX),
    "cross-timescale": Ablation("cross-timescale exchange 0", _no_exchange),
    "flux": Ablation("resonance flux constant at 0.5", lambda memory: _flux_at(memory, 0.5), FLUX),
    "decay": Ablation("decays constant", _constant_decay, rows=_decay_rows),
    "two-way reading": Ablation("every memory read one way", _one_way),
    "convolution": Ablation("convolution off", _no_convolution, ("conv1d.weight",)),
}


def without(lam: LAMModel, name: str) -> LAMModel:
    """A copy of a LAM in which a component of `ABLATIONS` does nothing."""
    copied = copy.deepcopy(lam)
    for layer in copied.layers:
        ABLATIONS[name].change(layer.memory)
    return copied


def keep_off(lam: LAMModel, name: str) -> None:
    """Keep training from switching a component on again; to be called on the model that `without` returned."""
    ablation = ABLATIONS[name]
    for layer in lam.layers:
        parameters = dict(layer.memory.named_parameters())
        for frozen in ablation.frozen:
            parameters[frozen].requires_grad_(False)
        if ablation.rows is not None:
            rows = ablation.rows(layer.memory)
            layer.memory.in_proj.weight.register_hook(lambda grad, rows=rows: _without_rows(grad, rows))


def _without_rows(grad: torch.Tensor, rows: slice) -> torch.Tensor:
    grad = grad.clone()
    grad[rows] = 0
    return grad


class Tasks:
    """STS-B dev and retrieval of long texts, read once and scored for several models."""

    def __init__(self, context: Context):
        settings = context.settings.of(AblationSettings)
        self.resamples = context.settings.resamples
        self.tokens = settings.ablation_tokens
        self.pairs = spread(read_pairs(context.data.path("stsb_dev")), context.settings.of(StsSettings).sts_pairs)
        self.documents, self.queries, self.relevant = books_set(
            context, 2, settings.ablation_tokens, settings.ablation_books
        )

    def score(self, encoder: MeasuredModel) -> Scores:
        """Similarities of the pairs [pairs], and nDCG@10 of the queries [queries]."""
        first, second, _ = self.pairs
        similarity = similarities(encoder.encode, first, second)
        scores = encoder.encode(self.queries) @ encoder.encode(self.documents).T
        return similarity, ndcg(scores, self.relevant)

    def compare(self, scored: Mapping[str, Scores]) -> list[Numbers]:
        """Each model's scores and its difference to the full model with a paired bootstrap interval."""
        *_, target = self.pairs
        values = {name: similarity for name, (similarity, _) in scored.items()}
        correlations = bootstrap_correlations(values, target, self.resamples)["pearson"]
        full_similarity, full_gains = scored[FULL]
        full_pearson = float(np.corrcoef(full_similarity, target)[0, 1])
        rows: list[Numbers] = []
        for name, (similarity, gains) in scored.items():
            pearson = float(np.corrcoef(similarity, target)[0, 1])
            row = {
                "ablation": name,
                "label": FULL if name == FULL else ABLATIONS[name].label,
                "stsb_dev": pearson,
                "stsb_dev_difference": pearson - full_pearson,
                "stsb_dev_interval": interval(correlations[name] - correlations[FULL]),
                "long_text": float(gains.mean()),
                "long_text_difference": float((gains - full_gains).mean()),
                "long_text_interval": bootstrap_mean(gains - full_gains, self.resamples)["interval"],
            }
            rows.append(row)
        return rows

    def describe(self) -> Numbers:
        """The size of both tasks, for the result file."""
        return {
            "pairs": len(self.pairs[2]),
            "documents": len(self.documents),
            "queries": len(self.queries),
            "document_tokens": self.tokens,
        }


def with_lam(encoder: MeasuredModel, lam: LAMModel) -> MeasuredModel:
    """A model like `encoder` with another LAM inside."""
    model = copy.copy(encoder.model)
    model._modules = dict(encoder.model._modules)
    first = copy.copy(encoder.model[0])
    first._modules = dict(first._modules) | {"model": lam}
    model._modules["0"] = first
    return MeasuredModel(encoder.name, model, lam, encoder.limit)


def run(context: Context) -> Numbers:
    """Each component switched off in the trained model, nothing trained again.

    Null hypothesis of each row: the component changes neither STS-B dev nor the retrieval of long texts (paired
    bootstrap over pairs and queries). A model trained with a component relies on it: a loss here does not say that a
    model trained without it would be worse, which is what the retrained ablations say.
    """
    tasks = Tasks(context)
    scored = {FULL: tasks.score(context.model)}
    for name in ABLATIONS:
        context.say(f"without: {name}")
        scored[name] = tasks.score(with_lam(context.model, without(context.model.lam, name)))
    return {"rows": tasks.compare(scored), **tasks.describe()}


def contributes(row: Numbers) -> bool:
    """Whether leaving a component out is worse on one of the two tasks, the interval excluding zero."""
    return bool(row["stsb_dev_interval"][1] < 0 or row["long_text_interval"][1] < 0)


def contribution(row: Numbers) -> str:
    """What leaving a component out did, in a word or two."""
    better = row["stsb_dev_interval"][0] > 0 or row["long_text_interval"][0] > 0
    if contributes(row):
        return "yes, but better without it on one task" if better else "yes"
    return "no: better without it" if better else "no"


def _table(numbers: Numbers) -> Table:
    rows = [
        (
            row["label"],
            f"{row['stsb_dev']:.4f}",
            with_interval(row["stsb_dev_difference"], row["stsb_dev_interval"], 4),
            f"{row['long_text']:.3f}",
            with_interval(row["long_text_difference"], row["long_text_interval"]),
            "" if row["ablation"] == FULL else contribution(row),
        )
        for row in numbers["rows"]
    ]
    return Table(("model", "STS-B dev", "difference", "long texts nDCG@10", "difference", "contributes"), rows)


def section(record: Record) -> Section:
    """Components switched off in the trained model."""
    return Section(
        "Components switched off",
        [
            prose(
                """
                In the trained model, nothing trained again. Null hypothesis of each row: no difference. A trained model
                relies on what it was trained with, so a loss here does not say that the component is needed.
                """
            ),
            _table(record["numbers"]),
            Figure("ablation", "Difference to the full model."),
        ],
    )


def retrained_section(record: Record) -> Section:
    """Models trained without a component."""
    numbers = record["numbers"]
    return Section(
        "Trained without a component",
        [
            prose(
                """
                From {{ base }}, {{ steps }} updates ({{ tokens }} tokens), seeds {{ seeds | join(", ") }}; start, data
                and their order are the same for all. A short run: it says what a component does at this budget.
                Intervals span those of all seeds.
                """,
                base=numbers["base"],
                steps=numbers["steps"],
                tokens=f"{numbers['tokens']:,}",
                seeds=numbers["seeds"],
            ),
            _table(numbers),
            Figure("ablation_retrained", "Difference to the full model trained in the same way."),
        ],
    )


def weaknesses(results: Results) -> list[str]:
    """Components that do nothing, first as trained without them, then as switched off."""
    lines = []
    for part, how in ((RETRAINED, "trained without it"), (PART, "switched off in the trained model")):
        rows = (numbers_of(results, part.name) or {"rows": []})["rows"]
        lines += [
            f"Component {row['ablation']}, {how}: STS-B dev {row['stsb_dev_difference']:+.4f}, long texts "
            f"{row['long_text_difference']:+.3f}. Contributes: {contribution(row)}."
            for row in rows[1:]
            if contribution(row) != "yes"
        ]
    return lines


def _draw(numbers: Numbers, title: str) -> "Drawing":
    rows = numbers["rows"][1:]
    figure = drawing.new_figure((6.4, 3.0))
    both = figure.subplots(1, 2, sharey=True)
    figure.suptitle(title, fontsize=11, x=0.02, ha="left")
    places = np.arange(len(rows))[::-1]
    tasks = {"stsb_dev": "STS-B dev, Pearson", "long_text": "long texts, nDCG@10"}
    for axes, (task, label) in zip(both, tasks.items(), strict=True):
        values = np.array([row[f"{task}_difference"] for row in rows])
        low, high = np.array([row[f"{task}_interval"] for row in rows]).T
        errors = np.abs([values - low, high - values])
        axes.errorbar(values, places, xerr=errors, fmt="o", color=drawing.COLOURS[0], capsize=2)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel(f"difference to the full model\n{label}", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.locator_params(axis="x", nbins=4)
    both[0].set_yticks(places, [row["label"] for row in rows])
    return figure


def draw(numbers: Numbers, model: str) -> "Drawing":
    """Differences of the switched-off components on both tasks."""
    return _draw(numbers, "Components switched off in the trained model")


def draw_retrained(numbers: Numbers, model: str) -> "Drawing":
    """Differences of the models trained without a component on both tasks."""
    updates = f"{numbers['steps']} updates, {len(numbers['seeds'])} seeds"
    return _draw(numbers, f"Trained without the component ({updates})")


PART = Part(
    name="ablation",
    run=run,
    section=section,
    weaknesses=weaknesses,
    figures={"ablation": draw},
    settings=AblationSettings,
    quick=AblationSettings(ablation_books=4, ablation_tokens=512),
)
# `lam evaluate ablation` trains the models and writes the file; `weaknesses` above judges both.
RETRAINED = Part(
    name="ablation_retrained",
    run=None,
    section=retrained_section,
    figures={"ablation_retrained": draw_retrained},
)

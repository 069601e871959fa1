"""What each component of a LAM contributes: switched off in the trained model, or (retraining.py) trained without."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...model.memory_lam import LAMMemory
from ...model.modeling_lam import LAMModel
from ...scoring.statistics import bootstrap_correlations, bootstrap_mean, interval
from ...scoring.sts import read_pairs, similarities, spread
from ..models import Encoder
from .long_retrieval import books_set, ndcg
from .probe import additive_rule

FULL = "full model"


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


FLUX = ("flux.bilinear", "flux.temperature", "flux.in_proj.weight", "flux.in_proj.bias", "flux.out_proj.weight",
        "flux.out_proj.bias")  # fmt: skip
ABLATIONS = {
    "delta rule": Ablation("delta rule off: additive memory", _additive),
    "two memories": Ablation("one memory: slow only", _one_memory, FLUX),
    "cross-timescale": Ablation("cross-timescale exchange 0", _no_exchange),
    "flux": Ablation("resonance flux constant at 0.5", lambda memory: _flux_at(memory, 0.5), FLUX),
    "decay": Ablation("decays constant", _constant_decay, rows=_decay_rows),
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

    def __init__(self, context):
        self.context, settings = context, context.settings
        self.pairs = spread(read_pairs(context.data.path("stsb_dev")), settings.sts_pairs)
        self.documents, self.queries, self.relevant = books_set(
            context, 2, settings.ablation_tokens, settings.ablation_books
        )

    def score(self, encoder: Encoder) -> tuple[np.ndarray, np.ndarray]:
        """Similarities of the pairs [pairs], and nDCG@10 of the queries [queries]."""
        similarity = similarities(encoder.encode, *self.pairs[:2])
        found = encoder.encode(self.queries) @ encoder.encode(self.documents).T
        return similarity, ndcg(found, self.relevant)

    def compare(self, found: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[dict[str, Any]]:
        """Each model's scores and its difference to the full model with a paired bootstrap interval."""
        resamples, target = self.context.settings.resamples, self.pairs[2]
        correlations = bootstrap_correlations({name: x for name, (x, _) in found.items()}, target, resamples)["pearson"]
        rows = []
        for name, (similarity, gains) in found.items():
            pearson = float(np.corrcoef(similarity, target)[0, 1])
            full = found[FULL]
            rows.append({
                "ablation": name, "label": FULL if name == FULL else ABLATIONS[name].label,
                "stsb_dev": pearson,
                "stsb_dev_difference": pearson - float(np.corrcoef(full[0], target)[0, 1]),
                "stsb_dev_interval": interval(correlations[name] - correlations[FULL]),
                "long_text": float(gains.mean()),
                "long_text_difference": float((gains - full[1]).mean()),
                "long_text_interval": bootstrap_mean(gains - full[1], resamples)["interval"],
            })  # fmt: skip
        return rows

    def describe(self) -> dict[str, Any]:
        return {"pairs": len(self.pairs[2]), "documents": len(self.documents), "queries": len(self.queries),
                "document_tokens": self.context.settings.ablation_tokens}  # fmt: skip


def with_lam(encoder: Encoder, lam: LAMModel) -> Encoder:
    """An encoder like `encoder` with another LAM inside."""
    model = copy.copy(encoder.model)
    model._modules = dict(encoder.model._modules)
    first = copy.copy(encoder.model[0])
    first._modules = dict(first._modules) | {"model": lam}
    model._modules["0"] = first
    return Encoder(encoder.name, model, lam, encoder.limit)


def run(context) -> dict[str, Any]:
    """Each component switched off in the trained model, nothing trained again.

    Null hypothesis of each row: the component changes neither STS-B dev nor the retrieval of long texts (paired
    bootstrap over pairs and queries). A model trained with a component relies on it: a loss here does not say that a
    model trained without it would be worse, which is what the retrained ablations say.
    """
    tasks = Tasks(context)
    found = {FULL: tasks.score(context.model)}
    for name in ABLATIONS:
        context.say(f"without: {name}")
        found[name] = tasks.score(with_lam(context.model, without(context.model.lam, name)))
    return {"rows": tasks.compare(found), **tasks.describe()}

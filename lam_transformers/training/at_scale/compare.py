"""Equal runs of variants and of ablations, from an untrained LAM, memory layers only (docs/DECISIONS.md).

python -m lam_transformers.training.at_scale.compare --data POOL --out FOLDER --arms causal slow64 "without flux"

FOLDER gets results.jsonl and the trained parameters of each run, ARM-SEED.safetensors in float16.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from ...checkpoints.init import lam_from_bert
from ...evaluation.research.ablation import keep_off, without
from ...io.loading import locate_model
from ...scoring.pooling import mean_pool
from ..losses import similarity_loss
from .dev_scores import DevScores
from .losses import hidden_loss
from .pool_teacher import BASE, PoolTeacher, load_teacher
from .student import Student
from .texts import Pool, half_precision, length_batches, say

# Arguments of `Student` by the name of the variant; "without": the component of `ABLATIONS` that is off.
ARMS: dict[str, dict[str, Any]] = {
    "causal": {},
    "ahead1": {"look_ahead": 1},
    "half32": {"two_way": "half", "chunk": 32},
    "half64": {"two_way": "half", "chunk": 64},
    "all64": {"two_way": "all", "chunk": 64},
    "slow64": {"two_way": "slow", "chunk": 64},
    "slow32": {"two_way": "slow", "chunk": 32},
    "slow128": {"two_way": "slow", "chunk": 128},
    "without delta rule": {"two_way": "slow", "chunk": 64, "additive": True},
}
for _component in ("two memories", "cross-timescale", "flux", "decay", "convolution"):
    ARMS[f"without {_component}"] = {"two_way": "slow", "chunk": 64, "without": _component}
DEV_SETS = ("stsb_dev", "sickr_dev", "cranfield", "cisi", "arxiv", "scitldr")
# Weights of hidden states, embeddings and similarities in the first half of a run and in the second.
FIRST_WEIGHTS = (1.0, 4.0, 20.0)
SECOND_WEIGHTS = (0.1, 10.0, 50.0)
# Errors are given for tokens from one of these places to before the next one.
PLACES = (1, 4, 16, 32, 64, 96, 128)
ABSTRACT_TOKENS = 126
ABSTRACTS = 512


@dataclass(kw_only=True)
class CompareSettings:
    """What decides the runs of a comparison; the defaults are those of docs/DECISIONS.md.

    Attributes:
        steps: updates of each run.
        budget: tokens of a batch.
        learning_rate: after 40 updates of warm-up; from 30 % of the run on it falls linearly to 5 %.
        gate_rank: rank of the output gate.
        seed: of the weights and of the batches.
    """

    steps: int = 500
    budget: int = 16384
    learning_rate: float = 1e-3
    gate_rank: int = 32
    seed: int = 0


class Comparison:
    """Runs that differ in nothing but the reading.

    Args:
        settings: see `CompareSettings`.
        data: the pool.
        base: the teacher, and where the models start.
        device: cuda or cpu.
        compiled: compile the student's elementwise parts.
        out: folder for the trained parameters; None: they are not kept.
    """

    def __init__(
        self,
        settings: CompareSettings,
        data: Path,
        base: str,
        device: torch.device,
        compiled: bool,
        out: Path | None = None,
    ) -> None:
        self.settings = settings
        self.out = out
        self.base = base
        self.device = device
        self.compiled = compiled
        self.pool = Pool(data, device)
        self.dev = DevScores(data / "dev.npz", self.pool.special, device)
        self.teacher: PoolTeacher = load_teacher(base, device)

    def run(self, arm: str) -> dict[str, Any]:
        """Train a variant and measure it. Raises ValueError for one without this name."""
        if arm not in ARMS:
            raise ValueError(f"There is no variant {arm!r}; choose from {', '.join(ARMS)}.")
        settings = self.settings
        torch.manual_seed(settings.seed)
        student = self._student(ARMS[arm])
        student.model.requires_grad_(False)
        for layer in student.model.layers:
            layer.memory.requires_grad_(True)
        if without := ARMS[arm].get("without"):
            keep_off(student.model, without)
        parameters = [parameter for parameter in student.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters,
            lr=settings.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=0.0,
            fused=self.device.type == "cuda",
        )
        batches = length_batches(self.pool.lengths, np.random.default_rng(settings.seed), settings.budget)
        student.train()
        tokens = 0
        start = time.time()
        for step in range(settings.steps):
            for group in optimizer.param_groups:
                group["lr"] = self._learning_rate(step)
            ids, mask = self.pool.texts.batch(next(batches))
            loss, parts = self._loss(student, ids, mask, first_half=step < settings.steps // 2)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            tokens += ids.numel()
            if step in (0, 5, 20, 100) or (step + 1) % 250 == 0:
                say(arm, "update", step, {name: round(float(part.detach()), 4) for name, part in parts.items()})
        if self.out is not None:
            trained = student.model.layers.state_dict()
            trained = {name: value.half().contiguous() for name, value in trained.items() if ".memory." in name}
            save_file(trained, self.out / f"{arm.replace(' ', '-')}-{settings.seed}.safetensors")
        result = {"arm": arm, "seed": settings.seed, "steps": settings.steps, "tokens": tokens}
        return result | {"seconds": time.time() - start} | self.measure(student)

    def _student(self, options: dict[str, Any]) -> Student:
        options = dict(options)
        model = lam_from_bert(locate_model(self.base), output_gate_rank=self.settings.gate_rank)
        if component := options.pop("without", None):
            model = without(model, component)
        if options.get("look_ahead"):
            # The convolution starts as the identity, whose tap is one place earlier.
            with torch.no_grad():
                for layer in model.layers:
                    layer.memory.conv1d.weight.copy_(layer.memory.conv1d.weight.roll(-options["look_ahead"], -1))
        return Student(model, **options, compiled=self.compiled).to(self.device)

    def _learning_rate(self, step: int) -> float:
        steps = self.settings.steps
        decay = max(0, (step - 0.3 * steps) / (0.7 * steps))
        return self.settings.learning_rate * min(1, (step + 1) / 40) * (1 - 0.95 * decay)

    def _loss(
        self, student: Student, ids: torch.Tensor, mask: torch.Tensor, first_half: bool
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with half_precision(self.device):
            with torch.no_grad():
                theirs = self.teacher.all_states(ids, mask)
            ours = student(ids, mask, all_states=True)
        hidden = hidden_loss(ours, theirs, mask)
        embedded = mean_pool(ours[-1], mask)
        wanted = mean_pool(theirs[-1], mask)
        embedding = (1 - (embedded * wanted).sum(-1)).mean()
        embedded = embedded[:2048]
        wanted = wanted[:2048]
        similarity = similarity_loss(embedded @ embedded.T, wanted @ wanted.T)
        weights = FIRST_WEIGHTS if first_half else SECOND_WEIGHTS
        loss = weights[0] * hidden + weights[1] * embedding + weights[2] * similarity
        return loss, {"hidden": hidden, "embedding": embedding, "similarity": similarity}

    @torch.no_grad()
    def measure(self, student: Student) -> dict[str, Any]:
        """Dev scores, and how far the student is from the teacher on abstracts, by the place of the token."""
        student.eval()
        width = student.model.config.hidden_size
        scores: dict[str, Any] = self.dev(student, width, limit=254, sets=DEV_SETS)
        abstracts = self.dev.texts["arxiv.docs"]
        rows = np.flatnonzero(abstracts.cpu_lengths >= ABSTRACT_TOKENS)[:ABSTRACTS]
        errors = np.zeros(len(PLACES) - 1)
        variance = 0.0
        distances = []
        for part in np.array_split(rows, max(len(rows) // 128, 1)):
            ids, mask = abstracts.batch(part, ABSTRACT_TOKENS)
            with half_precision(self.device):
                ours = student(ids, mask).float()
                theirs = self.teacher(ids, mask).float()
            distances.append(1 - (mean_pool(ours, mask) * mean_pool(theirs, mask)).sum(-1))
            error = (ours - theirs).square().mean(-1)
            variance += float(theirs.var())
            for place in range(len(errors)):
                errors[place] += float(error[:, PLACES[place] : PLACES[place + 1]].mean())
        scores["hidden_error_by_position"] = [round(error / variance, 4) for error in errors]
        scores["one_minus_cos_abstracts"] = float(torch.cat(distances).mean())
        return scores


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    defaults = CompareSettings()
    parser = argparse.ArgumentParser(description="Compare variants of the reading in equal runs.")
    parser.add_argument("--data", type=Path, required=True, help="the pool")
    parser.add_argument("--out", type=Path, required=True, help="folder of results.jsonl and of the parameters")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=["causal", "half32", "slow64"])
    parser.add_argument("--base", default=BASE, help="the teacher, and where the models start")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--budget", type=int, default=defaults.budget, help="tokens of a batch")
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--seeds", type=int, nargs="+", default=[defaults.seed])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true", help="do not compile the student's elementwise parts")
    options = parser.parse_args(arguments)
    settings = CompareSettings(steps=options.steps, budget=options.budget, learning_rate=options.learning_rate)
    compiled = options.device != "cpu" and not options.no_compile
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device)
    comparison = Comparison(settings, options.data, options.base, device, compiled, options.out)
    for seed in options.seeds:
        comparison.settings = dataclasses.replace(settings, seed=seed)
        for arm in options.arms:
            result = comparison.run(arm)
            say(json.dumps(result))
            with (options.out / "results.jsonl").open("a") as file:
                file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()

"""The mixed run: distillation, retrieval, similarity of sentences and long texts, by the share of the run that passed.

    python -m lam_transformers.training.at_scale.run --data POOL --teachers TEACHERS --out RUN

RUN gets dev.jsonl (scores at every mark and at the end), run.json (the settings and the counts) and two LAM folders for
each mark and for the end, the weights and their mean over the latest updates: at0.33, at0.33-mean and so on, last,
last-mean. With --start FOLDER the run goes on from a trained LAM (`settings.next_run`).
"""

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ...checkpoints.export import export_model, save_tokenizer
from ...checkpoints.init import lam_from_bert
from ...io.loading import locate_model
from ...model.modeling_lam import LAMModel
from .dev_scores import DevScores
from .pool_teacher import BASE, load_teacher
from .settings import Phase, RunSettings, next_run
from .steps import Distillation, LongTexts, Reader, Retrieval, SentenceSimilarity, StepResult, Targets, TeacherData
from .student import Student
from .texts import Pool, half_precision, mean_pool, say

# The share of the learning rate that each group of parameters has.
GROUP_SCALES = {"memory": 1.0, "other": 0.25, "embeddings": 0.1, "projection": 0.5}
# Numbers of texts and tokens for which the compiled parts are made before the time of the run begins.
WARM_UP_SHAPES = ((64, 32), (200, 130), (512, 17), (100, 66))


def kinds_of_steps(phases: Sequence[Phase], share: float) -> dict[str, float]:
    """How often each kind of step is drawn when `share` of the run has passed."""
    phase = next(phase for phase in phases if share < phase.until)
    kinds = dataclasses.asdict(phase)
    del kinds["until"]
    return kinds


def learning_rate(settings: RunSettings, step: int, share: float) -> float:
    """Linear warm-up times a cosine that ends at 2 % of the peak."""
    warmup = min(1, (step + 1) / settings.warmup_steps)
    return settings.learning_rate * warmup * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * share)))


def starting_model(settings: RunSettings, base: str) -> LAMModel:
    """The float32 model from which a run starts, with the two-way reading of the settings in its configuration."""
    chunk = settings.chunk if settings.two_way == "slow" else None
    if settings.start == "init":
        return lam_from_bert(locate_model(base), output_gate_rank=settings.gate_rank, two_way_chunk=chunk)
    return LAMModel.from_pretrained(settings.start, dtype=torch.float32, two_way_chunk=chunk)


class MixedRun:
    """One run.

    Args:
        settings: see `RunSettings`.
        data, teachers: folders of pool.py and of teachers.py.
        out: the folder to write.
        base: the base model: first teacher, where an untrained LAM starts, and whose tokenizer is used.
        device: cuda or cpu.
        compiled: compile the student's elementwise parts.
        limit: number of first texts of the pool that are used, as in teachers.py; None: all.
    """

    def __init__(
        self,
        settings: RunSettings,
        data: Path,
        teachers: Path,
        out: Path,
        base: str = BASE,
        device: torch.device | str = "cpu",
        compiled: bool = False,
        limit: int | None = None,
    ) -> None:
        self.settings = settings
        self.out = out
        self.base = base
        self.device = torch.device(device)
        self.compiled = compiled
        self.random = np.random.default_rng(settings.seed)
        torch.manual_seed(settings.seed)
        self.pool = Pool(data, self.device, limit)
        self.model = starting_model(settings, base)
        self.student = Student(self.model, settings.two_way, settings.chunk, compiled=compiled).to(self.device)
        if compiled:
            self._warm_up()
        teacher = load_teacher(base, self.device, half=True)
        self.targets = Targets(TeacherData(teachers, self.pool), settings.alpha)
        self.dev = DevScores(data / "dev.npz", self.pool.special, self.device)
        reader = Reader(self.student, self.pool, settings)
        common = (self.pool, settings, self.random)
        self.steps: dict[str, Callable[[float], StepResult]] = {
            "distillation": Distillation(reader, self.targets, teacher, *common),
            "retrieval": Retrieval(reader, self.targets, *common),
            "similarity": SentenceSimilarity(reader, self.targets, *common),
            "long": LongTexts(self.student, teacher, *common),
        }
        self.groups = self._parameter_groups()
        self.optimizer = torch.optim.AdamW(
            self.groups,
            lr=settings.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=0.01,
            fused=self.device.type == "cuda",
        )
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(settings.average))
        self.parameters = [parameter for group in self.groups for parameter in group["params"]]
        self.step = 0
        self.tokens = 0
        self.counts = dict.fromkeys(self.steps, 0)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        members: dict[str, list[torch.nn.Parameter]] = {name: [] for name in GROUP_SCALES}
        for name, parameter in self.model.named_parameters():
            group = "embeddings" if "embeddings" in name else "memory" if ".memory." in name else "other"
            members[group].append(parameter)
        members["projection"] = list(self.targets.projection.parameters())
        return [{"params": parameters, "name": name} for name, parameters in members.items()]

    def _warm_up(self) -> None:
        """Forward and backward for a few shapes, which compiles what has to be compiled."""
        vocabulary = self.model.config.vocab_size
        for rows, length in WARM_UP_SHAPES:
            ids = torch.randint(vocabulary, (rows, length), device=self.device)
            mask = torch.ones_like(ids, dtype=torch.bool)
            with half_precision(self.device):
                states = self.student(ids, mask)
            mean_pool(states, mask).sum().backward()
        self.model.zero_grad(set_to_none=True)
        say("compiled")

    def __call__(self) -> dict[str, float]:
        """Train, write the folder and return the dev scores at the end.

        Raises FloatingPointError as soon as a loss is found not to be finite (looked at every 200 updates).
        """
        self.out.mkdir(parents=True, exist_ok=True)
        self.student.train()
        marks = list(self.settings.marks)
        shown: dict[str, torch.Tensor] = {}
        start = time.time()
        while (share := self._share(start)) < 1:
            if marks and share > marks[0]:
                self._mark(f"at{marks.pop(0)}", share)
            result = self._update(share)
            for name, part in result.parts.items():
                part = part.detach()
                shown[name] = 0.95 * shown[name] + 0.05 * part if name in shown else part
            if self.step in (1, 20, 100) or self.step % 200 == 0:
                self._log(share, start, shown)
                if not math.isfinite(float(result.loss.detach())):
                    raise FloatingPointError(f"The loss of update {self.step} is {float(result.loss)}.")
        scores = self._mark("last", 1.0)
        record = {
            "settings": dataclasses.asdict(self.settings),
            "updates": self.step,
            "tokens": self.tokens,
            "counts": self.counts,
            "seconds": time.time() - start,
        }
        (self.out / "run.json").write_text(json.dumps(record, indent=1))
        say("finished:", self.step, "updates,", self.tokens, "tokens,", self.counts)
        return scores

    def _share(self, start: float) -> float:
        """The part of the run that has passed, by updates if their number is given, by time otherwise."""
        if self.settings.steps is not None:
            return self.step / self.settings.steps
        return (time.time() - start) / self.settings.seconds

    def _update(self, share: float) -> StepResult:
        shares = kinds_of_steps(self.settings.phases, share)
        kind = str(self.random.choice(list(shares), p=list(shares.values())))
        rate = learning_rate(self.settings, self.step, share)
        for group in self.optimizer.param_groups:
            resting = group["name"] == "embeddings" and share < self.settings.embeddings_from
            group["lr"] = 0.0 if resting else rate * GROUP_SCALES[group["name"]]
        result = self.steps[kind](share)
        self.optimizer.zero_grad(set_to_none=True)
        result.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        self.step += 1
        self.tokens += result.tokens
        self.counts[kind] += 1
        return result

    def _log(self, share: float, start: float, shown: dict[str, torch.Tensor]) -> None:
        losses = {name: round(float(value), 4) for name, value in shown.items()}
        speed = round(self.tokens / (time.time() - start))
        say("update", self.step, f"({share:.1%})", self.tokens, "tokens,", speed, "tokens/s", self.counts, losses)

    def _mark(self, name: str, share: float) -> dict[str, float]:
        """Write and score the weights and their mean; the scores of the weights."""
        self.student.eval()
        scores = self.evaluate(self.student, name, share)
        self.save(self.model, name)
        mean = self.average.module
        student = Student(mean, self.settings.two_way, self.settings.chunk, compiled=self.compiled).eval()
        self.evaluate(student, f"{name}-mean", share)
        self.save(mean, f"{name}-mean")
        self.student.train()
        return scores

    def save(self, model: LAMModel, name: str) -> None:
        """Write a model as a LAM folder, weights in float16."""
        folder = self.out / name
        model.save_pretrained(folder)
        save_tokenizer(locate_model(self.base), folder)
        export_model(folder, folder, dtype=torch.float16)

    def evaluate(self, student: Student, name: str, share: float) -> dict[str, float]:
        """Dev scores by name; also a line of dev.jsonl."""
        width = self.model.config.hidden_size
        scores = self.dev(student, width, dimensions=(self.settings.short_dimensions,))
        line = {"name": name, "p": share, "tokens": self.tokens, "step": self.step} | scores
        with (self.out / "dev.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        say(f"dev scores of {name}:", {name: round(value, 4) for name, value in scores.items()})
        return scores


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    defaults = RunSettings()
    parser = argparse.ArgumentParser(description="Train a LAM by the mixed run.")
    parser.add_argument("--data", type=Path, required=True, help="the pool")
    parser.add_argument("--teachers", type=Path, required=True, help="what teachers.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--base", default=BASE, help="first teacher, and where an untrained LAM starts")
    parser.add_argument("--start", default=defaults.start, help="'init' or a LAM folder")
    parser.add_argument("--two-way", default=defaults.two_way, choices=("slow", "none"))
    parser.add_argument("--chunk", type=int, default=defaults.chunk, help="tokens of a chunk of two-way reading")
    parser.add_argument("--seconds", type=float, default=defaults.seconds, help="how long the run takes")
    parser.add_argument("--steps", type=int, default=None, help="a number of updates, instead of --seconds")
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--alpha", type=float, default=defaults.alpha, help="share of the larger teacher in a cosine")
    parser.add_argument("--budget", type=int, default=defaults.budget, help="tokens of a batch of distillation")
    parser.add_argument("--queries", type=int, default=defaults.queries, help="queries of a batch of retrieval")
    parser.add_argument("--marks", type=float, nargs="*", default=defaults.marks, help="shares of the run to keep")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--limit", type=int, default=None, help="number of first texts of the pool that are used")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true", help="do not compile the student's elementwise parts")
    options = parser.parse_args(arguments)
    settings = (RunSettings if options.start == "init" else next_run)(
        start=options.start,
        two_way=options.two_way,
        chunk=options.chunk,
        seconds=options.seconds,
        steps=options.steps,
        learning_rate=options.learning_rate,
        alpha=options.alpha,
        budget=options.budget,
        queries=options.queries,
        marks=tuple(options.marks),
        seed=options.seed,
    )
    compiled = options.device != "cpu" and not options.no_compile
    run = MixedRun(
        settings, options.data, options.teachers, options.out, options.base, options.device, compiled, options.limit
    )
    run()


if __name__ == "__main__":
    main()

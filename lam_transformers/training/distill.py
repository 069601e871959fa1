"""Stage 1, base distillation: a LAM learns to reproduce its teacher, layer by layer."""

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from ..evaluation.embedding import embed_texts
from ..evaluation.sts import evaluate_sts
from .data import LengthBatches, TokenTable
from .losses import distillation_losses, orthogonality_loss

logger = logging.getLogger(__name__)


@dataclass
class DistillConfig:
    """What decides a run of base distillation; a checkpoint refuses to resume under another one."""

    steps: int = 4000
    warmup_steps: int = 200
    decay_steps: int = 2000
    tokens_per_batch: int = 2048
    max_length: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    beta2: float = 0.98
    clip_norm: float = 1.0
    hidden_weight: float = 1.0
    embedding_weight: float = 4.0
    similarity_weight: float = 20.0
    orthogonality_weight: float = 0.0
    train_everything: bool = False
    bf16: bool = True
    seed: int = 0

    # May differ when a run is resumed: they change neither the data nor the updates before the decay.
    resumable = frozenset({"steps", "decay_steps"})

    def difference(self, other: dict) -> dict[str, tuple]:
        """Fields that keep a checkpoint of `other` from being resumed: name -> (then, now)."""
        now = asdict(self)
        return {n: (other.get(n), now[n]) for n in now if n not in self.resumable and other.get(n) != now[n]}


@dataclass
class Progress:
    """Where a run is."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_score: float = -1.0
    best_step: int = 0
    losses: dict = field(default_factory=dict)


def learning_rate_factor(step: int, config: DistillConfig) -> float:
    """Warm-up, plateau, linear decay to zero: the factor of the learning rate at an update, in [0, 1]."""
    warmup = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    left = (config.steps - step) / max(config.decay_steps, 1)
    return min(warmup, left, 1.0)


def trainable_parameters(model, config: DistillConfig) -> list[torch.nn.Parameter]:
    """Freeze everything but the memories (unless `train_everything`) and return what is left."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(config.train_everything or ".memory." in name)
    return [p for p in model.parameters() if p.requires_grad]


class Distiller:
    """A run of base distillation, from a start or from its last checkpoint.

    Args:
        student: a `LAMModel`; trained in place.
        teacher: an encoder of the same width, depth and vocabulary that returns hidden states.
        tokenizer: of both.
        table: the training texts.
        config: what to do.
        folder: for checkpoints, the JSONL log and the best model; `folder`/best is a model folder.
        dev_file: pair file for validation (STS-B dev). Selection looks at nothing else.

    Raises:
        ValueError: if student and teacher do not fit together, or `folder` holds a run with another configuration.
        FloatingPointError: if the loss is not finite; the last checkpoint is kept.
    """

    def __init__(self, student, teacher, tokenizer, table: TokenTable, config: DistillConfig, folder, dev_file):
        self.config, self.folder, self.dev_file = config, Path(folder), Path(dev_file)
        self._check(student, teacher, table)
        precision = "bf16" if config.bf16 else "no"
        self.accelerator = Accelerator(mixed_precision=precision)
        set_seed(config.seed)
        self.parameters = trainable_parameters(student, config)
        groups = [
            {"params": [p for p in self.parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in self.parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.beta2), fused=True)
        self.student, self.optimizer = self.accelerator.prepare(student, optimizer)
        self.teacher = teacher.to(self.accelerator.device).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.batches = LengthBatches(table, config.tokens_per_batch, config.seed)
        self.progress = Progress()

    @staticmethod
    def _check(student, teacher, table):
        for name in ("hidden_size", "num_hidden_layers", "vocab_size"):
            ours, theirs = getattr(student.config, name), getattr(teacher.config, name)
            if ours != theirs:
                raise ValueError(f"Student and teacher must agree in {name}: {ours} against {theirs}.")
        limit = getattr(teacher.config, "max_position_embeddings", None)
        longest = int(table.lengths.max()) if len(table) else 0
        if limit is not None and longest > limit:
            raise ValueError(
                f"The teacher reads at most {limit} tokens, a text has {longest}: use --max-length {limit}."
            )

    def run(
        self,
        evaluate_every: int = 250,
        checkpoint_every: int = 250,
        on_step: Callable[[Progress], None] | None = None,
        stop_after: int | None = None,
    ) -> Progress:
        """Train until `config.steps` (or for `stop_after` updates) and return where the run stands."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.resume()
        last = self.config.steps if stop_after is None else min(self.config.steps, self.progress.step + stop_after)
        while self.progress.step < last:
            self._update()
            step = self.progress.step
            if step % 10 == 0 or step == last:
                self._log({"step": step, "tokens": self.progress.tokens, "seconds": round(self.progress.seconds, 1),
                           **{n: round(x, 6) for n, x in self.progress.losses.items()}})  # fmt: skip
            if self.accelerator.is_main_process and (step % evaluate_every == 0 or step == self.config.steps):
                self._evaluate()
            if self.accelerator.is_main_process and (step % checkpoint_every == 0 or step == last):
                self.save()
            if on_step is not None:
                on_step(self.progress)
        return self.progress

    def _update(self) -> None:
        began, config, progress = time.monotonic(), self.config, self.progress
        factor = learning_rate_factor(progress.step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        processes = self.accelerator.num_processes
        batch = self.batches[progress.step * processes + self.accelerator.process_index]
        ids = torch.from_numpy(batch).to(self.accelerator.device)
        self.student.train()
        with self.accelerator.autocast():
            with torch.no_grad():
                teacher_states = self.teacher(input_ids=ids, output_hidden_states=True).hidden_states
            student_states = self.student(input_ids=ids, output_hidden_states=True).hidden_states
        losses = distillation_losses(student_states, teacher_states)
        loss = (
            config.hidden_weight * losses["hidden"]
            + config.embedding_weight * losses["embedding"]
            + config.similarity_weight * losses["similarity"]
        )
        if config.orthogonality_weight:
            losses["orthogonality"] = orthogonality_loss(self.accelerator.unwrap_model(self.student))
            loss = loss + config.orthogonality_weight * losses["orthogonality"]
        if not math.isfinite(loss.item()):
            raise FloatingPointError(
                f"The loss is {loss.item()} at step {progress.step} (batch {tuple(ids.shape)}); the checkpoint of the "
                f"last good interval is kept in {self.folder}. Resume with a lower learning rate."
            )
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.parameters, config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        progress.step += 1
        progress.tokens += ids.numel() * processes
        progress.seconds += time.monotonic() - began
        progress.losses = {n: x.item() for n, x in losses.items()} | {
            "loss": loss.item(), "gradient_norm": float(norm), "learning_rate": config.learning_rate * factor,
        }  # fmt: skip

    def _evaluate(self) -> None:
        began, model = time.monotonic(), self.accelerator.unwrap_model(self.student).eval()
        score = evaluate_sts(lambda texts: embed_texts(model, self.tokenizer, texts), self.dev_file)
        self._log({"step": self.progress.step, "dev_pearson": score["pearson"], "dev_spearman": score["spearman"],
                   "evaluation_seconds": round(time.monotonic() - began, 1)})  # fmt: skip
        if score["pearson"] > self.progress.best_score:
            self.progress.best_score, self.progress.best_step = score["pearson"], self.progress.step
            model.save_pretrained(self.folder / "best")
            self.tokenizer.save_pretrained(self.folder / "best")

    def save(self) -> None:
        """Write a checkpoint that `resume` continues exactly; it replaces the last one only when it is complete."""
        temporary, final, old = (self.folder / name for name in ("checkpoint.tmp", "checkpoint", "checkpoint.old"))
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        model = self.accelerator.unwrap_model(self.student)
        state = {
            "model": dict(model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }
        torch.save(state, temporary / "state.pt")
        record = {"config": asdict(self.config), "progress": asdict(self.progress)}
        (temporary / "progress.json").write_text(json.dumps(record, indent=1))
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(final, old)
        os.replace(temporary, final)
        shutil.rmtree(old, ignore_errors=True)

    def resume(self) -> None:
        """Continue from the last checkpoint in `folder`, if there is one."""
        found = [self.folder / name for name in ("checkpoint", "checkpoint.old")]
        found = [path for path in found if (path / "progress.json").exists()]
        if not found:
            return
        record = json.loads((found[0] / "progress.json").read_text())
        if changed := self.config.difference(record["config"]):
            raise ValueError(
                f"{self.folder} holds a run with another configuration (then, now): {changed}. "
                "Use the old settings or another folder."
            )
        state = torch.load(found[0] / "state.pt", map_location=self.accelerator.device, weights_only=True)
        self.accelerator.unwrap_model(self.student).load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"].cpu())
        self.progress = Progress(**record["progress"])

    def _log(self, record: dict) -> None:
        if not self.accelerator.is_main_process:
            return
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

"""The loop that the distillation stages share: updates, validation and selection, checkpoints, a log, exact resume."""

import atexit
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env, set_seed
from safetensors import SafetensorError
from torch import nn

from ..io.atomic import atomic_folder, write_text
from ..model.checks_lam import read_json
from ..model.modeling_lam import LAMModel
from ..scoring.pooling import embed_texts
from ..scoring.sts import evaluate_sts
from .losses import orthogonality_loss
from .trainer import RunConfig, RunProgress, Trainer, refuse_changes


def learning_rate_factor(step: int, config: RunConfig) -> float:
    """Warm-up, plateau, linear decay to zero: the factor of the learning rate at an update, in [0, 1]."""
    warmup = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    left = (config.steps - step) / max(config.decay_steps, 1)
    return max(0.0, min(warmup, left, 1.0))


def learning_rates(model: nn.Module, config: RunConfig) -> dict[str, float]:
    """The learning rate of every parameter that is trained, by name; the others are frozen."""

    def rate(name: str) -> float:
        if config.train_everything or ".memory." in name:
            return config.learning_rate
        ours = ".feed_forward." in name or "_norm." in name
        return config.feed_forward_learning_rate if ours else 0.0

    rates = {name: rate(name) for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(rates[name] > 0)
    return {name: value for name, value in rates.items() if value > 0}


def parameter_groups(model: nn.Module, rates: dict[str, float], weight_decay: float) -> list[dict[str, Any]]:
    """Groups for an optimizer, one for each learning rate and kind: matrices decay, vectors and tables do not.

    In a table of embeddings, rows that a batch does not have would fade away.
    """
    groups = []
    for value in dict.fromkeys(rates.values()):
        chosen = [(name, p) for name, p in model.named_parameters() if rates.get(name) == value]
        decaying = [p.ndim >= 2 and not name.startswith("embeddings.") for name, p in chosen]
        for decays, decay in ((True, weight_decay), (False, 0.0)):
            members = [p for (_, p), d in zip(chosen, decaying, strict=True) if d is decays]
            groups.append({"params": members, "lr": value, "weight_decay": decay})
    return [group for group in groups if group["params"]]


def check_finite(value: float, step: int, what: str, folder: Path) -> None:
    """Raise FloatingPointError, saying where, unless `value` is finite."""
    if not math.isfinite(value):
        raise FloatingPointError(
            f"The loss is {value} at step {step} ({what}); the checkpoint of the last good interval is kept in "
            f"{folder}. Resume with a lower learning rate."
        )


def replace_folder(final: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a new folder and put it in the place of `final` only when it is complete.

    A kill between the two renames leaves the old folder under the name `final`.old.

    Raises OSError, with the old folder untouched, if it cannot be written (a full disk).
    """
    # The name under which the version before wrote: a kill may have left it.
    shutil.rmtree(final.with_name(final.name + ".tmp"), ignore_errors=True)
    try:
        with atomic_folder(final, replace=True) as temporary:
            write(temporary)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors report a full disk in these
        raise OSError(f"{final} could not be written, the one before is kept: {error}") from error


class RunLog:
    """`folder`/log.jsonl, and with `tensorboard` the same numbers for TensorBoard in `folder`/tensorboard.

    What an interrupted run logged after its last checkpoint is taken out again: those updates are made once more.

    Args:
        step: where the run is, the step of its last checkpoint or 0; None leaves the log as it is.

    Raises ValueError if TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, tensorboard: bool = False, step: int | None = 0) -> None:
        self.path = folder / "log.jsonl"
        self.writer: Any = None
        if step is not None:
            self._forget_after(step)
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ValueError(f"TensorBoard is not installed ({error}): pip install tensorboard.") from error
            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=None if step is None else step + 1)

    def _forget_after(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):  # the end of a line that a kill has cut
                continue
        write_text(self.path, "".join(kept))

    def write(self, record: dict[str, Any]) -> None:
        """Add a record, which has the step it belongs to."""
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        for name, value in record.items():
            if self.writer is not None and name != "step":
                self.writer.add_scalar(name, value, record["step"])


class TrainingLoop(Trainer):
    """A `Trainer` with the loop of its own that the distillation stages use. A stage says what the loss of a batch is.

    After `prepare`, `accelerator`, `optimizer` and `parameters` are there, and `student` is what accelerate put around
    the model. `helpers` are further modules that are trained along and not kept, such as projections: a stage makes
    them before it calls this class's `_prepare`.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.helpers = nn.ModuleList()

    def _prepare(self) -> None:
        config = self.config
        process_state()  # before the Accelerator, which takes over what it finds
        self.accelerator = Accelerator(mixed_precision="bf16" if config.bf16 else "no")
        set_seed(config.seed)
        groups = parameter_groups(self.student, self.learning_rates(self.student), config.weight_decay)
        self.helped = [p for p in self.helpers.parameters() if p.requires_grad]
        if self.helped:
            groups.append({"params": self.helped, "lr": config.learning_rate, "weight_decay": 0.0})
        self.parameters = [p for group in groups for p in group["params"]]
        # Kept apart: loading a checkpoint's optimizer brings back the rates it had.
        self.rates = [group["lr"] for group in groups]
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.beta2), fused=True)
        self.student, self.optimizer = self.accelerator.prepare(self.student, optimizer)
        self.helpers.to(self.accelerator.device)

    def learning_rates(self, student: nn.Module) -> dict[str, float]:
        """The learning rate of every trained parameter, by name."""
        return learning_rates(student, self.config)

    def batch_losses(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
        """The loss of batch `index`, its parts by name, and the tokens the student read.

        Called inside autocast. A batch is a function of the seed and its index, so that a run resumes anywhere.
        """
        raise NotImplementedError

    @property
    def model(self) -> LAMModel:
        """The student itself, whatever accelerate put around it."""
        return self.accelerator.unwrap_model(self.student)

    def run(
        self,
        evaluate_every: int = 250,
        checkpoint_every: int = 250,
        on_step: Callable[[RunProgress], None] | None = None,
        stop_after: int | None = None,
    ) -> RunProgress:
        """Train until `config.steps`, see `Trainer.run`."""
        self.prepare()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.resume()
        main = self.accelerator.is_main_process
        log = RunLog(self.folder, self.tensorboard, self.progress.step) if main else None
        last = self.config.steps if stop_after is None else min(self.config.steps, self.progress.step + stop_after)
        while self.progress.step < last:
            self._update()
            step = self.progress.step
            if log is not None and (step % 10 == 0 or step == last):
                log.write(self._record())
            if log is not None and (step % evaluate_every == 0 or step == self.config.steps):
                self._evaluate(log)
            if main and (step % checkpoint_every == 0 or step == last):
                self.save()
            if on_step is not None:
                on_step(self.progress)
        return self.progress

    def _record(self) -> dict[str, Any]:
        """What the log says of the last update."""
        progress = self.progress
        losses = {name: round(value, 6) for name, value in progress.losses.items()}
        return {"step": progress.step, "tokens": progress.tokens, "seconds": round(progress.seconds, 1)} | losses

    def _update(self) -> None:
        began = time.monotonic()
        config = self.config
        progress = self.progress
        factor = learning_rate_factor(progress.step, config)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        processes = self.accelerator.num_processes
        self.student.train()
        with self.accelerator.autocast():
            loss, losses, tokens = self.batch_losses(progress.step * processes + self.accelerator.process_index)
        if config.orthogonality_weight:
            losses["orthogonality"] = orthogonality_loss(self.model)
            loss = loss + config.orthogonality_weight * losses["orthogonality"]
        check_finite(loss.item(), progress.step, f"{tokens} tokens", self.folder)
        self.accelerator.backward(loss)
        for p in self.helped:  # the student's are averaged over the processes by what accelerate put around it
            p.grad = self.accelerator.reduce(p.grad, "mean")
        norm = self.accelerator.clip_grad_norm_(self.parameters, config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        progress.step += 1
        progress.tokens += tokens * processes
        progress.seconds += time.monotonic() - began
        progress.losses = {name: x.item() for name, x in losses.items()}
        progress.losses["loss"] = loss.item()
        progress.losses["gradient_norm"] = float(norm)
        progress.losses["learning_rate"] = config.learning_rate * factor

    def validate(self) -> tuple[float, dict[str, float]]:
        """The score that decides which model is the best, and all numbers for the log: Pearson on `dev_file`."""
        model = self.model
        score = evaluate_sts(lambda texts: embed_texts(model, self.tokenizer, texts), self.dev_file)
        return score["pearson"], {"dev_pearson": score["pearson"], "dev_spearman": score["spearman"]}

    def _evaluate(self, log: RunLog) -> None:
        began = time.monotonic()
        model = self.model.eval()
        progress = self.progress
        score, numbers = self.validate()
        log.write({"step": progress.step, **numbers, "evaluation_seconds": round(time.monotonic() - began, 1)})
        if score > progress.best_score:
            progress.best_score = score
            progress.best_step = progress.step

            def write(folder: Path) -> None:
                model.save_pretrained(folder)
                self.tokenizer.save_pretrained(folder)

            replace_folder(self.folder / "best", write)

    def save(self) -> None:
        """Write a checkpoint that `resume` continues exactly; it replaces the last one only when it is complete."""
        state = {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "helpers": dict(self.helpers.state_dict()),
        }
        record = json.dumps({"config": asdict(self.config), "progress": asdict(self.progress)}, indent=1)

        def write(folder: Path) -> None:
            torch.save(state, folder / "state.pt")
            (folder / "progress.json").write_text(record)

        replace_folder(self.folder / "checkpoint", write)

    def last_checkpoint(self) -> Path | None:
        """The folder of the last complete checkpoint: `checkpoint`, or what a kill between two renames has left."""
        places = (self.folder / "checkpoint", self.folder / "checkpoint.old")
        return next((path for path in places if (path / "progress.json").exists()), None)

    def resume(self) -> None:
        """Continue from the last checkpoint in `folder`, if there is one."""
        checkpoint = self.last_checkpoint()
        if checkpoint is None:
            return
        record = read_json(checkpoint / "progress.json")
        refuse_changes(self.folder, self.config.difference(record["config"]))
        state = torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.helpers.load_state_dict(state.get("helpers", {}))
        torch.set_rng_state(state["random"].cpu())
        self.progress = RunProgress(**record["progress"])


def process_state() -> PartialState:
    """Which process this is, of how many.

    Those that torchrun starts where there is no accelerator train together on the CPU: accelerate, not told so, would
    let each of them do the whole run, all in one folder.
    """
    none = torch.accelerator.current_accelerator() is None
    state = PartialState(cpu=none or parse_flag_from_env("ACCELERATE_USE_CPU"))
    if state.num_processes > 1:  # threads that still run when the interpreter ends would abort it
        atexit.register(state.destroy_process_group)
    return state

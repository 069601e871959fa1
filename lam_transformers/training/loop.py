"""The loop that the distillation stages share: updates, validation and selection, checkpoints, a log, exact resume."""

import atexit
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env, set_seed
from safetensors import SafetensorError
from torch import nn

from ..io.atomic import atomic_folder, write_text
from ..model.checks_lam import read_json
from ..scoring.pooling import embed_texts
from ..scoring.sts import evaluate_sts
from .losses import orthogonality_loss

# Settings of any stage of which there has to be one.
AT_LEAST_ONE = (
    "steps",
    "tokens_per_batch",
    "max_length",
    "batch_size",
    "mini_batch_size",
    "group_size",
    "chunk_tokens",
)


@dataclass(kw_only=True)
class RunConfig:
    """What decides any training run; a checkpoint refuses to resume under another one.

    `learning_rate` is that of the memories. Feed-forward layers and norms are frozen unless
    `feed_forward_learning_rate` is above zero; with `train_everything` all parameters take `learning_rate`.
    The learning rate rises over `warmup_steps`, stays, and falls to zero over the last `decay_steps`, so that a run
    can be continued with more steps from a checkpoint before its decay.
    """

    steps: int = 4000
    warmup_steps: int = 200
    decay_steps: int = 2000
    learning_rate: float = 1e-3
    feed_forward_learning_rate: float = 0.0
    weight_decay: float = 0.01
    beta2: float = 0.98
    clip_norm: float = 1.0
    orthogonality_weight: float = 0.0
    train_everything: bool = False
    bf16: bool = True
    seed: int = 0

    def __post_init__(self):
        for known in fields(self):
            value = getattr(self, known.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            least = 1 if known.name in AT_LEAST_ONE else -math.inf if isinstance(value, float) else 0
            if not (least <= value < 2**63 and math.isfinite(value)):
                wanted = "a number" if least == -math.inf else f"a whole number of at least {least}"
                raise ValueError(f"{known.name} must be {wanted}, got {value}.")

    # May differ when a run is resumed: they change neither the data nor the updates before the decay.
    resumable = frozenset({"steps", "decay_steps"})

    def difference(self, other: dict) -> dict[str, tuple]:
        """Fields that keep a checkpoint of `other` from being resumed: name -> (then, now)."""
        missing = [f for f in fields(self) if f.name not in other]  # settings that came after that checkpoint
        defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in missing}
        now, then = asdict(self), defaults | other
        return {n: (then[n], now[n]) for n in now if n not in self.resumable and then[n] != now[n]}


@dataclass
class Progress:
    """Where a run is."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_score: float = -1.0
    best_step: int = 0
    losses: dict = field(default_factory=dict)


def learning_rate_factor(step: int, config: RunConfig) -> float:
    """Warm-up, plateau, linear decay to zero: the factor of the learning rate at an update, in [0, 1]."""
    warmup = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    left = (config.steps - step) / max(config.decay_steps, 1)
    return max(0.0, min(warmup, left, 1.0))


def learning_rates(model: nn.Module, config) -> dict[str, float]:
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


def refuse_changes(folder: Path, changed: dict[str, tuple]) -> None:
    """Raise ValueError if a run in `folder` was made with other settings: name -> (then, now)."""
    if changed:
        raise ValueError(
            f"{folder} holds a run with another configuration (then, now): {changed}. "
            "Use the old settings or another folder."
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
        step: where the run stands, the step of its last checkpoint or 0; None leaves the log as it is.

    Raises ValueError if TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, tensorboard: bool = False, step: int | None = 0):
        self.path, self.writer = folder / "log.jsonl", None
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

    def write(self, record: dict) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        for name, value in record.items():
            if self.writer is not None and name != "step":
                self.writer.add_scalar(name, value, record["step"])


class TrainingLoop:
    """A run of training, from a start or from its last checkpoint. A stage says what the loss of a batch is.

    Args:
        student: a `LAMModel`; trained in place.
        tokenizer: the student's.
        config: what to do.
        folder: for checkpoints, the JSONL log and the best model; `folder`/best is a model folder.
        dev_file: pair file for validation (STS-B dev). Selection looks at nothing else.
        helpers: further modules with parameters that are trained along and not kept, such as projections.
        tensorboard: also log for TensorBoard.

    Raises:
        ValueError: if `folder` holds a run with another configuration.
        FloatingPointError: if the loss is not finite; the last checkpoint is kept.
        OSError: if a checkpoint cannot be written; the one before is kept.
    """

    def __init__(
        self,
        student,
        tokenizer,
        config: RunConfig,
        folder,
        dev_file,
        helpers: nn.ModuleList | None = None,
        tensorboard=False,
    ):
        self.config, self.folder, self.dev_file, self.tokenizer = config, Path(folder), Path(dev_file), tokenizer
        process_state()  # before the Accelerator, which takes over what it finds
        self.accelerator = Accelerator(mixed_precision="bf16" if config.bf16 else "no")
        set_seed(config.seed)
        groups = parameter_groups(student, self.learning_rates(student), config.weight_decay)
        self.helpers = nn.ModuleList() if helpers is None else helpers
        self.helped = [p for p in self.helpers.parameters() if p.requires_grad]
        if self.helped:
            groups.append({"params": self.helped, "lr": config.learning_rate, "weight_decay": 0.0})
        self.parameters = [p for group in groups for p in group["params"]]
        # Kept apart: loading a checkpoint's optimizer brings back the rates it had.
        self.rates = [group["lr"] for group in groups]
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.beta2), fused=True)
        self.student, self.optimizer = self.accelerator.prepare(student, optimizer)
        self.helpers.to(self.accelerator.device)
        self.tensorboard = tensorboard
        self.progress = Progress()

    def learning_rates(self, student) -> dict[str, float]:
        """The learning rate of every trained parameter, by name."""
        return learning_rates(student, self.config)

    def batch_losses(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
        """The loss of batch `index`, its parts by name, and the tokens the student read.

        Called inside autocast. A batch is a function of the seed and its index, so that a run resumes anywhere.
        """
        raise NotImplementedError

    @property
    def model(self):
        """The student itself, whatever accelerate put around it."""
        return self.accelerator.unwrap_model(self.student)

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
        main = self.accelerator.is_main_process
        log = RunLog(self.folder, self.tensorboard, self.progress.step) if main else None
        last = self.config.steps if stop_after is None else min(self.config.steps, self.progress.step + stop_after)
        while self.progress.step < last:
            self._update()
            step = self.progress.step
            if log is not None and (step % 10 == 0 or step == last):
                log.write({"step": step, "tokens": self.progress.tokens, "seconds": round(self.progress.seconds, 1),
                           **{n: round(x, 6) for n, x in self.progress.losses.items()}})  # fmt: skip
            if log is not None and (step % evaluate_every == 0 or step == self.config.steps):
                self._evaluate(log)
            if main and (step % checkpoint_every == 0 or step == last):
                self.save()
            if on_step is not None:
                on_step(self.progress)
        return self.progress

    def _update(self) -> None:
        began, config, progress = time.monotonic(), self.config, self.progress
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
        progress.losses = {n: x.item() for n, x in losses.items()} | {
            "loss": loss.item(), "gradient_norm": float(norm), "learning_rate": config.learning_rate * factor,
        }  # fmt: skip

    def validate(self) -> tuple[float, dict[str, float]]:
        """The score that decides which model is the best, and all numbers for the log: Pearson on `dev_file`."""
        model = self.model
        score = evaluate_sts(lambda texts: embed_texts(model, self.tokenizer, texts), self.dev_file)
        return score["pearson"], {"dev_pearson": score["pearson"], "dev_spearman": score["spearman"]}

    def _evaluate(self, log: RunLog) -> None:
        began, model, progress = time.monotonic(), self.model.eval(), self.progress
        score, numbers = self.validate()
        log.write({"step": progress.step, **numbers, "evaluation_seconds": round(time.monotonic() - began, 1)})
        if score > progress.best_score:
            progress.best_score, progress.best_step = score, progress.step

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

    def resume(self) -> None:
        """Continue from the last checkpoint in `folder`, if there is one."""
        found = last_checkpoint(self.folder)
        if found is None:
            return
        record = read_json(found / "progress.json")
        refuse_changes(self.folder, self.config.difference(record["config"]))
        state = torch.load(found / "state.pt", map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.helpers.load_state_dict(state.get("helpers", {}))
        torch.set_rng_state(state["random"].cpu())
        self.progress = Progress(**record["progress"])


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


def last_checkpoint(folder: Path) -> Path | None:
    """The folder of the last complete checkpoint of a run, if there is one."""
    found = [Path(folder) / name for name in ("checkpoint", "checkpoint.old")]
    return next((path for path in found if (path / "progress.json").exists()), None)

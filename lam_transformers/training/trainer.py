"""What every stage of training has in common: its settings, where a run is, and the contract of its trainer."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..io.progress import Progress, Silent
from ..model.checks_lam import read_json

logger = logging.getLogger(__name__)

# Above this `bf16_slowdown` a run warns; where bfloat16 is not imitated it is about 1 or below.
SLOW_BF16 = 3.0

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

    def __post_init__(self) -> None:
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

    def difference(self, other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Fields that keep a checkpoint of `other` from being resumed: name -> (then, now)."""
        missing = [f for f in fields(self) if f.name not in other]  # settings that came after that checkpoint
        defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in missing}
        now = asdict(self)
        then = defaults | other
        return {n: (then[n], now[n]) for n in now if n not in self.resumable and then[n] != now[n]}


@dataclass
class RunProgress:
    """Where a run is."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_score: float = -1.0
    best_step: int = 0
    losses: dict[str, float] = field(default_factory=dict)


def refuse_changes(folder: Path, changed: dict[str, tuple[Any, Any]]) -> None:
    """Raise ValueError if a run in `folder` was made with other settings: name -> (then, now)."""
    if changed:
        raise ValueError(
            f"{folder} holds a run with another configuration (then, now): {changed}. "
            "Use the old settings or another folder."
        )


def bf16_slowdown() -> float:
    """Time of a matrix product in bfloat16 on this CPU, in multiples of its time in float32.

    Processors without such products imitate them, at tens of times the time.
    """
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(128, 384, dtype=dtype)
        weight = torch.ones(384, 384, dtype=dtype)
        times = []
        for _ in range(3):
            began = time.perf_counter()
            x @ weight
            times.append(time.perf_counter() - began)
        seconds[dtype] = min(times)
    return seconds[torch.bfloat16] / seconds[torch.float32]


class Trainer:
    """A run of one stage, from a start or from its last checkpoint. All stages are used in the same way:

        trainer = SomeTrainer(student=model, tokenizer=tokenizer, config=config, folder=out, dev_file=dev)
        trainer.prepare()
        progress = trainer.run()

    The constructor is quick and refuses what cannot be. Everything that may take hours, such as the embeddings of a
    teacher, is in `prepare`, which keeps what it computes on disk. Stages take further arguments of their own, by name.

    Args:
        student: a `LAMModel`; trained in place.
        tokenizer: the student's.
        config: what to do.
        folder: for checkpoints, log.jsonl and the best model; `folder`/best is a model folder.
        dev_file: pair file for validation (STS-B dev). Selection looks at nothing else, unless a stage says so.
        cache_folder: for embeddings that are computed once; by default `folder`/teachers.
        reports_to: gets a task for each thing that takes long before the updates; by default nothing is shown.
        tensorboard: also log for TensorBoard.

    Raises:
        ValueError: if `folder` holds a run with another configuration.
    """

    config: RunConfig

    def __init__(
        self,
        *,
        student: Any,
        tokenizer: PreTrainedTokenizerBase,
        config: RunConfig,
        folder: str | Path,
        dev_file: str | Path,
        cache_folder: str | Path | None = None,
        reports_to: Progress | None = None,
        tensorboard: bool = False,
    ) -> None:
        self.student = student
        self.tokenizer = tokenizer
        self.config = config
        self.folder = Path(folder)
        self.dev_file = Path(dev_file)
        self.cache_folder = self.folder / "teachers" if cache_folder is None else Path(cache_folder)
        self.reports_to = reports_to or Silent()
        self.tensorboard = tensorboard
        self.progress = RunProgress()
        self.prepared = False
        self.checkpoint = self.last_checkpoint()
        if self.checkpoint is not None:
            record = read_json(self.checkpoint / "progress.json")
            refuse_changes(self.folder, config.difference(record["config"]))
            self.progress = RunProgress(**record["progress"])

    def last_checkpoint(self) -> Path | None:
        """The folder of the last complete checkpoint of the run, if there is one."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Do all work that comes before the first update, hours of it in some stages.

        `run` does so itself where it was not done. A killed `prepare` goes on where it was: embeddings, tables of
        tokens and mined negatives are kept on disk.

        Raises:
            ValueError: for texts, teachers or settings that do not fit together.
        """
        if not self.prepared:
            self._warn_of_slow_bf16()
            self._prepare()
            self.prepared = True

    def _warn_of_slow_bf16(self) -> None:
        asked = [name for name in ("bf16", "teacher_bf16") if getattr(self.config, name, False)]
        if not asked or torch.accelerator.is_available():
            return
        slowdown = bf16_slowdown()
        if slowdown > SLOW_BF16:
            settings = " and ".join(f"{name}: false" for name in asked)
            logger.warning(
                f"A product in bfloat16 takes {slowdown:.0f} times as long as in float32 on this processor. "
                f"Set {settings} to train in float32."
            )

    def _prepare(self) -> None:
        raise NotImplementedError

    def run(
        self,
        evaluate_every: int = 250,
        checkpoint_every: int = 250,
        on_step: Callable[[RunProgress], None] | None = None,
        stop_after: int | None = None,
    ) -> RunProgress:
        """Train until `config.steps` and return where the run is.

        Args:
            evaluate_every: updates between validations; there is one after the last update too.
            checkpoint_every: updates between checkpoints; there is one after the last update too.
            on_step: called after every update.
            stop_after: end after this number of updates.

        Raises:
            FloatingPointError: if the loss is not finite; the last checkpoint is kept.
            OSError: if a checkpoint cannot be written; the one before is kept.
        """
        raise NotImplementedError

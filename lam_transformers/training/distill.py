"""Stage 1, base distillation: a LAM learns to reproduce its teacher, layer by layer."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..model.modeling_lam import LAMModel
from .data import LengthBatches, TokenTable
from .loop import TrainingLoop, process_state
from .losses import distillation_losses
from .trainer import RunConfig


@dataclass(kw_only=True)
class DistillConfig(RunConfig):
    """What decides a run of base distillation. These defaults are the only ones that the stage has.

    In the first `teacher_forced_steps` updates each layer of the student reads the teacher's states below it, so that
    all layers learn at once; after them it reads its own. The first `curriculum_steps` batches come in order of length.
    """

    steps: int = 6000
    warmup_steps: int = 100
    decay_steps: int = 3000
    tokens_per_batch: int = 2048
    max_length: int = 128
    hidden_weight: float = 1.0
    embedding_weight: float = 4.0
    similarity_weight: float = 20.0
    teacher_forced_steps: int = 0
    curriculum_steps: int = 0


class Distiller(TrainingLoop):
    """A run of base distillation.

    Args:
        teacher: an encoder of the same width, depth and vocabulary that returns hidden states.
        table: the training texts.
        arguments: those of `Trainer`. The tokenizer is the teacher's too.

    Raises:
        ValueError: if student and teacher do not fit together.
    """

    config: DistillConfig

    def __init__(self, *, teacher: PreTrainedModel, table: TokenTable, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._check(self.student, teacher, table)
        if self.config.teacher_forced_steps and process_state().num_processes > 1:
            raise ValueError("teacher_forced_steps needs a single process: the layers are called one by one.")
        self.teacher = teacher
        self.table = table

    def _prepare(self) -> None:
        super()._prepare()
        config = self.config
        self.teacher.to(self.accelerator.device).eval().requires_grad_(False)
        ordered = config.curriculum_steps * self.accelerator.num_processes
        self.batches = LengthBatches(self.table, config.tokens_per_batch, config.seed, ordered=ordered)

    @staticmethod
    def _check(student: LAMModel, teacher: PreTrainedModel, table: TokenTable) -> None:
        for name in ("hidden_size", "num_hidden_layers", "vocab_size"):
            ours = getattr(student.config, name)
            theirs = getattr(teacher.config, name)
            if ours != theirs:
                raise ValueError(f"Student and teacher must agree in {name}: {ours} against {theirs}.")
        limit = getattr(teacher.config, "max_position_embeddings", None)
        longest = int(table.lengths.max()) if len(table) else 0
        if limit is not None and longest > limit:
            raise ValueError(
                f"The teacher reads at most {limit} tokens, a text has {longest}: use --max-length {limit}."
            )

    def batch_losses(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
        """See `TrainingLoop`; the parts are those of `distillation_losses`."""
        config = self.config
        ids = torch.from_numpy(self.batches[index]).to(self.accelerator.device)
        with torch.no_grad():
            teacher_states = self.teacher(input_ids=ids, output_hidden_states=True).hidden_states
        if self.progress.step < config.teacher_forced_steps:
            layers = zip(self.model.layers, teacher_states[:-1], strict=True)
            student_states = (teacher_states[0], *(layer(below)[0] for layer, below in layers))
        else:
            student_states = self.student(input_ids=ids, output_hidden_states=True).hidden_states
        losses = distillation_losses(student_states, teacher_states)
        loss = (
            config.hidden_weight * losses["hidden"]
            + config.embedding_weight * losses["embedding"]
            + config.similarity_weight * losses["similarity"]
        )
        return loss, losses, ids.numel()

"""Stage 1, base distillation: a LAM learns to reproduce its teacher, layer by layer."""

from dataclasses import dataclass

import torch

from .data import LengthBatches, TokenTable
from .loop import RunConfig, TrainingLoop
from .losses import distillation_losses


@dataclass(kw_only=True)
class DistillConfig(RunConfig):
    """What decides a run of base distillation.

    In the first `teacher_forced_steps` updates each layer of the student reads the teacher's states below it, so that
    all layers learn at once; after them it reads its own. The first `curriculum_steps` batches come in order of length.
    """

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
        student: a `LAMModel`; trained in place.
        teacher: an encoder of the same width, depth and vocabulary that returns hidden states.
        tokenizer: of both.
        table: the training texts.
        config, folder, dev_file, options: see `TrainingLoop`.

    Raises:
        ValueError: if student and teacher do not fit together.
    """

    config: DistillConfig

    def __init__(
        self, student, teacher, tokenizer, table: TokenTable, config: DistillConfig, folder, dev_file, **options
    ):
        self._check(student, teacher, table)
        super().__init__(student, tokenizer, config, folder, dev_file, **options)
        self.teacher = teacher.to(self.accelerator.device).eval().requires_grad_(False)
        ordered = config.curriculum_steps * self.accelerator.num_processes
        self.batches = LengthBatches(table, config.tokens_per_batch, config.seed, ordered=ordered)
        if config.teacher_forced_steps and self.accelerator.num_processes > 1:
            raise ValueError("teacher_forced_steps needs a single process: the layers are called one by one.")

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

    def batch_losses(self, index):
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

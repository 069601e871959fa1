"""Stage 2, relational distillation: a LAM learns how stronger teachers see texts relate to each other."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..scoring.pooling import embed_texts, packed_mean_pool
from .cache import EmbeddingCache, Teacher, teacher_embeddings
from .data import PackedBatches, TokenTable, nearest_groups
from .loop import TrainingLoop, process_state
from .losses import margin_loss, similarity_loss, structure_loss
from .trainer import RunConfig

# Number of texts by which the maps between student and teacher are fitted.
FITTED_TEXTS = 4096


@dataclass(kw_only=True)
class RelationalConfig(RunConfig):
    """What decides a run of relational distillation.

    Attributes:
        teachers: name, weight and prompt of each, see `Teacher`. Several teach as one: their embeddings are
            concatenated, scaled so that a cosine is the weighted mean of theirs.
        group_size, max_texts: see `PackedBatches`. A part of the texts, seen in several epochs, needs fewer embeddings
            of the teacher.
        neighbours: make the groups of texts that are near for the first teacher, see `nearest_groups`, not of texts
            that follow each other.
        structure_weight, temperature, teacher_temperature: see `structure_loss`.
        similarity_weight: see `similarity_loss`.
        margin_weight, margin: see `margin_loss`.
        embedding_weight: of 1 - cosine between the student's and the teachers' embedding of a text, which `projection`
            makes comparable: "linear", a learnt map of the student's to the teachers' width, started as the least
            squares one; "reduce", the teachers' embeddings in their first principal directions, as many as the student
            is wide, rotated toward the student's where it starts; "none" for one teacher of the student's width and
            space.
        dimensions: the losses of similarities are averaged over these numbers of leading dimensions of the student
            (Kusupati et al. 2022, "Matryoshka Representation Learning"); empty: only all of them.
        teacher_bf16: the teachers compute in bfloat16.
    """

    steps: int = 6000
    learning_rate: float = 5e-4
    teachers: list[dict] = field(default_factory=lambda: [{"name": "intfloat/e5-large-v2"}])
    tokens_per_batch: int = 3072
    group_size: int = 4
    max_length: int = 128
    max_texts: int | None = None
    neighbours: bool = False
    structure_weight: float = 1.0
    temperature: float = 0.05
    teacher_temperature: float = 0.05
    similarity_weight: float = 20.0
    margin_weight: float = 1.0
    margin: float = 0.2
    embedding_weight: float = 1.0
    projection: Literal["linear", "reduce", "none"] = "linear"
    dimensions: list[int] = field(default_factory=list)
    teacher_bf16: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.projection not in ("linear", "reduce", "none"):
            raise ValueError(f"projection must be linear, reduce or none, got {self.projection!r}.")
        if not self.teachers:
            raise ValueError("relational distillation needs at least one teacher.")


class TeacherRows(NamedTuple):
    """The embeddings of one teacher for the texts of a table.

    Attributes:
        scale: root of the teacher's share of a cosine.
        cache: the embeddings.
        places: [texts of the table], the row of each text in the cache; -1 for texts that the run does not read.
    """

    scale: float
    cache: EmbeddingCache
    places: np.ndarray


class RelationalDistiller(TrainingLoop):
    """A run of relational distillation.

    Args:
        table: the training texts, with the texts kept (`tokenize_texts(keep_texts=True)`).
        arguments: those of `Trainer`. A teacher may have another tokenizer than the student. The embeddings of the
            teachers are kept in `cache_folder`.

    Raises:
        ValueError: by `prepare`, if a teacher does not load, or its width does not fit `projection`.
    """

    config: RelationalConfig

    def __init__(self, *, table: TokenTable, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.table = table
        config = self.config
        self.batches = PackedBatches(table, config.tokens_per_batch, config.seed, config.group_size, config.max_texts)

    def _prepare(self) -> None:
        config = self.config
        rows = self._rows_of_run()
        self.teachers = self._embedded(rows)
        if config.neighbours:
            first = self.teachers[0]
            embeddings = first.cache.rows(first.places[rows])
            self.batches.regroup(rows[nearest_groups(embeddings, config.group_size, config.seed)])
        self.projection = self._projection(rows)
        self.helpers = nn.ModuleList([self.projection])
        super()._prepare()

    def _embedded(self, rows: np.ndarray) -> list[TeacherRows]:
        """The teachers with their embeddings of these rows of the table, which are computed where they are missing."""
        teachers = [Teacher(**teacher) for teacher in self.config.teachers]
        total = sum(teacher.weight for teacher in teachers)
        texts = [self.table.text(i) for i in rows]
        embedded = []
        for teacher in teachers:
            advance = self.reports_to.task(f"Embedding by {Path(teacher.name).name}", len(texts)).advance
            cache, kept = teacher_embeddings(teacher, texts, self.cache_folder, self.config.teacher_bf16, advance)
            places = np.full(len(self.table), -1)
            places[rows] = kept
            embedded.append(TeacherRows(math.sqrt(teacher.weight / total), cache, places))
        return embedded

    def _joined(self, rows: np.ndarray) -> torch.Tensor:
        """The teachers' embeddings of these rows of the table, [N, sum of the widths], L2-normalised.

        Teacher i's are scaled by sqrt(weight_i / sum of the weights), so that products of rows are the weighted mean of
        the teachers' cosines.
        """
        parts = [torch.from_numpy(one.cache.rows(one.places[rows])) * one.scale for one in self.teachers]
        return torch.cat(parts, dim=1)

    def _rows_of_run(self) -> np.ndarray:
        """The texts that the batches of the run hold, as rows of the table."""
        seen = np.zeros(len(self.table), dtype=bool)
        batches = self.config.steps * process_state().num_processes
        for index in range(min(batches, self.batches.batches_per_epoch)):
            seen[self.batches.rows(index)] = True
        return np.flatnonzero(seen)

    def _projection(self, rows: np.ndarray) -> nn.Module:
        """The map that makes embeddings comparable: of the student's ("linear") or of the teachers' ("reduce")."""
        kind = self.config.projection
        ours = self.student.config.hidden_size
        theirs = sum(one.cache.dimensions for one in self.teachers)
        what = "The teacher is" if len(self.teachers) == 1 else "The teachers together are"
        if kind == "none" and (ours != theirs or len(self.teachers) > 1):
            raise ValueError(f"{what} {theirs} wide, the student {ours}: choose projection linear or reduce, not none.")
        if kind == "none":
            return nn.Identity()
        if kind == "reduce" and theirs < ours:
            raise ValueError(f"{what} {theirs} wide, which cannot be reduced to {ours}; choose projection linear.")
        layer = nn.Linear(ours, theirs, bias=False) if kind == "linear" else nn.Linear(theirs, ours, bias=False)
        layer.requires_grad_(kind == "linear")
        if self.checkpoint is None:  # else the checkpoint has it
            chosen = rows[np.linspace(0, len(rows) - 1, min(FITTED_TEXTS, len(rows))).astype(int)]
            texts = [self.table.text(i) for i in chosen]
            x = torch.from_numpy(embed_texts(self.student.eval(), self.tokenizer, texts))
            y = self._joined(chosen)
            with torch.no_grad():
                layer.weight.copy_(_fitted(x, y) if kind == "linear" else _reduction(x, y))
        return layer

    def batch_losses(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
        """See `TrainingLoop`; the parts are structure, similarity, margin and embedding."""
        config = self.config
        device = self.accelerator.device
        rows, ids, bounds = self.batches[index]
        cu_seqlens = torch.from_numpy(bounds).to(device)
        states = self.student(input_ids=torch.from_numpy(ids).to(device).unsqueeze(0), cu_seq_lens_q=cu_seqlens)
        ours = packed_mean_pool(states.last_hidden_state, cu_seqlens)
        with torch.autocast(device.type, enabled=False):
            parts = self._losses(ours, self._joined(rows).to(device))
        loss = sum(getattr(config, f"{name}_weight") * x for name, x in parts.items())
        return loss, parts, len(ids)

    def _losses(self, ours: torch.Tensor, theirs: torch.Tensor) -> dict[str, torch.Tensor]:
        """ours [B, D], theirs [B, D of the teachers], both L2-normalised -> the losses by name."""
        config = self.config
        target = theirs @ theirs.T
        by_size = []
        for size in config.dimensions or [ours.shape[1]]:
            cut = F.normalize(ours[:, :size], dim=-1)
            similarity = cut @ cut.T
            by_size.append(
                {
                    "structure": structure_loss(similarity, target, config.temperature, config.teacher_temperature),
                    "similarity": similarity_loss(similarity, target),
                    "margin": margin_loss(similarity, target, config.margin),
                }
            )
        losses = {name: torch.stack([x[name] for x in by_size]).mean() for name in by_size[0]}
        if config.projection == "linear":
            cosine = F.cosine_similarity(self.projection(ours), theirs, dim=-1)
        else:
            cosine = F.cosine_similarity(ours, self.projection(theirs), dim=-1)
        return losses | {"embedding": (1 - cosine).mean()}


def _fitted(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The weight W [E, D] for which W x is nearest y: x [N, D], y [N, E]; a little ridge for small N."""
    x = x.double()
    y = y.double()
    gram = x.T @ x
    ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram + ridge, x.T @ y).T.float()


def _reduction(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The weight W [D, E], of orthonormal rows, that keeps the similarities of y [N, E] best and then is nearest x.

    x is [N, D]. The rows span the D first principal directions of y (not centred: similarities are not); the rotation
    among them is that of the orthogonal Procrustes problem (Schoenemann 1966).
    """
    x = x.double()
    y = y.double()
    directions = torch.linalg.eigh(y.T @ y).eigenvectors[:, -x.shape[1] :]  # [E, D]
    left, _, right = torch.linalg.svd((y @ directions).T @ x)
    return (directions @ left @ right).T.float()

"""The losses of base distillation."""

import torch
from torch.nn import functional as F

from ..evaluation.embedding import mean_pool


def distillation_losses(
    student_states: tuple[torch.Tensor, ...], teacher_states: tuple[torch.Tensor, ...]
) -> dict[str, torch.Tensor]:
    """How far a student is from its teacher on a batch of texts without padding.

    Args:
        student_states, teacher_states: the embeddings and the output of each layer, [B, T, D] each.

    Returns:
        three scalars, float32:
        hidden: mean over the layers of the squared error of the hidden states, relative to the teacher's variance;
        embedding: mean of 1 - cosine between student's and teacher's text embedding;
        similarity: mean squared difference between the two matrices [B, B] of in-batch cosine similarities, without
            their diagonals (Tung and Mori 2019, "Similarity-Preserving Knowledge Distillation", with cosines).
    """
    hidden = []
    for student, teacher in zip(student_states[1:], teacher_states[1:], strict=True):
        teacher = teacher.float()
        hidden.append(F.mse_loss(student.float(), teacher) / teacher.var())
    ours, theirs = mean_pool(student_states[-1]), mean_pool(teacher_states[-1])
    texts = len(ours)
    difference = (ours @ ours.T - theirs @ theirs.T).square().sum()
    return {
        "hidden": torch.stack(hidden).mean(),
        "embedding": (1 - (ours * theirs).sum(-1)).mean(),
        "similarity": difference / max(texts * (texts - 1), 1),
    }


def orthogonality_loss(model) -> torch.Tensor:
    """Mean squared deviation of W W' from the identity over the query and key projections of each memory head.

    Rows are normalised first, so that only their directions count: keys of one head that point the same way overwrite
    each other in its memory. Scalar, float32.
    """
    losses = []
    for layer in model.layers:
        memory = layer.memory
        size = memory.heads * memory.width
        weight = memory.in_proj.weight[: 2 * size].float().view(-1, memory.width, memory.in_proj.in_features)
        weight = F.normalize(weight, dim=-1)  # [2 H, K, D]
        gram = weight @ weight.transpose(-1, -2)
        losses.append((gram - torch.eye(memory.width, device=gram.device)).square().mean())
    return torch.stack(losses).mean()

"""The losses of the distillation stages."""

import torch
from torch.nn import functional as F

from ..model.modeling_lam import LAMModel
from ..scoring.pooling import mean_pool


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
    ours = mean_pool(student_states[-1])
    theirs = mean_pool(teacher_states[-1])
    return {
        "hidden": torch.stack(hidden).mean(),
        "embedding": (1 - (ours * theirs).sum(-1)).mean(),
        "similarity": similarity_loss(ours @ ours.T, theirs @ theirs.T),
    }


def similarity_loss(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of two matrices [B, B] of similarities, without their diagonals. Scalar."""
    return _off_diagonal(ours - theirs).square().mean() if len(ours) > 1 else (ours - theirs).square().sum()


def structure_loss(
    ours: torch.Tensor, theirs: torch.Tensor, temperature: float, teacher_temperature: float
) -> torch.Tensor:
    """How differently student and teacher spread each text's similarity over the other texts of the batch.

    The mean over the rows of KL(softmax(theirs / teacher_temperature) || softmax(ours / temperature)), diagonals left
    out (Passalis and Tefas 2018, "Learning Deep Representations with Probabilistic Knowledge Transfer", with cosines
    and temperatures).

    Args:
        ours, theirs: [B, B] cosine similarities of student and teacher, B > 1.
    """
    target = F.log_softmax(_off_diagonal(theirs) / teacher_temperature, dim=-1)
    return F.kl_div(
        F.log_softmax(_off_diagonal(ours) / temperature, dim=-1), target, reduction="batchmean", log_target=True
    )


def margin_loss(ours: torch.Tensor, theirs: torch.Tensor, margin: float) -> torch.Tensor:
    """Each text's nearest by the teacher should lead every other text by as much as it does there, at most by `margin`.

    Mean of relu(min(margin, gap of the teacher) - gap of the student) over all rows and all others of a row.

    Args:
        ours, theirs: [B, B] cosine similarities of student and teacher, B > 1.
    """
    ours = _off_diagonal(ours)
    theirs = _off_diagonal(theirs)
    nearest, place = theirs.max(dim=-1, keepdim=True)
    wanted = (nearest - theirs).clamp(max=margin)
    return F.relu(wanted - (ours.gather(-1, place) - ours)).mean()


def _off_diagonal(x: torch.Tensor) -> torch.Tensor:
    """[B, B] -> [B, B - 1]"""
    size = len(x)
    return x.flatten()[1:].view(size - 1, size + 1)[:, :-1].reshape(size, size - 1)


def orthogonality_loss(model: LAMModel) -> torch.Tensor:
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

"""Losses that several steps share."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F


def hidden_loss(
    states: Sequence[torch.Tensor], teacher_states: Sequence[torch.Tensor], mask: torch.Tensor
) -> torch.Tensor:
    """Mean over the layers of the squared error of the real tokens' states, relative to the teacher's variance.

    states, teacher_states: embeddings and each layer's output, [B, T, D] each; mask: [B, T] bool.
    """
    weights = mask.unsqueeze(-1).float()
    count = weights.sum() * states[-1].shape[-1]
    layers = len(states) - 1
    total = torch.zeros((), device=mask.device)
    for ours, theirs in zip(states[1:], teacher_states[1:], strict=True):
        theirs = theirs.float()
        mean = (theirs * weights).sum() / count
        error = ((ours.float() - theirs).square() * weights).sum()
        total = total + error / ((theirs - mean).square() * weights).sum() / layers
    return total


def row_divergence(ours: torch.Tensor, theirs: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean over the rows of KL(softmax(theirs / temperature) || softmax(ours / temperature)), [N, M] each."""
    return F.kl_div(
        F.log_softmax(ours / temperature, -1),
        F.log_softmax(theirs / temperature, -1),
        reduction="batchmean",
        log_target=True,
    )

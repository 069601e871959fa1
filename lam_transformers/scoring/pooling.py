"""Mean-pooled embeddings of texts by any encoder of transformers."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def mean_pool(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean over the real tokens, of length 1.

    Args:
        hidden_states: [B, T, D], of any floating dtype.
        attention_mask: [B, T], 1 at real tokens; None: all are real.

    Returns:
        float32 [B, D].
    """
    hidden_states = hidden_states.float()
    if attention_mask is None:
        return F.normalize(hidden_states.mean(1), dim=-1)
    weights = attention_mask.unsqueeze(-1).float()
    return F.normalize((hidden_states * weights).sum(1) / weights.sum(1).clamp(min=1), dim=-1)


def packed_mean_pool(hidden_states: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """`mean_pool` of the texts of a packed row.

    Args:
        hidden_states: [1, T, D], of any floating dtype.
        bounds: where the N texts begin and the last one ends, int64 [N + 1].

    Returns:
        float32 [N, D].
    """
    lengths = bounds.diff()
    text = torch.repeat_interleave(torch.arange(len(lengths), device=bounds.device), lengths)
    sums = hidden_states.new_zeros(len(lengths), hidden_states.shape[-1], dtype=torch.float32)
    return F.normalize(sums.index_add(0, text, hidden_states[0].float()), dim=-1)


@torch.inference_mode()
def embed_texts(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    max_length: int | None = None,
    tokens_per_batch: int = 8192,
    progress: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Mean-pooled embeddings of texts, in their order.

    Args:
        model: anything that returns `last_hidden_state` for `input_ids` and `attention_mask`.
        tokenizer: the model's own.
        texts: of any length, in any order.
        max_length: cut texts after this many tokens, special tokens included; None reads them whole.
        tokens_per_batch: padded tokens at most in one batch (one longer text is a batch of its own).
        progress: is called with the number of texts done since the last call.

    Returns:
        float32 [texts, D]; rows have length 1.
    """
    if not len(texts):
        return np.zeros((0, model.config.hidden_size), dtype=np.float32)
    encoded = tokenizer(list(texts), truncation=max_length is not None, max_length=max_length)["input_ids"]
    order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
    embeddings = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * len(encoded[order[end]]) <= tokens_per_batch:
            end += 1
        rows = order[start:end]
        batch = tokenizer.pad({"input_ids": [encoded[i] for i in rows]}, return_tensors="pt").to(model.device)
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        embeddings[rows] = mean_pool(output.last_hidden_state, batch["attention_mask"]).cpu().numpy()
        if progress is not None:
            progress(len(rows))
        start = end
    return embeddings

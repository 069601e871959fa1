"""Mean-pooled embeddings of texts by any encoder of transformers."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F


def mean_pool(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean over the real tokens, L2-normalised: [B, T, D] and [B, T] (None: all real) -> [B, D], float32."""
    hidden_states = hidden_states.float()
    if attention_mask is None:
        return F.normalize(hidden_states.mean(1), dim=-1)
    weights = attention_mask.unsqueeze(-1).float()
    return F.normalize((hidden_states * weights).sum(1) / weights.sum(1).clamp(min=1), dim=-1)


def packed_mean_pool(hidden_states: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """`mean_pool` of a packed row: [1, T, D] and bounds [N + 1] of its N texts -> [N, D], float32."""
    lengths = bounds.diff()
    text = torch.repeat_interleave(torch.arange(len(lengths), device=bounds.device), lengths)
    sums = hidden_states.new_zeros(len(lengths), hidden_states.shape[-1], dtype=torch.float32)
    return F.normalize(sums.index_add(0, text, hidden_states[0].float()), dim=-1)


@torch.inference_mode()
def embed_texts(
    model, tokenizer, texts: Sequence[str], max_length: int | None = None, tokens_per_batch: int = 8192, progress=None
) -> np.ndarray:
    """Embeddings of texts, float32 [texts, D], in their order.

    Args:
        model: anything that returns `last_hidden_state` for `input_ids` and `attention_mask`.
        max_length: cut texts after this many tokens, special tokens included; None reads them whole.
        tokens_per_batch: padded tokens at most in one batch (one longer text is a batch of its own).
        progress: called with the number of texts done since the last call.
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

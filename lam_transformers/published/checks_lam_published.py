# Copyright 2026 The LAM authors. Licensed under the Apache License, Version 2.0.
"""What a published LAM checkpoint refuses, and what it says then."""

import hashlib
import json
import os

import torch
from safetensors import SafetensorError, safe_open


def check_ids(name: str, ids: torch.Tensor | None, size: int) -> torch.Tensor:
    """ids, after making sure that they are [B, T] and within the table; ValueError otherwise."""
    if ids is not None and not isinstance(ids, torch.Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(ids).__name__}; use torch.tensor(...).")
    if ids is None or ids.ndim != 2 or 0 in ids.shape:
        got = "nothing" if ids is None else list(ids.shape)
        raise ValueError(f"{name} must be [B, T] with at least one token, got {got}.")
    if ids.device.type == "cpu" and (ids.min() < 0 or ids.max() >= size):
        raise ValueError(
            f"{name} holds {int(ids.min())} to {int(ids.max())}, the model knows 0 to {size - 1}; does the tokenizer "
            "belong to this model?"
        )
    return ids


def real_tokens(attention_mask: torch.Tensor | None, input_ids: torch.Tensor) -> torch.Tensor:
    """The mask as bool [B, T]."""
    if attention_mask is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    if not isinstance(attention_mask, torch.Tensor):
        raise ValueError(f"attention_mask must be a tensor, got {type(attention_mask).__name__}.")
    if attention_mask.shape != input_ids.shape:
        raise ValueError(f"attention_mask must be {list(input_ids.shape)}, got {list(attention_mask.shape)}.")
    real = attention_mask == 1
    if not bool((real | (attention_mask == 0)).all()):
        raise ValueError("attention_mask must hold only 1 (real token) and 0 (absent).")
    if not bool(real.any(1).all()):
        rows = (~real.any(1)).nonzero().flatten().tolist()
        raise ValueError(f"attention_mask has no real token in batch rows {rows}; leave such rows out.")
    return real


def check_weights(path: str) -> None:
    """Raise OSError if the weights are cut short, malformed, or differ from the SHA-256 in their metadata."""
    if not os.path.exists(path):
        return
    try:
        with safe_open(path, framework="pt") as file:
            expected = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError) as error:
        raise OSError(f"{path} is damaged ({error}); get the file again.") from error
    if expected is None:
        return
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__", None)
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
        while data := file.read(1 << 20):
            digest.update(data)
    if digest.hexdigest() != expected:
        raise OSError(f"{path} does not match its own SHA-256; it was changed or damaged, get the file again.")

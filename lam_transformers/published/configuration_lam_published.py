# Copyright 2026 The LAM authors. Licensed under the Apache License, Version 2.0.
"""LAMPublishedConfig: the shapes and the forward rule of a published LAM checkpoint."""

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

# Bounds that no model comes near: a damaged or hostile config.json must not decide how much memory is asked for.
LARGEST = {
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 16,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 12,
    "intermediate_size": 1 << 20,
    "max_position_embeddings": 1 << 24,
    "type_vocab_size": 1 << 16,
    "flux_hidden_size": 1 << 16,
}


@strict
class LAMPublishedConfig(PreTrainedConfig):
    r"""
    The configuration of a [`LAMPublishedModel`], written by `lam convert`. The defaults are those of the single file.

    Args:
        vocab_size (`int`): number of token ids.
        hidden_size (`int`): width D of the model and of its embeddings; `num_attention_heads` must divide it.
        num_hidden_layers (`int`): number of layers.
        num_attention_heads (`int`): number H of memory heads, each of width K = D / H.
        intermediate_size (`int`): width of the feed-forward block.
        max_position_embeddings (`int`): rows of the position table; a longer text is an error.
        type_vocab_size (`int`): rows of the token type table.
        layer_norm_eps (`float`): epsilon of the layer norms.
        flux_hidden_size (`int`): hidden width of the resonance flux networks.
        layout (`str`): which tensors a memory layer has, "final" (32 of them) or "main" (28).
        rule (`str`): which forward pass runs, "flat" or "main".
        arithmetic (`str`): "float64" computes what is stored in float32 in float64 and rounds the results at the end,
            "float32" is two to three times faster. The rules amplify rounding errors (a thousandfold in six layers is
            not rare), and only the first gives a text the same result in every batch and on every machine. It is not
            used under autocast.
        initializer_range (`float`): standard deviation of random weights.

    Raises:
        ValueError: for values that no model can have; the message names the field, the value and the mend.
    """

    model_type = "lam_published"

    vocab_size: int = 30522
    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 1536
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float | int = 1e-12
    flux_hidden_size: int = 16
    layout: str = "final"
    rule: str = "flat"
    arithmetic: str = "float64"
    initializer_range: float | int = 0.02
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name, largest in LARGEST.items():
            if not 1 <= getattr(self, name) <= largest:
                raise ValueError(f"{name} must be at least 1 and at most {largest:,}, got {getattr(self, name)}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads}); change one of them."
            )
        if not 0 < self.layer_norm_eps < math.inf:
            raise ValueError(f"layer_norm_eps must be a positive number, such as 1e-12, got {self.layer_norm_eps}.")
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"pad_token_id must be None or an id from 0 to {self.vocab_size - 1}, got {self.pad_token_id}."
            )
        words = {"layout": ("final", "main"), "rule": ("flat", "main"), "arithmetic": ("float64", "float32")}
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got '{getattr(self, name)}'.")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; whatever does not fit, the error is a ValueError of one line."""
        try:
            return super().from_dict(config_dict, **kwargs)
        except (StrictDataclassError, TypeError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"The configuration is not that of a published LAM: {reason[:500]}") from error

    @property
    def head_size(self) -> int:
        """Width K = V of the keys and values of one head."""
        return self.hidden_size // self.num_attention_heads

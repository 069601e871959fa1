# Copyright 2026 The LAM authors. Licensed under the Apache License, Version 2.0.
"""LAMConfig: everything that decides the shapes and the equations of a LAM."""

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

# Bounds that no model comes near: a damaged or hostile config.json must not decide how much memory is asked for.
LARGEST = {
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 16,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 12,
    "intermediate_size": 1 << 20,
    "position_table_size": 1 << 24,
    "type_vocab_size": 1 << 16,
    "conv_kernel": 1 << 10,
    "flux_hidden_size": 1 << 16,
}


@strict
class LAMConfig(PreTrainedConfig):
    r"""The configuration of a [`LAMModel`]. The defaults are those of LAM-base-v1.

    Args:
        vocab_size (`int`): number of token ids.
        hidden_size (`int`): width D of the model and of its embeddings; `num_attention_heads` must divide it.
        num_hidden_layers (`int`): number of layers, each a memory and a feed-forward network.
        num_attention_heads (`int`): number H of memory heads, each with keys and values of width D / H.
        intermediate_size (`int`): width of the feed-forward network.
        hidden_act (`str`): activation of the feed-forward network.
        position_table_size (`int`): rows of the position table. It does not limit the length of a text: every token
            beyond it takes the last row. (There is no `max_position_embeddings`: tools would truncate texts there.)
        type_vocab_size (`int`): rows of the token type table.
        layer_norm_eps (`float`): epsilon of the layer norms.
        conv_kernel (`int`): width of the causal depthwise convolution over queries, keys and values.
        cross_timescale (`float`): strength c of the exchange between fast and slow memory, |c| < 0.5.
        flux_hidden_size (`int`): hidden width of the resonance flux network.
        output_gate_rank (`int`, *optional*): rank of the output gate; 0 for no gate, `None` for a full matrix.
        memory_norm_eps (`float`): epsilon of the RMS norm of what the memories return.
        fast_decay_init (`float`): decay per token at which the fast memories start.
        slow_decay_init (`tuple[float, float]`): decays per token between which the slow memories of the heads start,
            spread evenly in the logarithm of their time constants.
        chunk_size (`int`, *optional*): tokens per chunk of the memory rule; `None` lets the rule choose.
        two_way_chunk (`int`, *optional*): two-way reading: the slow memory is read when a token's chunk of this many
            tokens, counted from the start of its text, has been written, so that tokens see both ways inside a chunk;
            `None`: after the token itself, the memory of LAM 0.1. A state can be handed on at multiples of it only.
        initializer_range (`float`): standard deviation of random weights.
        classifier_dropout (`float`): share of dropout before the classifiers of the heads; the encoder has none.
        classifier_pooling (`str`): what a class of a text is read from, `"mean"` of its tokens or `"lasttoken"`.

    Raises:
        ValueError: for values that no model can have; the message names the field, the value and the mend.
    """

    model_type = "lam"

    vocab_size: int = 30522
    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 1536
    hidden_act: str = "gelu"
    position_table_size: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float | int = 1e-12
    conv_kernel: int = 4
    cross_timescale: float | int = 0.1
    flux_hidden_size: int = 16
    output_gate_rank: int | None = 32
    memory_norm_eps: float | int = 1e-5
    fast_decay_init: float | int = 0.3
    slow_decay_init: list[float] | tuple[float, ...] = (0.85, 0.999)
    chunk_size: int | None = None
    two_way_chunk: int | None = None
    initializer_range: float | int = 0.02
    classifier_dropout: float | int = 0.0
    classifier_pooling: str = "mean"
    pad_token_id: int | None = 0
    use_cache: bool = False
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
        if not abs(self.cross_timescale) < 0.5:
            raise ValueError(f"cross_timescale must lie between -0.5 and 0.5, got {self.cross_timescale}.")
        if self.output_gate_rank is not None and not 0 <= self.output_gate_rank <= LARGEST["hidden_size"]:
            raise ValueError(
                f"output_gate_rank must be None (full), 0 (no gate) or positive and at most "
                f"{LARGEST['hidden_size']:,}, got {self.output_gate_rank}."
            )
        for name in ("layer_norm_eps", "memory_norm_eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a positive number, such as 1e-5, got {getattr(self, name)}.")
        if not 0 <= self.initializer_range < math.inf:
            raise ValueError(f"initializer_range must be a number of at least 0, got {self.initializer_range}.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(
                f"hidden_act must be an activation that transformers knows, such as gelu, got {self.hidden_act!r}."
            )
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"pad_token_id must be None or an id from 0 to {self.vocab_size - 1}, got {self.pad_token_id}."
            )
        low, high = self.slow_decay_init if len(self.slow_decay_init) == 2 else (0.0, 0.0)
        if not 0 < self.fast_decay_init < low <= high < 1:
            raise ValueError(
                "the starting decays must satisfy 0 < fast_decay_init < slow_decay_init[0] <= slow_decay_init[1] < 1, "
                f"got {self.fast_decay_init} and {self.slow_decay_init}."
            )
        if not 0 <= self.classifier_dropout < 1:
            raise ValueError(f"classifier_dropout must be at least 0 and below 1, got {self.classifier_dropout}.")
        if self.classifier_pooling not in ("mean", "lasttoken"):
            raise ValueError(f"classifier_pooling must be 'mean' or 'lasttoken', got {self.classifier_pooling!r}.")
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"chunk_size must be None or at least 1, got {self.chunk_size}.")
        if self.two_way_chunk is not None and not 1 <= self.two_way_chunk <= 1024:
            raise ValueError(f"two_way_chunk must be None or from 1 to 1024, got {self.two_way_chunk}.")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; whatever does not fit, the error is a ValueError of one line."""
        try:
            return super().from_dict(config_dict, **kwargs)
        except (StrictDataclassError, TypeError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"The configuration is not that of a LAM: {reason[:500]}") from error

    @property
    def head_size(self) -> int:
        """Width K = V of the keys and values of one head."""
        return self.hidden_size // self.num_attention_heads

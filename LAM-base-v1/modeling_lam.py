# Copyright 2026 The LAM authors. Licensed under the Apache License, Version 2.0.
"""LAM, a text encoder whose attention is an associative memory: cost linear in the length, state of constant size.

Read delta_rule_lam.py first for the memory rule and the alphabet of the shapes: B batch, T time, H heads, K = V head
size, D = H K hidden size, N texts of a packed row.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import capture_outputs

from .checks_lam import check_inputs, check_loaded, check_weights, is_traced, real_tokens
from .configuration_lam import LAMConfig
from .memory_lam import LAMConvolution, LAMMemory, ResonanceFlux, starting_decay_bias
from .packing_lam import PackedTexts, PaddedTexts, positions, segment_size, unpack
from .state_lam import LAMState, check_place, check_state, device_of, fingerprint_of, one_state, state_shapes

try:  # an accelerator, where the package lam-transformers is installed
    from lam_transformers import kernels
except ImportError:
    kernels = None  # type: ignore[assignment]

if TYPE_CHECKING:
    # Out of a folder, transformers 5.4 copies only those files that the one it was asked for names itself.
    from .delta_rule_lam import dual_delta_rule  # noqa: F401


@dataclass
class LAMModelOutput(ModelOutput):
    """What `LAMModel.forward` returns.

    Attributes:
        last_hidden_state: [B, T, D], zero where the attention mask is zero.
        cache: the `LAMState` after the last token, with `use_cache=True` or when one was handed in.
        hidden_states: embeddings and the output of each layer, [B, T, D] each, with `output_hidden_states=True`.
    """

    last_hidden_state: torch.Tensor | None = None
    cache: LAMState | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None

    @property
    def cache_params(self) -> LAMState | None:
        """Another name of `cache`, Mamba's."""
        return self.cache

    def __getitem__(self, k: Any) -> Any:
        return super().__getitem__("cache" if k == "cache_params" else k)


class LAMEmbeddings(nn.Module):
    """Word + position + token type, then LayerNorm, as BERT; positions beyond the table take its last row."""

    def __init__(self, config: LAMConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.position_table_size, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        token_type_ids: torch.Tensor,
        position_ids: torch.Tensor,
    ) -> torch.Tensor:
        """[B, T, D] of ids [B, T], or of word embeddings [B, T, D] in their place."""
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        positions = self.position_embeddings(position_ids.clamp(max=self.position_embeddings.num_embeddings - 1))
        return self.LayerNorm(words + positions + self.token_type_embeddings(token_type_ids))


class LAMFeedForward(nn.Module):
    """The feed-forward network of BERT: x -> W2 act(W1 x)."""

    def __init__(self, config: LAMConfig) -> None:
        super().__init__()
        self.in_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.out_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [B, T, D] -> [B, T, D]."""
        return self.out_proj(self.act(self.in_proj(x)))


class LAMLayer(GradientCheckpointingLayer):
    """One layer: x = LayerNorm(x + memory(x)), then x = LayerNorm(x + feed_forward(x))."""

    def __init__(self, config: LAMConfig) -> None:
        super().__init__()
        self.memory = LAMMemory(config)
        self.memory_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = LAMFeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        x: torch.Tensor,
        texts: PackedTexts | PaddedTexts | None = None,
        memory: torch.Tensor | None = None,
        conv: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """The layer's output [B, T, D], and its memory and conv: arguments and shapes as `LAMMemory.forward`."""
        y, memory, conv = self.memory(x, texts, memory, conv)
        done = None if kernels is None else kernels.finish_layer(self, x, y)
        if done is None:
            x = self.memory_norm(x + y)
            done = self.feed_forward_norm(x + self.feed_forward(x))
        return texts.clear(done) if isinstance(texts, PaddedTexts) else done, memory, conv


class LAMPreTrainedModel(PreTrainedModel):
    """What the encoder and the models with heads share: loading, saving and how weights start."""

    config_class = LAMConfig
    config: LAMConfig
    base_model_prefix = "lam"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LAMLayer"]
    _keep_in_fp32_modules_strict = ["decay_bias"]
    _can_record_outputs = {"hidden_states": LAMLayer}
    _supports_sdpa = True  # there is no attention to implement: any attn_implementation is accepted and changes nothing
    _supports_flash_attn = False

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *args: Any,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As in transformers, but damaged or incomplete weights are an error, never a half-random encoder."""
        if pretrained_model_name_or_path is not None and os.path.isdir(pretrained_model_name_or_path):
            check_weights(os.path.join(pretrained_model_name_or_path, kwargs.get("subfolder") or ""))
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        check_loaded(model, info, pretrained_model_name_or_path, kwargs)
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As in transformers; the folder names the classes of the heads, too, and gets their code."""
        from .heads_lam import AUTO_MAP  # here, because heads_lam imports this file

        self.config.auto_map = (getattr(self.config, "auto_map", None) or {}) | AUTO_MAP
        super().save_pretrained(save_directory, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        config = self.config
        if isinstance(module, ResonanceFlux):
            init.copy_(module.bilinear, torch.eye(config.head_size).expand_as(module.bilinear))
            init.ones_(module.temperature)
            init.zeros_(module.out_proj.weight)
        elif isinstance(module, LAMConvolution):
            # Set below; drawn here so that a seed gives the model that it gave when this was an nn.Conv1d.
            init.normal_(module.weight, mean=0.0, std=config.initializer_range)
        elif isinstance(module, LAMMemory):
            # The convolution starts as the identity, the flux and the output gate (or what replaces it) at one half.
            taps = len(module.conv1d.weight[0, 0])
            init.copy_(module.conv1d.weight, torch.eye(taps)[-1].expand_as(module.conv1d.weight))
            init.zeros_(module.conv1d.bias)
            init.copy_(module.decay_bias, starting_decay_bias(config))
            init.constant_(module.norm_weight, 1.0 if module.gate_size else 0.5)
            if module.gate_proj is not None:
                init.zeros_(module.gate_proj.weight)


class LAMModel(LAMPreTrainedModel):
    """The LAM encoder. Mean-pool `last_hidden_state` over the real tokens and L2-normalise for a text embedding."""

    def __init__(self, config: LAMConfig) -> None:
        super().__init__(config)
        self.embeddings = LAMEmbeddings(config)
        self.layers = nn.ModuleList(LAMLayer(config) for _ in range(config.num_hidden_layers))
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The table of word embeddings."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the table of word embeddings."""
        self.embeddings.word_embeddings = value

    @property
    def backend(self) -> str:
        """Which implementation of the memory runs: "native" or "fla" (lam_transformers.kernels), or "torch"."""
        weight = self.layers[0].memory.in_proj.weight
        return "torch" if kernels is None else kernels.backend_of(self.layers[0].memory, weight.dtype, weight.device)

    def fingerprint(self) -> str:
        """Identifies the weights (by a small sample of each parameter); a `LAMState` carries it."""
        return fingerprint_of(self)

    def new_state(self, batch_size: int) -> LAMState:
        """The empty state of `batch_size` texts that have not begun."""
        device = device_of(self)
        shapes = state_shapes(self.config, batch_size)
        dtype = torch.float64 if self.embeddings.word_embeddings.weight.dtype == torch.float64 else torch.float32
        memory = [torch.zeros(shapes["memory"], dtype=dtype, device=device) for _ in self.layers]
        conv = [torch.zeros(shapes["conv"], dtype=dtype, device=device) for _ in self.layers]
        seen = torch.zeros(batch_size, dtype=torch.long, device=device)
        return LAMState(memory, conv, seen, self.fingerprint())

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        cache: LAMState | None = None,
        use_cache: bool | None = None,
        cu_seq_lens_q: torch.Tensor | None = None,
        return_dict: bool | None = None,
        cache_params: LAMState | None = None,
        past_key_values: LAMState | None = None,
        **kwargs: Any,
    ) -> LAMModelOutput | tuple[torch.Tensor, ...]:
        r"""Read texts, in rows with a mask, packed, or going on from a state.

        Args:
            input_ids: [B, T] token ids. Give these or `inputs_embeds`.
            attention_mask: [B, T], 1 for real tokens and 0 for absent ones, which may be anywhere in a row.
            token_type_ids: [B, T], zeros if not given.
            position_ids: [B, T]; if not given, the number of real tokens of the text before each token.
            inputs_embeds: [B, T, D] word embeddings in place of `input_ids`.
            cache: the `LAMState` to go on from; it is updated when all is done, and after an exception as it was. Rows
                are those of the batch, or the texts of a packed row.
            use_cache: return the state after the last token. A row may then be wholly masked.
            cu_seq_lens_q: [N + 1] bounds of N texts concatenated in one row (B = 1).
            return_dict: False for a tuple.
            cache_params: another name of `cache`.
            past_key_values: another name of `cache`.
            kwargs: `output_hidden_states` also returns the embeddings and the output of each layer;
                `cache_is_checked` says that the caller has had this state checked with these weights and that nobody
                changed either since.

        Returns:
            `LAMModelOutput`, or a tuple with `return_dict=False`.

        Raises:
            ValueError: for inputs that do not fit together, ids outside the tables, NaN in `inputs_embeds` (both on the
                CPU only), or a state of another model or batch.
        """
        cache_is_checked = kwargs.pop("cache_is_checked", False)
        cache = one_state(cache=cache, cache_params=cache_params, past_key_values=past_key_values)
        given = check_inputs(self, input_ids, inputs_embeds, token_type_ids, position_ids)
        batch, time = given.shape[:2]
        use_cache = cache is not None or (self.config.use_cache if use_cache is None else use_cache)
        real = real_tokens(attention_mask, given, cu_seq_lens_q, use_cache)
        texts: PackedTexts | PaddedTexts | None = None
        if cu_seq_lens_q is not None:
            texts = PackedTexts(cu_seq_lens_q.to(given.device).long().diff(), self.config.conv_kernel)
        elif real is not None and self._keeps_shape(real, kwargs):
            texts = PaddedTexts(real)
        elif real is not None:
            texts = PackedTexts(real.sum(1), self.config.conv_kernel)
            places = real.flatten().nonzero().squeeze(1)
            input_ids, inputs_embeds, token_type_ids, position_ids = (
                None if x is None else x.expand(batch, *x.shape[1:]).flatten(0, 1)[places].unsqueeze(0)
                for x in (input_ids, inputs_embeds, token_type_ids, position_ids)
            )
        if use_cache and cache is None:
            cache = self.new_state(batch if texts is None else len(texts.lengths))
        elif cache is not None and cache_is_checked:
            check_place(self, cache)
        elif cache is not None:
            check_state(self, cache, batch if texts is None else len(texts.lengths))
        size = (1, texts.total) if isinstance(texts, PackedTexts) else (batch, time)
        if position_ids is None:
            position_ids = positions(texts, size, None if cache is None else cache.seen, given.device)
        if token_type_ids is None:
            token_type_ids = torch.zeros(size, dtype=torch.long, device=given.device)
        x = self.embeddings(input_ids, inputs_embeds, token_type_ids, position_ids)
        x = texts.clear(x) if isinstance(texts, PaddedTexts) else x
        # The layers work on a copy, which is taken over at the very end: after an exception nothing has changed.
        after = None if cache is None else cache.copy()
        output = self._read(x, texts, after, **kwargs)
        last = output.last_hidden_state
        hidden_states = output.hidden_states
        if real is not None and isinstance(texts, PackedTexts):
            last = unpack(last, places, batch, time)
            if hidden_states is not None:
                hidden_states = tuple(None if x is None else unpack(x, places, batch, time) for x in hidden_states)
        output = LAMModelOutput(last, cache if use_cache else None, hidden_states)
        return_dict = self.config.return_dict if return_dict is None else return_dict
        result = output if return_dict else output.to_tuple()
        if cache is not None and after is not None:
            after.seen = after.seen + (time if texts is None else texts.lengths)
            cache.become(after)
        return result

    def _keeps_shape(self, real: torch.Tensor, options: dict[str, Any]) -> bool:
        """Whether rows with absent tokens stay rows.

        They do where the numbers in the mask are not known, and where gradients of hidden states may be asked for,
        which have to be the ones that the layers saw.
        """
        hidden = options.get("output_hidden_states", self.config.output_hidden_states)
        return is_traced(real) or bool(hidden and torch.is_grad_enabled())

    def _read(
        self, x: torch.Tensor, texts: PackedTexts | PaddedTexts | None, state: LAMState | None, **kwargs: Any
    ) -> LAMModelOutput:
        """All layers over x; without gradients, long texts in segments, whose size then decides the memory needed."""
        longest = int(texts.lengths.max()) if isinstance(texts, PackedTexts) else x.shape[1]
        whole = is_traced(x) or isinstance(texts, PaddedTexts) or torch.is_grad_enabled()
        whole = whole or bool(kwargs.get("output_hidden_states", self.config.output_hidden_states))
        size = segment_size(x.device, self.config.two_way_chunk)
        if whole or longest <= size:
            return self._run_layers(x, texts, state, return_dict=True, **kwargs)
        state = self.new_state(len(x) if texts is None else len(texts.lengths)) if state is None else state
        last = torch.empty_like(x)
        for start in range(0, longest, size):
            places: slice | torch.Tensor = slice(start, start + size)
            segment = None
            if isinstance(texts, PackedTexts):
                places, segment = texts.segment(start, size)
            output = self._run_layers(x[:, places], segment, state, return_dict=True, **kwargs)
            last[:, places] = output.last_hidden_state
        return LAMModelOutput(last_hidden_state=last)

    @capture_outputs
    def _run_layers(
        self, x: torch.Tensor, texts: PackedTexts | PaddedTexts | None, state: LAMState | None, **kwargs: Any
    ) -> LAMModelOutput:
        for i, layer in enumerate(self.layers):
            if state is None:
                x = layer(x, texts)[0]
            else:
                x, state.memory[i], state.conv[i] = layer(x, texts, state.memory[i], state.conv[i])
        return LAMModelOutput(last_hidden_state=x)


LAMConfig.register_for_auto_class()
LAMModel.register_for_auto_class("AutoModel")

__all__ = ["LAMModel", "LAMModelOutput", "LAMPreTrainedModel", "LAMState"]

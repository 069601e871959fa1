# Copyright 2026 The LAM authors. Licensed under the Apache License, Version 2.0.
"""The forward pass of the published LAM checkpoints, as it was, for the people who have their embeddings.

It is no recurrence that could read a text in segments: a convolution looks one token ahead, and how a text is cut into
chunks depends on its whole length. New models should be a `LAMModel`. Shapes: B texts of one and the same length, T
time, L padded time, H heads, K = V head size, D = H K hidden size, N chunks of C tokens.
"""

import os
from typing import Any, NoReturn

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput

from .checks_lam_published import check_ids, check_weights, real_tokens
from .configuration_lam_published import LAMPublishedConfig

# A longer text is filled up with zero rows to a multiple of FILL; chunks are taken where their size divides the length.
FILL, FILL_FROM = 32, 64
CHUNK = {"flat": 128, "main": 32}
# Entries of the [C, C] matrices of one head and layer that may be alive at once; more texts wait for their turn.
ENTRIES_AT_ONCE = 1 << 24
WHOLE_TEXTS = (
    "The published rules read whole texts only: their convolution looks one token ahead and their chunks follow from "
    "the length of the whole text, so a text read in segments or packed after another would get another embedding. "
    "Give each text whole, in a padded batch with its attention_mask; a LAMModel streams and packs."
)


class PublishedConvolution(nn.Module):
    """SiLU of the depthwise convolution y[t] = b + sum_j w[j] z[t - 2 + j], j = 0..3: one token of look-ahead."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(size, size, 4, groups=size)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """[B, L, D] -> [B, L, D]"""
        return F.silu(self.conv(F.pad(z.transpose(1, 2), (2, 1))).transpose(1, 2))


class PublishedFlux(nn.Module):
    """psi of a chunk, from the means over its tokens of its keys and its values."""

    def __init__(self, config: LAMPublishedConfig) -> None:
        super().__init__()
        heads = config.num_attention_heads
        width = config.head_size
        hidden = config.flux_hidden_size
        final = config.layout == "final"
        self.W_bilinear = nn.Parameter(torch.empty(*(heads,) * final, width, width))
        self.temp = nn.Parameter(torch.empty(heads))
        self.flux_net = nn.Sequential(nn.Linear(2 * width + 1, hidden), nn.SiLU(), nn.Linear(hidden, 1))
        if final:  # no rule uses it; it belongs to the checkpoint
            self.token_flux_proj = nn.Sequential(nn.Linear(2 * width, hidden), nn.SiLU(), nn.Linear(hidden, 1))

    def forward(self, k: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """k, u [B, H, N, C, K] -> psi [B, H, N] in [0.01, 0.99]"""
        heads, chunks = k.shape[1:3]
        k, u = k.mean(-2), u.mean(-2)
        bilinear = self.W_bilinear[0] if self.W_bilinear.ndim == 3 else self.W_bilinear
        # Not the temperature of the head: the checkpoints were trained with this index, which runs on over the chunks.
        index = torch.arange(heads * chunks, device=k.device).view(heads, chunks) % heads
        resonance = ((k @ bilinear.to(k.dtype)) * u).sum(-1, keepdim=True) / self.temp[index].unsqueeze(-1)
        features = torch.cat([k, u, resonance.to(k.dtype)], dim=-1)
        flux = self.flux_net(features.to(self.flux_net[0].weight.dtype)).squeeze(-1)
        return torch.sigmoid(flux).clamp(0.01, 0.99).to(k.dtype)


class PublishedNorm(nn.Module):
    """RMS norm over the last dimension. `gate` belongs to the checkpoint and is never used."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.gate = nn.Parameter(torch.empty(width))

    def forward(self, o: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(o, (o.shape[-1],), self.weight.to(o.dtype), 1e-5)


class PublishedMemory(nn.Module):
    """What replaces BERT's softmax attention, with the parameter names of the published checkpoints."""

    def __init__(self, config: LAMPublishedConfig) -> None:
        super().__init__()
        size = config.hidden_size
        heads = config.num_attention_heads
        self.heads = heads
        self.width = config.head_size
        self.rule = config.rule
        self.fast_decay_bias, self.slow_decay_bias = (nn.Parameter(torch.empty(heads)) for _ in range(2))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(size, size, bias=False) for _ in range(3))
        self.b_proj = nn.Linear(size, heads, bias=False)
        self.q_conv1d, self.k_conv1d, self.v_conv1d = (PublishedConvolution(size) for _ in range(3))
        self.fast_decay_proj, self.slow_decay_proj = (nn.Linear(size, heads) for _ in range(2))
        self.resonance_flux = PublishedFlux(config)
        self.fast_gate_proj, self.slow_gate_proj = (nn.Linear(size, heads, bias=False) for _ in range(2))
        self.g_proj, self.o_proj = (nn.Linear(size, size, bias=False) for _ in range(2))
        self.o_norm = PublishedNorm(self.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, D] -> [B, T, D]"""
        time = x.shape[1]
        if time >= FILL_FROM:
            x = F.pad(x, (0, 0, 0, -time % FILL))
        chunk = CHUNK[self.rule]
        chunk = chunk if x.shape[1] % chunk == 0 else x.shape[1]
        q = _unit(self._chunks(self.q_conv1d(self.q_proj(x)), chunk))  # [B, H, N, C, K] each
        k = _unit(self._chunks(self.k_conv1d(self.k_proj(x)), chunk))
        v = self._chunks(self.v_conv1d(self.v_proj(x)), chunk)
        beta, fast_gate, slow_gate = (  # [B, H, N, C, 1] each
            torch.sigmoid(self._chunks(proj(x), chunk))
            for proj in (self.b_proj, self.fast_gate_proj, self.slow_gate_proj)
        )
        with torch.autocast(x.device.type, enabled=False):
            if self.rule == "flat":
                o = flat_rule(q, k, v, beta, fast_gate, slow_gate)
            else:
                decays = (
                    torch.sigmoid(self._chunks(proj(x) + bias, chunk))
                    for proj, bias in (
                        (self.fast_decay_proj, self.fast_decay_bias),
                        (self.slow_decay_proj, self.slow_decay_bias),
                    )
                )
                o = main_rule(q, k, v, beta, fast_gate, slow_gate, *decays, flux=self.resonance_flux)
            o = self.o_norm(o).flatten(2, 3).transpose(1, 2).flatten(2)  # [B, L, D]
        return self.o_proj(o.to(x.dtype) * torch.sigmoid(self.g_proj(x)))[:, :time]

    def _chunks(self, x: torch.Tensor, size: int) -> torch.Tensor:
        """[B, L, H * W] -> [B, H, N, C, W], float32 or wider"""
        x = x.unflatten(-1, (self.heads, -1)).unflatten(1, (-1, size)).movedim(3, 1)
        return x if x.dtype == torch.float64 else x.float()


def _unit(x: torch.Tensor) -> torch.Tensor:
    return F.normalize(x, dim=-1, eps=1e-12)


def _inside(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, beta: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What is summed inside the chunks [B, H, N, C, K]: u and w [..., C, K], P [..., C, C], and beta v.

    A = -strict_lower(beta k k');   T = I + A + strict_lower(A A');   u = T beta v;   w = T beta k;   P = lower(q k')
    T is what the checkpoints were trained with: of the series of the inverse two terms, the second with a transpose.
    """
    written, erased = beta * v, beta * k
    a = -(erased @ k.mT).tril(-1)
    t = (a @ a.mT).tril(-1) + a + torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    return t @ written, t @ erased, (q @ k.mT).tril(), written


def flat_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    fast_gate: torch.Tensor,
    slow_gate: torch.Tensor,
) -> torch.Tensor:
    """o = 0.1 g_fast P beta v + 0.9 g_slow P u: each chunk by itself, without any state.

    q, k, v [B, H, N, C, K]; beta and the gates [B, H, N, C, 1] -> o [B, H, N, C, V]
    """
    u, _, p, written = _inside(q, k, v, beta)
    return 0.1 * fast_gate * (p @ written) + 0.9 * slow_gate * (p @ u)


def main_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    fast_gate: torch.Tensor,
    slow_gate: torch.Tensor,
    fast_decay: torch.Tensor,
    slow_decay: torch.Tensor,
    *,
    flux: PublishedFlux,
) -> torch.Tensor:
    """Two states that go from chunk to chunk, decayed, read, written, mixed and normalised once per chunk.

    q, k, v [B, H, N, C, K]; the others [B, H, N, C, 1] -> o [B, H, N, C, V]. The strength of the mixing is a mean over
    the heads of each text by itself: the result that a text has alone.
    """
    u, w, p, _ = _inside(q, k, v, beta)
    psis = flux(k, u)[..., None, None]  # [B, H, N, 1, 1]
    fast_decay, slow_decay = fast_decay.mean(-2, keepdim=True), slow_decay.mean(-2, keepdim=True)
    fast = slow = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    outputs = []
    for i in range(q.shape[2]):
        psi = psis[:, :, i]
        fast = fast * fast_decay[:, :, i] * (1 - 0.1 * psi)
        slow = slow * slow_decay[:, :, i] * (1 - 0.05 * psi)
        seen_fast, seen_slow = _normalised(fast), _normalised(slow)
        new_fast, new_slow = u[:, :, i] - w[:, :, i] @ seen_fast, u[:, :, i] - w[:, :, i] @ seen_slow
        read_fast = fast_gate[:, :, i] * (q[:, :, i] @ seen_fast + p[:, :, i] @ new_fast)
        read_slow = slow_gate[:, :, i] * (q[:, :, i] @ seen_slow + p[:, :, i] @ new_slow)
        share = 0.5 + 0.3 * psi
        outputs.append(share * read_fast + (1 - share) * read_slow)
        fast, slow = fast + k[:, :, i].mT @ new_fast, slow + k[:, :, i].mT @ new_slow
        strength = 0.05 + 0.1 * psi.mean(1, keepdim=True)
        fast, slow = fast + strength * psi * slow, slow + strength * (1 - psi) * fast
        fast, slow = _normalised(fast), _normalised(slow)
    return torch.stack(outputs, dim=2)


def _normalised(state: torch.Tensor) -> torch.Tensor:
    """[B, H, K, V] divided by its Frobenius norm."""
    return state / (torch.linalg.matrix_norm(state, keepdim=True) + 1e-8)


class PublishedEmbeddings(nn.Module):
    """Word + position + token type; the model applies the LayerNorm, as BERT does here."""

    def __init__(self, config: LAMPublishedConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """[B, T] twice -> their sum [B, T, D] in `dtype`"""
        words, types = self.word_embeddings(input_ids), self.token_type_embeddings(token_type_ids)
        return words.to(dtype) + types.to(dtype) + self.position_embeddings.weight[: input_ids.shape[1]].to(dtype)


class PublishedFeedForward(nn.Module):
    """x -> W2 gelu(gelu(W1 x)): the published code applies the activation twice."""

    def __init__(self, config: LAMPublishedConfig) -> None:
        super().__init__()
        self.in_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.out_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out_proj(F.gelu(F.gelu(self.in_proj(x))))


class PublishedLayer(nn.Module):
    """x = LayerNorm(x + memory(x)); x = LayerNorm(x + feed_forward(x))"""

    def __init__(self, config: LAMPublishedConfig) -> None:
        super().__init__()
        self.memory = PublishedMemory(config)
        self.memory_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = PublishedFeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.memory_norm(x + self.memory(x))
        return self.feed_forward_norm(x + self.feed_forward(x))


class LAMPublishedModel(PreTrainedModel):
    """A published LAM checkpoint. Mean-pool `last_hidden_state` over the real tokens and L2-normalise.

    Every text gets the result that the published code gives it alone and without padding, whatever batch it comes in.
    """

    config_class = LAMPublishedConfig
    config: LAMPublishedConfig
    base_model_prefix = "lam_published"
    _no_split_modules = ["PublishedLayer"]
    _supports_sdpa = True  # there is no attention to implement: any attn_implementation is accepted and changes nothing

    def __init__(self, config: LAMPublishedConfig) -> None:
        super().__init__(config)
        self.embeddings = PublishedEmbeddings(config)
        self.layers = nn.ModuleList(PublishedLayer(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PublishedFlux):
            init.copy_(module.W_bilinear, torch.eye(self.config.head_size).expand_as(module.W_bilinear))
            init.ones_(module.temp)
        elif isinstance(module, PublishedMemory):
            init.zeros_(module.fast_decay_bias)
            init.zeros_(module.slow_decay_bias)
        elif isinstance(module, PublishedNorm):
            init.ones_(module.weight)
            init.ones_(module.gate)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        self.embeddings.word_embeddings = value

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *args: Any,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As in transformers, but damaged or incomplete weights are an error, never a half-random model."""
        if pretrained_model_name_or_path is not None and os.path.isdir(pretrained_model_name_or_path):
            check_weights(os.path.join(pretrained_model_name_or_path, "model.safetensors"))
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        if info["unexpected_keys"] or info["missing_keys"]:
            raise OSError(
                f"{pretrained_model_name_or_path} does not hold the weights of this model: missing "
                f"{sorted(info['missing_keys'])}, unknown {sorted(info['unexpected_keys'])}."
            )
        return (model, info) if output_loading_info else model

    def new_state(self, batch_size: int) -> NoReturn:
        """Raises ValueError: there is no state that would continue a text."""
        raise ValueError(WHOLE_TEXTS)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        cache_params: Any = None,
        use_cache: bool | None = None,
        cu_seq_lens_q: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput | tuple[torch.Tensor, ...]:
        r"""
        Args:
            input_ids: [B, T] token ids.
            attention_mask: [B, T], 1 for real tokens and 0 for absent ones, which may be anywhere in a row.
            token_type_ids: [B, T], zeros if not given.
            cache_params (also as cache or past_key_values), use_cache, cu_seq_lens_q: refused; a published rule cannot
                stream or pack.
            output_hidden_states: also return the embeddings and the output of each layer.

        Returns:
            `BaseModelOutput` with last_hidden_state [B, T, D], zero where the mask is zero, or a tuple with
            `return_dict=False`.

        Raises:
            ValueError: for inputs that do not fit together, ids outside the tables (on the CPU only), a text longer
                than the position table, or a request to stream or pack.
        """
        carried = (cache_params, kwargs.get("cache"), kwargs.get("past_key_values"))
        if any(x is not None for x in carried) or use_cache or cu_seq_lens_q is not None:
            raise ValueError(WHOLE_TEXTS)
        if given := [name for name in ("inputs_embeds", "position_ids") if kwargs.get(name) is not None]:
            raise ValueError(
                f"{given[0]} is not read by the published model: give input_ids, each text from its start."
            )
        input_ids = check_ids("input_ids", input_ids, self.config.vocab_size)
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids.expand_as(input_ids)
        check_ids("token_type_ids", types, self.config.type_vocab_size)
        real = real_tokens(attention_mask, input_ids)
        states = self._read(input_ids, types, real)
        keep = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = BaseModelOutput(last_hidden_state=states[-1], hidden_states=tuple(states) if keep else None)
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def _read(self, input_ids: torch.Tensor, types: torch.Tensor, real: torch.Tensor) -> list[torch.Tensor]:
        """The embeddings and the output of each layer [B, T, D]; texts of the same length are read together."""
        lengths = real.sum(1)
        limit = self.config.max_position_embeddings
        if (longest := int(lengths.max())) > limit:
            raise ValueError(f"A text has {longest} tokens, the published model reads at most {limit}: truncate it.")
        weight = self.embeddings.LayerNorm.weight
        dtype = self._arithmetic()
        places = []
        groups = []
        for length in lengths.unique().tolist():
            texts = max(1, ENTRIES_AT_ONCE // (self.config.num_attention_heads * length * length))
            for rows in (lengths == length).nonzero().squeeze(1).split(texts):
                chosen = torch.zeros_like(real).index_copy(0, rows, real[rows])
                places.append(chosen.flatten().nonzero().squeeze(1))
                ids, kinds = input_ids[chosen].view(-1, length), types[chosen].view(-1, length)
                groups.append(self.embeddings(ids, kinds, dtype))
        where = torch.cat(places)
        empty = weight.new_zeros(real.numel(), len(weight))
        states = []
        for module in (self.embeddings.LayerNorm, *self.layers):
            # Without a change of type these are the module's own parameters.
            parameters = {name: p.to(dtype) for name, p in module.named_parameters()}
            groups = [functional_call(module, parameters, (x,)) for x in groups]
            flat = torch.cat([x.flatten(0, 1) for x in groups]).to(empty.dtype)
            states.append(empty.index_copy(0, where, flat).view(*real.shape, -1))
        return states

    def _arithmetic(self) -> torch.dtype:
        """The type that is computed in: float64 for float32 weights, unless that is not wanted or not there."""
        weight = self.embeddings.LayerNorm.weight
        device = weight.device.type
        wide = self.config.arithmetic == "float64" and weight.dtype == torch.float32
        return torch.float64 if wide and device != "mps" and not torch.is_autocast_enabled(device) else weight.dtype


LAMPublishedConfig.register_for_auto_class()
LAMPublishedModel.register_for_auto_class("AutoModel")

__all__ = ["LAMPublishedModel"]

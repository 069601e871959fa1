# Copyright 2026 The LAM authors. Licensed under the Apache License, Version 2.0.
"""The memory layer of LAM: what it projects, convolves, writes and reads (docs/ALGORITHM.md).

Read delta_rule_lam.py first for the memory rule and the alphabet of the shapes.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_lam import LAMConfig
from .delta_rule_lam import MemoryRule, dual_delta_rule, no_autocast
from .packing_lam import PackedTexts, PaddedTexts

try:  # an accelerator, where the package lam-transformers is installed
    from lam_transformers import kernels
except ImportError:
    kernels = None  # type: ignore[assignment]


class LAMConvolution(nn.Module):
    """A depthwise convolution over time, with weight [channels, 1, taps] and bias [channels].

    It is no `nn.Conv1d`, so that nobody who replaces or quantises those takes it for one.
    """

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, taps))
        self.bias = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias as `nn.Conv1d` does."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        bound = 1 / math.sqrt(self.weight.shape[-1])
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Convolve z [B, T + taps - 1, channels] -> [B, T, channels]."""
        # A 2-d convolution over a channels-last image of height 1: torch has a fast kernel for that, not for 1-d.
        image = z.transpose(1, 2).unsqueeze(2)  # [B, C, 1, T + taps - 1]
        with no_autocast(z.device.type):
            y = F.conv2d(image, self.weight.unsqueeze(2), self.bias, groups=image.shape[1])
            return y.squeeze(2).transpose(1, 2)

    def extra_repr(self) -> str:
        """What `print` shows of this module."""
        return f"{self.weight.shape[0]}, taps={self.weight.shape[-1]}"


class LAMFluxProjection(nn.modules.linear.NonDynamicallyQuantizableLinear):
    """A product of the flux, a few hundred numbers: the kind of `nn.Linear` that torch has for what is not quantised.

    torchao, `TorchAoConfig` and `quantize_dynamic` leave it alone. It is an `nn.Linear` because peft refuses a module
    of another kind whose name it is told ("in_proj", "out_proj").
    """


class ResonanceFlux(nn.Module):
    """psi = sigmoid(MLP([q, k, q' W_h k / temp_h])): how much of a token belongs to the slow memory.

    The MLP is shared by the heads of a layer; W_h is one matrix a head.
    """

    def __init__(self, config: LAMConfig) -> None:
        super().__init__()
        heads = config.num_attention_heads
        width = config.head_size
        self.bilinear = nn.Parameter(torch.empty(heads, width, width))
        self.temperature = nn.Parameter(torch.empty(heads))
        self.in_proj = LAMFluxProjection(2 * width + 1, config.flux_hidden_size)
        self.out_proj = LAMFluxProjection(config.flux_hidden_size, 1)

    def forward(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """The flux psi [..., H], in (0, 1), of q and k [..., H, K]."""
        resonance = (torch.einsum("...hk,hkj->...hj", q, self.bilinear.to(q.dtype)) * k).sum(-1) / self.temperature
        features = torch.cat([q, k, resonance.unsqueeze(-1).to(q.dtype)], dim=-1).to(self.in_proj.weight.dtype)
        return torch.sigmoid(self.out_proj(F.silu(self.in_proj(features))).squeeze(-1))


class LAMMemory(nn.Module):
    """The dual-timescale memory that replaces BERT's softmax attention (docs/ALGORITHM.md).

    Attributes:
        rule: None, or a callable that this layer runs in place of `dual_delta_rule`, with its keyword-only arguments
            and return value. It comes before any accelerator: a layer that has one runs in torch, whichever backend is
            asked for. It is not saved.
    """

    rule: MemoryRule | None = None

    def __init__(self, config: LAMConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.width = config.head_size
        self.chunk_size = config.chunk_size
        self.two_way_chunk = config.two_way_chunk
        size = config.hidden_size
        rank = config.output_gate_rank
        self.gate_size = size if rank is None else rank
        self.eps = config.memory_norm_eps
        angle = math.asin(2 * config.cross_timescale) / 2
        self.cos = math.cos(angle)
        self.sin = math.sin(angle)
        # One product: q, k, v | beta, slow, fast, gate_fast, gate_slow, one a head | output gate.
        self.in_proj = nn.Linear(size, 3 * size + 5 * self.heads + self.gate_size, bias=False)
        self.conv1d = LAMConvolution(3 * size, config.conv_kernel)
        # A decay near 1 has no digits to lose: never less than float32, whatever the default dtype.
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.decay_bias = nn.Parameter(torch.empty(2, self.heads, dtype=dtype))
        self.flux = ResonanceFlux(config)
        self.norm_weight = nn.Parameter(torch.empty(self.width))
        self.gate_proj = nn.Linear(rank, size, bias=False) if rank else None
        self.out_proj = nn.Linear(size, size)

    def forward(
        self,
        x: torch.Tensor,
        texts: PackedTexts | PaddedTexts | None = None,
        memory: torch.Tensor | None = None,
        conv: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """The layer's output y [B, T, D], and its memory and conv after the last token.

        Args:
            x: [B, T, D] hidden states.
            texts: the `PackedTexts` of a packed row, the `PaddedTexts` of rows with absent tokens, or None where every
                row of x is one text.
            memory: [B, H, 2, K, V] before the first token, in mode space; None for texts that begin here.
            conv: [B, kernel - 1, 3 D], the convolution's inputs before the first token, or None.
        """
        done = None if kernels is None else kernels.linear(self.in_proj, x)
        projected = self.in_proj(x) if done is None else done
        if not isinstance(texts, PaddedTexts):
            return self.after_projection(projected, texts, memory, conv)
        projected = texts.to_left(projected)
        y, memory, conv = self.after_projection_left(projected, texts.left, texts.lengths, memory, conv)
        return texts.to_places(y), memory, conv

    def after_projection(
        self,
        projected: torch.Tensor,
        texts: PackedTexts | None,
        memory: torch.Tensor | None = None,
        conv: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """All of the layer after its first product, which gave projected [B, T, 3 D + 5 H + gate]."""
        done = None
        if self.rule is None and kernels is not None:
            done = kernels.memory_layer(self, projected, texts, memory, conv)
        if done is not None:
            y, memory, conv = done
            return self.out_proj(y.to(projected.dtype)), memory, conv
        size = self.heads * self.width
        qkv, per_head, gate = projected.split([3 * size, 5 * self.heads, self.gate_size], dim=-1)
        qkv, conv = self._convolve(qkv.to(self.conv1d.weight.dtype), texts, conv)
        q, k, v = F.silu(qkv).unflatten(-1, (3, self.heads, self.width)).unbind(-3)  # [B, T, H, K] each
        q = _unit(q)
        k = _unit(k)
        per_head = per_head.to(q.dtype).unflatten(-1, (5, self.heads))
        beta, slow, fast, gate_fast, gate_slow = per_head.unbind(-2)  # [B, T, H] each
        log_slow = F.logsigmoid(slow + self.decay_bias[1])
        log_fast = log_slow + F.logsigmoid(fast + self.decay_bias[0])
        psi = self.flux(q, k).to(q.dtype)
        read_fast = torch.sigmoid(gate_fast) * (1 - psi)
        read_slow = torch.sigmoid(gate_slow) * psi
        o, memory = self._rule_for(projected)(
            q=q,
            k=k,
            v=v,
            beta=torch.sigmoid(beta),
            log_decay=torch.stack([log_fast, log_slow], dim=-1),
            write=self.to_modes(1 - psi, psi),
            read=self.to_modes(read_fast, read_slow),
            state=memory,
            cu_seqlens=None if texts is None else texts.cu_seqlens,
            chunk_size=self.chunk_size,
            two_way_chunk=self.two_way_chunk,
        )
        o = F.rms_norm(o.to(q.dtype), (self.width,), self.norm_weight.to(q.dtype), self.eps).flatten(-2)
        if self.gate_size:
            o = o * torch.sigmoid(gate if self.gate_proj is None else self.gate_proj(gate))
        return self.out_proj(o.to(projected.dtype)), memory, conv

    def after_projection_left(
        self,
        projected: torch.Tensor,
        real: torch.Tensor,
        lengths: torch.Tensor,
        memory: torch.Tensor | None = None,
        conv: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """`after_projection` where padding follows the real tokens of each row.

        The padding writes nothing, forgets nothing and is not kept; its outputs mean nothing.

        Args:
            projected: as in `after_projection`.
            real: [B, T, 1] bool, where the tokens are.
            lengths: [B], the number of real tokens of each row.
            memory: as in `forward`.
            conv: as in `forward`.
        """
        size = self.heads * self.width
        rest = projected.shape[-1] - 3 * size - 3 * self.heads
        qkv, beta, decays, gates = projected.split([3 * size, self.heads, 2 * self.heads, rest], dim=-1)
        never = torch.where(real, 0.0, 1e4).to(projected.dtype)  # sigmoid(-1e4) is 0, logsigmoid(1e4) is 0
        projected = torch.cat([qkv, beta - never, decays + never, gates], dim=-1)
        y, memory, _ = self.after_projection(projected, None, memory, conv)
        if conv is not None:
            inputs = torch.cat([conv, qkv.to(conv.dtype)], dim=1)
            last = lengths.unsqueeze(1) + torch.arange(conv.shape[1], device=conv.device)  # [B, kernel - 1]
            conv = inputs.gather(1, last.unsqueeze(-1).expand(-1, -1, inputs.shape[-1]))
        return y, memory, conv

    def to_modes(self, fast: torch.Tensor, slow: torch.Tensor) -> torch.Tensor:
        """R' (fast, slow): weights of the two memories, [...] each, in mode space, [..., 2]."""
        return torch.stack([self.cos * fast - self.sin * slow, self.sin * fast + self.cos * slow], dim=-1)

    def _rule_for(self, projected: torch.Tensor) -> MemoryRule:
        """This layer's own rule, else an accelerator's, else torch's."""
        if self.rule is not None:
            return self.rule
        accelerated = None if kernels is None else kernels.memory_rule(self, projected)
        return dual_delta_rule if accelerated is None else accelerated

    def _convolve(
        self, z: torch.Tensor, texts: PackedTexts | None, before: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Causal depthwise convolution of z [B, T, 3 D] within each text, and the last inputs, for what follows.

        before: [B, kernel - 1, 3 D], the inputs before each text; without it a packed row gives no last inputs.
        """
        taps = self.conv1d.weight.shape[-1]
        before = None if before is None else before.to(z.dtype)
        if texts is None:
            z = F.pad(z, (0, 0, taps - 1, 0)) if before is None else torch.cat([before, z], dim=1)
            return self.conv1d(z), z[:, z.shape[1] - taps + 1 :]
        if not texts.total or taps == 1:
            return self.conv1d(z) if texts.total else z, before
        # The row as if it were one text; then the first tokens of each text again, after the inputs before that text.
        y = self.conv1d(F.pad(z, (0, 0, taps - 1, 0)))
        first = z[0, texts.first]  # [N, kernel - 1, 3 D]
        first = F.pad(first, (0, 0, taps - 1, 0)) if before is None else torch.cat([before, first], dim=1)
        y[0, texts.first[texts.first_real]] = self.conv1d(first)[texts.first_real]
        return y, None if before is None else torch.cat([z[0], before.flatten(0, 1)])[texts.last]


def starting_decay_bias(config: LAMConfig) -> torch.Tensor:
    """Biases [2, H] (fast, slow) at which the decays start: time constants spread evenly in the logarithm."""
    low, high = (-1 / math.log(x) for x in config.slow_decay_init)
    steps = torch.linspace(math.log(low), math.log(high), config.num_attention_heads, dtype=torch.float64)
    slow = torch.exp(-1 / steps.exp())
    return torch.stack([torch.logit(config.fast_decay_init / slow), torch.logit(slow)]).float()


def _unit(x: torch.Tensor) -> torch.Tensor:
    """Return x / |x| over the last dimension, float32 or wider, epsilon inside the root."""
    x = x if x.dtype == torch.float64 else x.float()
    return x * torch.rsqrt(torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() + 1e-6)

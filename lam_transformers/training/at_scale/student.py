"""The student: a `LAMModel` with a forward pass for training on padded batches.

It computes what `LAMModel` computes (tests/training/test_at_scale.py compares the two). What surrounds the products
and the memory rule is three plain functions that torch.compile joins into few GPU kernels.
Alphabet: B texts, T tokens, H heads, K = V head size, D = H K.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ...model.modeling_lam import LAMModel
from .memory_rule import memory_rule


def prepare_memory(
    projected: torch.Tensor,
    per_head: torch.Tensor,
    mask: torch.Tensor,
    conv_weight: torch.Tensor,
    conv_bias: torch.Tensor,
    decay_bias: torch.Tensor,
    bilinear: torch.Tensor,
    temperature: torch.Tensor,
    flux_in_weight: torch.Tensor,
    flux_in_bias: torch.Tensor,
    flux_out_weight: torch.Tensor,
    flux_out_bias: torch.Tensor,
    cos: float,
    sin: float,
    heads: int,
    look_ahead: int,
) -> tuple[torch.Tensor, ...]:
    """Everything between the first product of a memory layer and its rule.

    Args:
        projected: [B, T, 3 D] before the convolution.
        per_head: [B, T, 5 H]: beta, slow, fast, gate_fast, gate_slow.
        mask: [B, T, 1] float, 0 for padding, which writes nothing and forgets nothing.
        conv_weight, conv_bias, decay_bias, bilinear, temperature, flux_in_weight, flux_in_bias, flux_out_weight,
            flux_out_bias: parameters of the layer, see model/memory_lam.py.
        cos, sin: of the rotation into mode space.
        heads: H.
        look_ahead: taps of the convolution that lie after the token.

    Returns:
        q, k [B, T, H, K], v [B, T, 2 H, V], log_decay and beta [B, T, 2 H], read [B, T, H, 2].
    """
    dtype = projected.dtype
    taps = conv_weight.shape[-1]
    time = projected.shape[1]
    padded = F.pad(projected * mask.to(dtype), (0, 0, taps - 1 - look_ahead, look_ahead))
    convolved = conv_bias + sum(conv_weight[:, 0, tap] * padded[:, tap : tap + time] for tap in range(taps))
    q, k, v = F.silu(convolved).unflatten(-1, (3, heads, -1)).unbind(-3)
    q = _unit(q.float())
    k = _unit(k.float())
    beta, slow, fast, gate_fast, gate_slow = per_head.float().unflatten(-1, (5, heads)).unbind(-2)
    log_slow = F.logsigmoid(slow + decay_bias[1])
    log_fast = log_slow + F.logsigmoid(fast + decay_bias[0])
    # Products in the type of the layer, bfloat16 under autocast.
    q_low = q.to(dtype)
    k_low = k.to(dtype)
    resonance = (torch.einsum("bthk,hkj->bthj", q_low, bilinear.to(dtype)).float() * k).sum(-1) / temperature
    width = q.shape[-1]
    hidden = (
        F.linear(q_low, flux_in_weight[:, :width].to(dtype)).float()
        + F.linear(k_low, flux_in_weight[:, width:-1].to(dtype)).float()
        + flux_in_bias
        + resonance.unsqueeze(-1) * flux_in_weight[:, -1]
    )
    psi = torch.sigmoid((F.silu(hidden) * flux_out_weight[0]).sum(-1) + flux_out_bias)
    write = _to_modes(1 - psi, psi, cos, sin)
    read = _to_modes(torch.sigmoid(gate_fast) * (1 - psi), torch.sigmoid(gate_slow) * psi, cos, sin)
    v = (write.unsqueeze(-1) * v.float().unsqueeze(3)).flatten(2, 3)
    log_decay = torch.stack([log_fast, log_slow], -1).flatten(2, 3) * mask
    beta = (torch.sigmoid(beta) * mask).repeat_interleave(2, 2)
    return q_low, k_low, v.to(dtype), log_decay, beta, read


def finish_memory(
    answers: torch.Tensor, read: torch.Tensor, norm_weight: torch.Tensor, gate: torch.Tensor, eps: float
) -> torch.Tensor:
    """Everything between the rule and the last product: answers [B, T, 2 H, V], read [B, T, H, 2] -> [B, T, D]."""
    heads = read.shape[2]
    o = (read.unsqueeze(-1) * answers.float().unflatten(2, (heads, 2))).sum(3)
    o = o * torch.rsqrt(o.square().mean(-1, keepdim=True) + eps) * norm_weight
    return o.flatten(2) * torch.sigmoid(gate.float())


def add_and_normalise(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> torch.Tensor:
    """LayerNorm(x + y), [B, T, D] float32."""
    return F.layer_norm(x.float() + y.float(), (x.shape[-1],), weight, bias, eps)


# These two are model/memory_lam.py's, written once more as plain functions without a guard for float64, so that
# torch.compile fuses them into `prepare_memory`. The test of the student compares the whole with the model.
def _unit(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)


def _to_modes(fast: torch.Tensor, slow: torch.Tensor, cos: float, sin: float) -> torch.Tensor:
    return torch.stack([cos * fast - sin * slow, sin * fast + cos * slow], -1)


class Student(nn.Module):
    """A `LAMModel` with a forward pass for batches that are padded at the right.

    Args:
        model: trained in place; its output gate has a rank (`output_gate_rank` is positive).
        two_way: which memories read two ways, see `memory_rule`.
        chunk: tokens of a chunk of two-way reading.
        look_ahead: taps of the convolution that lie after the token; LAM has none.
        additive: the rule without its delta, see `memory_rule`; LAM's has it.
        compiled: compile what surrounds the rule.

    Raises ValueError if the model has no low-rank gate.
    """

    def __init__(
        self,
        model: LAMModel,
        two_way: str = "none",
        chunk: int = 64,
        look_ahead: int = 0,
        additive: bool = False,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        if not model.config.output_gate_rank:
            raise ValueError(f"output_gate_rank must be positive, got {model.config.output_gate_rank}.")
        self.model = model
        self.two_way = two_way
        self.chunk = chunk
        self.look_ahead = look_ahead
        self.additive = additive
        functions: list[Any] = [prepare_memory, finish_memory, add_and_normalise]
        if compiled:
            functions = [torch.compile(function, dynamic=True) for function in functions]
        self._prepare, self._finish, self._normalise = functions

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, all_states: bool = False) -> Any:
        """ids [B, T] and mask [B, T] bool -> the last states [B, T, D], or the embeddings and every layer's states."""
        position = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        x = self.model.embeddings(ids, None, torch.zeros_like(ids), position)
        mask = mask.unsqueeze(-1).float()
        states = [x]
        for layer in self.model.layers:
            norm = layer.memory_norm
            x = self._normalise(x, self._memory(layer.memory, x, mask), norm.weight, norm.bias, norm.eps)
            norm = layer.feed_forward_norm
            x = self._normalise(x, layer.feed_forward(x), norm.weight, norm.bias, norm.eps)
            states.append(x)
        return states if all_states else x

    def _memory(self, memory: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[B, T, D] -> [B, T, D]. mask: [B, T, 1] float."""
        projected = memory.in_proj(x)
        sizes = [3 * memory.heads * memory.width, 5 * memory.heads, memory.gate_size]
        inputs, per_head, gate = projected.split(sizes, -1)
        flux = memory.flux
        with torch.autocast(x.device.type, enabled=False):
            q, k, v, log_decay, beta, read = self._prepare(
                inputs,
                per_head,
                mask,
                memory.conv1d.weight,
                memory.conv1d.bias,
                memory.decay_bias,
                flux.bilinear,
                flux.temperature,
                flux.in_proj.weight,
                flux.in_proj.bias,
                flux.out_proj.weight,
                flux.out_proj.bias,
                memory.cos,
                memory.sin,
                memory.heads,
                self.look_ahead,
            )
            answers = memory_rule(q, k, v, log_decay, beta, self.chunk, self.two_way, self.additive)
        gate = memory.gate_proj(gate)
        with torch.autocast(x.device.type, enabled=False):
            y = self._finish(answers, read, memory.norm_weight, gate, memory.eps)
        return memory.out_proj(y.to(projected.dtype))

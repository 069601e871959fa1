# Copyright 2026 The LAM authors. Licensed under the Apache License, Version 2.0.
"""The memory rule of LAM: a dual-timescale, gated delta rule.

One alphabet, used in every shape below and in modeling_lam.py:

    B batch   T time (tokens)   H heads   K key width   V value width   C chunk   N texts of a packed row   M chunks

Every face of the rule takes the same keyword-only arguments:

    q, k         [B, T, H, K]   already L2-normalised over K
    v            [B, T, H, V]
    beta         [B, T, H]      write strength, in [0, 1]
    log_decay    [B, T, H, 2]   logarithm of the decay of each mode, finite, <= 0; index 0 fast, 1 slow
    write, read  [B, T, H, 2]   weights of the two modes, already rotated into mode space
    state        [B, H, 2, K, V] or None (zeros): both memories before the first token, in mode space
    cu_seqlens   [N + 1] integers or None: with it B = 1 and the row holds N concatenated texts, text i at
                 cu_seqlens[i]:cu_seqlens[i + 1]; state is then [N, H, 2, K, V]
    chunk_size   tokens per chunk; None lets the rule choose
    two_way_chunk  None, or the number of tokens of a two-way chunk, counted from the start of the text in this call:
                 a token then reads mode 1 as it is after the last token of its chunk, and so sees what follows it
                 there. Mode 0 is read after the token itself. What is written does not change.

and returns ``o`` [B, T, H, V] in the dtype of v and the state after the last token, float32 (float64 for float64
input).

"Mode space": the fast and the slow memory, coupled across timescales by a rotation R, are two independent gated delta
rules Z = R' S (docs/ALGORITHM.md); what is called fast and slow here are these two.
"""

import contextlib
import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from .packing_lam import check_rule_arguments, named_tokens, rows_of_like_length, text_by_text, to_chunks

# Inverses are squared only inside blocks of this width: repeated squaring over more loses float32 when keys repeat.
_BLOCK = 8
# Tokens that are worked on at once: what lies between two products then stays near the processor.
_BLOCK_TOKENS = 1024


class MemoryRule(Protocol):
    """The contract of every face of the rule and of what takes its place in a layer (`LAMMemory.rule`)."""

    def __call__(
        self,
        *,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        beta: Tensor,
        log_decay: Tensor,
        write: Tensor,
        read: Tensor,
        state: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        chunk_size: int | None = None,
        two_way_chunk: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return o and the state after the last token; see the module."""


def recurrent_dual_delta_rule(
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    write: Tensor,
    read: Tensor,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    chunk_size: int | None = None,
    two_way_chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The reference: one token after the other, exactly as the equations are written.

    Per head and mode i, with Z_i [K, V] (Yang et al. 2024, "Gated Delta Networks", eq. 10, with write and read apart):

        Z_i <- decay_i Z_i
        Z_i <- Z_i + beta k (write_i v - k' Z_i)'
        o    = sum_i read_i q' Z_i

    With ``two_way_chunk`` the slow memory Z_1 of the last line is the one after the last token of the chunk.

    Args, shapes, return value: see the module. ``chunk_size`` is ignored. Raises ValueError for what does not fit.
    """
    tokens = (q, k, v, beta, log_decay, write, read)
    check_rule_arguments(tokens, state, cu_seqlens, chunk_size, two_way_chunk)
    if cu_seqlens is not None:
        return text_by_text(recurrent_dual_delta_rule, tokens, state, cu_seqlens, two_way_chunk)
    out_dtype = v.dtype
    with no_autocast(q.device.type):
        q, k, v, beta, log_decay, write, read = (x.to(_compute_dtype(v)) for x in tokens)
        decay = log_decay.exp()
        z = _first_state(state, q, v, q.shape[0])
        time = q.shape[1]
        causal = 2 if two_way_chunk is None else 1  # modes that are read after each token
        outputs: list[Tensor] = []
        for t in range(time):
            z = decay[:, t, :, :, None, None] * z  # [B, H, 2, K, V]
            recalled = torch.einsum("bhk,bhmkv->bhmv", k[:, t], z)
            change = write[:, t, :, :, None] * v[:, t, :, None] - recalled  # [B, H, 2, V]
            z = z + torch.einsum("bh,bhk,bhmv->bhmkv", beta[:, t], k[:, t], change)
            outputs.append(torch.einsum("bhm,bhk,bhmkv->bhv", read[:, t, :, :causal], q[:, t], z[:, :, :causal]))
            if two_way_chunk is not None and ((t + 1) % two_way_chunk == 0 or t + 1 == time):
                for s in range(t - t % two_way_chunk, t + 1):
                    slow = torch.einsum("bh,bhk,bhkv->bhv", read[:, s, :, 1], q[:, s], z[:, :, 1])
                    outputs[s] = outputs[s] + slow
        o = torch.stack(outputs, dim=1) if outputs else v
    return o.to(out_dtype), z


def chunk_dual_delta_rule(
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    write: Tensor,
    read: Tensor,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    chunk_size: int | None = None,
    two_way_chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The same rule, exact, as matrix products: parallel inside a chunk of C tokens, sequential between chunks.

    Per mode and chunk, with G the running sum of log_decay and D_ts = exp(G_t - G_s) for t >= s (Yang et al. 2024,
    section 3.3):

        A = strictly lower(beta_t (k_t . k_s) D_ts),    T = (I + A)^-1
        U = T (beta write v),    W = T (beta exp(G) k),    new = U - W Z
        o = read (exp(G) q Z + lower((q_t . k_s) D_ts) new)
        Z <- exp(G_C) Z + sum_s exp(G_C - G_s) k_s new_s'

    With ``two_way_chunk`` the slow memory's part of o is read q Z, with the Z after the two-way chunk.

    Args, shapes and return value: see the module. Raises ValueError as the reference does.
    """
    tokens = [q, k, v, beta, log_decay, write, read]
    check_rule_arguments(tokens, state, cu_seqlens, chunk_size, two_way_chunk)
    if q.shape[1] == 0:
        return v, _first_state(state, q, v, len(q) if cu_seqlens is None else len(cu_seqlens) - 1)
    with no_autocast(q.device.type):
        dtype = _compute_dtype(v)
        tokens = [x.to(dtype) for x in tokens]
        state = None if state is None else state.to(dtype)
        if cu_seqlens is None:
            o, z = _scan_batch(tokens, state, chunk_size, two_way_chunk)
        else:
            o, z = _scan_packed(tokens, state, cu_seqlens.cpu(), chunk_size, two_way_chunk)
        return o.to(v.dtype), z


def dual_delta_rule(
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    write: Tensor,
    read: Tensor,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    chunk_size: int | None = None,
    two_way_chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The rule by its fastest exact face: token by token for single steps, in chunks otherwise.

    Args, shapes, return value and errors: see the module and :func:`recurrent_dual_delta_rule`.
    """
    single_step = cu_seqlens is None and q.ndim == 4 and q.shape[1] == 1
    rule = recurrent_dual_delta_rule if single_step else chunk_dual_delta_rule
    tokens = named_tokens([q, k, v, beta, log_decay, write, read])
    return rule(**tokens, state=state, cu_seqlens=cu_seqlens, chunk_size=chunk_size, two_way_chunk=two_way_chunk)


def default_chunk_size(longest: int) -> int:
    """The chunk size for texts of at most `longest` tokens: as few chunks of at most 32 as hold them, of equal size."""
    chunks = -(-longest // 32)
    return max(-(-longest // max(chunks, 1)), 1)


def _chunk_size(asked: int | None, longest: int, two_way_chunk: int | None) -> int:
    """The chunk size for texts of at most `longest` tokens, so that chunks end where two-way chunks end."""
    size = asked or default_chunk_size(longest)
    if two_way_chunk is None or longest <= two_way_chunk:
        return size
    return math.gcd(two_way_chunk, asked) if asked else max(d for d in range(1, 33) if two_way_chunk % d == 0)


def _scan_batch(
    tokens: Sequence[Tensor], state: Tensor | None, chunk_size: int | None, two_way_chunk: int | None
) -> tuple[Tensor, Tensor]:
    """The rule on tokens [B, T, ...], a block of rows or of time after the other so that each stays in the cache."""
    batch, time = tokens[0].shape[:2]
    # A graph has one number of steps for any number of rows.
    rows = batch if torch.compiler.is_compiling() else max(_BLOCK_TOKENS // time, 1)
    starts = [0] if torch.compiler.is_compiling() else range(0, batch, rows)
    width = min(time, _BLOCK_TOKENS)
    if two_way_chunk is not None and width < time:
        width = max(width - width % two_way_chunk, two_way_chunk)
    outputs = []
    states = []
    for row in starts:
        z = None if state is None else state[row : row + rows]
        row_outputs = []
        for start in range(0, time, width):
            block = [x[row : row + rows, start : start + width] for x in tokens]
            size = _chunk_size(chunk_size, block[0].shape[1], two_way_chunk)
            o, z = _scan_chunks(block, z, size, two_way_chunk)
            row_outputs.append(o)
        assert z is not None
        outputs.append(_cat(row_outputs, 1))
        states.append(z)
    return _cat(outputs, 0), _cat(states, 0)


def _scan_packed(
    tokens: Sequence[Tensor],
    state: Tensor | None,
    cu_seqlens: Tensor,
    chunk_size: int | None,
    two_way_chunk: int | None,
) -> tuple[Tensor, Tensor]:
    """The rule on a packed row [1, T, ...]: texts of like length are laid side by side, the shorter ones padded.

    A padding step writes nothing, forgets nothing and is read by nobody. cu_seqlens is on the CPU.
    """
    lengths = cu_seqlens.diff()
    total = int(cu_seqlens[-1])
    device = tokens[0].device
    if len(lengths) * int(lengths.max()) == total:  # all of one length: nothing to pad or to sort
        rows = [x.unflatten(1, (len(lengths), -1)).squeeze(0) for x in tokens]
        o, z = _scan_batch(rows, state, chunk_size, two_way_chunk)
        return o.flatten(0, 1).unsqueeze(0), z
    padded = [F.pad(x[0], (0, 0) * (x.ndim - 2) + (0, 1)) for x in tokens]  # row `total` is a row of zeros
    place = torch.empty(total, dtype=torch.long)
    order: list[Tensor] = []
    outputs = []
    states = []
    written = 0
    for texts, source in rows_of_like_length(cu_seqlens, _BLOCK_TOKENS):
        real = source < total
        place[source[real]] = written + real.flatten().nonzero().squeeze(1)
        before = None if state is None else state[texts.to(device)]
        o, z = _scan_batch([x[source.to(device)] for x in padded], before, chunk_size, two_way_chunk)
        order.append(texts)
        outputs.append(o.flatten(0, 1))
        states.append(z)
        written += source.numel()
    back = torch.argsort(torch.cat(order)).to(device)
    return _cat(outputs, 0)[place.to(device)].unsqueeze(0), _cat(states, 0)[back]


def _cat(parts: Sequence[Tensor], dim: int) -> Tensor:
    """`torch.cat` that copies nothing where there is one part."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def _scan_chunks(
    tokens: Sequence[Tensor], state: Tensor | None, size: int, two_way_chunk: int | None
) -> tuple[Tensor, Tensor]:
    """[B, T, H, ...] in chunks of `size` tokens: all at once inside, one after the other between them.

    Inside, modes and heads come first, then texts and chunks (S chunks a text): [2, H, B, S, C, ...], so that the
    matrices of one step are a view.
    """
    q, k, v, beta, log_decay, write, read = tokens
    batch, time, heads = beta.shape
    steps = -(-time // size)
    q, k, v, beta = (to_chunks(x, steps, size).contiguous() for x in (q, k, v, beta))
    log_decay, write, read = (
        to_chunks(x, steps, size).movedim(-1, 0).contiguous() for x in (log_decay, write, read)
    )  # [2, H, B, S, C]
    decay = decay_matrix(log_decay)  # [2, H, B, S, C, C]
    beta_k = beta.unsqueeze(-1) * k
    transposed = k.transpose(-1, -2)
    inverse = _UnitLowerInverse.apply((beta_k @ transposed) * decay)  # T
    # The modes that are read after each token: both, or the fast one alone.
    causal = 2 if two_way_chunk is None else 1
    score = (q @ transposed) * decay[:causal]
    value = (beta * write).unsqueeze(-1) * v  # [2, H, B, S, C, V]
    to_end = (decay[..., -1, :].unsqueeze(-1) * k).transpose(-1, -2)  # exp(G_C - G_s) k_s [2, H, B, S, K, C]
    inverses, scores, values, ends = (x.flatten(0, 2).unbind(1) for x in (inverse, score, value, to_end))
    rows = causal * heads * batch
    z = None if state is None else state.permute(2, 1, 0, 3, 4).flatten(0, 2)  # [2 H B, K, V]
    ready = 1 if z is None else 0  # chunks that no state comes into
    if steps > ready:
        from_start = log_decay[..., ready:, :].cumsum(-1).exp().unsqueeze(-1)  # exp(G) [2, H, B, S, C, 1]
        key = from_start * beta_k[..., ready:, :, :]  # [2, H, B, S, C, K]
        query = from_start[:causal] * q[..., ready:, :, :]
        keys, queries, forget = (x.flatten(0, 2).unbind(1) for x in (key, query, from_start[..., -1:, :]))
    # Without gradients a product is added in place.
    add_product = torch.baddbmm if torch.is_grad_enabled() else torch.Tensor.baddbmm_
    outputs = []
    slow_outputs = []
    # Chunks of the rule in a two-way chunk; a text that is shorter than one is one.
    group = steps if two_way_chunk is None or time <= two_way_chunk else two_way_chunk // size
    for j in range(steps):
        if z is None:
            new = torch.bmm(inverses[j], values[j])
            o = torch.bmm(scores[j], new[:rows])
            z = torch.bmm(ends[j], new)
        else:
            new = torch.bmm(inverses[j], torch.baddbmm(values[j], keys[j - ready], z, alpha=-1))
            o = add_product(torch.bmm(queries[j - ready], z[:rows]), scores[j], new[:rows])
            z = add_product(forget[j - ready] * z, ends[j], new)
        outputs.append(o)
        if two_way_chunk is not None and ((j + 1) % group == 0 or j + 1 == steps):
            asking = q[:, :, j - j % group : j + 1].flatten(2, 3).flatten(0, 1)  # [H B, tokens of the two-way chunk, K]
            slow_outputs.append(torch.bmm(asking, z[rows:]))
    o = torch.stack(outputs, 1) if steps > 1 else outputs[0]
    if two_way_chunk is not None:
        o = torch.cat([o.view(rows, steps * size, -1), _cat(slow_outputs, 1)])
    fast, slow = o.view(2, heads, batch, steps, size, -1).unbind(0)
    read_fast, read_slow = read.unsqueeze(-1).unbind(0)
    o = torch.addcmul(read_fast * fast, read_slow, slow)  # [H, B, S, C, V]
    o = o.flatten(2, 3)[:, :, :time].permute(1, 2, 0, 3)
    assert z is not None
    return o, z.unflatten(0, (2, heads, batch)).permute(2, 1, 0, 3, 4)


def decay_matrix(log_decay: Tensor) -> Tensor:
    """D_ts = exp(sum of log_decay over s < r <= t), zero for t < s: [..., C] -> [..., C, C], with gradients."""
    return _DecayMatrix.apply(log_decay)


class _DecayMatrix(torch.autograd.Function):
    # The running sum is float64 where the device has it, and is subtracted in two halves: a difference of two large
    # float32 sums would lose the digits of a small one after a strong forgetting. Backward sums D * grad over
    # t >= r > s for each r instead of keeping five more matrices alive.

    generate_vmap_rule = True

    @staticmethod
    def forward(log_decay: Tensor) -> Tensor:
        total = log_decay.to(torch.float32 if log_decay.device.type == "mps" else torch.float64).cumsum(-1)
        high = total.to(log_decay.dtype)
        low = (total - high).to(log_decay.dtype)
        exponent = (high.unsqueeze(-1) - high.unsqueeze(-2)).add_(low.unsqueeze(-1)).sub_(low.unsqueeze(-2))
        return exponent.clamp_max_(0).exp_().tril_()  # exp is ten times slower for -inf

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (decay,) = ctx.saved_tensors
        size = decay.shape[-1]
        before = torch.ones(size, size, dtype=grad.dtype, device=grad.device).triu_(1)
        return ((grad * decay) @ before).tril_().sum(-2)


class _UnitLowerInverse(torch.autograd.Function):
    """(I + strictly lower A)^-1 for A [..., C, C] without entries above the diagonal.

    The derivative of T is -T dA T, so backward is two products.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor) -> Tensor:
        # LAPACK's substitution is faster on a few threads, but takes one matrix after the other and cannot be exported.
        if not torch.compiler.is_compiling() and a.device.type == "cpu" and torch.get_num_threads() < 4:
            identity = torch.eye(a.shape[-1], dtype=a.dtype).expand_as(a)
            return torch.linalg.solve_triangular(a, identity, upper=False, unitriangular=True)
        return _unit_lower_inverse(a)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors
        transposed = inverse.transpose(-1, -2)
        return (transposed @ grad @ transposed).tril_(-1).neg_()


def _unit_lower_inverse(a: Tensor) -> Tensor:
    """Squaring inside diagonal blocks, (I - A)(I + A^2)(I + A^4), then T21 = -T22 A21 T11 joins neighbours."""
    size = a.shape[-1]
    half = 1 << max(size - 1, 1).bit_length() - 1
    if size > _BLOCK and size != 2 * half:  # no power of two: the largest one below, and the rest
        top = _unit_lower_inverse(a[..., :half, :half])
        bottom = _unit_lower_inverse(a[..., half:, half:])
        return _join_inverses(top, bottom, a[..., half:, :half])
    width = min(_BLOCK, size)
    power = _diagonal_blocks(a, width).tril(-1)
    inverse = torch.eye(width, dtype=a.dtype, device=a.device) - power
    reach = 2
    while reach < width:
        power = power @ power
        inverse = inverse + inverse @ power
        reach *= 2
    while width < size:
        pairs = inverse.unflatten(-3, (-1, 2))
        below = _diagonal_blocks(a, 2 * width)[..., width:, :width]
        inverse = _join_inverses(pairs[..., 0, :, :], pairs[..., 1, :, :], below)
        width *= 2
    return inverse.squeeze(-3)


def _join_inverses(top: Tensor, bottom: Tensor, below: Tensor) -> Tensor:
    """The inverse of [[A11, 0], [A21, A22]] from those of A11 and A22."""
    first = top.shape[-1]
    second = bottom.shape[-1]
    joined = top.new_zeros(*top.shape[:-2], first + second, first + second)
    joined[..., :first, :first] = top
    joined[..., first:, first:] = bottom
    joined[..., first:, :first] = -(bottom @ below @ top)
    return joined


def _diagonal_blocks(a: Tensor, width: int) -> Tensor:
    """The square blocks on the diagonal of a [..., C, C]: [..., C / width, width, width]."""
    blocks = a.unflatten(-1, (-1, width)).unflatten(-3, (-1, width))
    return blocks.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)


def no_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast switched off; the device "meta", which computes nothing, has none."""
    return contextlib.nullcontext() if device_type == "meta" else torch.autocast(device_type, enabled=False)


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _first_state(state: Tensor | None, q: Tensor, v: Tensor, batch: int) -> Tensor:
    if state is not None:
        return state.to(_compute_dtype(v))
    return torch.zeros(batch, q.shape[2], 2, q.shape[3], v.shape[3], dtype=_compute_dtype(v), device=q.device)

"""The memory rule by flash-linear-attention's kernels (fla), on CUDA devices, for training and inference.

In mode space the coupled pair of memories is two independent gated delta rules (docs/ALGORITHM.md), so all of the rule
maps exactly: 2 H value heads that share H heads of q and k, value head 2 h + i for mode i of head h. What is computed
before and after (convolution, flux, decays, output norm and gate) stays torch's.
"""

import functools
import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any

import torch
from packaging.version import Version

OLDEST = Version("0.6.0")  # whose interface is used: value heads that share q and k, [B, T, H, ...], state [N, H, K, V]


@functools.cache
def why_missing() -> str | None:
    """Why this installation cannot run fla at all, or None if it can."""
    try:
        installed = Version(importlib.metadata.version("fla-core"))
    except importlib.metadata.PackageNotFoundError:
        return "flash-linear-attention is not installed (the extra `fla`)"
    if installed < OLDEST:
        return f"fla-core {installed} is older than {OLDEST}"
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    try:
        load()
    except Exception as error:  # triton raises all kinds where it does not fit the driver
        return f"flash-linear-attention cannot be imported: {error}"
    return None


@functools.cache
def load() -> Callable[..., Any]:
    """fla's `chunk_gated_delta_rule`. Raises ImportError where fla is missing."""
    return importlib.import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule


def why_not(layer: Any, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why fla cannot run this `LAMMemory` on numbers of this kind, or None if it can."""
    if device.type != "cuda":
        return f"flash-linear-attention runs on CUDA, the model is on {device}"
    if dtype == torch.float64:
        return "flash-linear-attention computes in float32 or less, the model in torch.float64"
    if layer.width > 256:
        return f"flash-linear-attention knows heads of at most 256, the model has {layer.width}"
    return why_missing()


def dual_delta_rule(
    *,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    beta: torch.Tensor,
    log_decay: torch.Tensor,
    write: torch.Tensor,
    read: torch.Tensor,
    state: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    chunk_size: int | None = None,
    two_way_chunk: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `delta_rule_lam.dual_delta_rule`; `chunk_size` is accepted and ignored.

    q, k and v enter the kernels in autocast's dtype where it is on, and in v's otherwise; sums, decays and the state
    are float32. Products of float32 numbers follow triton's setting, TF32 where the device has it.
    """
    tokens: dict[str, Any] = {
        "q": q,
        "k": k,
        "v": v,
        "beta": beta,
        "log_decay": log_decay,
        "write": write,
        "read": read,
    }
    if two_way_chunk is not None and q.shape[1]:
        return _two_way(tokens, state, cu_seqlens, two_way_chunk)
    batch, time, heads, width = q.shape
    texts = batch if cu_seqlens is None else len(cu_seqlens) - 1
    if time == 0:
        empty = v.new_zeros(texts, heads, 2, width, v.shape[-1], dtype=torch.float32)
        return v, empty if state is None else state.float()
    device = q.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else v.dtype
    with torch.autocast(device, enabled=False):
        bounds = cu_seqlens
        initial = None if state is None else state.float().flatten(1, 2)
        real = None
        if cu_seqlens is not None and bool((cu_seqlens.diff() == 0).any()):
            # fla numbers the texts by their chunks: an empty one has none.
            real = cu_seqlens.diff().nonzero().squeeze(1)
            bounds = cu_seqlens.unique_consecutive()
            initial = None if initial is None else initial[real]
        o, last = load()(
            q.to(dtype),
            k.to(dtype),
            (write.unsqueeze(-1) * v.unsqueeze(3)).flatten(2, 3).to(dtype),  # [B, T, 2 H, V]
            log_decay.float().flatten(2, 3),
            beta.float().repeat_interleave(2, dim=2),
            scale=1.0,
            initial_state=None if initial is None else initial.contiguous(),
            output_final_state=True,
            cu_seqlens=None if bounds is None else bounds.long(),
        )
        if real is not None:
            whole = last.new_zeros(texts, *last.shape[1:]) if state is None else state.float().flatten(1, 2)
            last = whole.index_copy(0, real, last)
        o = (read.unsqueeze(-1) * o.unflatten(2, (heads, 2))).sum(3)
    return o.to(v.dtype), last.unflatten(1, (heads, 2))


def _two_way(
    tokens: dict[str, Any], state: torch.Tensor | None, cu_seqlens: torch.Tensor | None, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rule with two-way reading: the fast mode as it is, the slow one over each chunk's tokens twice.

    The first time they write, the second time they read: a token with beta = 0 and log_decay = 0 changes nothing.
    """
    fast, slow = (tokens["read"] * tokens["read"].new_tensor(kept) for kept in ((1.0, 0.0), (0.0, 1.0)))
    o, last = dual_delta_rule(**(tokens | {"read": fast}), state=state, cu_seqlens=cu_seqlens)
    time = tokens["q"].shape[1]
    device = tokens["q"].device
    bounds = torch.tensor([0, time], device=device) if cu_seqlens is None else cu_seqlens.to(device).long()
    source, reads = twice(bounds, chunk)
    doubled = {name: x[:, source] for name, x in (tokens | {"read": slow}).items()}
    for name in ("beta", "log_decay"):
        x = doubled[name]
        doubled[name] = x.masked_fill(reads.view(1, -1, *[1] * (x.ndim - 2)), 0.0)
    read, _ = dual_delta_rule(**doubled, state=state, cu_seqlens=None if cu_seqlens is None else 2 * bounds)
    return o + read[:, reads], last


def twice(bounds: torch.Tensor, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of texts (bounds [N + 1]), each chunk's twice: places [2 T], and which of them are the second time."""
    lengths = bounds.diff()
    start = torch.repeat_interleave(bounds[:-1], lengths)
    end = torch.repeat_interleave(bounds[1:], lengths)
    token = torch.arange(len(start), device=bounds.device)
    first = token - (token - start) % chunk  # of the token's chunk
    write = token + first  # all tokens of earlier chunks come twice before it
    read = write + (end - first).clamp(max=chunk)
    source = torch.empty(2 * len(token), dtype=torch.long, device=bounds.device)
    source[write] = token
    source[read] = token
    reads = torch.zeros(len(source), dtype=torch.bool, device=bounds.device)
    reads[read] = True
    return source, reads

"""What the memories of a layer answer, with every kind of reading that was compared; one rule on CPU and GPU."""

import torch

from ...evaluation.research.probe import additive_rule
from ...model.delta_rule_lam import chunk_dual_delta_rule

TWO_WAY = ("none", "slow", "all", "half")


def memory_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    chunk: int,
    two_way: str,
    additive: bool = False,
) -> torch.Tensor:
    """Answers [B, T, 2 H, V] of the fast and slow memories, in mode space, before their read weights.

    Args:
        q, k: [B, T, H, K].
        v: [B, T, 2 H, V], write weights included; fast and slow memory of a head next to each other.
        log_decay, beta: [B, T, 2 H].
        chunk: tokens of a chunk of two-way reading.
        two_way: "none"; "slow": the slow memory of every head; "all": both memories of every head; "half": both
            memories of every second head.
        additive: write without taking back first what the memory answers to the key; not with "half".

    Raises ValueError for another word, or "half" with `additive`.
    """
    if two_way not in TWO_WAY:
        raise ValueError(f"two_way must be one of {', '.join(TWO_WAY)}, got {two_way!r}.")
    if two_way == "half":
        if additive:
            raise ValueError("The additive rule has no reading of every second head.")
        return _every_second_head(q, k, v, log_decay, beta, chunk)
    if q.device.type == "cuda":
        from . import triton_rule

        return triton_rule.memory_rule(q, k, v, log_decay, beta, chunk, two_way, additive)
    if two_way == "none":
        return one_way_rule(q, k, v, log_decay, beta, additive)
    if two_way == "all":
        return two_way_rule(q, k, v, log_decay, beta, chunk, additive)
    fast = one_way_rule(q, k, v[:, :, ::2], log_decay[:, :, ::2], beta[:, :, ::2], additive)
    slow = two_way_rule(q, k, v[:, :, 1::2], log_decay[:, :, 1::2], beta[:, :, 1::2], chunk, additive)
    return torch.stack([fast, slow], 3).flatten(2, 3)


def one_way_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    additive: bool = False,
) -> torch.Tensor:
    """As `memory_rule` with "none", for one or two memories a head."""
    return _package_rule(q, k, v, log_decay, beta, mode=0, additive=additive)


def two_way_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    chunk: int,
    additive: bool = False,
) -> torch.Tensor:
    """As `one_way_rule`, every token reading after the last token of its chunk."""
    return _package_rule(q, k, v, log_decay, beta, mode=1, additive=additive, two_way_chunk=chunk)


def _package_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    mode: int,
    additive: bool,
    two_way_chunk: int | None = None,
) -> torch.Tensor:
    """Each memory as a head of its own of the package's rule, in one mode (0 fast, 1 slow) with the other empty."""
    memories = v.shape[2] // q.shape[2]
    q = q.repeat_interleave(memories, 2)
    k = k.repeat_interleave(memories, 2)
    weights = torch.zeros_like(log_decay).unsqueeze(-1).repeat(1, 1, 1, 2)
    weights[..., mode] = 1
    rule = additive_rule if additive else chunk_dual_delta_rule
    answer, _ = rule(
        q=q.float(),
        k=k.float(),
        v=v.float(),
        beta=beta,
        log_decay=torch.stack([log_decay, log_decay], -1),
        write=weights,
        read=weights,
        two_way_chunk=two_way_chunk,
    )
    return answer


def _every_second_head(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_decay: torch.Tensor, beta: torch.Tensor, chunk: int
) -> torch.Tensor:
    heads = q.shape[2]
    v, log_decay, beta = (x.unflatten(2, (heads, 2)) for x in (v, log_decay, beta))

    def part(first: int, two_way: str) -> torch.Tensor:
        """Every second head from `first` on: [B, T, H / 2, 2, V]."""
        ours, decays, strengths = (x[:, :, first::2].flatten(2, 3) for x in (v, log_decay, beta))
        answer = memory_rule(q[:, :, first::2], k[:, :, first::2], ours, decays, strengths, chunk, two_way)
        return answer.unflatten(2, (-1, 2))

    return torch.stack([part(0, "none"), part(1, "all")], 3).flatten(2, 4)

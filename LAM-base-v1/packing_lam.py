# Copyright 2026 The LAM authors. Licensed under the Apache License, Version 2.0.
"""How texts of different lengths lie in rows, packed or padded, and what the memory rule accepts of them."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_TOKENS = ("q", "k", "v", "beta", "log_decay", "write", "read")  # arguments of the memory rule of one entry a token
SEGMENT = 2048  # tokens of a long text that are handed on at once


def segment_size(device: torch.device, two_way_chunk: int | None = None, most: int = SEGMENT) -> int:
    """Tokens of each text that go through the layers at once; a CPU gains nothing from more, and memory follows.

    At most `most`, but where the model reads two ways a whole number of its chunks, one at least.
    """
    size = min(1024 if device.type == "cpu" else SEGMENT, most)
    return size if two_way_chunk is None else max(size - size % two_way_chunk, two_way_chunk)


def named_tokens(tokens: Sequence[Tensor]) -> dict[str, Tensor]:
    """The rule's arguments of one entry a token (q, k, v, beta, log_decay, write, read) by their names."""
    return dict(zip(_TOKENS, tokens, strict=True))


def check_rule_arguments(
    tokens: Sequence[Tensor],
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    chunk_size: int | None,
    two_way_chunk: int | None,
) -> None:
    """Raise ValueError, naming the argument and what it should be, unless the arguments fit the contract.

    tokens: q, k, v, beta, log_decay, write and read.
    """
    q, _, v, *_ = tokens
    if q.ndim != 4 or v.ndim != 4:
        raise ValueError(f"q and v must be [B, T, H, K] and [B, T, H, V], got {list(q.shape)} and {list(v.shape)}.")
    batch, time, heads, width = q.shape
    last = {"q": [width], "k": [width], "v": [v.shape[-1]], "beta": [], "log_decay": [2], "write": [2], "read": [2]}
    for name, x in named_tokens(tokens).items():
        shape = [batch, time, heads, *last[name]]
        if list(x.shape) != shape:
            raise ValueError(f"{name} must be {shape} to go with q {list(q.shape)}, got {list(x.shape)}.")
        if not x.is_floating_point():
            raise ValueError(f"{name} must be a floating-point tensor, got {x.dtype}.")
    texts = batch
    if cu_seqlens is not None:
        texts = len(cu_seqlens) - 1
        check_cu_seqlens("cu_seqlens", cu_seqlens, batch, time)
    expected = [texts, heads, 2, width, v.shape[-1]]
    if state is not None and list(state.shape) != expected:
        raise ValueError(f"state must be {expected} (texts, heads, 2, K, V), got {list(state.shape)}.")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}.")
    if two_way_chunk is not None and two_way_chunk < 1:
        raise ValueError(f"two_way_chunk must be None or at least 1, got {two_way_chunk}.")


def check_cu_seqlens(name: str, cu_seqlens: Tensor, batch: int, time: int) -> None:
    """Raise ValueError unless `cu_seqlens`, which the caller calls `name`, bounds the texts of one row of T tokens."""
    if batch != 1:
        raise ValueError(f"With {name} the texts lie in one row (B = 1), got B = {batch}.")
    if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2 or cu_seqlens.is_floating_point():
        raise ValueError(f"{name} must be integers [N + 1], got {cu_seqlens.dtype} {list(cu_seqlens.shape)}.")
    if int(cu_seqlens[0]) != 0 or int(cu_seqlens[-1]) != time or bool((cu_seqlens.diff() < 0).any()):
        raise ValueError(f"{name} must rise from 0 to T = {time}, got {cu_seqlens.tolist()[:8]}.")


def rows_of_like_length(cu_seqlens: Tensor, most: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The texts of a packed row in groups of like length, the longest first, about `most` tokens a group.

    Yields the numbers of the texts of a group [n] and where their tokens are in the row [n, longest]; a shorter text is
    filled up with the place after the row's last token. cu_seqlens [N + 1] and what is yielded are on the CPU.
    """
    lengths = cu_seqlens.diff()
    order = torch.argsort(lengths, descending=True, stable=True)
    first = 0
    while first < len(order):
        longest = max(int(lengths[order[first]]), 1)
        texts = order[first : first + max(most // longest, 1)]
        offset = torch.arange(longest)
        real = offset < lengths[texts].unsqueeze(1)
        yield texts, torch.where(real, cu_seqlens[texts].unsqueeze(1) + offset, int(cu_seqlens[-1]))
        first += len(texts)


def text_by_text(
    rule: Callable[..., tuple[Tensor, Tensor]],
    tokens: Sequence[Tensor],
    state: Tensor | None,
    cu_seqlens: Tensor,
    two_way_chunk: int | None,
) -> tuple[Tensor, Tensor]:
    """A memory rule on each text of a packed row by itself: o [1, T, H, V] and the states [N, H, 2, K, V]."""
    outputs = []
    states = []
    for i, (start, end) in enumerate(itertools.pairwise(cu_seqlens.tolist())):
        text = named_tokens([x[:, start:end] for x in tokens])
        before = None if state is None else state[i : i + 1]
        o, last = rule(**text, state=before, two_way_chunk=two_way_chunk)
        outputs.append(o)
        states.append(last)
    return torch.cat(outputs, dim=1), torch.cat(states)


def to_chunks(x: Tensor, steps: int, size: int) -> Tensor:
    """Cut x [B, T, H, ...] into S = `steps` chunks of C = `size` tokens: [H, B, S, C, ...]; zeros fill the last one."""
    if x.shape[1] < steps * size:
        x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, steps * size - x.shape[1]))
    return x.unflatten(1, (steps, size)).movedim(3, 0)


class PackedTexts:
    """Where the texts of a packed row begin and end, and how the convolution finds the inputs before each.

    Args:
        lengths: [N] integers, the number of tokens of each text, zero allowed.
        kernel: width of the convolution.

    Attributes:
        cu_seqlens: [N + 1], the bounds of the texts.
        total: the number of tokens of the row.
        index: [total], the text of each token.
        first: [N, kernel - 1], places of the first tokens of each text.
        first_real: [N, kernel - 1] bool, which of these are the text's own and no later text's.
        last: [N, kernel - 1], places of the last inputs of each text, in the row followed by those before each text.
    """

    def __init__(self, lengths: Tensor, kernel: int) -> None:
        cu_seqlens = F.pad(lengths.cumsum(0), (1, 0))
        count = len(lengths)
        total = int(cu_seqlens[-1])
        before = kernel - 1
        device = lengths.device
        self.lengths = lengths
        self.kernel = kernel
        self.cu_seqlens = cu_seqlens
        self.total = total
        self.index = torch.repeat_interleave(torch.arange(count, device=device), lengths, output_size=total)
        step = torch.arange(before, device=device)
        self.first = (cu_seqlens[:-1, None] + step).clamp(max=max(total - 1, 0))  # [N, before]
        self.first_real = step < lengths[:, None]
        # A text of fewer tokens than the convolution reaches back takes the rest from the inputs before it.
        last = lengths[:, None] + step - before
        after_row = total + before * torch.arange(1, count + 1, device=device)[:, None]
        self.last = torch.where(last < 0, after_row, cu_seqlens[:-1, None]) + last

    def segment(self, start: int, size: int) -> tuple[Tensor, "PackedTexts"]:
        """The tokens start to start + size of every text: their places in this row, and the row they make."""
        position = torch.arange(self.total, device=self.lengths.device) - self.cu_seqlens[:-1][self.index]
        places = ((position >= start) & (position < start + size)).nonzero().squeeze(1)
        return places, PackedTexts((self.lengths - start).clamp(0, size), self.kernel)


class PaddedTexts:
    """Rows with absent tokens that keep their shape: for torch.export and the like, where no length is known.

    The memory takes the real tokens moved to the left, in their order, and gives its answer back to their places.

    Args:
        real: [B, T] bool, where the tokens are.

    Attributes:
        lengths: [B], the number of real tokens of each row.
        real: [B, T, 1] bool.
        left: [B, T, 1] bool, where the tokens are after the move.
        rank: [B, T], the place of each real token after the move.
        source: [B, T], the place of each moved token before the move.
    """

    def __init__(self, real: Tensor) -> None:
        batch, time = real.shape
        index = torch.arange(time, device=real.device).expand(batch, time)
        rank = real.long().cumsum(1) - 1
        source = index.new_zeros(batch, time + 1).scatter(1, torch.where(real, rank, time), index)
        self.lengths = real.sum(1)
        self.real = real.unsqueeze(-1)
        self.left = (index < self.lengths.unsqueeze(1)).unsqueeze(-1)
        self.rank = rank.clamp(min=0)
        self.source = source[:, :time]

    def to_left(self, x: Tensor) -> Tensor:
        """Move x [B, T, D] so that the real tokens come first; what follows them means nothing."""
        return x.gather(1, self.source.unsqueeze(-1).expand_as(x))

    def to_places(self, x: Tensor) -> Tensor:
        """Move x [B, T, D] back from the left, with zeros at the absent tokens."""
        return self.clear(x.gather(1, self.rank.unsqueeze(-1).expand_as(x)))

    def clear(self, x: Tensor) -> Tensor:
        """Return x [B, T, D] with zeros at the absent tokens."""
        return torch.where(self.real, x, 0.0)


def unpack(x: Tensor, places: Tensor, batch: int, time: int) -> Tensor:
    """Hidden states [1, real tokens, D] -> [B, T, D], zero at the absent tokens.

    places: [real tokens], where each of them is in the flattened batch.
    """
    return x.new_zeros(batch * time, x.shape[-1]).index_copy(0, places, x[0]).view(batch, time, -1)


def positions(
    texts: PackedTexts | PaddedTexts | None, size: tuple[int, int], seen: Tensor | None, device: torch.device
) -> Tensor:
    """Absolute index of each token in its text, [B, T].

    Args:
        texts: how the texts lie in their rows; None where each row is one text.
        size: (B, T).
        seen: [B], or [N] for a packed row: the number of tokens of each text that were read before, or None.
        device: where the index goes.
    """
    if isinstance(texts, PaddedTexts):
        return texts.rank if seen is None else texts.rank + seen.unsqueeze(1)
    index = torch.arange(size[1], device=device).expand(size)
    if texts is not None:
        start = texts.cu_seqlens[:-1] if seen is None else texts.cu_seqlens[:-1] - seen
        return index - start[texts.index]
    return index if seen is None else index + seen.unsqueeze(1)

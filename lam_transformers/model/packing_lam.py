# Copyright 2026 The LAM authors. Licensed under the Apache License, Version 2.0.
"""Texts of different lengths: packed into one row without padding, or in rows with it."""

import torch
from torch.nn import functional as F

SEGMENT = 2048  # tokens of a long text that are handed on at once


def segment_size(device: torch.device, two_way_chunk: int | None = None, most: int = SEGMENT) -> int:
    """Tokens of each text that go through the layers at once; a CPU gains nothing from more, and memory follows.

    At most `most`, but where the model reads two ways a whole number of its chunks, one at least.
    """
    size = min(1024 if device.type == "cpu" else SEGMENT, most)
    return size if two_way_chunk is None else max(size - size % two_way_chunk, two_way_chunk)


class PackedTexts:
    """Where the texts of a packed row begin and end, and how the convolution finds the inputs before each."""

    def __init__(self, lengths: torch.Tensor, kernel: int):
        """lengths: [N] integers, tokens of each text, zero allowed; kernel: width of the convolution."""
        cu_seqlens = F.pad(lengths.cumsum(0), (1, 0))
        self.lengths, self.kernel, self.cu_seqlens, self.total = lengths, kernel, cu_seqlens, int(cu_seqlens[-1])
        count, before, device, total = len(lengths), kernel - 1, lengths.device, self.total
        self.index = torch.repeat_interleave(torch.arange(count, device=device), lengths, output_size=total)
        # The first `before` tokens of each text, and which of them are its own and no later text's.
        step = torch.arange(before, device=device)
        self.first = (cu_seqlens[:-1, None] + step).clamp(max=max(total - 1, 0))  # [N, before]
        self.first_real = step < lengths[:, None]
        # Its last `before` inputs, in the row followed by what stood before each text.
        last = lengths[:, None] + step - before
        ahead = total + before * torch.arange(1, count + 1, device=device)[:, None]
        self.last = torch.where(last < 0, ahead, cu_seqlens[:-1, None]) + last

    def segment(self, start: int, size: int) -> tuple[torch.Tensor, "PackedTexts"]:
        """The tokens start to start + size of every text: their places in this row, and the row they make."""
        position = torch.arange(self.total, device=self.lengths.device) - self.cu_seqlens[:-1][self.index]
        places = ((position >= start) & (position < start + size)).nonzero().squeeze(1)
        return places, PackedTexts((self.lengths - start).clamp(0, size), self.kernel)


class PaddedTexts:
    """Rows with absent tokens that keep their shape: for torch.export and the like, where no length is known.

    The memory takes the real tokens moved to the left, in their order, and gives its answer back to their places.
    """

    def __init__(self, real: torch.Tensor):
        """real: [B, T] bool, where the tokens are."""
        batch, time = real.shape
        index = torch.arange(time, device=real.device).expand(batch, time)
        rank = real.long().cumsum(1) - 1
        source = index.new_zeros(batch, time + 1).scatter(1, torch.where(real, rank, time), index)
        self.lengths = real.sum(1)
        self.real = real.unsqueeze(-1)  # [B, T, 1]
        self.left = (index < self.lengths.unsqueeze(1)).unsqueeze(-1)  # [B, T, 1], after the move
        self.rank, self.source = rank.clamp(min=0), source[:, :time]  # [B, T]

    def to_left(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, D]: the real tokens first; what follows them means nothing."""
        return x.gather(1, self.source.unsqueeze(-1).expand_as(x))

    def to_places(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, D]: back from the left, zero at the absent tokens."""
        return self.clear(x.gather(1, self.rank.unsqueeze(-1).expand_as(x)))

    def clear(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, T, D], zero at the absent tokens."""
        return torch.where(self.real, x, 0.0)


def unpack(x, places, batch, time):
    """[1, real tokens, D] -> [B, T, D], zero at the absent ones."""
    return x.new_zeros(batch * time, x.shape[-1]).index_copy(0, places, x[0]).view(batch, time, -1)


def positions(texts, size, seen, like):
    """Absolute index of each token in its text, [B, T]."""
    if isinstance(texts, PaddedTexts):
        return texts.rank if seen is None else texts.rank + seen.unsqueeze(1)
    index = torch.arange(size[1], device=like.device).expand(size)
    if texts is not None:
        start = texts.cu_seqlens[:-1] if seen is None else texts.cu_seqlens[:-1] - seen
        return index - start[texts.index]
    return index if seen is None else index + seen.unsqueeze(1)

# Copyright 2026 The LAM authors. Licensed under the Apache License, Version 2.0.
"""Packed rows: texts of different lengths one behind the other, without padding."""

import torch
from torch.nn import functional as F

SEGMENT = 2048  # tokens of a long text that are handed on at once


def segment_size(device: torch.device) -> int:
    """Tokens of each text that go through the layers at once; a CPU gains nothing from more, and memory follows."""
    return 1024 if device.type == "cpu" else SEGMENT


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


def unpack(x, places, batch, time):
    """[1, real tokens, D] -> [B, T, D], zero at the absent ones."""
    return x.new_zeros(batch * time, x.shape[-1]).index_copy(0, places, x[0]).view(batch, time, -1)


def positions(texts, size, seen, like):
    """Absolute index of each token in its text, [B, T]."""
    index = torch.arange(size[1], device=like.device).expand(size)
    if texts is not None:
        start = texts.cu_seqlens[:-1] if seen is None else texts.cu_seqlens[:-1] - seen
        return index - start[texts.index]
    return index if seen is None else index + seen.unsqueeze(1)

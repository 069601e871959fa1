"""One segment of a LAM, with its state in and out, as a graph: torch.export and ONNX.

A segment has a fixed size of B texts x T tokens; a text is read segment by segment, each one's state handed on.
"""

import os
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..kernels import use_backend
from ..model.modeling_lam import LAMModel
from ..model.state_lam import state_shapes

INPUTS = ("input_ids", "memory", "conv", "seen", "length")
OUTPUTS = ("hidden_states", "next_memory", "next_conv", "next_seen")


class LAMSegment(nn.Module):
    """T tokens of each of B texts, and the state before and after them, as plain tensors.

    forward(input_ids, memory, conv, seen, length) -> hidden_states, memory, conv, seen

        input_ids      [B, T] int64
        memory         [L, B, H, 2, K, V] float32, the memories of the L layers; zeros before a text
        conv           [L, B, conv_kernel - 1, 3 D] float32, the last inputs of the convolutions; zeros before a text
        seen           [B] int64, tokens read so far
        length         [B] int64, number of the T tokens that are real, from the left; the others are padding
        hidden_states  [B, T, D], zero at the padding

    The values are those of `LAMModel` with a `cache`.
    """

    def __init__(self, model: LAMModel):
        super().__init__()
        self.embeddings = model.embeddings
        self.layers = model.layers

    def forward(
        self,
        input_ids: torch.Tensor,
        memory: torch.Tensor,
        conv: torch.Tensor,
        seen: torch.Tensor,
        length: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Read one segment; arguments and results as the class says."""
        step = torch.arange(input_ids.shape[1], device=input_ids.device)
        real = (step < length.unsqueeze(1)).unsqueeze(-1)  # [B, T, 1]
        x = self.embeddings(input_ids, None, torch.zeros_like(input_ids), seen.unsqueeze(1) + step)
        memories = []
        convs = []
        for i, layer in enumerate(self.layers):
            y, after, inputs = layer.memory.after_projection_left(
                layer.memory.in_proj(x), real, length, memory[i], conv[i]
            )
            x = layer.memory_norm(x + y)
            x = layer.feed_forward_norm(x + layer.feed_forward(x))
            memories.append(after)
            convs.append(inputs)
        return x * real, torch.stack(memories), torch.stack(convs), seen + length


def _example(model: LAMModel, batch: int, tokens: int) -> tuple[torch.Tensor, ...]:
    layers = model.config.num_hidden_layers
    memory, conv = (torch.zeros(layers, *shape) for shape in state_shapes(model.config, batch).values())
    counts = torch.zeros(batch, dtype=torch.long), torch.full((batch,), tokens)
    return torch.zeros(batch, tokens, dtype=torch.long), memory, conv, *counts


def export_segment(model: LAMModel, batch: int = 1, tokens: int = 128) -> torch.export.ExportedProgram:
    """A segment of B x T tokens as a graph of torch.export; inputs and outputs as `LAMSegment`.

    Args:
        model: on the CPU, in float32.
        batch: B.
        tokens: T.

    Returns:
        The graph, which runs in torch alone.

    Raises:
        ValueError: for a model on another device or of another type, or sizes that are not positive.
    """
    weight = model.embeddings.word_embeddings.weight
    if weight.dtype != torch.float32 or weight.device.type != "cpu":
        raise ValueError(
            f"A segment is exported in float32 from the CPU, the model is {weight.dtype} on {weight.device}."
        )
    if batch < 1 or tokens < 1:
        raise ValueError(f"A segment has at least one text and one token, got {batch} x {tokens}.")
    with use_backend("torch"), torch.no_grad():
        return torch.export.export(LAMSegment(model).eval(), _example(model, batch, tokens))


def export_onnx(
    source: str | os.PathLike[str], path: str | os.PathLike[str], batch: int = 1, tokens: int = 128
) -> None:
    """Write a segment of the LAM folder `source` as an ONNX file; inputs INPUTS, outputs OUTPUTS, as `LAMSegment`.

    Args:
        source: a LAM folder.
        path: the file to write; the folders above it are made where they are missing.
        batch: B, the texts of a segment.
        tokens: T, the tokens of each text in a segment.

    Raises:
        ImportError: without the extra `onnx`.
        OSError: if `source` cannot be loaded.
        ValueError: for impossible sizes.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("Writing ONNX needs the extra `onnx` of lam-transformers (onnxscript).") from error
    program = export_segment(LAMModel.from_pretrained(source, dtype=torch.float32).eval(), batch, tokens)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    exported = torch.onnx.export(
        program, dynamo=True, input_names=list(INPUTS), output_names=list(OUTPUTS), verbose=False
    )
    assert exported is not None
    exported.save(os.fspath(path), external_data=False)


def embed_segments(session, texts: list[list[int]]) -> np.ndarray:
    """Embeddings [N, D] of texts given as token ids, special tokens included, segment by segment.

    session: an `onnxruntime.InferenceSession` on a file of `export_onnx`. Raises ValueError for a text without tokens.
    """
    if not all(texts):
        raise ValueError(f"Text {[bool(ids) for ids in texts].index(False)} has no tokens.")
    shapes = {x.name: x.shape for x in session.get_inputs()}
    batch, tokens = shapes["input_ids"]
    sums: list[np.ndarray] = []
    for first in range(0, len(texts), batch):
        group = texts[first : first + batch]
        state = {name: np.zeros(shapes[name], np.float32) for name in ("memory", "conv")}
        state["seen"] = np.zeros(batch, np.int64)
        total: np.ndarray = np.zeros(())
        for start in range(0, max(map(len, group)), tokens):
            ids = np.zeros((batch, tokens), np.int64)
            length = np.zeros(batch, np.int64)
            for row, text in enumerate(group):
                piece = text[start : start + tokens]
                ids[row, : len(piece)] = piece
                length[row] = len(piece)
            hidden, *after = session.run(list(OUTPUTS), {"input_ids": ids, "length": length, **state})
            state = dict(zip(("memory", "conv", "seen"), after, strict=True))
            total = total + hidden.sum(1, dtype=np.float64)
        sums.append(total[: len(group)])
    pooled = torch.from_numpy(np.concatenate(sums)) if sums else torch.zeros(0, 0)
    return F.normalize(pooled, dim=-1).float().numpy()

"""A LAM without this package: `lam export-onnx`, a folder for onnxruntime; and a segment for torch.export."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoTokenizer

from ..io.atomic import atomic_file, write_text
from ..kernels import use_backend
from ..model.checks_lam import read_json
from ..model.modeling_lam import LAMModel
from ..model.state_lam import state_shapes
from ..model.streaming_lam import _CUT, TextTokenizer
from .export import save_tokenizer

if TYPE_CHECKING:
    import onnx

MODEL = "model.onnx"
STREAM = "model_stream.onnx"
SETTINGS = "lam_onnx.json"
READER = "lam_onnx.py"
# The first with RMSNormalization, and with QuantizeLinear, of operator set 23.
ONNXRUNTIME = {"float32": "1.23", "float16": "1.23", "int8": "1.24"}
SEGMENT = 512  # tokens of a long text that go through the model at once, about
LONGEST = 2**31 - 1  # tokens at which FastEmbed truncates, which wants a number that fits its tokenizer
SMALL = 1024  # bytes; weights of fewer are in both files


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


def export_onnx(source: str | os.PathLike[str], folder: str | os.PathLike[str], precision: str = "float32") -> None:
    """Write a LAM as ONNX graphs for any number and length of texts, with all that is needed to run them.

    The folder gets model.onnx, model_stream.onnx (the same with the state in and out; its weights are those in
    model.onnx), the tokenizer, config.json, lam_onnx.json and lam_onnx.py, which reads them without torch.

    Args:
        source: a LAM folder.
        folder: where to; it is made where it is missing, and files of the same name are replaced.
        precision: of the large matrices: "float32", "float16" (stored so, computed in float32) or "int8".

    Raises:
        ImportError: without the extra `onnx`.
        OSError: if `source` cannot be loaded.
        ValueError: for a model or a precision that cannot be exported.
    """
    try:
        from .onnx_lam import build
    except ImportError as error:
        raise ImportError("Writing ONNX needs the extra `onnx` of lam-transformers (onnx, onnxruntime).") from error
    folder = Path(folder)
    if folder.is_file() or folder.suffix == ".onnx":
        raise ValueError(f"{folder} is to be a folder; model.onnx and what belongs to it are written into it.")
    model = LAMModel.from_pretrained(source, dtype=torch.float32).eval()
    _check_exportable(model, source)
    tokenizer = TextTokenizer(AutoTokenizer.from_pretrained(source, trust_remote_code=False))
    weights = {name: x.detach().numpy() for name, x in model.state_dict().items()}
    fingerprint = hashlib.sha256(f"{model.fingerprint()} {precision}".encode()).hexdigest()[:32]
    about = {"lam_fingerprint": fingerprint, "lam_precision": precision}
    whole = build(model.config, weights, precision, about, carries_state=False)
    stream = build(model.config, weights, precision, about, carries_state=True)
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(source, folder, LONGEST)
    write_text(folder / "config.json", json.dumps(model.config.to_diff_dict(), indent=2) + "\n")
    settings = {**_settings(model, tokenizer), "precision": precision, "onnxruntime": ONNXRUNTIME[precision]}
    write_text(folder / SETTINGS, json.dumps(settings | {"fingerprint": fingerprint}, indent=2) + "\n")
    shutil.copyfile(Path(__file__).with_name(READER), folder / READER)
    data = whole.SerializeToString()
    with atomic_file(folder / MODEL) as path:
        path.write_bytes(data)
    _point_into(stream, data, MODEL)
    with atomic_file(folder / STREAM) as path:
        path.write_bytes(stream.SerializeToString())


def _check_exportable(model: LAMModel, source: Any) -> None:
    if model.config.hidden_act != "gelu":
        raise ValueError(f"Only models with hidden_act gelu can be exported to ONNX, got {model.config.hidden_act}.")
    path = Path(source) / "sentence_lam_config.json"
    pooling = read_json(path).get("pooling_mode", "mean") if path.is_file() else "mean"
    if pooling != "mean":
        raise ValueError(f"Only models with mean pooling can be exported to ONNX, got {pooling}.")


def _settings(model: LAMModel, tokenizer: TextTokenizer) -> dict[str, Any]:
    """What lam_onnx.py has to know of the model and its tokenizer."""
    config = model.config
    shapes = state_shapes(config, 1)
    step = config.two_way_chunk or 1
    batch, heads, modes, width, _ = shapes["memory"]
    plain = tokenizer.can_cut and not any(_CUT.search(token) for token in tokenizer.added)
    return {
        "dimensions": config.hidden_size,
        "segment": max(SEGMENT - SEGMENT % step, step),
        "opening": tokenizer.opening,
        "closing": tokenizer.closing,
        "cut": _CUT.pattern if plain else None,
        "long_words_unknown": tokenizer.can_shorten,
        "state": {
            "memory": [config.num_hidden_layers, modes, batch, heads, width, width],
            "conv": [config.num_hidden_layers, *shapes["conv"]],
        },
    }


def _point_into(model: "onnx.ModelProto", data: bytes, name: str) -> None:
    """Let the weights of a model be read out of another model's file, which has the same ones.

    Args:
        model: changed in place.
        data: the other file's content.
        name: the other file's name, in the same folder.
    """
    from onnx.external_data_helper import set_external_data

    for weight in model.graph.initializer:
        if len(weight.raw_data) < SMALL:
            continue
        offset = data.find(weight.raw_data)
        if offset < 0:
            raise ValueError(f"{weight.name} is not in {name}.")
        set_external_data(weight, name, offset, len(weight.raw_data))
        weight.ClearField("raw_data")

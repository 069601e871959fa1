"""all-MiniLM-L6-v2 as an ONNX graph, with onnxruntime's fused operators: what LAM's graph is measured against."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from lam_transformers.checkpoints.onnx_graph import Graph, Value
from lam_transformers.checkpoints.onnx_lam import add_and_norm, normalised
from lam_transformers.checkpoints.onnx_products import Float32, products


def export_teacher(source: str | Path, path: Path, precision: str) -> None:
    """Write a BERT with mean pooling from the folder `source`, with the inputs and outputs of LAM's model.onnx.

    Tokens beyond the table of positions take its last row, so that its speed can be measured at any length. Padding is
    to the right.
    """
    from transformers import AutoModel

    model = AutoModel.from_pretrained(source).eval()
    weights = {name: x.detach().numpy() for name, x in model.state_dict().items()}
    graph = Graph()
    _bert(graph, products(precision, graph), weights, model.config)
    onnx.save(graph.model("bert", {}), path)


def _bert(graph: Graph, products: Any, weights: dict[str, np.ndarray], config: Any) -> None:
    size = config.hidden_size
    ids = graph.input("input_ids", np.int64, ["batch", "tokens"])
    mask = graph.input("attention_mask", np.int64, ["batch", "tokens"])
    lengths = graph.sum(mask, 1, False).cast(np.int32)
    words = products.lookup(ids, "words", weights["embeddings.word_embeddings.weight"])
    table = weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
    place = graph.op("Range", np.int64(0), graph.op("Squeeze", ids.size(1)), np.int64(1))
    place = graph.op("Min", place, np.int64(len(table) - 1))
    x = words + graph.op("Gather", graph.weight("positions", table), place)
    norm = [graph.weight(f"embeddings_{part}", weights[f"embeddings.LayerNorm.{part}"]) for part in ("weight", "bias")]
    x = graph.op("LayerNormalization", x, *norm, epsilon=config.layer_norm_eps)
    for i in range(config.num_hidden_layers):
        layer = {
            name.removeprefix(f"encoder.layer.{i}."): w
            for name, w in weights.items()
            if name.startswith(f"encoder.layer.{i}.")
        }
        x = _layer(graph, products, f"layer_{i}", layer, config, lengths, x)
    x = x * mask.cast(np.float32).add_axis(2)
    graph.output("sentence_embedding", normalised(graph, graph.sum(x, 1, False)), np.float32, ["batch", size])
    graph.output("last_hidden_state", x, np.float32, ["batch", "tokens", size])


def _layer(graph: Graph, products: Any, name: str, layer: dict, config: Any, lengths: Value, x: Value) -> Value:
    parts = ("query", "key", "value")
    weight = np.concatenate([layer[f"attention.self.{part}.weight"] for part in parts])
    bias = graph.weight(f"{name}_qkv_bias", np.concatenate([layer[f"attention.self.{part}.bias"] for part in parts]))
    heads = config.num_attention_heads
    if isinstance(products, Float32):
        matrix = graph.weight(f"{name}_qkv", weight.T)
        y = graph.op("microsoft:Attention", x, matrix, bias, lengths, num_heads=heads)
    else:
        q, k, v = products.linear(x, f"{name}_qkv", weight).split([config.hidden_size] * 3)
        y = graph.op("microsoft:MultiHeadAttention", q, k, v, bias, lengths, num_heads=heads)
    y = products.linear(y, f"{name}_out", layer["attention.output.dense.weight"])
    norm = tuple(layer[f"attention.output.LayerNorm.{part}"] for part in ("weight", "bias"))
    x = add_and_norm(graph, config, f"{name}_attention", x, y, norm, layer["attention.output.dense.bias"])
    y = products.linear(x, f"{name}_up", layer["intermediate.dense.weight"])
    y = graph.op("microsoft:BiasGelu", y, graph.weight(f"{name}_up_bias", layer["intermediate.dense.bias"]))
    y = products.linear(y, f"{name}_down", layer["output.dense.weight"])
    norm = tuple(layer[f"output.LayerNorm.{part}"] for part in ("weight", "bias"))
    return add_and_norm(graph, config, f"{name}_output", x, y, norm, layer["output.dense.bias"])

"""Checkpoints with the names and shapes of the published ones and random values."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Geometry:
    hidden: int = 384
    heads: int = 12
    layers: int = 6
    ffn: int = 1536
    vocab: int = 30522
    positions: int = 512


FULL = Geometry()
# Three heads: the temperature's index then differs from the head's from the second chunk on.
SMALL = Geometry(hidden=96, heads=3, layers=2, ffn=112, vocab=109, positions=320)


def _normal(generator, *shape, scale=1.0, mean=0.0):
    return torch.randn(*shape, generator=generator) * scale + mean


def _linear(generator, out, size, bias=True):
    tensors = {"weight": _normal(generator, out, size, scale=size**-0.5)}
    return tensors | ({"bias": _normal(generator, out, scale=0.2)} if bias else {})


def _norm(generator, size):
    return {"weight": _normal(generator, size, scale=0.1, mean=1.0), "bias": _normal(generator, size, scale=0.1)}


def _named(prefix, tensors):
    return {f"{prefix}.{name}": x for name, x in tensors.items()}


def memory_layer(generator, layout: str, g: Geometry) -> dict[str, torch.Tensor]:
    """One memory layer under its published names: 32 tensors in layout "final", 28 in "main"."""
    width = g.hidden // g.heads
    final = layout == "final"
    tensors = {"fast_decay_bias": _normal(generator, g.heads), "slow_decay_bias": _normal(generator, g.heads, mean=2.0)}
    for name in "qkv":
        tensors |= _named(f"{name}_proj", _linear(generator, g.hidden, g.hidden, bias=False))
        tensors[f"{name}_conv1d.conv.weight"] = _normal(generator, g.hidden, 1, 4, scale=0.5)
        tensors[f"{name}_conv1d.conv.bias"] = _normal(generator, g.hidden, scale=0.2)
    for name in ("b_proj", "fast_gate_proj", "slow_gate_proj"):
        tensors |= _named(name, _linear(generator, g.heads, g.hidden, bias=False))
    for name in ("fast_decay_proj", "slow_decay_proj"):
        tensors |= _named(name, _linear(generator, g.heads, g.hidden))
    flux = "resonance_flux."
    tensors[flux + "W_bilinear"] = _normal(generator, *(g.heads,) * final, width, width)
    tensors[flux + "temp"] = 0.5 + torch.rand(g.heads, generator=generator)
    nets = {"flux_net": 2 * width + 1} | ({"token_flux_proj": 2 * width} if final else {})
    for name, size in nets.items():
        tensors |= _named(f"{flux}{name}.0", _linear(generator, 16, size))
        tensors |= _named(f"{flux}{name}.2", _linear(generator, 1, 16))
    for name in ("g_proj", "o_proj"):
        tensors |= _named(name, _linear(generator, g.hidden, g.hidden, bias=False))
    tensors["o_norm.weight"] = _normal(generator, width, scale=0.1, mean=1.0)
    tensors["o_norm.gate"] = torch.ones(width)
    return tensors


def bert(generator, g: Geometry) -> dict[str, torch.Tensor]:
    """A BertModel's state dict."""
    tables = {"word_embeddings": g.vocab, "position_embeddings": g.positions, "token_type_embeddings": 2}
    tensors = {f"embeddings.{n}.weight": _normal(generator, rows, g.hidden, scale=0.5) for n, rows in tables.items()}
    tensors |= _named("embeddings.LayerNorm", _norm(generator, g.hidden))
    for i in range(g.layers):
        layer = f"encoder.layer.{i}."
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            tensors |= _named(layer + name, _linear(generator, g.hidden, g.hidden))
        tensors |= _named(layer + "intermediate.dense", _linear(generator, g.ffn, g.hidden))
        tensors |= _named(layer + "output.dense", _linear(generator, g.hidden, g.ffn))
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            tensors |= _named(layer + name, _norm(generator, g.hidden))
    return tensors | _named("pooler.dense", _linear(generator, g.hidden, g.hidden))


def _layers(generator, layout, g):
    return {f"{i}.{name}": x for i in range(g.layers) for name, x in memory_layer(generator, layout, g).items()}


def one_file(layout="final", g: Geometry = FULL, seed=0, feature_proj=False) -> dict[str, torch.Tensor]:
    """The single file: the teacher, the memory layers, and aliases of the teacher's tensors under second names."""
    generator = torch.Generator().manual_seed(seed)
    teacher = bert(generator, g)
    tensors = _named("teacher_model", teacher)
    tensors |= {name: x for name, x in teacher.items() if name.startswith(("embeddings.", "pooler."))}
    tensors |= _named("deltanet_layers", _layers(generator, layout, g))
    aliases = {
        "deltanet_norms.{}": "attention.output.LayerNorm",
        "deltanet_ffns.{}.dense": "intermediate.dense",
        "ffn_norms.{}": "output.LayerNorm",
    }
    for alias, name in aliases.items():
        for i in range(g.layers):
            for kind in ("weight", "bias"):
                tensors[f"{alias.format(i)}.{kind}"] = teacher[f"encoder.layer.{i}.{name}.{kind}"]
    if feature_proj:
        tensors |= _named("feature_proj", _linear(generator, 2 * g.hidden, g.hidden))
    return tensors


def two_files(g: Geometry = FULL, seed=0, layers_name="lam_layers", layout="main") -> tuple[dict, dict]:
    """The base (a BERT) and the tweak (memory layers and what overrides the base)."""
    generator = torch.Generator().manual_seed(seed)
    base = bert(generator, g) | {"embeddings.position_ids": torch.arange(g.positions)[None]}
    parts: dict = {layers_name: _layers(generator, layout, g)}
    each = {
        "lam_norms": lambda: _norm(generator, g.hidden),
        "deltanet_ffns": lambda: _named("dense", _linear(generator, g.ffn, g.hidden)),
        "ffn_norms": lambda: _norm(generator, g.hidden),
        "output_dense_layers": lambda: _linear(generator, g.hidden, g.ffn),
    }
    for name, make in each.items():
        parts[name] = {f"{i}.{key}": x for i in range(g.layers) for key, x in make().items()}
    parts["projections"] = _named("0", _linear(generator, g.hidden, g.hidden))
    parts["emb_projection"] = _linear(generator, g.hidden, g.hidden)
    return base, parts | {"step": 4000}


def as_one_file(base: dict, tweak: dict) -> dict[str, torch.Tensor]:
    """The pair under the names of the single file, the tweak's tensors in place of the base's."""
    tensors = {name: x for name, x in base.items() if name.startswith("embeddings.")} | _named("teacher_model", base)
    layers = tweak["lam_layers"] if "lam_layers" in tweak else tweak["deltanet_layers"]
    tensors |= _named("deltanet_layers", layers)
    for ours, theirs in (("deltanet_norms", "lam_norms"), ("deltanet_ffns",) * 2, ("ffn_norms",) * 2):
        tensors |= _named(ours, tweak[theirs])
    for name, x in tweak["output_dense_layers"].items():
        layer, kind = name.split(".")
        tensors[f"teacher_model.encoder.layer.{layer}.output.dense.{kind}"] = x
    return tensors


def cloned(tensors: dict) -> dict:
    """Every tensor with a storage of its own."""
    return {
        name: cloned(x) if isinstance(x, dict) else x.clone() if torch.is_tensor(x) else x
        for name, x in tensors.items()
    }

"""An untrained LAM from a MiniLM-type BERT: `lam init`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModel, PretrainedConfig

from ..io.atomic import atomic_folder
from ..model.checks_lam import check_folder
from ..model.configuration_lam import LARGEST, LAMConfig
from ..model.modeling_lam import LAMModel
from .export import export_model, save_tokenizer

if TYPE_CHECKING:
    from ..model.memory_lam import LAMMemory

# What a BERT's configuration and a LAM's have in common.
SHARED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "type_vocab_size",
    "layer_norm_eps",
    "pad_token_id",
)


def parse_gate(value: str) -> int | None:
    """The rank of an output gate as LAMConfig has it.

    Args:
        value: "full", "none", or the rank in decimal digits.

    Returns:
        None for "full", 0 for "none", otherwise the rank.

    Raises:
        ValueError: for other words, or a rank that is too large.
    """
    names = {"full": None, "none": 0}
    if value in names:
        return names[value]
    if value.isdecimal() and len(value) < 10 and int(value) <= LARGEST["hidden_size"]:
        return int(value)
    raise ValueError(
        f"--gate must be 'full', 'none' or a rank such as 32, at most {LARGEST['hidden_size']:,}, got '{value[:40]}'."
    )


def config_from_bert(bert: PretrainedConfig, **overrides: Any) -> LAMConfig:
    """The LAMConfig with the geometry of a BERT configuration.

    Args:
        bert: the BERT's configuration.
        overrides: fields of LAMConfig that a BERT does not have.

    Returns:
        The configuration of a LAM of the same geometry.

    Raises:
        ValueError: if the configuration is not of a BERT with absolute positions, or an override does not fit.
    """
    if bert.model_type != "bert":
        raise ValueError(f"The base must be a BERT-type model such as all-MiniLM-L6-v2, got '{bert.model_type}'.")
    if getattr(bert, "position_embedding_type", "absolute") not in ("absolute", None):
        raise ValueError(f"The base must have absolute positions, got '{bert.position_embedding_type}'.")
    geometry = {name: getattr(bert, name) for name in SHARED}
    return LAMConfig(**geometry, position_table_size=bert.max_position_embeddings, **overrides)


@torch.no_grad()
def lam_from_bert(base: str | Path, revision: str | None = None, **overrides: Any) -> LAMModel:
    """An untrained LAM: embeddings, feed-forward layers and norms of `base`, memories started from its attention.

    Args:
        base: Hub id or folder of a BERT-type model.
        revision: of the Hub repository.
        overrides: fields of LAMConfig that a BERT does not have.

    Returns:
        a float32 `LAMModel`. The queries, keys and values take the attention's projections (the biases go to the
        convolution, which starts as the identity), the output projection takes the attention's.

    Raises:
        ValueError: if `base` is not a BERT.
        OSError: if it cannot be loaded.
    """
    if Path(base).is_dir():
        check_folder(base)
    # No code of a folder or repository is run, and nobody is asked whether it should be.
    bert_config = AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=False)
    config = config_from_bert(bert_config, **overrides)
    bert = AutoModel.from_pretrained(base, revision=revision, dtype=torch.float32, trust_remote_code=False)
    model = LAMModel(config)
    model.embeddings.load_state_dict(bert.embeddings.state_dict())
    for layer, source in zip(model.layers, bert.encoder.layer, strict=True):
        _start_memory(layer.memory, source.attention)
        layer.memory_norm.load_state_dict(source.attention.output.LayerNorm.state_dict())
        layer.feed_forward.in_proj.load_state_dict(source.intermediate.dense.state_dict())
        layer.feed_forward.out_proj.load_state_dict(source.output.dense.state_dict())
        layer.feed_forward_norm.load_state_dict(source.output.LayerNorm.state_dict())
    return model.eval()


def init_model(base: str | Path, folder: str | Path, gate: int | None, seed: int = 0) -> LAMModel:
    """An untrained LAM as a model folder, see `lam_from_bert`; it appears complete or not at all.

    Args:
        base: Hub id or folder of a BERT-type model.
        folder: where to; it must not be there, or be empty.
        gate: rank of the output gate, see `parse_gate`.
        seed: of the weights that have no counterpart in the base.

    Returns:
        The model that was written.

    Raises:
        ValueError: if `folder` is not empty, or `base` is not a BERT.
        OSError: if `base` or its tokenizer cannot be loaded, or `folder` cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; choose a new folder.")
    torch.manual_seed(seed)
    model = lam_from_bert(base, output_gate_rank=gate)
    with atomic_folder(folder) as new:
        model.save_pretrained(new)
        save_tokenizer(base, new)
        export_model(new, new, dtype=torch.float32)
    return model


def _start_memory(memory: "LAMMemory", attention: Any) -> None:
    projections = (attention.self.query, attention.self.key, attention.self.value)
    size = projections[0].in_features
    memory.in_proj.weight[: 3 * size] = torch.cat([projection.weight for projection in projections])
    memory.conv1d.bias.copy_(torch.cat([projection.bias for projection in projections]))
    memory.out_proj.load_state_dict(attention.output.dense.state_dict())

# Copyright 2026 The LAM authors. Licensed under the Apache License, Version 2.0.
"""What LAM refuses, and what it says then: inputs that do not fit together, damaged folders, other models' weights."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

from .configuration_lam import LAMConfig
from .packing_lam import check_cu_seqlens

if TYPE_CHECKING:
    from .modeling_lam import LAMModel, LAMPreTrainedModel

# JSON files of a model folder, and what each of them holds.
JSON_FILES = {
    "config.json": dict,
    "config_sentence_transformers.json": dict,
    "modules.json": list,
    "sentence_bert_config.json": dict,
    "sentence_lam_config.json": dict,
    "special_tokens_map.json": dict,
    "tokenizer.json": dict,
    "tokenizer_config.json": dict,
}
LARGEST_JSON = 1 << 28
FLOATS = ("F16", "BF16", "F32", "F64")


def is_traced(x: torch.Tensor) -> bool:
    """Whether the numbers in x cannot be looked at.

    That is so under torch.compile, torch.export, torch.jit.trace and torch.func's transforms, and of fake tensors and
    those on the device "meta".
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or x.is_meta or hasattr(x, "fake_mode"):
        return True
    return torch._C._functorch.peek_interpreter_stack() is not None


def check_inputs(
    model: LAMModel,
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    token_type_ids: torch.Tensor | None,
    position_ids: torch.Tensor | None,
) -> torch.Tensor:
    """The one of `input_ids` and `inputs_embeds` that is given. Raises ValueError for inputs that do not fit."""
    given = input_ids if inputs_embeds is None else inputs_embeds
    if given is None or (input_ids is not None and inputs_embeds is not None):
        raise ValueError("Give exactly one of input_ids and inputs_embeds.")
    _check_tensors(
        input_ids=input_ids, inputs_embeds=inputs_embeds, token_type_ids=token_type_ids, position_ids=position_ids
    )
    size = 2 if inputs_embeds is None else 3
    if given.ndim != size or 0 in given.shape[:2]:
        kind = "input_ids must be [B, T]" if size == 2 else "inputs_embeds must be [B, T, D]"
        raise ValueError(f"{kind} with at least one token, got {list(given.shape)}.")
    if size == 3 and given.shape[-1] != model.config.hidden_size:
        raise ValueError(f"inputs_embeds must have width {model.config.hidden_size}, got {given.shape[-1]}.")
    on_cpu = given.device.type == "cpu" and not is_traced(given)
    if size == 3 and on_cpu and (bad := given.isnan().flatten(1).any(1)).any():
        raise ValueError(f"inputs_embeds holds NaN in batch rows {bad.nonzero().flatten().tolist()}.")
    tables = (
        ("input_ids", input_ids, model.embeddings.word_embeddings.num_embeddings),
        ("token_type_ids", token_type_ids, model.config.type_vocab_size),
        ("position_ids", position_ids, None),
    )
    for name, x, rows in tables:
        if x is None:
            continue
        if x.ndim != 2 or x.shape[1] != given.shape[1] or x.shape[0] not in (1, given.shape[0]):
            raise ValueError(f"{name} must be {list(given.shape[:2])}, got {list(x.shape)}.")
        if on_cpu and (x.min() < 0 or (rows is not None and x.max() >= rows)):
            limit = "at least 0" if rows is None else f"0 to {rows - 1}; does the tokenizer belong to this model?"
            raise ValueError(f"{name} holds {int(x.min())} to {int(x.max())}, the model knows {limit}")
    return given


def _check_tensors(**given: torch.Tensor | None) -> None:
    """Raise ValueError, naming it, for an argument that is no tensor, or for ids that are no integers."""
    for name, x in given.items():
        if x is None:
            continue
        if not isinstance(x, torch.Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(x).__name__}; use torch.tensor(...).")
        if name.endswith("_ids") and x.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"{name} must hold integers (torch.long), got {x.dtype}.")


def real_tokens(
    attention_mask: torch.Tensor | None, given: torch.Tensor, cu_seq_lens_q: torch.Tensor | None, use_cache: bool
) -> torch.Tensor | None:
    """The mask as bool [B, T], or None where every token is real; whatever it holds where nobody can look."""
    _check_tensors(attention_mask=attention_mask, cu_seq_lens_q=cu_seq_lens_q)
    if cu_seq_lens_q is not None:
        check_cu_seqlens("cu_seq_lens_q", cu_seq_lens_q, given.shape[0], given.shape[1])
        if attention_mask is not None and not bool((attention_mask == 1).all()):
            raise ValueError("A packed row has no padding: leave attention_mask out when cu_seq_lens_q is given.")
        return None
    if attention_mask is None:
        return None
    if attention_mask.shape != given.shape[:2]:
        raise ValueError(f"attention_mask must be {list(given.shape[:2])}, got {list(attention_mask.shape)}.")
    real = attention_mask == 1
    if is_traced(attention_mask):
        return real
    if not bool((real | (attention_mask == 0)).all()):
        raise ValueError("attention_mask must hold only 1 (real token) and 0 (absent).")
    if bool(real.all()):
        return None
    if not use_cache and not bool(real.any(1).all()):
        rows = (~real.any(1)).nonzero().flatten().tolist()
        raise ValueError(f"attention_mask has no real token in batch rows {rows}; leave such rows out.")
    return real


def check_is_lam(name_or_path: str | os.PathLike[str], subfolder: str = "", **where: Any) -> None:
    """Raise ValueError unless a folder or Hub repository says that it is a LAM; OSError for damaged files of a folder.

    Args:
        name_or_path: the folder or repository.
        subfolder: where in it the model is.
        where: `cache_dir`, `revision`, `token`, `local_files_only` of a Hub repository, as transformers takes them.
    """
    folder = os.path.join(name_or_path, subfolder or "")
    here = os.path.isdir(folder)
    if here:
        path: str | None = os.path.join(folder, "config.json")
    else:
        path = cached_file(name_or_path, "config.json", subfolder=subfolder or "", **where)
    assert path is not None  # cached_file raises where there is none
    _check_type(path, read_json(path))
    if here:
        check_folder(folder)


def _check_type(path: str, settings: dict[str, Any]) -> None:
    kind = settings.get("model_type")
    if kind != LAMConfig.model_type:
        raise ValueError(
            f"{path} is of a model of type {str(kind)[:40]!r}, not of a LAM (type {LAMConfig.model_type!r}); load it "
            "with SentenceTransformer or AutoModel, or name a LAM folder."
        )


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Refuse a model folder, whichever model's, whose JSON files are damaged, or that calls a LAM by another name.

    Raises:
        OSError: for a file that is damaged, or a pipe.
        ValueError: for a LAM's weights beside the config.json of another model, which would take none of them.
    """
    settings = {}
    for name, kind in JSON_FILES.items():
        path = os.path.join(folder, name)
        if os.path.lexists(path):
            settings[name] = read_json(path, kind)
    weights = os.path.join(folder, "model.safetensors")
    named = settings.get("config.json", {}).get("model_type")
    other = named not in (None, LAMConfig.model_type) and os.path.lexists(weights)
    if other and any(name.endswith("layers.0.memory.decay_bias") for name in _read_header(weights)[0]):
        raise ValueError(f"{weights} is a LAM's, its config.json says {str(named)[:40]!r}; one of them is wrong.")


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raise OSError unless `path` is a regular file: a pipe would be waited for without end."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} does not exist.")
    if not os.path.isfile(path):
        what = "a folder" if os.path.isdir(path) else "a pipe, a socket or a device"
        raise OSError(f"{path} is no regular file but {what}; give a file.")


def read_json(path: str | os.PathLike[str], kind: type = dict) -> Any:
    """The dictionary (or list) in a JSON file. Raises OSError, in one line, if there is no such thing."""
    check_regular(path)
    if (size := os.path.getsize(path)) > LARGEST_JSON:
        raise OSError(f"{path} has {size:,} bytes, more than any such file; get the file again.")
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        raise OSError(f"{path} is damaged ({error}); get the file again.") from error
    if not isinstance(content, kind):
        raise OSError(f"{path} is damaged: it holds a {type(content).__name__}, not a {kind.__name__}.")
    return content


def check_weights(folder: str | os.PathLike[str]) -> None:
    """Refuse a folder whose weights are damaged or are not those that its config.json describes.

    Nothing is built before: neither a damaged number of layers nor a wrong shape costs more than reading headers. The
    checksum (SHA-256 of the tensor bytes, under "sha256" in a file's metadata) is optional: LAM-base-v1 has it.

    Raises:
        OSError: for files that are cut short, malformed, of other numbers than floats, or differ from their checksum.
        ValueError: for another model's config.json, or one that does not fit the weights.
    """
    tensors: dict[str, tuple[str, list[int]]] = {}
    for name in sorted(os.listdir(folder)):
        if not name.startswith("model") or not name.endswith(".safetensors"):
            continue
        path = os.path.join(folder, name)
        header, expected = _read_header(path)
        tensors |= header
        if expected is not None and weights_checksum(path) != expected:
            raise OSError(f"{path} does not match its own SHA-256; it was changed or damaged, get the file again.")
    path = os.path.join(folder, "config.json")
    if not os.path.lexists(path):  # transformers says so, unless a configuration was handed in
        return
    settings = read_json(path)
    _check_type(path, settings)
    config = LAMConfig.from_dict(dict(settings))
    if "quantization_config" not in settings:
        check_tensors(config, {key.removeprefix("lam."): x for key, x in tensors.items()}, folder)


def _read_header(path: str) -> tuple[dict[str, tuple[str, list[int]]], str | None]:
    """Name -> (type, shape) of the tensors of a safetensors file, and the checksum in its metadata."""
    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - no mapping
            tensors = {key: (x.get_dtype(), x.get_shape()) for key, x in slices.items()}
            return tensors, (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError) as error:
        raise OSError(f"{path} is damaged ({error}); get the file again.") from error


def check_tensors(config: LAMConfig, tensors: dict[str, tuple[str, list[int]]], where: str | os.PathLike[str]) -> None:
    """Raise ValueError unless the tensors of a LAM, name -> (safetensors' type, shape), fit its configuration.

    Missing and unknown names are left to those who load them.
    """
    numbers = (re.match(r"layers\.(\d{1,9})\.", key) for key in tensors)
    layers = [int(number[1]) for number in numbers if number]
    if layers and max(layers) + 1 != config.num_hidden_layers:
        raise ValueError(
            f"config.json of {where} says num_hidden_layers is {config.num_hidden_layers}, the weights have "
            f"{max(layers) + 1}; the two do not belong together."
        )
    if not layers:  # nothing that could be built from
        return
    expected = tensor_shapes(config)
    for key, (kind, shape) in tensors.items():
        if key not in expected:
            continue
        if list(shape) != expected[key]:
            raise ValueError(
                f"{key} of {where} has shape {list(shape)}, its config.json implies {expected[key]}; the two do not "
                "belong together."
            )
        if kind not in FLOATS:
            raise OSError(f"{key} of {where} holds numbers of type {kind}, a LAM's are floats ({', '.join(FLOATS)}).")


def tensor_shapes(config: LAMConfig) -> dict[str, list[int]]:
    """Name -> shape of every tensor of a `LAMModel`, without building one."""
    size = config.hidden_size
    heads = config.num_attention_heads
    inner = config.intermediate_size
    width = config.head_size
    flux = config.flux_hidden_size
    rank = config.output_gate_rank
    rows = 3 * size + 5 * heads + (size if rank is None else rank)
    layer = {
        "memory.in_proj.weight": [rows, size],
        "memory.conv1d.weight": [3 * size, 1, config.conv_kernel],
        "memory.conv1d.bias": [3 * size],
        "memory.decay_bias": [2, heads],
        "memory.flux.bilinear": [heads, width, width],
        "memory.flux.temperature": [heads],
        "memory.flux.in_proj.weight": [flux, 2 * width + 1],
        "memory.flux.in_proj.bias": [flux],
        "memory.flux.out_proj.weight": [1, flux],
        "memory.flux.out_proj.bias": [1],
        "memory.norm_weight": [width],
        "memory.out_proj.weight": [size, size],
        "memory.out_proj.bias": [size],
        "feed_forward.in_proj.weight": [inner, size],
        "feed_forward.in_proj.bias": [inner],
        "feed_forward.out_proj.weight": [size, inner],
        "feed_forward.out_proj.bias": [size],
    }
    if rank:
        layer["memory.gate_proj.weight"] = [size, rank]
    for norm in ("memory_norm", "feed_forward_norm"):
        layer |= {f"{norm}.weight": [size], f"{norm}.bias": [size]}
    shapes = {f"layers.{i}.{name}": shape for i in range(config.num_hidden_layers) for name, shape in layer.items()}
    return shapes | {
        "embeddings.word_embeddings.weight": [config.vocab_size, size],
        "embeddings.position_embeddings.weight": [config.position_table_size, size],
        "embeddings.token_type_embeddings.weight": [config.type_vocab_size, size],
        "embeddings.LayerNorm.weight": [size],
        "embeddings.LayerNorm.bias": [size],
    }


def check_loaded(
    model: LAMPreTrainedModel,
    info: dict[str, Any],
    name_or_path: str | os.PathLike[str],
    options: dict[str, Any],
) -> None:
    """Raise OSError unless the encoder of a loaded model has all of its weights and those of no other architecture.

    The weights of a head may be missing, and those of another one may be beside the encoder's. Layers may be left
    out at the end: `from_pretrained(folder, num_hidden_layers=3)`.

    Args:
        model: the loaded model.
        info: transformers' loading info.
        name_or_path: what it was loaded from.
        options: the keyword arguments of `from_pretrained`.
    """
    encoder = model.base_model
    prefix = "" if encoder is model else f"{model.base_model_prefix}."
    own = [name for name, _ in encoder.named_children()]

    def of_encoder(names: Iterable[str]) -> list[str]:
        bare = sorted(name.removeprefix(f"{model.base_model_prefix}.") for name in names)
        return [name for name in bare if name.split(".")[0] in own]

    missing = of_encoder(name for name in info["missing_keys"] if name.startswith(prefix))
    unknown = of_encoder(info["unexpected_keys"])
    layers = model.config.num_hidden_layers
    left_out = [name for name in unknown if name.startswith("layers.") and int(name.split(".")[1]) >= layers]
    if left_out:
        where = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
        chosen = {x: options[x] for x in where if x in options}
        saved, _ = model.config_class.get_config_dict(name_or_path, **chosen)
        if saved.get("num_hidden_layers", 0) > layers:
            unknown = [name for name in unknown if name not in left_out]
    if unknown or missing:
        raise OSError(f"{name_or_path} does not hold the weights of this LAM: missing {missing}, unknown {unknown}.")


def weights_checksum(path: str | os.PathLike[str]) -> str:
    """SHA-256 over the sorted tensor names, types and shapes of a safetensors file and then its tensor bytes."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__", None)
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()

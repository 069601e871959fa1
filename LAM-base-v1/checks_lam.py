# Copyright 2026 The LAM authors. Licensed under the Apache License, Version 2.0.
"""What LAM refuses, and what it says then: inputs that do not fit together, damaged weights."""

import hashlib
import json
import os

import torch
from safetensors import SafetensorError, safe_open

from .delta_rule_lam import check_cu_seqlens


def is_traced(x: torch.Tensor) -> bool:
    """Whether the numbers in x cannot be looked at.

    That is so under torch.compile, torch.export, torch.jit.trace and torch.func's transforms, and of fake tensors and
    those on the device "meta".
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or x.is_meta or hasattr(x, "fake_mode"):
        return True
    return torch._C._functorch.peek_interpreter_stack() is not None


def check_inputs(model, input_ids, inputs_embeds, token_type_ids, position_ids):
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Give exactly one of input_ids and inputs_embeds.")
    given, size = (input_ids, 2) if inputs_embeds is None else (inputs_embeds, 3)
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


def real_tokens(attention_mask, given, cu_seq_lens_q, use_cache):
    """The mask as bool [B, T], or None where every token is real; whatever it holds where nobody can look."""
    if cu_seq_lens_q is not None:
        check_cu_seqlens("cu_seq_lens_q", cu_seq_lens_q, *given.shape[:2])
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


def check_weights(folder: str | os.PathLike) -> None:
    """Raise OSError if a safetensors file of `folder` is cut short, malformed, or differs from its own checksum.

    The checksum (SHA-256 of the tensor bytes, under "sha256" in the file's metadata) is optional: LAM-base-v1 has it.
    """
    for name in sorted(os.listdir(folder)):
        if not name.startswith("model") or not name.endswith(".safetensors"):
            continue
        path = os.path.join(folder, name)
        try:
            with safe_open(path, framework="pt") as file:
                expected = (file.metadata() or {}).get("sha256")
        except (SafetensorError, OSError) as error:
            raise OSError(f"{path} is damaged ({error}); get the file again.") from error
        if expected is not None and weights_checksum(path) != expected:
            raise OSError(f"{path} does not match its own SHA-256; it was changed or damaged, get the file again.")


def check_loaded(model, info: dict, name_or_path, options: dict) -> None:
    """Raise OSError unless the encoder of a loaded model has all of its weights and those of no other architecture.

    The weights of a head may be missing, and those of another one may stand beside the encoder's. Layers may be left
    out at the end: `from_pretrained(folder, num_hidden_layers=3)`.

    Args:
        info: transformers' loading info.
        options: the keyword arguments of `from_pretrained`.
    """
    encoder = model.base_model
    prefix = "" if encoder is model else f"{model.base_model_prefix}."
    own = [name for name, _ in encoder.named_children()]

    def of_encoder(names):
        bare = sorted(name.removeprefix(f"{model.base_model_prefix}.") for name in names)
        return [name for name in bare if name.split(".")[0] in own]

    missing = of_encoder(name for name in info["missing_keys"] if name.startswith(prefix))
    unknown = of_encoder(info["unexpected_keys"])
    layers = model.config.num_hidden_layers
    left_out = [name for name in unknown if name.startswith("layers.") and int(name.split(".")[1]) >= layers]
    if left_out:
        where = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
        saved, _ = model.config_class.get_config_dict(name_or_path, **{x: options[x] for x in where if x in options})
        if saved.get("num_hidden_layers", 0) > layers:
            unknown = [name for name in unknown if name not in left_out]
    if unknown or missing:
        raise OSError(f"{name_or_path} does not hold the weights of this LAM: missing {missing}, unknown {unknown}.")


def weights_checksum(path: str | os.PathLike) -> str:
    """SHA-256 over the sorted tensor names, types and shapes of a safetensors file and then its tensor bytes."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__", None)
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

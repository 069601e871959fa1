"""A trained LAM as a folder that a stranger can load: `lam export`."""

import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from ..io.atomic import atomic_file, write_text
from ..model.checks_lam import check_folder, weights_checksum
from ..model.configuration_lam import LAMConfig
from ..model.heads_lam import AUTO_MAP
from ..model.modeling_lam import LAMModel
from .tokenizer import BERT_SPECIAL, UNBOUNDED, write_tokenizer

PACKAGE = Path(__file__).resolve().parent.parent
SHIPPED_CODE = (
    "checks_lam.py",
    "configuration_lam.py",
    "delta_rule_lam.py",
    "heads_lam.py",
    "memory_lam.py",
    "modeling_lam.py",
    "packing_lam.py",
    "sentence_transformers_module.py",
    "state_lam.py",
    "streaming_lam.py",
)

# What sentence-transformers looks at before it loads a folder: the bounds of pyproject.toml, and what was tested.
REQUIREMENTS = {
    "transformers": {"specifier": ">=5.4,<6", "reason": "LAM was tested with 5.4.0, 5.23.0 and 5.24.0."},
    "sentence-transformers": {"specifier": ">=6,<7", "reason": "LAM was tested with 6.0.0 and 6.2.0."},
    "torch": {"specifier": ">=2.7", "reason": "LAM was tested with 2.13.0."},
    "huggingface-hub": {"specifier": ">=1.31,<2", "reason": "LAM was tested with 1.31.0 and 1.33.0."},
}
_SENTENCE_TRANSFORMERS: dict[str, Any] = {
    "config_sentence_transformers.json": {
        "model_type": "SentenceTransformer",
        "prompts": {"query": "", "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
        "requirements": REQUIREMENTS,
    },
}
_OWN_MODULES: dict[str, Any] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers_module.LAMTransformer"},
        {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"},
    ],
    "sentence_lam_config.json": {
        "max_seq_length": None,
        "pooling_mode": "mean",
        "token_budget": None,
        "include_prompt": True,
    },
    "1_Normalize/config.json": {},
}
_STOCK_MODULES: dict[str, Any] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ],
    "sentence_bert_config.json": {"do_lower_case": False},
    "1_Pooling/config.json": {"embedding_dimension": None, "pooling_mode": "mean", "include_prompt": True},
    "2_Normalize/config.json": {},
}


def shipped_file(name: str) -> Path:
    """Where the package keeps a file that is copied into model folders."""
    return PACKAGE / ("published" if name.endswith("_published.py") else "model") / name


def copy_code(folder: str | os.PathLike[str], names: Iterable[str] = SHIPPED_CODE) -> None:
    """Put the package's own model files into a model folder, byte for byte."""
    for name in names:
        shutil.copyfile(shipped_file(name), Path(folder) / name)


def save_tokenizer(source: str | os.PathLike[str], folder: str | os.PathLike[str], max_length: int = UNBOUNDED) -> None:
    """Save a tokenizer without fixed truncation, fixed padding or a limit of length; see `write_tokenizer`.

    Raises OSError, in one line, if there is none or its files are damaged. No code of a folder is run.
    """
    if os.path.isdir(source):
        check_folder(source)
    try:
        loaded = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # whatever a damaged tokenizer makes its readers stumble over
        reason = " ".join(str(error).split())[:300]
        raise OSError(
            f"The tokenizer of {source} cannot be loaded ({type(error).__name__}: {reason}); get its files again."
        ) from error
    special = {name: token for name in BERT_SPECIAL if (token := getattr(loaded, name)) is not None}
    write_tokenizer(loaded.backend_tokenizer, special, folder, max_length)


def save_tensors(tensors: dict[str, torch.Tensor], path: str | os.PathLike[str]) -> None:
    """Write contiguous tensors with their own SHA-256 in the metadata; the file is replaced only when complete.

    Raises OSError if it cannot be written.
    """
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
        metadata = {"format": "pt", "sha256": weights_checksum(temporary)}
        save_file(tensors, temporary, metadata=metadata)
        os.chmod(temporary, 0o644)  # safetensors makes files that only their owner may read


def save_weights(model: LAMModel, path: str | os.PathLike[str], dtype: torch.dtype) -> None:
    """Write a model's weights in `dtype`; see `save_tensors`."""
    save_tensors({name: x.detach().to(dtype).contiguous().cpu() for name, x in model.state_dict().items()}, path)


def export_model(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    dtype: torch.dtype = torch.float16,
    card: str | None = None,
    stock: bool = False,
) -> None:
    """Write a self-contained model folder: weights, configuration, tokenizer, code, sentence-transformers modules.

    Args:
        source: a LAM folder, such as the `best` of a training run; may be `folder` itself (a refresh).
        folder: where to; files of the same name are replaced, others stay.
        dtype: of the stored weights; the configuration says float32, so that they compute in float32.
        card: text of README.md; None leaves a README.md that is there.
        stock: name sentence-transformers' own modules instead of `LAMTransformer`, for places that refuse others.

    Raises:
        OSError: if `source` cannot be loaded.
        ValueError: if a weight is NaN or infinite, or does not fit `dtype`.
    """
    model = LAMModel.from_pretrained(source, dtype=torch.float32)
    if bad := [name for name, x in model.state_dict().items() if not bool(x.isfinite().all())]:
        raise ValueError(
            f"{bad[0]} of {source} holds NaN or Inf (as do {len(bad) - 1} more tensors); nothing was exported."
        )
    largest = max(float(x.abs().max()) for x in model.state_dict().values())
    if not largest < torch.finfo(dtype).max:
        raise ValueError(f"A weight of {source} is {largest}, too large for {dtype}; export with float32.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(source, folder)
    config = {
        "architectures": ["LAMModel"],
        "auto_map": AUTO_MAP,
        "model_type": model.config.model_type,
        "dtype": "float32",
        **{name: getattr(model.config, name) for name in LAMConfig.__annotations__},
    }
    write_json(folder / "config.json", config)
    write_modules(folder, model.config.hidden_size, stock=stock)
    copy_code(folder)
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
    save_weights(model, folder / "model.safetensors", dtype)


def write_modules(folder: Path, hidden_size: int, max_seq_length: int | None = None, stock: bool = False) -> None:
    """Write what sentence-transformers reads: the model, mean pooling, normalisation.

    Files of the other kind of folder are removed.

    Args:
        folder: where to.
        hidden_size: width of the embeddings.
        max_seq_length: tokens after which a text is cut; None for the tokenizer's own limit, if there is one.
        stock: sentence-transformers' own modules instead of `LAMTransformer`.
    """
    modules = _STOCK_MODULES if stock else _OWN_MODULES
    others = _OWN_MODULES if stock else _STOCK_MODULES
    for name in others.keys() - modules.keys():
        (folder / name).unlink(missing_ok=True)
        if (folder / name).parent != folder:
            with suppress(OSError):  # not there, or not ours alone
                (folder / name).parent.rmdir()
    for name, content in (_SENTENCE_TRANSFORMERS | modules).items():
        if "embedding_dimension" in content:
            content = content | {"embedding_dimension": hidden_size}
        if max_seq_length is not None and name in ("sentence_bert_config.json", "sentence_lam_config.json"):
            content = content | {"max_seq_length": max_seq_length}
        (folder / name).parent.mkdir(exist_ok=True)
        write_json(folder / name, content)


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON with a final newline."""
    write_text(path, json.dumps(content, indent=2) + "\n")

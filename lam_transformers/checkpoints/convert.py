"""Published checkpoints in, one LAM folder out: `lam convert`."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from ..io.atomic import atomic_folder
from ..model.checks_lam import check_regular
from ..published.configuration_lam_published import LAMPublishedConfig
from .dedup import Account, account_report, take_account
from .export import copy_code, export_model, save_tensors, save_tokenizer, write_json, write_modules
from .init import lam_from_bert, parse_gate
from .layout import check_complete, config_of, has_memory, is_bert
from .pickles import Checkpoint, read_checkpoint
from .report import published_card, successor_card
from .successor import start_successor
from .tokenizer import BERT_SPECIAL, has_tokenizer, read_tokenizer, write_tokenizer

PUBLISHED_CODE = ("checks_lam_published.py", "configuration_lam_published.py", "modeling_lam_published.py")
REPORT = "conversion.json"
PAIR = ("lam_tweak.pt", "lam_base.bin")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".safetensors")
# Tokens after which the published evaluation cut its texts.
LONGEST = {"one file": 512, "two files": 128}
TARGETS = ("published", "gated_delta")


def convert(
    sources: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    to: str = "published",
    rule: str | None = None,
    gate: str | None = None,
    drop: Iterable[str] = (),
) -> dict[str, Any]:
    """Convert a published checkpoint, or start a LAM from a plain MiniLM folder.

    Args:
        sources: one file or folder, or the two files of a pair in any order.
        out: the folder to write; it must not exist. It appears complete or not at all.
        base: folder, file or Hub id of the model that a training checkpoint was started from.
        tokenizer: folder, file or Hub id, where the source has no tokenizer beside it.
        to: "published" reproduces the checkpoint's embeddings, "gated_delta" starts a LAM from it.
        rule: "flat" or "main" in place of the rule of the checkpoint's layout.
        gate: output gate of a LAM started here, "full", "none" or a rank; by default full from a published checkpoint,
            which has such a gate, and 32 from a MiniLM.
        drop: beginnings of names of unknown tensors to leave out.

    Returns:
        the report, a dictionary for JSON; `out`/conversion.json holds the same.

    Raises:
        OSError: if a file is missing or damaged, or `out` cannot be written.
        ValueError: if a file is refused, incomplete or contradicts itself; nothing is written then.
    """
    if to not in TARGETS:
        raise ValueError(f"--to must be one of {', '.join(TARGETS)}, got '{to}'.")
    if rule not in (None, "flat", "main"):
        raise ValueError(f"--rule must be flat or main, got '{rule}'.")
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists; choose a new folder.")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent} does not exist; make it first.")
    files = [file for source in sources for file in find_weights(Path(source))]
    if base is not None:
        files += find_weights(find_base(base))
    checkpoints = [read_checkpoint(file) for file in files]
    if len(checkpoints) == 1 and is_bert(checkpoints[0].tensors):
        return _start_from_bert(Path(sources[0]), checkpoints[0], out, tokenizer, gate)
    checkpoints = _in_order(checkpoints)
    account = take_account(checkpoints, drop)
    config = config_of(account.tensors, rule)
    check_complete(account.tensors, {entry.place.role: entry.name for entry in account.kept}, config)
    names = [name for checkpoint in checkpoints for name in checkpoint.tensors]
    kind = "one file" if any(name.startswith("teacher_model.") for name in names) else "two files"
    report = _describe(checkpoints, kind, config, account)
    where = tokenizer if tokenizer is not None else tokenizer_beside(checkpoints)
    with atomic_folder(out) as folder:
        length = min(LONGEST[kind], config.max_position_embeddings)
        _write_tokenizer(where, folder, config.vocab_size, length if to == "published" else None)
        if to == "published":
            _write_published(folder, account, config, length, report, out.name)
        else:
            _write_successor(folder, account, config, gate or "full", report, out.name)
    return report


def find_weights(source: Path) -> list[Path]:
    """The file or files to read for a file or folder; FileNotFoundError or ValueError if that is not clear."""
    if not source.is_dir():
        check_regular(source)
        return [source]
    if all((source / name).is_file() for name in PAIR):
        return [source / name for name in PAIR]
    for name in WEIGHTS:
        if (source / name).is_file():
            return [source / name]
    files = sorted(path for path in source.iterdir() if path.suffix in ENDINGS and path.is_file())
    if len(files) != 1:
        names = ", ".join(file.name for file in files)
        what = f"holds several checkpoints: {names}" if files else "holds no checkpoint"
        raise ValueError(f"{source} {what}; name the file to convert.")
    return files


def find_base(base: str | os.PathLike[str]) -> Path:
    """A base model's file or folder, or the weights of a Hub repository."""
    if Path(base).exists():
        return Path(base)
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(str(base), WEIGHTS[0]))


def tokenizer_beside(checkpoints: Sequence[Checkpoint]) -> Path:
    """The folder of the first file that has tokenizer files beside it."""
    folders = [checkpoint.path.resolve().parent for checkpoint in checkpoints]
    for folder in folders:
        if has_tokenizer(folder):
            return folder
    raise FileNotFoundError(
        f"{folders[0]} has no tokenizer.json and no vocab.txt; give one with --tokenizer (a folder, a file, or "
        "all-MiniLM-L6-v2)."
    )


def _in_order(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    """The trained file, then its base if there is one."""
    trained = [x for x in checkpoints if has_memory(x.tensors)]
    bases = [x for x in checkpoints if not has_memory(x.tensors)]
    names = ", ".join(str(x.path) for x in checkpoints)
    if any(".memory.in_proj." in name or ".memory.o_norm." in name for x in checkpoints for name in x.tensors):
        raise ValueError(f"{names} is a LAM folder's already; there is nothing to convert.")
    if len(trained) != 1 or len(bases) > 1:
        raise ValueError(
            f"Expected one checkpoint with memory layers (deltanet_layers or lam_layers) and at most one base model, "
            f"got {len(trained)} and {len(bases)}: {names}."
        )
    return trained + bases


def _describe(
    checkpoints: Sequence[Checkpoint], kind: str, config: LAMPublishedConfig, account: Account
) -> dict[str, Any]:
    return {
        "sources": [{**_describe_file(checkpoint), "notes": checkpoint.notes} for checkpoint in checkpoints],
        "kind": kind,
        "layout": config.layout,
        "rule": config.rule,
        "geometry": _geometry(config),
        **account_report(account),
    }


def _describe_file(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "file": checkpoint.path.name,
        "sha256": checkpoint.sha256(),
        "bytes": checkpoint.path.stat().st_size,
        "format": checkpoint.format,
    }


def _geometry(config: LAMPublishedConfig) -> dict[str, int]:
    names = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
    )
    return {name: getattr(config, name) for name in names}


def _write_tokenizer(source: str | os.PathLike[str], folder: Path, vocab_size: int, max_length: int | None) -> None:
    backend = read_tokenizer(source)
    if (pieces := backend.get_vocab_size()) > vocab_size:
        raise ValueError(
            f"The tokenizer of {source} has {pieces:,} pieces, the model knows {vocab_size:,}; give another."
        )
    special = {name: token for name, token in BERT_SPECIAL.items() if backend.token_to_id(token) is not None}
    limit = {} if max_length is None else {"max_length": max_length}
    write_tokenizer(backend, special, folder, **limit)


def _write_published(
    folder: Path, account: Account, config: LAMPublishedConfig, length: int, report: dict[str, Any], name: str
) -> None:
    auto_map = {
        "AutoConfig": "configuration_lam_published.LAMPublishedConfig",
        "AutoModel": "modeling_lam_published.LAMPublishedModel",
    }
    fields = {field: getattr(config, field) for field in LAMPublishedConfig.__annotations__}
    kind = {"model_type": config.model_type, "dtype": "float32"}
    write_json(folder / "config.json", {"architectures": ["LAMPublishedModel"], "auto_map": auto_map, **kind, **fields})
    write_modules(folder, config.hidden_size, length, stock=True)
    copy_code(folder, PUBLISHED_CODE)
    weights = folder / "model.safetensors"
    save_tensors(_separate(account.tensors), weights)
    report["to"] = "published"
    report["bytes"]["model.safetensors"] = weights.stat().st_size
    (folder / "README.md").write_text(published_card(name, report, length), encoding="utf-8")
    write_json(folder / REPORT, report)


def _separate(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous tensors of which no two share a storage: the file format refuses that."""
    seen: set[int] = set()
    result = {}
    for role, x in tensors.items():
        shared = x.untyped_storage().data_ptr() in seen
        seen.add(x.untyped_storage().data_ptr())
        result[role] = x.contiguous().clone() if shared else x.contiguous()
    return result


def _write_successor(
    folder: Path, account: Account, config: LAMPublishedConfig, gate: str, report: dict[str, Any], name: str
) -> None:
    model, mapping = start_successor(account.tensors, config, parse_gate(gate))
    model.save_pretrained(folder)
    report |= {"to": "gated_delta", "mapping": mapping, "needs_distillation": True}
    export_model(folder, folder, torch.float32, successor_card(name, report))
    report["bytes"]["model.safetensors"] = (folder / "model.safetensors").stat().st_size
    write_json(folder / REPORT, report)


def _start_from_bert(
    source: Path,
    checkpoint: Checkpoint,
    out: Path,
    tokenizer: str | os.PathLike[str] | None,
    gate: str | None,
) -> dict[str, Any]:
    if not source.is_dir() or not (source / "config.json").is_file():
        raise ValueError(
            f"{source} is a BERT's weights alone; give the folder with its config.json, as lam init wants it."
        )
    take_account([checkpoint])  # for its checks
    _check_bert(source, checkpoint)
    model = lam_from_bert(source, output_gate_rank=parse_gate(gate or "32"))
    with atomic_folder(out) as folder:
        model.save_pretrained(folder)
        save_tokenizer(source if tokenizer is None else tokenizer, folder)
        export_model(folder, folder, torch.float32)
    return {
        "sources": [{**_describe_file(checkpoint), "notes": {}}],
        "kind": "BERT",
        "to": "gated_delta",
        "parameters": model.num_parameters(),
        "needs_distillation": True,
    }


def _check_bert(source: Path, checkpoint: Checkpoint) -> None:
    """Raise ValueError unless transformers finds every weight: it would make up what is missing without an error."""
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        bert = AutoModel.from_config(config, trust_remote_code=False)
    expected = {name: x.shape for name, x in bert.state_dict().items() if not name.startswith("pooler.")}
    got = {name: x.shape for name, x in checkpoint.tensors.items()}
    wrong = sorted(name for name, shape in expected.items() if got.get(name) != shape)
    if checkpoint.wrapped or wrong:
        what = "are wrapped"
        if wrong:
            what = f"have {len(wrong)} tensors that do not fit its config.json, such as {wrong[0]}"
        raise ValueError(f"The weights of {source} {what}; a LAM can only start from a plain and complete BERT folder.")

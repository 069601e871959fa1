"""What a checkpoint is, what is in it and whether it loads: `lam inspect`."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from ..io.terminal import one_line, printable
from ..model.checks_lam import read_json, weights_checksum
from .convert import find_weights
from .dedup import account_report, take_account
from .layout import check_complete, config_of, has_memory, is_bert, place_of
from .pickles import Checkpoint, read_checkpoint


def inspect(source: str | Path) -> dict[str, Any]:
    """Read a checkpoint, memory-mapped, and describe it.

    Args:
        source: file or folder.

    Returns:
        a dictionary for JSON: "what", "files", "entries", "tensors", "distinct_storages", "dtypes", "components" (name
        -> tensors, entries, bytes), "duplicates" (pair by pair), "loads" and, where it does not, "reason".

    Raises:
        OSError: if a file is missing or damaged.
        ValueError: if a file is refused.
    """
    source = Path(source)
    checkpoints = [read_checkpoint(file) for file in find_weights(source)]
    inspection = _contents(checkpoints)
    names = list(inspection.pop("names"))
    folder = source if source.is_dir() else source.parent
    if any(name.startswith("layers.0.memory.") for name in names):
        inspection |= _lam_folder(folder, checkpoints[0])
    elif has_memory(names):
        inspection |= _published(checkpoints)
    elif is_bert(names):
        inspection |= {"what": "a BERT; lam convert or lam init starts a LAM from it", "loads": True, "duplicates": []}
    else:
        inspection |= {
            "what": "nothing that LAM knows",
            "loads": False,
            "reason": "no memory layers and no BERT layers",
        }
    return inspection


def _contents(checkpoints: list[Checkpoint]) -> dict[str, Any]:
    components: dict[str, Counter[str]] = {}
    dtypes: Counter[str] = Counter()
    storages: set[int] = set()
    names: list[str] = []
    for checkpoint in checkpoints:
        for name, x in checkpoint.tensors.items():
            names.append(name)
            dtypes[str(x.dtype).removeprefix("torch.")] += x.numel()
            storages.add(x.untyped_storage().data_ptr())
            row = components.setdefault(_component(name), Counter())
            row.update(tensors=1, entries=x.numel(), bytes=x.numel() * x.element_size())
    return {
        "files": [
            {"file": x.path.name, "bytes": x.path.stat().st_size, "format": x.format, "notes": x.notes}
            for x in checkpoints
        ],
        "names": names,
        "tensors": len(names),
        "distinct_storages": len(storages),
        "entries": sum(dtypes.values()),
        "dtypes": dict(dtypes),
        "components": {name: dict(row) for name, row in components.items()},
        "duplicates": [],
    }


def _component(name: str) -> str:
    """The line of the table that a tensor belongs to."""
    if place := place_of(name):
        return f"{name.split('.')[0]}: {place.part}"
    parts = name.split(".")
    return ".".join(parts[2:3]) if parts[0] == "layers" and len(parts) > 3 else parts[0]


def _published(checkpoints: list[Checkpoint]) -> dict[str, Any]:
    checkpoints = sorted(checkpoints, key=lambda x: not has_memory(x.tensors))
    inspection: dict[str, Any] = {"what": "a published LAM checkpoint", "loads": True}
    try:
        account = take_account(checkpoints)
        report = account_report(account)
        inspection |= {name: report[name] for name in ("duplicates", "kept", "unused")}
        config = config_of(account.tensors)
        inspection["what"] += (
            f", layout {config.layout} ({config.num_hidden_layers} layers of width {config.hidden_size})"
        )
        check_complete(account.tensors, {entry.place.role: entry.name for entry in account.kept}, config)
    except ValueError as error:
        inspection |= {"loads": False, "reason": str(error)}
    return inspection


def _lam_folder(folder: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """A folder written by this package: the weights must be those of the model that config.json describes."""
    from ..model.configuration_lam import LAMConfig
    from ..model.modeling_lam import LAMModel
    from ..published.configuration_lam_published import LAMPublishedConfig
    from ..published.modeling_lam_published import LAMPublishedModel

    kinds: dict[str, tuple[Any, Any]] = {
        "lam": (LAMConfig, LAMModel),
        "lam_published": (LAMPublishedConfig, LAMPublishedModel),
    }
    published = any(name.endswith("memory.o_norm.gate") for name in checkpoint.tensors)
    inspection: dict[str, Any] = {"what": "a converted published checkpoint" if published else "a LAM", "loads": True}
    try:
        settings = read_json(folder / "config.json")
        if (kind := settings.get("model_type")) not in kinds:
            raise ValueError(f"config.json says that it is of type {kind!r}, not {' or '.join(kinds)}.")
        config_class, model_class = kinds[kind]
        config = config_class.from_dict(settings)
        _check_layers(config, checkpoint.tensors)
        with torch.device("meta"):
            model = model_class(config)
        expected = {name: tuple(x.shape) for name, x in model.state_dict().items()}
        got = {name: tuple(x.shape) for name, x in checkpoint.tensors.items()}
        if wrong := sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name)):
            raise ValueError(f"{len(wrong)} tensors do not fit config.json, such as {', '.join(wrong[:4])}.")
        if bad := [name for name, x in checkpoint.tensors.items() if not x.is_floating_point()]:
            raise ValueError(f"{bad[0]} holds {checkpoint.tensors[bad[0]].dtype}, expected floating-point numbers.")
        if bad := [name for name, x in checkpoint.tensors.items() if not bool(x.isfinite().all())]:
            raise ValueError(f"{bad[0]} holds NaN or Inf.")
        _check_checksum(checkpoint.path)
    except (OSError, ValueError, RuntimeError) as error:
        inspection |= {"loads": False, "reason": str(error)}
    return inspection


def _check_layers(config: PretrainedConfig, names: Iterable[str]) -> None:
    """Raise ValueError unless there are as many layers as the configuration says: that many will be built."""
    layers = {int(match[1]) for name in names if (match := re.match(r"layers\.(\d{1,9})\.", name))}
    if max(layers, default=-1) + 1 != config.num_hidden_layers:
        raise ValueError(
            f"config.json says num_hidden_layers is {config.num_hidden_layers}, the weights have {max(layers) + 1}."
        )


def _check_checksum(path: Path) -> None:
    if path.suffix != ".safetensors":
        return
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        expected = (file.metadata() or {}).get("sha256")
    if expected is not None and weights_checksum(path) != expected:
        raise ValueError(f"{path} does not match its own SHA-256; it was changed or damaged.")


def format_inspection(inspection: dict[str, Any]) -> str:
    """The result of `inspect` as lines of text."""
    lines = []
    for file in inspection["files"]:
        notes = "".join(f"  {printable(name)} {printable(value)[:200]}" for name, value in file["notes"].items())
        lines.append(f"{file['file']}  {file['bytes']:,} bytes  {file['format']}{notes}")
    lines.append(inspection["what"])
    dtypes = ", ".join(f"{count:,} {name}" for name, count in inspection["dtypes"].items())
    lines.append(
        f"{inspection['tensors']} tensors, {inspection['distinct_storages']} distinct storages, "
        f"{inspection['entries']:,} entries: {dtypes}"
    )
    lines += [
        f"  {row['entries']:>12,}  {row['bytes']:>13,} bytes  {printable(name)} ({row['tensors']} tensors)"
        for name, row in inspection["components"].items()
    ]
    if pairs := inspection["duplicates"]:
        entries = sum(pair["entries"] for pair in pairs)
        lines.append(f"{len(pairs)} duplicates, {entries:,} entries")
        lines += [
            f"  {x['entries']:>12,}  {printable(x['dropped'])} = {printable(x['kept'])} ({x['how']})" for x in pairs
        ]
    lines.append("loads: yes" if inspection["loads"] else f"loads: no. {one_line(inspection['reason'])}")
    return "\n".join(lines)

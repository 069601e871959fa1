"""Checkpoint files as names and tensors, memory-mapped, without running anything that is in them."""

import hashlib
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ..model.checks_lam import check_regular

# Names under which people wrap a state dict; what is inside counts as if it were at the top.
WRAPPERS = ("model_state_dict", "state_dict", "model")
# A header of 16 MB describes about a hundred thousand tensors.
LARGEST_HEADER = 16 << 20
MOST_ITEMS = 200_000
DEEPEST = 12
# The pickle of a zip archive holds names and shapes only; that of the published file has 40 kB.
LARGEST_PICKLE = 64 << 20

_scalar = np.float64(0).__reduce__()[0]  # the function that NumPy pickles a scalar with
# Training writes its scores as NumPy numbers. NumPy 1 and 2 pickle the function under two names.
ALLOWED: list[Any] = [
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float64)),
]


@dataclass
class Checkpoint:
    """One file.

    Attributes:
        path: the file.
        format: "safetensors", "torch" (a zip archive) or "torch, legacy".
        tensors: name -> tensor, on the CPU, mapped from the file where its format allows that. Names of nested
            dictionaries are joined by dots.
        notes: the numbers and words beside the tensors, such as a step and its scores.
        wrapped: whether the state dict was inside another dictionary.
    """

    path: Path
    format: str
    tensors: dict[str, torch.Tensor]
    notes: dict[str, int | float | str]
    wrapped: bool = False

    def sha256(self) -> str:
        """Of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a .safetensors file or a file of torch.save (by what it holds, whatever its name).

    Raises:
        OSError: if the file is missing, cut short, damaged, or a pipe.
        ValueError: if a pickle asks for any object but tensors, plain containers and NumPy's float64 scalars; the
            object is named, and nothing of it was executed. Or if an archive is compressed, which torch.save never
            does: a small file could become a huge one.
    """
    path = Path(path)
    check_regular(path)
    with path.open("rb") as file:
        start = file.read(9)
    if path.suffix == ".safetensors" or start[8:] == b"{":
        return Checkpoint(path, "safetensors", *_read_safetensors(path))
    zipped = start.startswith(b"PK\x03\x04")
    if zipped:
        _check_archive(path)
    content = _read_pickle(path, zipped)
    values = list(_walk("", content, 0))
    tensors: dict[str, torch.Tensor] = {}
    notes: dict[str, int | float | str] = {}
    for name, value in values:
        if name in tensors or (name in notes and torch.is_tensor(value)):
            raise ValueError(f"{path} holds {name} twice, in different wrappings; remove one of them.")
        if torch.is_tensor(value):
            _check_tensor(path, name, value)
            tensors[name] = value
        elif "." not in name:
            notes[name] = float(value) if isinstance(value, float) else value
    wrapped = isinstance(content, dict) and any(isinstance(content.get(name), dict) for name in WRAPPERS)
    return Checkpoint(path, "torch" if zipped else "torch, legacy", tensors, notes, wrapped)


def check_header(path: str | Path) -> None:
    """Raise OSError unless the header of a safetensors file has a believable size: before anything trusts it."""
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if size < 10 or length > size - 8 or length > LARGEST_HEADER:
        raise OSError(
            f"{path} is damaged: its header claims {length:,} bytes, the file has {size:,} and a header at most "
            f"{LARGEST_HEADER:,}; get the file again."
        )


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, int | float | str]]:
    check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, {}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise OSError(f"{path} is damaged or no safetensors file ({error}); get the file again.") from error


def _check_archive(path: Path) -> None:
    """Raise ValueError or OSError unless the entries of a zip archive are stored as they are and fit into the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise OSError(f"{path} is damaged, cut short or no checkpoint ({error}); get the file again.") from error
    size = path.stat().st_size
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(
                f"{path}: its entry {entry.filename!r} is compressed ({entry.compress_size:,} bytes become "
                f"{entry.file_size:,}), which torch.save never does. It was refused before anything was unpacked."
            )
        if entry.file_size > size or (entry.filename.endswith("data.pkl") and entry.file_size > LARGEST_PICKLE):
            raise ValueError(
                f"{path}: its entry {entry.filename!r} claims {entry.file_size:,} bytes, more than there can be (the "
                f"file has {size:,}, a pickle at most {LARGEST_PICKLE:,})."
            )
    if len(entries) > MOST_ITEMS or sum(entry.file_size for entry in entries) > size:
        raise ValueError(f"{path}: its {len(entries):,} entries claim more bytes than the file has; they overlap.")


def _read_pickle(path: Path, zipped: bool) -> Any:
    try:
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    # Whatever bytes a broken file has, torch's readers stumble over them in as many ways. Their own message, which
    # advises to load without safeguards, is shown nowhere, nor chained to ours.
    except Exception as error:
        asked = re.search(r"GLOBAL (\S+)|whose module (\S+) is blocked", str(error))
        kind = type(error).__name__
        reason = _reason(error)
    if asked:
        raise ValueError(
            f"{path} asks for {asked[1] or asked[2]}, which is no tensor, number or plain container. It was refused "
            "and nothing of it was executed. Have its owner save the state dict alone."
        )
    raise OSError(f"{path} is damaged, cut short or no checkpoint of tensors ({kind}{reason}); get the file again.")


def _reason(error: Exception) -> str:
    """What an error of torch's readers says, ": " before it, without advice."""
    text = str(error).rsplit("WeightsUnpickler error:", 1)[-1].strip()
    line = next(iter(text.splitlines()), "")
    return "" if not line or "weights_only" in line or "torch.load" in line else f": {line[:200]}"


def _walk(prefix: str, value: Any, depth: int, seen: list[int] | None = None) -> Iterator[tuple[str, Any]]:
    """(name, tensor, number or string) of everything in nested containers; both depth and number are bounded."""
    seen = [0] if seen is None else seen
    seen[0] += 1
    if depth > DEEPEST or seen[0] > MOST_ITEMS:
        raise ValueError(f"The file nests more than {DEEPEST} containers or holds over {MOST_ITEMS:,} values.")
    if isinstance(value, dict):
        for key, item in value.items():
            unwrapped = depth == 0 and key in WRAPPERS and isinstance(item, dict)
            yield from _walk("" if unwrapped else f"{prefix}.{key}" if prefix else str(key), item, depth + 1, seen)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _walk(f"{prefix}.{i}", item, depth + 1, seen)
    elif torch.is_tensor(value) or isinstance(value, int | float | str):
        yield prefix, value


def _check_tensor(path: Path, name: str, x: torch.Tensor) -> None:
    """Raise ValueError unless x is a plain tensor that has as many values as it claims."""
    if x.layout != torch.strided or x.device.type != "cpu" or x.is_quantized or x.is_complex():
        kind = f"{x.layout}, {x.dtype}, {x.device}"
        raise ValueError(f"{path}: {name} is no plain tensor ({kind}); save it dense, on the CPU, in a float type.")
    if x.numel() * x.element_size() > x.untyped_storage().nbytes():
        raise ValueError(f"{path}: {name} claims {list(x.shape)} values, more than the file stores for it.")

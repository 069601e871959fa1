"""Checkpoint files as names and tensors, memory-mapped, without running anything that stands in them."""

import hashlib
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

# Names under which people wrap a state dict; what is inside counts as if it stood at the top.
WRAPPERS = ("model_state_dict", "state_dict", "model")
# A header of 16 MB describes about a hundred thousand tensors.
LARGEST_HEADER = 16 << 20
MOST_ITEMS, DEEPEST = 200_000, 12

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
        notes: the numbers and words that stand beside the tensors, such as a step and its scores.
        wrapped: whether a state dict stood in another dictionary.
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
        OSError: if the file is missing, cut short or damaged.
        ValueError: if a pickle asks for any object but tensors, plain containers and NumPy's float64 scalars; the
            object is named, and nothing of it was executed.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(9)
    if path.suffix == ".safetensors" or start[8:] == b"{":
        return Checkpoint(path, "safetensors", *_read_safetensors(path))
    zipped = start.startswith(b"PK\x03\x04")
    content = _read_pickle(path, zipped)
    found = list(_walk("", content, 0))
    tensors: dict[str, torch.Tensor] = {}
    notes: dict[str, int | float | str] = {}
    for name, value in found:
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


def _read_pickle(path: Path, zipped: bool) -> Any:
    try:
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    # Whatever bytes a broken file has, torch's readers stumble over them in as many ways.
    except Exception as error:
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} asks for {found[1]}, which is no tensor, number or plain container. It was refused and "
                "nothing of it was executed. Have its owner save the state dict alone."
            ) from error
        if isinstance(error, pickle.UnpicklingError) and "allow" in str(error):
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(f"{path} holds more than tensors and was refused: {reason}") from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OSError(f"{path} is damaged, cut short or no checkpoint ({reason[:200]}); get the file again.") from error


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

# Copyright 2026 The LAM authors. Licensed under the Apache License, Version 2.0.
"""LAMState: what LAM carries from one segment of a text to the next."""

from __future__ import annotations

import functools
import hashlib
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

if TYPE_CHECKING:
    from .configuration_lam import LAMConfig
    from .modeling_lam import LAMModel

MOST = 1 << 53  # tokens that a text can have: far above every real one, far below what int64 holds
SAMPLE = 4  # numbers of each parameter that enter a fingerprint
EVERY = 1 << 16  # numbers of a parameter for which one more enters it


class LAMState:
    """What LAM remembers of the texts read so far; its size does not depend on their length.

    Attributes:
        memory: one tensor [B, H, 2, K, V] a layer, float32 or float64: the fast and the slow memory of each head, in
            mode space.
        conv: one tensor [B, conv_kernel - 1, 3 D] a layer: the last inputs of the convolution.
        seen: [B] int64, the number of real tokens each row has read.
        fingerprint: identifies the weights that wrote the state; another model refuses it.
    """

    def __init__(
        self, memory: Iterable[torch.Tensor], conv: Iterable[torch.Tensor], seen: torch.Tensor, fingerprint: str
    ) -> None:
        self.memory = list(memory)
        self.conv = list(conv)
        self.seen = seen
        self.fingerprint = fingerprint

    @property
    def batch_size(self) -> int:
        """The number of texts."""
        return len(self.seen)

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> LAMState:
        memory = [change(x) for x in self.memory]
        conv = [change(x) for x in self.conv]
        return LAMState(memory, conv, change(self.seen), self.fingerprint)

    def to(self, device: torch.device | str | int) -> LAMState:
        """A copy on another device."""
        return self._map(lambda x: x.to(device))

    def clone(self) -> LAMState:
        """A copy that shares no memory with this state."""
        return self._map(torch.clone)

    def detach(self) -> LAMState:
        """The same state, cut off from the gradient of what was read so far."""
        return self._map(torch.Tensor.detach)

    def select(self, rows: Sequence[int] | torch.Tensor) -> LAMState:
        """A copy of the given batch rows, in that order. rows: list or 1-d tensor of integers."""
        return self._map(lambda x: x[torch.as_tensor(rows, dtype=torch.long, device=x.device)])

    def copy(self) -> LAMState:
        """A state of the same tensors: reading on from it leaves this one as it is."""
        return self._map(lambda x: x)

    def become(self, other: LAMState) -> None:
        """Take over all of another state, in one step: no exception or signal leaves half of it."""
        vars(self).update(vars(other))

    def reset(self, rows: Sequence[int] | torch.Tensor | None = None) -> None:
        """Forget everything, in all batch rows or in the given ones."""
        device = self.seen.device
        chosen = slice(None) if rows is None else torch.as_tensor(rows, dtype=torch.long, device=device)

        def cleared(x: torch.Tensor) -> torch.Tensor:
            x = x.clone()
            x[chosen] = 0
            return x

        self.become(self._map(cleared))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a safetensors file with its own SHA-256; replaced only when the new one is complete."""
        tensors = {"memory": torch.stack(self.memory), "conv": torch.stack(self.conv), "seen": self.seen}
        save_tensors(tensors, path, "lam_state", self.fingerprint)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str | int = "cpu") -> LAMState:
        """Read a state written by `save`. Raises ValueError if the file is damaged or is no LAM state."""
        tensors, fingerprint = load_tensors(path, "lam_state", "LAMState")
        if {name: x.ndim for name, x in tensors.items()} != {"memory": 6, "conv": 4, "seen": 1}:
            raise ValueError(f"{path} is a safetensors file but not a saved LAMState.")
        state = cls(tensors["memory"], tensors["conv"], tensors["seen"], fingerprint)
        if reason := state.damage():
            raise ValueError(f"{path} is damaged and cannot be read as a LAMState: {reason}.")
        return state.to(device)

    def damage(self, device: torch.device | None = None) -> str | None:
        """What is wrong with the types, places or numbers of this state, or None. device: where all of it should be."""
        if len(self.memory) != len(self.conv):
            return f"it has {len(self.memory)} memories and {len(self.conv)} convolutions"
        memory = [(f"memory of layer {i}", x) for i, x in enumerate(self.memory)]
        conv = [(f"conv of layer {i}", x) for i, x in enumerate(self.conv)]
        wrong = [(what, x) for what, x in memory if x.dtype not in (torch.float32, torch.float64)]
        wrong += [(what, x) for what, x in conv if not x.is_floating_point()]
        wrong += [] if self.seen.dtype == torch.int64 and self.seen.ndim == 1 else [("seen", self.seen)]
        if wrong:
            what, x = wrong[0]
            return f"{what} is {x.dtype} {list(x.shape)}"
        for what, x in [*memory, *conv, ("seen", self.seen)]:
            if x.ndim == 0 or len(x) != len(self.seen):
                return f"{what} is {list(x.shape)}, it has {len(self.seen)} texts"
            if device is not None and x.device != device:
                return f"{what} is on {x.device}, not on {device}; use LAMState.to"
            # The sum is finite if all are; only one that is not needs a second look.
            if x is not self.seen and not x.detach().sum().isfinite() and not x.detach().isfinite().all():
                return f"{what} holds NaN or infinity"
        if self.seen.numel() and not (int(self.seen.min()) >= 0 and int(self.seen.max()) <= MOST):
            return f"seen is {int(self.seen.min())} to {int(self.seen.max())}, no number of tokens"
        return None


def save_tensors(tensors: dict[str, torch.Tensor], path: str | os.PathLike[str], kind: str, about: str) -> None:
    """Write tensors, `about` (under the name `kind`) and the SHA-256 of both as a safetensors file.

    The file is replaced only when the new one is complete and on the disk; whoever else writes to the same path at the
    same time has a temporary file of its own.
    """
    tensors = {name: x.detach().contiguous().cpu() for name, x in tensors.items()}
    data = save(tensors, {kind: about, "sha256": checksum(tensors, about)})
    temporary = f"{os.fspath(path)}.{os.getpid()}-{uuid.uuid4().hex[:12]}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise


def load_tensors(path: str | os.PathLike[str], kind: str, name: str) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors and `about` of a file of `save_tensors`, or of one that LAM 0.1 wrote without a SHA-256.

    Raises ValueError, calling it a damaged `name` or none at all.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} is no file and cannot be read as a {name}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged and cannot be read as a {name}: {error}") from error
    if kind not in metadata:
        raise ValueError(f"{path} is a safetensors file but not a saved {name}.")
    about = metadata[kind]
    # Another name in the metadata is a damaged "sha256".
    if metadata.keys() - {kind} and metadata.get("sha256") != checksum(tensors, about):
        raise ValueError(f"{path} is damaged and cannot be read as a {name}: it does not match its own SHA-256.")
    return tensors, about


def checksum(tensors: dict[str, torch.Tensor], about: str) -> str:
    """SHA-256 of a text and of the names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256(repr(about).encode())
    for name, x in sorted(tensors.items()):
        digest.update(f"{name} {x.dtype} {list(x.shape)} ".encode())
        digest.update(x.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def fingerprint_of(model: torch.nn.Module) -> str:
    """Identifies the weights of a model by some numbers of every parameter: 32 hexadecimal digits."""
    samples: dict[torch.device, list[torch.Tensor]] = {}
    for p in _parameters(model, []):
        for x in _samples(p):
            samples.setdefault(x.device, []).append(x)
    digest = hashlib.sha256()
    for device, parts in samples.items():
        if device.type != "meta":  # weights that are kept elsewhere until a layer runs
            digest.update(torch.cat(parts).cpu().double().numpy().data)
    return digest.hexdigest()[:32]


def _parameters(module: torch.nn.Module, known: list[torch.Tensor]) -> list[torch.Tensor]:
    """`known` and the parameters of a module; `Module.parameters` takes three times as long."""
    known += [p for p in module._parameters.values() if p is not None]
    for child in module._modules.values():
        if child is not None:
            _parameters(child, known)
    return known


def _samples(x: torch.Tensor) -> list[torch.Tensor]:
    """Some numbers of a parameter, spread over it; of the tensors inside, where it is quantised or shared out."""
    if type(x) not in (torch.Tensor, torch.nn.Parameter) and hasattr(x, "__tensor_flatten__"):
        return [part for name in x.__tensor_flatten__()[0] for part in _samples(getattr(x, name))]
    sample = (x if x.is_contiguous() else x.contiguous()).as_strided(*_places(x.numel()))
    return [sample if x.element_size() > 1 else sample.float()]  # float8 does not go with others into one tensor


@functools.cache
def _places(count: int) -> tuple[tuple[int], tuple[int]]:
    """Size and stride of a sample of `count` numbers; an odd stride does not stay in one column of a matrix."""
    size = SAMPLE + count // EVERY
    return (min(size, count),), (max(count // size - 1, 0) | 1,)


@torch.no_grad()
def _old_fingerprint(model: LAMModel) -> str:
    """What LAM 0.1 identified the weights by, for the states and sessions that it saved: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for layer in model.layers:
        memory: Any = layer.memory
        norm: Any = layer.memory_norm
        first = memory.in_proj.weight.dequantize()[:, 0]  # a quantised weight has no columns
        for x in (first, memory.decay_bias, memory.norm_weight, norm.weight):
            digest.update(x.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def wrote(model: LAMModel, fingerprint: str) -> bool:
    """Whether a state of this fingerprint was written by the weights of this model."""
    return fingerprint == (_old_fingerprint(model) if len(fingerprint) == 16 else model.fingerprint())


def device_of(model: LAMModel) -> torch.device:
    """Where a model computes: where its embeddings are or, with accelerate's offloading, where they will be taken."""
    words = model.embeddings.word_embeddings
    hook = getattr(words, "_hf_hook", None)
    device = getattr(hook, "execution_device", None) if words.weight.device.type == "meta" else None
    return words.weight.device if device is None else torch.device(device)


def state_shapes(config: LAMConfig, batch: int) -> dict[str, tuple[int, ...]]:
    """Shapes of one layer's tensors in the state of `batch` texts."""
    heads = config.num_attention_heads
    width = config.head_size
    return {
        "memory": (batch, heads, 2, width, width),
        "conv": (batch, config.conv_kernel - 1, 3 * config.hidden_size),
    }


def one_state(**given: LAMState | None) -> LAMState | None:
    """The one state among its names, or None. Raises ValueError if several are given."""
    names = [name for name, state in given.items() if state is not None]
    if len(names) > 1:
        raise ValueError(f"{' and '.join(names)} are names of the same state; give it once, as {names[0]}.")
    return given[names[0]] if names else None


def check_place(model: LAMModel, state: LAMState) -> None:
    """Raise ValueError unless the next token of each text begins a chunk of two-way reading, where the model has it."""
    chunk = model.config.two_way_chunk
    if chunk and not torch.compiler.is_compiling() and bool((state.seen % chunk != 0).any()):
        raise ValueError(
            f"cache has seen {state.seen.tolist()[:8]} tokens; a model that reads two ways goes on from multiples of "
            f"{chunk} only (two_way_chunk): cut the text there, or use LAMSession, which keeps the open chunk."
        )


def check_state(model: LAMModel, state: LAMState, batch: int) -> None:
    """Raise ValueError unless `state` is whole and belongs to these weights and to a batch of this size."""
    if not hasattr(state, "fingerprint"):
        raise ValueError(f"cache must be a LAMState (model.new_state), got {type(state).__name__}.")
    if state.batch_size != batch:
        raise ValueError(f"cache holds {state.batch_size} texts, the batch {batch}; use LAMState.select.")
    layers = model.config.num_hidden_layers
    for name, shape in state_shapes(model.config, batch).items():
        got = getattr(state, name)
        wrong = [i for i, x in enumerate(got) if tuple(x.shape) != shape]
        if wrong or len(got) != layers:
            instead = f"that of layer {wrong[0]} {list(got[wrong[0]].shape)}" if wrong else f"{len(got)} layers"
            raise ValueError(
                f"cache comes from another model or is damaged: of {name} it has {instead}, "
                f"this model has {layers} layers of {list(shape)}."
            )
    # Where layers lie on several devices, or come there when they run, so do their states.
    spread = getattr(model, "hf_device_map", None) or hasattr(model.embeddings.word_embeddings, "_hf_hook")
    if not torch.compiler.is_compiling() and (reason := state.damage(None if spread else device_of(model))):
        raise ValueError(f"cache cannot be read on from: {reason}.")
    check_place(model, state)
    # While training, the weights change from one segment of a text to the next.
    if not model.training and state.fingerprint != (expected := model.fingerprint()):
        if not wrote(model, state.fingerprint):
            raise ValueError(
                f"cache was written by other weights (fingerprint {state.fingerprint}, this model is {expected}); "
                "start from model.new_state."
            )
        state.fingerprint = expected

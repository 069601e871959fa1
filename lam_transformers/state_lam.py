# Copyright 2026 The LAM authors. Licensed under the Apache License, Version 2.0.
"""LAMState: what LAM carries from one piece of a text to the next."""

import os

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


class LAMState:
    """What LAM remembers of the texts read so far; its size does not depend on their length.

    Attributes:
        memory: one tensor [B, H, 2, K, V] a layer, float32: the fast and the slow memory of each head, in mode space.
        conv: one tensor [B, conv_kernel - 1, 3 D] a layer: the last inputs of the convolution.
        seen: [B] int64, the number of real tokens each row has read.
        fingerprint: identifies the weights that wrote the state; another model refuses it.
    """

    def __init__(self, memory, conv, seen, fingerprint: str):
        self.memory, self.conv, self.seen, self.fingerprint = list(memory), list(conv), seen, fingerprint

    @property
    def batch_size(self) -> int:
        return len(self.seen)

    def _map(self, change) -> "LAMState":
        memory, conv = [change(x) for x in self.memory], [change(x) for x in self.conv]
        return LAMState(memory, conv, change(self.seen), self.fingerprint)

    def to(self, device) -> "LAMState":
        """A copy on another device."""
        return self._map(lambda x: x.to(device))

    def clone(self) -> "LAMState":
        """A copy that shares no memory with this state."""
        return self._map(torch.clone)

    def detach(self) -> "LAMState":
        """The same state, cut off from the gradient of what was read so far."""
        return self._map(torch.Tensor.detach)

    def select(self, rows) -> "LAMState":
        """A copy of the given batch rows, in that order. rows: list or 1-d tensor of integers."""
        return self._map(lambda x: x[torch.as_tensor(rows, dtype=torch.long, device=x.device)])

    def reset(self, rows=None) -> None:
        """Forget everything, in all batch rows or in the given ones."""
        rows = slice(None) if rows is None else torch.as_tensor(rows, dtype=torch.long, device=self.seen.device)

        def cleared(x):
            x = x.clone()
            x[rows] = 0
            return x

        self.memory, self.conv = [cleared(x) for x in self.memory], [cleared(x) for x in self.conv]
        self.seen = cleared(self.seen)

    def save(self, path: str | os.PathLike) -> None:
        """Write the state to a safetensors file."""
        tensors = {"memory": torch.stack(self.memory), "conv": torch.stack(self.conv), "seen": self.seen}
        temporary = f"{os.fspath(path)}.tmp"
        save_file({n: x.contiguous().cpu() for n, x in tensors.items()}, temporary, {"lam_state": self.fingerprint})
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | os.PathLike, device="cpu") -> "LAMState":
        """Read a state written by `save`. Raises ValueError if the file is damaged or is no LAM state."""
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                fingerprint = (file.metadata() or {}).get("lam_state")
                if fingerprint is None or set(file.keys()) != {"memory", "conv", "seen"}:
                    raise ValueError(f"{path} is a safetensors file but not a saved LAMState.")
                memory, conv, seen = (file.get_tensor(n) for n in ("memory", "conv", "seen"))
                return cls(memory, conv, seen, fingerprint)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged and cannot be read as a LAMState: {error}") from error


def state_shapes(config, batch: int) -> dict[str, tuple[int, ...]]:
    """Shapes of one layer's tensors in the state of `batch` texts."""
    heads, width = config.num_attention_heads, config.head_size
    return {
        "memory": (batch, heads, 2, width, width),
        "conv": (batch, config.conv_kernel - 1, 3 * config.hidden_size),
    }


def one_state(**given):
    """The one state among its names, or None. Raises ValueError if several are given."""
    names = [name for name, state in given.items() if state is not None]
    if len(names) > 1:
        raise ValueError(f"{' and '.join(names)} are names of the same state; give it once, as {names[0]}.")
    return given[names[0]] if names else None


def check_state(model, state, batch: int) -> None:
    """Raise ValueError unless `state` belongs to these weights and to a batch of this size."""
    if not hasattr(state, "fingerprint"):
        raise ValueError(f"cache must be a LAMState (model.new_state), got {type(state).__name__}.")
    if state.batch_size != batch:
        raise ValueError(f"cache holds {state.batch_size} texts, the batch {batch}; use LAMState.select.")
    layers = model.config.num_hidden_layers
    for name, shape in state_shapes(model.config, batch).items():
        got = getattr(state, name)
        if len(got) != layers or tuple(got[0].shape) != shape:
            raise ValueError(
                f"cache comes from another model: {name} is {len(got)} x {list(got[0].shape)}, "
                f"this model has {layers} x {list(shape)}."
            )
    # While training, the weights change from one piece of a text to the next.
    if not model.training and state.fingerprint != (expected := model.fingerprint()):
        raise ValueError(
            f"cache was written by other weights (fingerprint {state.fingerprint}, this model is {expected}); "
            "start from model.new_state."
        )

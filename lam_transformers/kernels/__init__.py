"""Optional accelerators of the memory layer, and which one runs.

"native" is a compiled loop for CPUs (lam_memory.c), built when the package is installed where there is a C compiler.
"torch" is the model's own code and always there. The choice is made in every call of a memory layer: native where it
applies, torch otherwise. The environment variable LAM_BACKEND, or `use_backend`, forces one of them; a forced backend
that cannot run is an error, never a silent fall back.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from contextvars import ContextVar

import torch

from . import native

logger = logging.getLogger(__name__)
BACKENDS = ("auto", "native", "torch")
_forced: ContextVar[str | None] = ContextVar("lam_backend", default=None)


def available() -> list[str]:
    """The backends that this installation has."""
    return [*(["native"] if native.library() else []), "torch"]


def requested() -> str:
    """What `use_backend` or LAM_BACKEND asks for: "auto", "native" or "torch".

    Raises ValueError for an unknown name in LAM_BACKEND.
    """
    return _forced.get() or _checked(os.environ.get("LAM_BACKEND") or "auto", "LAM_BACKEND")


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force a backend inside a `with` block. Raises ValueError for an unknown name."""
    token = _forced.set(_checked(name, "use_backend"))
    try:
        yield
    finally:
        _forced.reset(token)


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: the backend must be one of {', '.join(BACKENDS)}, got {name!r}.")
    return name


def why_not_native(memory, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the native kernel cannot run this `LAMMemory` on numbers of this kind, or None if it can."""
    if device.type != "cpu":
        return f"it runs on the CPU, the model is on {device}"
    if native.library() is None:
        return native.why_missing()
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it computes in float32, the model in {dtype}"
    return native.why_not_geometry(memory)


def backend_of(memory, dtype: torch.dtype, device: torch.device) -> str:
    """The backend that inference of this `LAMMemory` takes. Raises RuntimeError if a forced one cannot."""
    name = requested()
    if name == "torch":
        return "torch"
    reason = why_not_native(memory, dtype, device)
    if reason is None:
        return "native"
    if name == "native":
        raise RuntimeError(f"The native backend was asked for, but {reason}.")
    _log_once(reason)
    return "torch"


_logged: set[str] = set()


def _log_once(reason: str) -> None:
    if reason not in _logged:
        _logged.add(reason)
        logger.info("LAM runs in pure torch; the native kernel does not apply: %s.", reason)


def memory_layer(memory, projected, texts, state, conv):
    """The inside of a memory layer: everything between its first projection and its last.

    Args:
        memory: the `LAMMemory`.
        projected: [B, T, 3 D + 5 H + gate], what its `in_proj` gives.
        texts: the `PackedTexts` of a packed row, or None.
        state: [B, H, 2, K, V] or None.
        conv: [B, kernel - 1, 3 D] or None.

    Returns:
        y [B, T, D] float32, the state and conv after the last token (None where none was given); or None if the layer
        should run in torch.

    Raises RuntimeError if a backend was forced that cannot run.
    """
    if backend_of(memory, projected.dtype, projected.device) == "torch":
        return None
    carries = state is not None or conv is not None
    differentiable = torch.is_grad_enabled() and (projected.requires_grad or memory.norm_weight.requires_grad)
    if differentiable and carries:
        if requested() == "native":
            raise RuntimeError("The native backend was asked for, but it has no gradients through a carried state.")
        return None
    return native.memory_layer(memory, projected, texts, state, conv, differentiable)

"""Optional accelerators of the memory layer, and which one runs.

"native" is a compiled loop for CPUs (lam_memory.c), built when the package is installed where there is a C compiler. In
inference in float32 or bfloat16 it also runs the elementwise rest of a layer whose memory it runs (lam_elementwise.c).
"fla" is the memory rule by flash-linear-attention's kernels, on CUDA devices where that is installed; the rest of the
layer is torch's. "torch" is the model's own code and always there. The choice is made in every call of a memory layer:
native or fla where they apply, torch otherwise. That is wherever operations are recorded or replaced (torch.compile,
torch.export, torch.jit.trace, torch.func, fake tensors) or parts of the layer are (hooks, adapters, tensors that are
quantised, offloaded or anything but plain). The environment variable LAM_BACKEND, or `use_backend`, forces one of them;
a forced backend that cannot run is an error, never a silent fall back. A layer that was given a rule of its own
(`LAMMemory.rule`) runs that, in torch, whatever is asked for.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch

from . import fla, native

logger = logging.getLogger(__name__)
BACKENDS = ("auto", "native", "fla", "torch")
_forced: ContextVar[str | None] = ContextVar("lam_backend", default=None)


def available() -> list[str]:
    """The backends that this installation has."""
    return [*(["native"] if native.library() else []), *([] if fla.why_missing() else ["fla"]), "torch"]


@torch.compiler.assume_constant_result
def requested() -> str:
    """What `use_backend` or LAM_BACKEND asks for: "auto", "native", "fla" or "torch".

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


def why_not_native(layer: Any, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the native kernel cannot run this `LAMMemory` on numbers of this kind, or None if it can."""
    if device.type != "cpu":
        return f"it runs on the CPU, the model is on {device}"
    if native.library() is None:
        return native.why_missing()
    if dtype not in native.FLOATS:
        return f"it computes in float32, the model in {dtype}"
    return why_recorded() or native.why_not_layer(layer)


def why_recorded() -> str | None:
    """What records or replaces torch's operations at the moment, which a kernel would hide from it; or None."""
    if torch.jit.is_tracing():
        return "torch.jit.trace records the operations"
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "a transform of torch.func is active"
    if torch._C._len_torch_dispatch_stack():
        return "a torch dispatch mode (such as FakeTensorMode) is active"
    return None


def backend_of(layer: Any, dtype: torch.dtype, device: torch.device) -> str:
    """The backend that inference of this `LAMMemory` takes. Raises RuntimeError if a forced one cannot."""
    if getattr(layer, "rule", None) is not None:
        return "torch"
    name = requested()
    if name == "torch" or (name == "auto" and torch.compiler.is_compiling()):
        return "torch"
    if torch.compiler.is_compiling():
        raise RuntimeError(f"The {name} backend was asked for, but only torch's own code can be compiled or exported.")
    name = name if name != "auto" else "fla" if device.type == "cuda" else "native"
    reason = (fla.why_not if name == "fla" else why_not_native)(layer, dtype, device)
    if reason is None:
        return name
    _decline(reason, name)
    return "torch"


_logged: set[str] = set()


def _decline(reason: str, name: str = "native") -> None:
    """Say once why torch runs instead. Raises RuntimeError if the backend was forced."""
    if requested() != "auto":
        raise RuntimeError(f"The {name} backend was asked for, but {reason}.")
    if reason not in _logged:
        _logged.add(reason)
        logger.info("LAM runs in pure torch; the accelerator does not apply: %s.", reason)


def memory_layer(
    layer: Any, projected: torch.Tensor, texts: Any, state: torch.Tensor | None, conv: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None] | None:
    """The inside of a memory layer: everything between its first projection and its last.

    Args:
        layer: the `LAMMemory`.
        projected: [B, T, 3 D + 5 H + gate], what its `in_proj` gives.
        texts: the `PackedTexts` of a packed row, or None.
        state: [B, H, 2, K, V] or None.
        conv: [B, kernel - 1, 3 D] or None.

    Returns:
        y [B, T, D], float32 or, where `projected` is bfloat16 and no gradients are recorded, bfloat16; the state and
        conv after the last token, float32 (None where none was given); or None if the layer should run in torch.

    Raises RuntimeError if a backend was forced that cannot run.
    """
    if backend_of(layer, projected.dtype, projected.device) != "native":
        return None
    reason = native.why_not_numbers(layer, projected, texts, state, conv)
    done = None if reason else native.memory_layer(layer, projected, texts, state, conv)
    if done is None:
        _decline(reason or "it has no gradients through a carried state")
    return done


def linear(module: Any, x: torch.Tensor) -> torch.Tensor | None:
    """A linear layer by oneDNN instead of the BLAS that torch takes, where that is faster (`native.product`).

    Args:
        module: the `nn.Linear`.
        x: [B, T, in_features].

    Returns:
        [B, T, out_features] float32; or None if torch should run it: where `finish_layer` would not run, too.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.ndim != 3:
        return None
    multiply = native.product(x.shape[0] * x.shape[1])
    if multiply is None or requested() not in ("auto", "native") or torch.is_autocast_enabled("cpu") or why_recorded():
        return None
    if not native.can_multiply(module, x):
        return None
    return multiply(x.flatten(0, 1).contiguous(), module.weight, module.bias).view(*x.shape[:2], -1)


def finish_layer(layer: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor | None:
    """The rest of a layer after its memory: x' = LayerNorm(x + y), then LayerNorm(x' + feed_forward(x')).

    The products are torch's; bias and GELU, and each sum with its LayerNorm, are one pass of the native kernel.

    Args:
        layer: the `LAMLayer`.
        x: [B, T, D], what went into the layer.
        y: [B, T, D], what its memory gave.

    Returns:
        [B, T, D]; or None if torch should run it: with gradients enabled, under autocast, where anything is quantised,
        where not all is float32 or all bfloat16, with another activation than "gelu", where parts were replaced or
        carry hooks.

    Raises RuntimeError if a backend was forced that cannot run.
    """
    if torch.is_grad_enabled() or backend_of(layer.memory, x.dtype, x.device) != "native":
        return None
    if torch.is_autocast_enabled("cpu") or not native.can_finish(layer, x, y):
        return None
    return native.finish_layer(layer, x, y)


def memory_rule(layer: Any, x: torch.Tensor) -> Callable[..., tuple[torch.Tensor, torch.Tensor]] | None:
    """The memory rule for a layer that runs in torch: fla's, or None for the model's own.

    x: what the layer's first projection gave. Raises RuntimeError if a backend was forced that cannot run.
    """
    return fla.dual_delta_rule if backend_of(layer, x.dtype, x.device) == "fla" else None

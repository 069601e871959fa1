"""The compiled CPU kernel: finding it, and calling it, the memory forward and backward, the rest of a layer forward."""

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import GELUActivation

# What the kernel is built for: width of a head, of the convolution, and of the flux' hidden layer.
WIDTH = 32
TAPS = 4
HIDDEN = 16
# That of lam_memory_plain.c; to be raised, there and here, with every change of the structures or signatures.
ABI = 3
# A chunk of two-way reading holds a multiple of the GROUP tokens of the kernel; backward keeps the states of all of it.
GROUP = 16
MAX_CHUNK = 256
# Rows of a product from which on oneDNN is faster.
MANY_ROWS = 256
_VARIANTS = ("avx512", "avx2", "plain")


class _Layer(ctypes.Structure):
    _fields_ = [
        ("heads", ctypes.c_int64),
        ("conv_weight", ctypes.c_void_p),
        ("conv_bias", ctypes.c_void_p),
        ("decay_bias", ctypes.c_void_p),
        ("bilinear", ctypes.c_void_p),
        ("temperature", ctypes.c_void_p),
        ("flux_in", ctypes.c_void_p),
        ("flux_in_bias", ctypes.c_void_p),
        ("flux_out", ctypes.c_void_p),
        ("flux_out_bias", ctypes.c_void_p),
        ("norm_weight", ctypes.c_void_p),
        ("eps", ctypes.c_float),
        ("cosine", ctypes.c_float),
        ("sine", ctypes.c_float),
        ("chunk", ctypes.c_int64),
    ]


class _Rows(ctypes.Structure):
    _fields_ = [
        ("z", ctypes.c_void_p),
        ("z_stride", ctypes.c_int64),
        ("gate", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("in_half", ctypes.c_int64),
        ("bounds", ctypes.c_void_p),
        ("texts", ctypes.c_int64),
        ("state", ctypes.c_void_p),
        ("conv", ctypes.c_void_p),
    ]


class _Backward(ctypes.Structure):
    _fields_ = [
        ("dy", ctypes.c_void_p),
        ("dz", ctypes.c_void_p),
        ("dgate", ctypes.c_void_p),
        ("gradient", ctypes.c_void_p),
        ("blocks", ctypes.c_int64),
    ]


class Library:
    """One variant of the kernel, for the instructions that this processor has."""

    def __init__(self, path: Path):
        loaded = ctypes.CDLL(os.fspath(path))
        loaded.lam_abi.restype = ctypes.c_int64
        if (abi := loaded.lam_abi()) != ABI:
            raise OSError(f"{path} was compiled from other sources: its interface is number {abi}, this needs {ABI}.")
        loaded.lam_supported.restype = ctypes.c_int64
        known = [name for i, name in enumerate(_VARIANTS) if loaded.lam_supported() >> i & 1]
        wanted = os.environ.get("LAM_KERNEL_VARIANT") or known[0]
        if wanted not in known:
            raise ValueError(f"LAM_KERNEL_VARIANT must be one of {', '.join(known)} on this machine, got {wanted!r}.")
        self.variant = wanted
        self.forward = getattr(loaded, f"lam_forward_{wanted}")
        self.backward = getattr(loaded, f"lam_backward_{wanted}")
        size = getattr(loaded, f"lam_gradient_size_{wanted}")
        self.forward.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64]
        self.backward.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64]
        self.forward.restype = self.backward.restype = size.restype = ctypes.c_int64
        self.gradient_size = size()
        self.gelu = getattr(loaded, f"lam_gelu_{wanted}")
        self.add_norm = getattr(loaded, f"lam_add_norm_{wanted}")
        pointer = ctypes.c_void_p
        count = ctypes.c_int64
        self.gelu.argtypes = [pointer] * 2 + [count] * 3 + [pointer, count]
        self.add_norm.argtypes = [pointer] * 6 + [ctypes.c_float] + [count] * 3 + [pointer, count]
        self.gelu.restype = self.add_norm.restype = None
        self.team = _openmp_team()


@functools.cache
def library() -> Library | None:
    """The compiled kernel, or None if this installation has none."""
    endings = (".so", ".dylib", ".pyd", ".dll")
    for path in sorted(Path(__file__).parent.glob("_lam_memory*")):
        if path.suffix not in endings:
            continue
        try:
            return Library(path)
        except (OSError, AttributeError):  # not for this system, or compiled from other sources
            continue
    return None


def why_missing() -> str:
    """Why this installation has no kernel, where it has none."""
    return (
        f"it was not compiled when lam-transformers was installed (no C compiler that can build it, {sys.platform}), "
        "or from other sources than these"
    )


def _openmp_team() -> int | None:
    """Address of GOMP_parallel in the OpenMP runtime that torch has loaded; None: the kernel runs on one thread.

    A runtime of the kernel's own would keep a second team of threads that competes with torch's for the cores.
    """
    folder = Path(torch.__file__).parent / "lib"
    names = [os.fspath(p) for pattern in ("libgomp*", "libiomp5*", "libomp*") for p in sorted(folder.glob(pattern))]
    for name in [*names, "libgomp.so.1"]:
        try:
            runtime = ctypes.CDLL(name, mode=getattr(os, "RTLD_NOLOAD", 0) | getattr(os, "RTLD_LAZY", 1))
            return ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None


def why_not_layer(layer: Any) -> str | None:
    """Why this `LAMMemory` cannot run in the kernel, or None.

    The kernel reads the parameters' memory: each has to be a plain tensor on the CPU, of the shape it is built for. And
    it runs in the place of modules: none of them may be of another kind than the model's own or carry hooks.
    """
    if type(layer).__name__ != "LAMMemory":
        return f"the memory is a {type(layer).__name__}"
    if (chunk := _chunk(layer)) is not None and (
        type(chunk) is not int or chunk not in range(GROUP, MAX_CHUNK + 1, GROUP)
    ):
        return f"two_way_chunk is {chunk!r} (it is built for multiples of {GROUP} up to {MAX_CHUNK})"
    modules = layer._modules
    flux = modules["flux"]
    for name, module, kind in (
        ("conv1d", modules["conv1d"], "LAMConvolution"),
        ("flux", flux, "ResonanceFlux"),
        ("flux.in_proj", flux._modules.get("in_proj"), "LAMFluxProjection"),
        ("flux.out_proj", flux._modules.get("out_proj"), "LAMFluxProjection"),
    ):
        if type(module).__name__ != kind:
            return f"{name} is a {type(module).__name__}"
        if not _untouched(module):
            return f"{name} has hooks or another forward"
    parameters = _parameters(layer)
    for p, shape in zip(parameters, _shapes(layer.heads), strict=True):
        if not is_plain(p, shape):
            return _why_not_parameters(layer, parameters)
    return None


def _chunk(layer: Any) -> int | None:
    """Tokens of a chunk after which the slow memory is read (two-way reading), or None: after each token."""
    return getattr(layer, "two_way_chunk", None)


_PLAIN = (nn.Parameter, torch.Tensor)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def is_plain(x: Any, shape: tuple[int, ...] | None = None) -> bool:
    """Whether x is a floating-point tensor in this process' own memory, no subclass, of the given shape."""
    plain = type(x) in _PLAIN and x.is_cpu and x.dtype in FLOATS and x.layout == torch.strided
    return plain and (shape is None or x.shape == shape)


def _untouched(module: nn.Module) -> bool:
    own = module.__dict__
    return not (
        "forward" in own
        or own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
    )


def _parameters(layer: Any) -> list[torch.Tensor | None]:
    """As struct lam_layer has them. From `_parameters`: whatever takes the place of a parameter is none."""
    modules = layer._modules
    own = layer._parameters
    convolution = modules["conv1d"]._parameters
    flux = modules["flux"]._parameters
    inner = modules["flux"]._modules["in_proj"]._parameters
    outer = modules["flux"]._modules["out_proj"]._parameters
    return [
        convolution.get("weight"),
        convolution.get("bias"),
        own.get("decay_bias"),
        flux.get("bilinear"),
        flux.get("temperature"),
        inner.get("weight"),
        inner.get("bias"),
        outer.get("weight"),
        outer.get("bias"),
        own.get("norm_weight"),
    ]


_NAMES = (
    "conv1d.weight",
    "conv1d.bias",
    "decay_bias",
    "flux.bilinear",
    "flux.temperature",
    "flux.in_proj.weight",
    "flux.in_proj.bias",
    "flux.out_proj.weight",
    "flux.out_proj.bias",
    "norm_weight",
)


@functools.lru_cache
def _shapes(heads: int) -> tuple[tuple[int, ...], ...]:
    """Of the parameters, as `_NAMES`."""
    size = 3 * heads * WIDTH
    return (
        (size, 1, TAPS),
        (size,),
        (2, heads),
        (heads, WIDTH, WIDTH),
        (heads,),
        (HIDDEN, 2 * WIDTH + 1),
        (HIDDEN,),
        (1, HIDDEN),
        (1,),
        (WIDTH,),
    )


def _why_not_parameters(layer: Any, parameters: list[torch.Tensor | None]) -> str:
    """What is wrong with the parameters of a layer of which something is."""
    sizes = {"head size": (layer.width, WIDTH)}
    if parameters[0] is not None and parameters[0].ndim:
        sizes["convolution kernel"] = (parameters[0].shape[-1], TAPS)
    if parameters[5] is not None and parameters[5].ndim:
        sizes["flux hidden size"] = (parameters[5].shape[0], HIDDEN)
    wrong = [f"{name} {got} (it is built for {want})" for name, (got, want) in sizes.items() if got != want]
    if wrong:
        return f"the model has {', '.join(wrong)}"
    for name, p, shape in zip(_NAMES, parameters, _shapes(layer.heads), strict=True):
        if not is_plain(p, shape):
            return f"{name} is {describe(p)}, not a plain tensor {list(shape)} on the CPU"
    raise AssertionError("All parameters are what they should be.")


def describe(x: Any) -> str:
    """A tensor, or what is in its place, in words."""
    if not isinstance(x, torch.Tensor):
        return "missing" if x is None else f"a {type(x).__name__}"
    kind = "" if type(x) in _PLAIN else f"{type(x).__name__} "
    layout = "" if x.layout == torch.strided else f"{x.layout} "
    return f"{kind}{layout}{x.dtype} {list(x.shape)} on {x.device}"


def why_not_numbers(
    layer: Any, projected: torch.Tensor, texts: Any, state: torch.Tensor | None, conv: torch.Tensor | None
) -> str | None:
    """Why the kernel cannot read the tensors of this call, or None. Raises ValueError for a state of other shapes."""
    heads = layer.heads
    size = heads * WIDTH
    if not is_plain(projected) or projected.ndim != 3 or projected.shape[2] != 3 * size + 5 * heads + layer.gate_size:
        return f"in_proj gave {describe(projected)}"
    rows = len(projected)
    if texts is not None:
        bounds = texts.cu_seqlens
        if type(bounds) is not torch.Tensor or not bounds.is_cpu or bounds.dtype != torch.long:
            return f"the bounds of the texts are {describe(bounds)}"
        if rows != 1 or texts.total != projected.shape[1]:
            raise ValueError(f"A packed row of {texts.total} tokens cannot bound the texts of {list(projected.shape)}.")
        rows = len(bounds) - 1
    for name, x, shape in (
        ("memory", state, (rows, heads, 2, WIDTH, WIDTH)),
        ("convolution inputs", conv, (rows, TAPS - 1, 3 * size)),
    ):
        if x is not None and not is_plain(x, shape):
            if x.shape != shape:
                raise ValueError(f"The {name} of a layer must be {list(shape)}, one row a text, got {list(x.shape)}.")
            return f"the {name} of the state are {describe(x)}"
    return None


def memory_layer(
    layer: Any, projected: torch.Tensor, texts: Any, state: torch.Tensor | None, conv: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None] | None:
    """As `kernels.memory_layer`, native and nothing else; None if the output gate is no plain tensor."""
    batch, time = projected.shape[:2]
    heads = layer.heads
    size = heads * layer.width
    rows = projected.flatten(0, 1)
    z, gate = rows.split([3 * size + 5 * heads, layer.gate_size], dim=-1)
    if not layer.gate_size:
        gate = None
    elif layer.gate_proj is not None:
        gate = layer.gate_proj(gate)
    if gate is not None and not is_plain(gate, (batch * time, size)):
        return None
    bounds = torch.arange(batch + 1, device="cpu") * time if texts is None else texts.cu_seqlens
    numbers = (layer.eps, layer.cos, layer.sin, _chunk(layer) or 0)
    parameters = _parameters(layer)
    with torch.autocast("cpu", enabled=False):
        recorded = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (z, gate, *parameters))
        if recorded or z.dtype == torch.float16 or (gate is not None and gate.dtype != z.dtype):
            z = z.float()
            gate = None if gate is None else gate.float()
        if recorded:
            if state is not None or conv is not None:
                return None
            y = _Memory.apply(z, gate, bounds, numbers, *parameters)
            return y.view(batch, time, size), None, None
        state, conv = (
            None if x is None else x.float().clone(memory_format=torch.contiguous_format) for x in (state, conv)
        )
        y = _forward(z, gate, bounds, numbers, parameters, state, conv)
    return y.view(batch, time, size), state, conv


def _ready(x: torch.Tensor) -> torch.Tensor:
    """Rows of unit stride that the kernel can read, starting where the tensor starts."""
    return x if x.stride(-1) == 1 and (x.ndim < 2 or x.stride(0) >= x.shape[1]) else x.contiguous()


def _pointer(x: torch.Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _layer(parameters, numbers) -> tuple[_Layer, list[torch.Tensor]]:
    """The kernel's view of the parameters, and the tensors that have to live as long."""
    kept = [
        p if p.dtype == torch.float32 and p.is_contiguous() else p.detach().float().contiguous() for p in parameters
    ]
    return _Layer(kept[2].shape[1], *(p.data_ptr() for p in kept), *numbers), kept


def _rows(z, gate, y, bounds, state, conv) -> _Rows:
    return _Rows(
        z=z.data_ptr(),
        z_stride=z.stride(0),
        gate=_pointer(gate),
        y=_pointer(y),
        in_half=z.dtype == torch.bfloat16,
        bounds=bounds.data_ptr(),
        texts=len(bounds) - 1,
        state=_pointer(state),
        conv=_pointer(conv),
    )


def _run(function, *structures) -> None:
    loaded = library()
    assert loaded is not None
    if function(*(ctypes.addressof(s) for s in structures), loaded.team, torch.get_num_threads()):
        raise MemoryError("The native kernel could not allocate its working memory.")


def _forward(z, gate, bounds, numbers, parameters, state=None, conv=None) -> torch.Tensor:
    loaded = library()
    assert loaded is not None
    layer, kept = _layer(parameters, numbers)
    z = _ready(z)
    gate = None if gate is None else gate.contiguous()
    bounds = bounds.contiguous()
    y = torch.empty(len(z), len(kept[9]) * kept[2].shape[1], device="cpu", dtype=z.dtype)
    _run(loaded.forward, layer, _rows(z, gate, y, bounds, state, conv))
    return y


class _Memory(torch.autograd.Function):
    """The kernel with its gradients; backward computes the forward again, block by block."""

    @staticmethod
    def forward(ctx, z, gate, bounds, numbers, *parameters):
        ctx.save_for_backward(z, gate, bounds, *parameters)
        ctx.numbers = numbers
        return _forward(z, gate, bounds, numbers, parameters)

    @staticmethod
    def backward(ctx, dy):
        z, gate, bounds, *parameters = ctx.saved_tensors
        with torch.no_grad():
            gradients = _gradients(z, gate, bounds, ctx.numbers, parameters, dy)
        if torch.is_grad_enabled():  # somebody asks for a gradient that has gradients
            given = [x for x in (dy, z, gate, *parameters) if x is not None and x.requires_grad]
            real = [x for x in gradients if x is not None]
            once = iter(_Once.apply(len(given), *given, *real))
            gradients = [None if x is None else next(once) for x in gradients]
        dz, dgate, *rest = gradients
        return dz, dgate, None, None, *rest


class _Once(torch.autograd.Function):
    """Gradients that have none themselves: whoever asks for them is refused."""

    @staticmethod
    def forward(ctx, count, *tensors):
        return tuple(x.clone() for x in tensors[count:])

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            "LAM's native kernel has first derivatives only; for higher ones run the model in torch: "
            'lam_transformers.kernels.use_backend("torch") or LAM_BACKEND=torch.'
        )


def _gradients(z, gate, bounds, numbers, parameters, dy) -> list[torch.Tensor | None]:
    """Gradients of z, the gate and each parameter."""
    loaded = library()
    assert loaded is not None
    layer, kept = _layer(parameters, numbers)
    heads = kept[2].shape[1]
    texts = len(bounds) - 1
    z = z.contiguous()
    gate = None if gate is None else gate.contiguous()
    bounds = bounds.contiguous()
    dy = dy.contiguous()
    dz = torch.empty_like(z)
    dgate = None if gate is None else torch.empty_like(gate)
    blocks = max(1, min(texts, -(-2 * torch.get_num_threads() // heads)))
    gradient = torch.zeros(blocks, heads, loaded.gradient_size, device="cpu", dtype=torch.float32)
    back = _Backward(dy.data_ptr(), dz.data_ptr(), _pointer(dgate), gradient.data_ptr(), blocks)
    _run(loaded.backward, layer, _rows(z, gate, None, bounds, None, None), back)
    return [dz, dgate, *_unpack(gradient.sum(0), parameters)]


def _unpack(gradient: torch.Tensor, parameters) -> list[torch.Tensor]:
    """Gradients of one head a row, as struct lam_gradient lays them out -> one tensor a parameter."""
    heads, width = len(gradient), WIDTH
    sizes = [3 * TAPS * width, 3 * width, width * width, HIDDEN * 2 * width, *[HIDDEN] * 3, width, 2, 1, 1]
    taps, conv_bias, bilinear, flux_in, resonance, in_bias, out, norm, decay, temperature, out_bias = gradient.split(
        sizes, dim=-1
    )
    flux_in = torch.cat([flux_in.sum(0).view(HIDDEN, 2 * width), resonance.sum(0).unsqueeze(1)], dim=1)
    gradients = [
        taps.view(heads, 3, TAPS, width).permute(1, 0, 3, 2),
        conv_bias.view(heads, 3, width).transpose(0, 1),
        decay.t(),
        bilinear,
        temperature,
        flux_in,
        in_bias.sum(0),
        out.sum(0),
        out_bias.sum(0),
        norm.sum(0),
    ]
    return [x.reshape(p.shape).to(p.dtype) for x, p in zip(gradients, parameters, strict=True)]


def product(rows: int) -> Callable[..., torch.Tensor] | None:
    """x W' + b of x [rows, D], W [E, D] and b [E] or None, float32, by oneDNN; None: torch's own is to be taken.

    torch multiplies float32 with MKL, which on processors with AVX2 alone takes 1.2 times as long for the products of a
    layer (docs/DECISIONS.md); with AVX-512 nothing was measured. oneDNN packs the weights in each call, which pays from
    `MANY_ROWS` on.
    """
    return _onednn() if rows >= MANY_ROWS else None


@functools.cache
def _onednn() -> Callable[..., torch.Tensor] | None:
    """The product of `product`, or None where it is missing, wrong or no faster.

    It is called by the operator that torch's own compiler uses, which is not part of torch's interface: whether it is
    there and right is seen here, once.
    """
    loaded = library()
    if loaded is None or loaded.variant != "avx2":
        return None
    try:
        operator = torch.ops.mkldnn._linear_pointwise

        def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            return operator(x, weight, bias, "none", [], "")

        with torch.no_grad():
            x, weight, bias = torch.eye(3, 5), torch.arange(35.0).view(7, 5), torch.arange(7.0)
            same = torch.equal(multiply(x, weight, bias), F.linear(x, weight, bias))
            return multiply if same and torch.equal(multiply(x, weight), F.linear(x, weight)) else None
    except (AttributeError, RuntimeError, TypeError):  # another torch, or one without oneDNN
        return None


def can_multiply(module: Any, x: torch.Tensor) -> bool:
    """Whether `product` gives what this module would: a plain nn.Linear, float32."""
    if type(module) is not nn.Linear or not _untouched(module):
        return False
    own = module._parameters
    numbers = [p for p in (own.get("weight"), own.get("bias"), x) if p is not None]
    if own.get("weight") is None or not all(is_plain(p) and p.dtype == torch.float32 for p in numbers):
        return False
    return numbers[0].ndim == 2 and numbers[0].shape[1] == x.shape[2]


def can_finish(layer: Any, x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether `finish_layer` gives what the parts of this layer would: plain, no hooks, all float32 or all bfloat16."""
    modules = layer._modules
    middle = modules["feed_forward"]
    if type(middle).__name__ != "LAMFeedForward":
        return False
    inner = middle._modules
    parts = [modules["memory_norm"], inner["in_proj"], inner["act"], inner["out_proj"], modules["feed_forward_norm"]]
    if [type(part) for part in parts] != [nn.LayerNorm, nn.Linear, GELUActivation, nn.Linear, nn.LayerNorm]:
        return False
    if not all(map(_untouched, (middle, *parts))):
        return False
    if x.ndim != 3 or x.shape != y.shape:
        return False
    width, wide = (x.shape[-1],), (len(parts[1]._parameters["weight"]),)
    shapes = (x.shape, x.shape, width, width, wide + width, wide, width + wide, width, width, width)
    numbers = (x, y, *(part._parameters.get(name) for part in (*parts[:2], *parts[3:]) for name in ("weight", "bias")))
    dtype = x.dtype if x.dtype in (torch.float32, torch.bfloat16) else None
    return all(is_plain(p, s) and p.dtype == dtype for p, s in zip(numbers, shapes, strict=True))


def finish_layer(layer: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """As `kernels.finish_layer`, native and nothing else."""
    first = layer.feed_forward.in_proj
    second = layer.feed_forward.out_proj
    rows = x.flatten(0, 1).contiguous()
    y = y.flatten(0, 1).contiguous()
    rows = add_norm(layer.memory_norm, rows, y, None, torch.empty_like(rows))
    multiply = (product(len(rows)) if rows.dtype == torch.float32 else None) or F.linear
    y = multiply(gelu_(multiply(rows, first.weight), first.bias), second.weight)
    return add_norm(layer.feed_forward_norm, rows, y, second.bias, y).view(x.shape)


def gelu_(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """GELU(x + bias), the exact one, in place of x [T, D], contiguous; bias [D]; all float32 or all bfloat16."""
    loaded = library()
    assert loaded is not None
    bias = bias.contiguous()
    in_half = x.dtype == torch.bfloat16
    loaded.gelu(x.data_ptr(), bias.data_ptr(), in_half, *x.shape, loaded.team, torch.get_num_threads())
    return x


def add_norm(
    norm: nn.LayerNorm, x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> torch.Tensor:
    """norm(x + y + bias), written to `out`, which may be x or y.

    x, y, out [T, D], contiguous; bias [D] or None; all float32 or, with the parameters of the norm, all bfloat16.
    """
    loaded = library()
    assert loaded is not None
    kept = [None if p is None else p.contiguous() for p in (bias, norm.weight, norm.bias)]
    pointers = map(_pointer, (out, x, y, *kept))
    in_half = x.dtype == torch.bfloat16
    loaded.add_norm(*pointers, norm.eps, in_half, *x.shape, loaded.team, torch.get_num_threads())
    return out

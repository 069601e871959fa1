"""Tensors and modules that are not the model's own: no crash, no memory that nobody wrote, the model's numbers.

Each case of foreign_cases.py in a process of its own, since some crashed it.
"""

import importlib.util

import pytest
import torch
from torch import nn

from lam_transformers import kernels
from lam_transformers.kernels import native

from ..children import run_in_child
from ..helpers import assert_close_rms, hidden
from .foreign_cases import CASES, run_case

needs_kernel = pytest.mark.skipif(native.library() is None, reason=f"no native kernel: {native.why_missing()}")


@pytest.mark.parametrize("name", CASES)
def test_in_a_process_of_its_own(name, tiny_folder):
    if name.startswith("torchao") and importlib.util.find_spec("torchao") is None:
        pytest.skip("the int8 extra is not installed")
    ended = run_in_child(run_case, name, str(tiny_folder))
    assert ended.status == 0, f"ended with {ended.status}: {ended.printed[-3000:]}"


PARTS = ["conv1d", "flux", "flux.in_proj", "flux.out_proj"]


def hooked(module, calls):
    module.register_forward_hook(lambda *_: calls.append(1))


def hooked_before(module, calls):
    module.register_forward_pre_hook(lambda *_: calls.append(1))


def another_forward(module, calls):
    forward = module.forward
    module.forward = lambda *x: calls.append(1) or forward(*x)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("change", [hooked, hooked_before, another_forward])
def test_hooks_of_parts_fire_and_change_nothing(make_model, ids, part, change):
    model, calls = make_model(), []
    want = hidden(model, ids)
    change(model.layers[1].memory.get_submodule(part), calls)
    assert_close_rms("hidden states", hidden(model, ids), want, 1e-5)
    assert calls


@needs_kernel
@pytest.mark.parametrize("part", PARTS)
def test_the_kernel_says_what_it_does_not_know(make_model, ids, part):
    model = make_model()
    hooked(model.layers[1].memory.get_submodule(part), [])
    with kernels.use_backend("native"), pytest.raises(RuntimeError, match=f"{part} has hooks or another forward"):
        hidden(model, ids)
    model = make_model()
    name = "bilinear" if part == "flux" else "weight"
    setattr(model.layers[1].memory.get_submodule(part), name, nn.Parameter(torch.zeros(3, 2)))
    with kernels.use_backend("native"), pytest.raises(RuntimeError, match=r"built for|torch.float32 \[3, 2\] on cpu"):
        hidden(model, ids)


@needs_kernel
@pytest.mark.parametrize("name", ["temperature", "decay_bias", "norm_weight"])
def test_parametrised_numbers_run_in_torch(make_model, ids, name):
    class Doubled(nn.Module):
        def forward(self, x):
            return 2 * x

    model, other = make_model(), make_model()
    for m in (model, other):
        memory = m.layers[0].memory
        holder = memory.flux if name == "temperature" else memory
        if m is model:
            torch.nn.utils.parametrize.register_parametrization(holder, name, Doubled())
        else:
            with torch.no_grad():
                getattr(holder, name).mul_(2)
    assert model.backend == "torch"
    assert_close_rms("hidden states", hidden(model, ids), hidden(other, ids), 1e-5)


@needs_kernel
@pytest.mark.parametrize(
    "name", ["conv1d.weight", "conv1d.bias", "decay_bias", "flux.bilinear", "flux.temperature", "flux.in_proj.weight",
             "flux.in_proj.bias", "flux.out_proj.weight", "flux.out_proj.bias", "norm_weight", "gate_proj.weight"]
)  # fmt: skip
def test_a_parameter_that_trains_alone_gets_its_gradient(make_model, ids, name):
    model = make_model()
    gradients = {}
    for backend in ("torch", "native"):
        model.requires_grad_(False)
        p = model.layers[0].memory.get_parameter(name).requires_grad_()
        p.grad = None
        with kernels.use_backend(backend):
            model(ids).last_hidden_state.square().sum().backward()
        gradients[backend] = p.grad
    assert_close_rms(name, gradients["native"], gradients["torch"], 1e-4)
    assert gradients["torch"].any()


@needs_kernel
def test_second_derivatives_are_torchs_or_refused(make_model):
    memory = make_model().layers[0].memory.requires_grad_(False)
    x = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def first(backend):
        with kernels.use_backend(backend):
            y = memory(x)[0].square().sum() if backend == "torch" else memory(x)[0].sum()
        return torch.autograd.grad(y, x, create_graph=True)[0]

    with pytest.raises(RuntimeError, match=r"first derivatives only.*use_backend\(\"torch\"\)"):
        first("native").square().sum().backward()
    with pytest.raises(RuntimeError, match="first derivatives only"):
        first("auto").square().sum().backward()
    first("torch").square().sum().backward()
    assert x.grad.isfinite().all()


def test_documented_offload(run_documented):
    assert "torch.Size([1, 3, 384])" in run_documented("Accelerate")


def test_documented_int8(run_documented):
    pytest.importorskip("torchao", reason="the int8 extra is not installed")
    assert float(run_documented("torchao").split()[-1]) > 0.99

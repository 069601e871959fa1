"""What others do with a model's tensors and modules, each to be run in a process of its own: it may crash.

On the code before these checks several of them ended the process by a signal or gave memory that nobody wrote.
"""

import copy
import tempfile

import torch

from lam_transformers import LAMModel, kernels

from ..helpers import assert_close_rms, hidden, make_mask, random_ids

CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def load(folder, **options):
    return LAMModel.from_pretrained(folder, **options).eval()


def check(model, want, ids, mask, bound=1e-5):
    assert_close_rms("hidden states", hidden(model, ids), want[0], bound)
    assert_close_rms("with a mask", hidden(model, ids, attention_mask=mask), want[1], bound)


@case
def cpu_offload(folder, ids, mask, want):
    from accelerate import cpu_offload

    model = load(folder)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.layers[0].memory.conv1d.weight.is_meta
    check(model, want, ids, mask)
    with kernels.use_backend("native"):
        try:
            hidden(model, ids)
        except RuntimeError as error:
            assert "was asked for, but" in str(error), error
        else:
            raise AssertionError("A forced backend ran on offloaded weights.")


@case
def disk_offload(folder, ids, mask, want):
    from accelerate import disk_offload

    model = load(folder)
    with tempfile.TemporaryDirectory() as offloaded:
        disk_offload(model, offloaded, execution_device=torch.device("cpu"))
        check(model, want, ids, mask)


@case
def device_map_with_disk(folder, ids, mask, want):
    with tempfile.TemporaryDirectory() as offloaded:
        places = {"embeddings": "cpu", "layers.0": "cpu", "layers.1": "disk"}
        model = load(folder, device_map=places, offload_folder=offloaded)
        assert model.layers[1].memory.norm_weight.is_meta
        check(model, want, ids, mask)


class Tuples(torch.nn.Module):
    """Its first output alone, as torch.jit.trace wants it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *inputs):
        return self.model(*inputs, return_dict=False)[0]


@case
def traced(folder, ids, mask, want):
    """A trace of one mask serves another."""
    model = Tuples(load(folder))
    with torch.no_grad():
        plain = torch.jit.trace(model, (ids,))
        assert_close_rms("traced", plain(ids), want[0], 1e-5)
        masked = torch.jit.trace(model, (ids, torch.ones_like(mask)))
        assert_close_rms("with a mask", masked(ids, mask), want[1], 1e-5)


def refused(call, *words):
    try:
        call()
    except ValueError as error:
        assert any(word in str(error) for word in words), error
    else:
        raise AssertionError("It was taken.")


@case
def states_of_other_rows(folder, ids, mask, want):
    model = load(folder)
    for name in ("memory", "conv"):
        whole = getattr(model.new_state(len(ids)), name)[1]
        for other in (whole[:1], whole[:0], whole[:, :1], torch.cat([whole, whole])):
            state = model.new_state(len(ids))
            getattr(state, name)[1] = other
            refused(lambda state=state: hidden(model, ids, cache_params=state), "must be", "model", "rows")
    memory = model.layers[0].memory
    state, conv = torch.zeros(3, 2, 2, 32, 32), torch.zeros(3, 3, 192)
    with torch.no_grad():
        projected = memory.in_proj(torch.zeros(3, 5, 64))
        refused(lambda: kernels.memory_layer(memory, projected, None, state[:1], conv), "one row a text")
        refused(lambda: kernels.memory_layer(memory, projected, None, state, conv[:1]), "one row a text")


@case
def fake_tensors(folder, ids, mask, want):
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = load(folder)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        out = hidden(model, mode.from_tensor(ids), attention_mask=mode.from_tensor(mask))
        assert out.shape == want[0].shape
    fake = mode.from_tensor(torch.randn(3, 5, 64))
    assert model.layers[0](fake)[0].shape == fake.shape


@case
def meta(folder, ids, mask, want):
    from transformers import AutoConfig

    with torch.device("meta"):
        model = LAMModel(AutoConfig.from_pretrained(folder)).eval()
    for dtype in (torch.float32, torch.bfloat16):
        model = model.to(dtype)
        out = hidden(model, ids.to("meta"), attention_mask=mask.to("meta"))
        assert out.is_meta
        assert out.shape == want[0].shape
    model = load(folder)
    with torch.device("meta"):  # the default for new tensors; all that are given are on the CPU
        got = kernels.memory_layer(model.layers[0].memory, model.layers[0].memory.in_proj(want[0]), None, None, None)
    assert got is None or got[0].is_cpu


@case
def other_layouts(folder, ids, mask, want):
    model = load(folder)
    for part in ("conv1d", "flux", "flux.in_proj", "flux.out_proj"):
        for name, p in list(model.layers[1].memory.get_submodule(part).named_parameters(recurse=False)):
            other = copy.deepcopy(model)
            module = other.layers[1].memory.get_submodule(part)
            setattr(module, name, torch.nn.Parameter(p.detach()[..., :1].clone()))
            try:
                hidden(other, ids)
            except Exception as error:
                assert "AssertionError" not in type(error).__name__, error
            setattr(module, name, torch.nn.Parameter(p.detach().t().contiguous().t() if p.ndim == 2 else p.detach()))
            check(other, want, ids, mask)


@case
def quantized_dynamically(folder, ids, mask, want):
    from torch.ao.quantization import quantize_dynamic

    model = quantize_dynamic(load(folder), {torch.nn.Linear}, dtype=torch.qint8)
    for layer in model.layers:
        assert (
            type(layer.memory.flux.in_proj).__name__ == type(layer.memory.flux.out_proj).__name__ == "LAMFluxProjection"
        )
        assert "dynamic" in type(layer.memory.in_proj).__module__
    check(model, want, ids, mask, 0.15)


def check_torchao(model, want, ids, mask):
    for layer in model.layers:
        for part in (layer.memory.conv1d, layer.memory.flux, layer.memory.flux.in_proj, layer.memory.flux.out_proj):
            assert all(type(p) is torch.nn.Parameter for p in part.parameters(recurse=False)), part
        assert type(layer.memory.in_proj.weight) is not torch.nn.Parameter
    assert model.backend == ("native" if "native" in kernels.available() else "torch")
    check(model, want, ids, mask, 0.15)


@case
def torchao_whole_model(folder, ids, mask, want):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = load(folder)
    quantize_(model, Int8WeightOnlyConfig())
    check_torchao(model, want, ids, mask)


@case
def torchao_everything(folder, ids, mask, want):
    """Also what asks for every module that has a weight of two dimensions."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = load(folder)
    quantize_(model, Int8WeightOnlyConfig(), lambda module, name: isinstance(module, torch.nn.Linear))
    assert model.backend == "torch"
    check(model, want, ids, mask, 0.15)


@case
def torchao_config(folder, ids, mask, want):
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    check_torchao(load(folder, quantization_config=TorchAoConfig(Int8WeightOnlyConfig())), want, ids, mask)


def run_case(name: str, folder: str) -> None:
    """One case on the LAM of a folder, with NaN in uninitialised memory."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    model = load(folder)
    ids = random_ids(3, 21, vocab_size=model.config.vocab_size)
    mask = make_mask("right")
    with kernels.use_backend("torch"):
        want = hidden(model, ids), hidden(model, ids, attention_mask=mask)
    CASES[name](folder, ids, mask, want)

"""The rest of a layer after its memory in the native kernel: bias and GELU, LayerNorm of a sum; and when it runs."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lam_transformers import kernels
from lam_transformers.kernels import native
from lam_transformers.quantization import quantize

from ..helpers import assert_close_rms, hidden, relative_rms

pytestmark = pytest.mark.skipif(native.library() is None, reason=f"no native kernel: {native.why_missing()}")
WIDTHS = [1, 15, 16, 33, 64, 384, 1536]


@pytest.fixture(params=["avx512", "avx2", "plain"])
def variant(request, monkeypatch):
    monkeypatch.setenv("LAM_KERNEL_VARIANT", request.param)
    try:
        loaded = native.library.__wrapped__()
    except ValueError:
        pytest.skip(f"this processor does not run {request.param}")
    assert loaded.variant == request.param
    monkeypatch.setattr(native, "library", lambda: loaded)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_norm(width):
    norm = nn.LayerNorm(width, eps=1e-5).requires_grad_(False)
    norm.weight.copy_(random(width, seed=1))
    norm.bias.copy_(random(width, seed=2))
    return norm


def add_norm(norm, x, y, bias=None):
    return native.add_norm(norm, x, y, bias, torch.empty_like(x))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", [0, 1, 70])
def test_bias_and_gelu_are_torchs(variant, rows, width):
    x, bias = 3 * random(rows, width), random(width, seed=1)
    want = F.gelu((x + bias).double())
    assert native.gelu_(x, bias) is x
    assert relative_rms(x, want) < 1e-7
    assert (x - want).abs().max() < 1e-6 if rows else not x.numel()


def test_gelu_is_exact_everywhere(variant):
    x = torch.cat([torch.linspace(-14, 14, 400_001), random(1000) * torch.logspace(-30, 30, 1000)])
    got, want = native.gelu_(x.clone()[None], torch.zeros(len(x)))[0], F.gelu(x.double())
    assert (got - want)[x < 2].abs().max() < 1.5e-7
    assert ((got - want).abs() <= 1.2e-7 * want.abs())[x >= 2].all()
    assert ((got - want).abs() <= 4e-7 * want.abs())[x.abs() < 0.5].all()


def test_gelu_of_the_extremes(variant):
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([[inf, -inf, nan, -nan, -0.0, 0.0, 3e38, -3e38, 1e-40]])
    payload = torch.tensor([[0x7FC00001, 0x7F800001]], dtype=torch.int32).view(torch.float32)
    got = native.gelu_(torch.cat([x, payload], 1), torch.full((11,), -0.0))[0]
    assert got[0] == inf
    assert got[[2, 3, 9, 10]].isnan().all()
    assert got[[4, 5]].tolist() == [0, 0]
    assert got[[4, 5]].signbit().tolist() == [True, False]
    assert got[6] == x[0, 6]
    assert (got[[1, 7]].abs() < 1e-8).all()  # no -inf 0, which is NaN
    assert 0 <= got[8] <= 1e-40


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", [0, 1, 70])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_norm_of_a_sum_is_torchs(variant, rows, width, with_bias):
    norm, x, y = make_norm(width), random(rows, width), random(rows, width, seed=3)
    bias = random(width, seed=4) if with_bias else None
    want = make_norm(width).double()((x + y).double() if bias is None else (x + y + bias).double())
    got = add_norm(norm, x, y, bias)
    assert_close_rms("norm", got, want, 1e-6)
    for out in (x, y):
        assert torch.equal(native.add_norm(norm, x.clone(), y, bias, torch.empty_like(x)), got)
        own = out.clone()
        rest = (own, y) if out is x else (x, own)
        assert torch.equal(native.add_norm(norm, *rest, bias, own), got)


def test_the_norm_of_rows_that_hardly_vary(variant):
    norm, x = make_norm(384), 1000 + 1e-2 * random(5, 384)
    want = make_norm(384).double()(x.double())
    # The mean itself, rounded to float32, is off by as much; torch is too.
    assert relative_rms(add_norm(norm, x, torch.zeros(5, 384)), want) < 2 * relative_rms(norm(x), want)
    same = torch.full((2, 384), 3.0)
    assert torch.allclose(add_norm(norm, same, same), norm.bias.expand(2, -1), atol=1e-6)


def test_nan_stays_in_its_row(variant):
    norm, bias = make_norm(40), random(40, seed=2)
    x, y = random(9, 40), random(9, 40, seed=1)
    for column in (0, 17, 39):
        bad = x.clone()
        bad[4, column] = float("nan")
        good = torch.arange(9) != 4
        got = add_norm(norm, bad, y, bias)
        assert got[4].isnan().all()
        assert torch.equal(got[good], add_norm(norm, x, y, bias)[good])
        got = native.gelu_(bad.clone(), bias)
        assert got.isnan().sum() == 1
        assert torch.equal(got[good], native.gelu_(x.clone(), bias)[good])


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", [0, 1, 70])
@pytest.mark.parametrize("with_bias", [False, True])
def test_in_bfloat16_it_is_float32_rounded(variant, rows, width, with_bias):
    norm = make_norm(width).bfloat16()
    x, y = (random(rows, width, seed=seed).bfloat16() for seed in (0, 3))
    bias = random(width, seed=4).bfloat16()
    want = native.gelu_((3 * x).float(), bias.float()).bfloat16()
    assert torch.equal(native.gelu_(3 * x, bias), want)
    bias = bias if with_bias else None
    want = add_norm(norm.float(), x.float(), y.float(), None if bias is None else bias.float()).bfloat16()
    norm.bfloat16()
    assert torch.equal(add_norm(norm, x, y, bias), want)
    assert torch.equal(native.add_norm(norm, own := x.clone(), y, bias, own), want)
    assert torch.equal(native.add_norm(norm, x, own := y.clone(), bias, own), want)


def test_it_rounds_to_bfloat16_as_torch_does(variant):
    """From 8 on GELU is the identity in float32, so that what comes out is the rounded sum; ties go to even."""
    inf, nan = float("inf"), float("nan")
    large = torch.tensor([8.0, 9.0, 256.0, 257.0, 258.0, 512.0, 3e38, inf, nan])
    small = torch.tensor([0.0, 2**-5, 1.0, 3.0, 1.0, 2.0, 3e38, 1.0, 1.0])
    x, bias = torch.meshgrid(large, small, indexing="ij")
    x, bias = x.flatten().bfloat16(), bias.flatten().bfloat16()
    got = native.gelu_(x.clone()[None], bias)[0]
    assert torch.equal(got.nan_to_num(0.0), (x.float() + bias.float()).bfloat16().nan_to_num(0.0))
    assert torch.equal(got.isnan(), x.isnan())


@pytest.mark.parametrize("width", [33, 384])
def test_a_row_is_the_same_whatever_stands_beside_it_and_on_any_threads(variant, width):
    norm, bias = make_norm(width), random(width, seed=2)
    x, y = random(900, width), random(900, width, seed=1)

    def both(x, y):
        return native.gelu_(x.clone(), bias), add_norm(norm, x, y, bias)

    threads = torch.get_num_threads()
    want = both(x, y)
    order = torch.randperm(900, generator=torch.Generator().manual_seed(0))
    for rows in (slice(0, 1), slice(5, 900), slice(899, 900), order):
        for got, expected in zip(both(x[rows], y[rows]), want, strict=True):
            assert torch.equal(got, expected[rows])
    torch.set_num_threads(64)
    try:
        for got, expected in zip(both(x, y), want, strict=True):
            assert torch.equal(got, expected)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture
def layer(make_model):
    return make_model().layers[0]


def inputs(time=21, dtype=torch.float32):
    return random(2, time, 64).to(dtype), random(2, time, 64, seed=1).to(dtype)


def in_torch(layer, x, y):
    x = layer.memory_norm(x + y)
    return layer.feed_forward_norm(x + layer.feed_forward(x))


@pytest.mark.parametrize("time", [0, 1, 21])
def test_a_layer_is_the_layer_in_torch(variant, layer, time):
    x, y = inputs(time)
    before = x.clone(), y.clone()
    with torch.inference_mode():
        got = kernels.finish_layer(layer, x, y)
        assert_close_rms("layer", got, in_torch(layer, x, y), 1e-6)
        wide = [torch.stack([part, part], dim=-1)[..., 0] for part in (x, y)]
        assert torch.equal(kernels.finish_layer(layer, *wide), got)
        turned = [part.transpose(0, 1).contiguous().transpose(0, 1) for part in (x, y)]
        assert torch.equal(kernels.finish_layer(layer, *turned), got)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


def test_a_model_takes_it_in_inference_only(monkeypatch, make_model, ids):
    model, calls = make_model(), []
    finish = native.finish_layer
    monkeypatch.setattr(native, "finish_layer", lambda *parts: calls.append(1) or finish(*parts))
    with kernels.use_backend("torch"):
        want = hidden(model, ids)
    model(ids)
    assert not calls
    for backend in ("auto", "native"):
        with kernels.use_backend(backend):
            assert_close_rms(backend, hidden(model, ids), want, 1e-5)
    assert len(calls) == 2 * len(model.layers)


def relu(layer):
    layer.feed_forward.act = nn.ReLU()


def hook(layer):
    layer.feed_forward.in_proj.register_forward_hook(lambda module, given, got: 2 * got)


def own_forward(layer):
    layer.memory_norm.forward = lambda x: x


def other_part(layer):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    layer.feed_forward.out_proj = Doubled(128, 64)


def other_feed_forward(layer):
    layer.feed_forward = nn.Linear(64, 64)


def no_bias(layer):
    layer.feed_forward.in_proj.bias = None


def no_weights(layer):
    layer.memory_norm = nn.LayerNorm(64, elementwise_affine=False)


def one_part_in_bfloat16(layer):
    layer.feed_forward.in_proj.bfloat16()


CHANGES = [relu, hook, own_forward, other_part, other_feed_forward, no_bias, no_weights, one_part_in_bfloat16]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_it_does_not_know_runs_in_torch(layer, change):
    with torch.inference_mode():
        assert kernels.finish_layer(layer, *inputs()) is not None
        change(layer)
        assert kernels.finish_layer(layer, *inputs()) is None


def test_gradients_autocast_other_types_and_backends_run_in_torch(layer, make_model):
    assert kernels.finish_layer(layer, *inputs()) is None
    with torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16):
            assert kernels.finish_layer(layer, *inputs()) is None
        with kernels.use_backend("torch"):
            assert kernels.finish_layer(layer, *inputs()) is None
        for dtype in (torch.float16, torch.float64):
            assert kernels.finish_layer(layer.to(dtype), *inputs(dtype=dtype)) is None
        assert kernels.finish_layer(layer.bfloat16(), *inputs()) is None
        other = make_model(flux_hidden_size=8).layers[0]
        assert kernels.finish_layer(other, *inputs()) is None
        with kernels.use_backend("native"), pytest.raises(RuntimeError, match="flux hidden size 8"):
            kernels.finish_layer(other, *inputs())


def test_a_layer_in_bfloat16_is_torchs(layer):
    x, y = inputs(dtype=torch.bfloat16)
    exact = copy.deepcopy(layer).bfloat16().double()
    with torch.inference_mode():
        got = kernels.finish_layer(layer.bfloat16(), x, y)
        assert got.dtype == torch.bfloat16
        middle = layer.memory_norm(x + y)
        in_torch = layer.feed_forward_norm(middle + layer.feed_forward(middle))
        middle = exact.memory_norm(x.double() + y.double())
        want = exact.feed_forward_norm(middle + exact.feed_forward(middle))
    assert relative_rms(got, want) < min(5e-3, relative_rms(in_torch, want))  # it rounds less often


def test_int8_runs_in_torch(make_model):
    pytest.importorskip("torchao", reason="the int8 extra is not installed")
    layer = quantize(make_model()).layers[0]
    with torch.inference_mode():
        assert kernels.finish_layer(layer, *inputs()) is None


def test_compiled_it_runs_in_torch(layer):
    x, y = inputs()
    with torch.no_grad():
        finish = torch.compile(kernels.finish_layer, backend="eager", fullgraph=True)
        assert finish(layer, x, y) is None


@pytest.fixture
def product(monkeypatch):
    """oneDNN's product, whatever the processor."""
    cached = native._onednn
    monkeypatch.setattr(native.library(), "variant", "avx2")
    cached.cache_clear()
    yield cached() or pytest.skip("this torch has no oneDNN")
    cached.cache_clear()


@pytest.mark.parametrize("rows", [1, 2, 33, 500])
@pytest.mark.parametrize("width, out", [(384, 1244), (384, 1536), (1536, 384), (5, 7)])
def test_products_are_torchs(product, rows, width, out):
    x, weight, bias = random(rows, width), random(out, width, seed=1), random(out, seed=2)
    for b in (None, bias):
        want = F.linear(x.double(), weight.double(), None if b is None else b.double())
        assert_close_rms("product", product(x, weight, b), want, 1e-6)
    bad = x.clone()
    bad[0, 0] = float("nan")
    got = product(bad, weight, None)
    assert got[0].isnan().all()
    assert torch.equal(got[1:], product(x, weight, None)[1:])


def test_a_model_multiplies_with_onednn(product, make_model, ids, monkeypatch):
    model = make_model()
    ids = ids.repeat(1, 40)
    with kernels.use_backend("torch"):
        want = hidden(model, ids)
    calls = []
    monkeypatch.setattr(
        native, "can_multiply", lambda module, x, f=native.can_multiply: calls.append(module) or f(module, x)
    )
    got = hidden(model, ids)
    assert calls == [layer.memory.in_proj for layer in model.layers]
    assert_close_rms("hidden states", got, want, 1e-5)


def test_where_products_stay_torchs(product, layer, monkeypatch):
    module = layer.memory.in_proj
    x = random(2, 128, 64)
    with torch.no_grad():
        want = kernels.linear(module, x)
        assert_close_rms("projected", want, module(x), 1e-6)
        assert torch.equal(kernels.linear(module, x.transpose(0, 1).contiguous().transpose(0, 1)), want)
        assert kernels.linear(module, x[:, :127]) is None
        assert kernels.linear(module, x.double()) is None
        assert kernels.linear(module, x[..., :63]) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert kernels.linear(module, x) is None
        with kernels.use_backend("torch"):
            assert kernels.linear(module, x) is None
        handle = module.register_forward_hook(lambda *_: None)
        assert kernels.linear(module, x) is None
        handle.remove()
        assert kernels.linear(nn.Linear(64, 8).bfloat16(), x) is None
        monkeypatch.setattr(native, "product", lambda rows: None)
        assert kernels.linear(module, x) is None
        assert torch.isfinite(kernels.finish_layer(layer, x, x)).all()
    assert kernels.linear(module, x) is None  # gradients may be asked for


def test_a_product_that_is_missing_or_wrong_is_not_taken(product, monkeypatch):
    def refuses(*_):
        raise NotImplementedError

    operators = SimpleNamespace()
    monkeypatch.setattr(torch.ops, "mkldnn", operators)
    native._onednn.cache_clear()
    assert native.product(500) is None
    for wrong in (refuses, lambda x, *_: x, lambda x, weight: x @ weight.t()):
        operators._linear_pointwise = wrong
        native._onednn.cache_clear()
        assert native.product(500) is None

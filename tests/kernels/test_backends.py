"""Which backend runs, fla's mapping, and torch.compile of the torch path."""

import functools

import pytest
import torch

from lam_transformers import kernels
from lam_transformers.kernels import fla
from lam_transformers.model.delta_rule_lam import recurrent_dual_delta_rule
from lam_transformers.model.packing_lam import PackedTexts

from ..helpers import (
    assert_close_rms,
    assert_same_results,
    cast,
    hidden,
    relative_rms,
    rule_inputs,
    run_with_gradients,
)

needs_fla = pytest.mark.skipif(fla.why_missing() is not None, reason=f"no fla backend: {fla.why_missing()}")


def documented_rule(
    q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False, *, cu_seqlens=None, names=None
):
    """fla 0.6's chunk_gated_delta_rule as its docstring and its naive version have it, token by token.

    q, k [B, T, H, K], v [B, T, HV, V] with value head i on head i // (HV / H), g, beta [B, T, HV], g in log space,
    state [N, HV, K, V].
    """
    if cu_seqlens is not None:
        assert cu_seqlens.dtype == torch.long
        assert len(q) == 1
        assert (cu_seqlens.diff() > 0).all(), "empty texts are numbered wrongly"
        parts = []
        for i, (a, b) in enumerate(zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True)):
            first = None if initial_state is None else initial_state[i : i + 1]
            text = [x[:, a:b] for x in (q, k, v, g, beta)]
            parts.append(documented_rule(*text, scale, first, output_final_state))
        return torch.cat([o for o, _ in parts], 1), torch.cat([h for _, h in parts])
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    share = v.shape[2] // q.shape[2]
    q, k = (x.repeat_interleave(share, dim=2) for x in (q, k))
    h = q.new_zeros(len(q), v.shape[2], q.shape[3], v.shape[3]) if initial_state is None else initial_state
    outputs = []
    for t in range(q.shape[1]):
        h = h * g[:, t].exp()[..., None, None]
        change = (v[:, t] - torch.einsum("bhkv,bhk->bhv", h, k[:, t])) * beta[:, t].unsqueeze(-1)
        h = h + k[:, t].unsqueeze(-1) * change.unsqueeze(-2)
        outputs.append(torch.einsum("bhk,bhkv->bhv", scale * q[:, t], h))
    return torch.stack(outputs, 1), h if output_final_state else None


@pytest.fixture
def documented_fla(monkeypatch):
    """A fla that runs anywhere: its documented semantics in torch."""
    monkeypatch.setattr(fla, "load", lambda: documented_rule)
    monkeypatch.setattr(fla, "why_missing", lambda: None)
    monkeypatch.setattr(fla, "why_not", lambda layer, dtype, device: None)


CASES = [
    ({"batch": 2, "time": 19}, None),
    ({"batch": 1, "time": 1}, None),
    ({"batch": 1, "time": 30, "texts": 3}, [0, 7, 8, 30]),
    ({"batch": 1, "time": 12, "texts": 5}, [0, 0, 5, 5, 12, 12]),
]


@pytest.mark.parametrize("sizes, bounds", CASES, ids=["batch", "one token", "packed", "empty texts"])
@pytest.mark.parametrize("with_state", [False, True], ids=["no state", "state"])
def test_the_rule_maps_exactly_onto_shared_value_heads(documented_fla, sizes, bounds, with_state):
    inputs = rule_inputs(**sizes, with_state=with_state, dtype=torch.float32)
    bounds = None if bounds is None else torch.tensor(bounds)
    want = run_with_gradients(recurrent_dual_delta_rule, inputs, cu_seqlens=bounds)
    got = run_with_gradients(fla.dual_delta_rule, inputs, cu_seqlens=None if bounds is None else bounds.int())
    assert_same_results(got, want, 1e-5)


def test_without_tokens_fla_gives_back_the_state():
    inputs = rule_inputs(1, 0, texts=2, dtype=torch.float32)
    o, state = fla.dual_delta_rule(**inputs, cu_seqlens=torch.zeros(3, dtype=torch.long))
    assert o.shape[1] == 0
    assert torch.equal(state, inputs["state"])


def test_a_model_on_fla_equals_the_model_on_torch(documented_fla, tiny_model, ids):
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    for inputs in ({}, {"attention_mask": mask}):
        with kernels.use_backend("torch"):
            want = hidden(tiny_model, ids, **inputs)
        with kernels.use_backend("fla"):
            assert tiny_model.backend == "fla"
            assert_close_rms("hidden states", hidden(tiny_model, ids, **inputs), want, 1e-5)


def test_fla_computes_in_autocasts_dtype(monkeypatch):
    seen = []

    @functools.wraps(documented_rule)
    def recorded(q, k, v, g, beta, **options):
        seen.append([x.dtype for x in (q, k, v, g, beta)])
        return documented_rule(q.float(), k.float(), v.float(), g, beta, **options)

    monkeypatch.setattr(fla, "load", lambda: recorded)
    inputs = rule_inputs(time=9, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        o, state = fla.dual_delta_rule(**inputs)
    want, want_state = recurrent_dual_delta_rule(**inputs)
    assert seen == [[torch.bfloat16] * 3 + [torch.float32] * 2]
    assert o.dtype == state.dtype == torch.float32
    assert 1e-6 < relative_rms(o, want) < 1e-2
    assert relative_rms(state, want_state) < 1e-2


def test_fla_is_named_only_where_it_can_run_and_never_replaced_when_forced(tiny_model, ids):
    assert ("fla" in kernels.available()) == (fla.why_missing() is None)
    with kernels.use_backend("fla"):
        with pytest.raises(RuntimeError, match="fla backend was asked for, but .* runs on CUDA, the model is on cpu"):
            hidden(tiny_model, ids)
        with pytest.raises(RuntimeError, match="asked for"):
            _ = tiny_model.backend


@pytest.mark.parametrize(
    "reason", ["not installed", "older than", "no CUDA device", "cannot be imported: driver"], ids=str
)
def test_why_fla_is_missing_is_said(monkeypatch, reason):
    def version(name):
        if reason == "not installed":
            raise fla.importlib.metadata.PackageNotFoundError(name)
        return "0.5.9" if reason == "older than" else "0.6.0"

    def load():
        raise RuntimeError("driver")

    monkeypatch.setattr(fla.importlib.metadata, "version", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: reason != "no CUDA device")
    monkeypatch.setattr(fla, "load", load)
    assert reason in fla.why_missing.__wrapped__()


def test_geometries_that_fla_does_not_know(make_model):
    memory, cuda = make_model().layers[0].memory, torch.device("cuda")
    assert "float64" in fla.why_not(memory, torch.float64, cuda)
    memory.width = 512
    assert "at most 256" in fla.why_not(memory, torch.float32, cuda)


@needs_fla
@pytest.mark.parametrize("sizes, bounds", CASES, ids=["batch", "one token", "packed", "empty texts"])
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 5e-3), (torch.bfloat16, 2e-2)], ids=["float32", "bfloat16"])
def test_flas_kernels_agree_with_the_reference(sizes, bounds, dtype, bound):
    """float32 products are TF32 on the tensor cores."""
    inputs = rule_inputs(**sizes, key=32, value=32, decay="near_one")
    bounds = None if bounds is None else torch.tensor(bounds)
    want = run_with_gradients(recurrent_dual_delta_rule, inputs, cu_seqlens=bounds)
    on_device = {n: x if x is None else x.cuda() for n, x in cast(inputs, dtype).items()}
    on_device["state"] = on_device["state"].float()
    got = run_with_gradients(fla.dual_delta_rule, on_device, cu_seqlens=None if bounds is None else bounds.cuda())
    assert_same_results({n: x.cpu() for n, x in got.items()}, want, bound)


@needs_fla
def test_a_model_on_cuda_takes_fla_and_agrees_with_the_cpu(make_model, ids):
    model = make_model()
    want = hidden(model, ids)
    model = model.cuda()
    assert model.backend == "fla"
    assert_close_rms("hidden states", hidden(model, ids.cuda()).cpu(), want, 5e-3)


@pytest.mark.parametrize("time", [21, pytest.param(70, marks=pytest.mark.slow)])
def test_the_torch_path_compiles_without_a_graph_break(make_model, time):
    """Fixed shapes, inference and training."""
    memory = make_model().layers[0].memory
    x = torch.randn(2, time, 64, generator=torch.Generator().manual_seed(0))
    with kernels.use_backend("torch"):
        compiled = torch.compile(memory, backend="eager", fullgraph=True)
        want = memory(x, None)
        for got, expected in zip(compiled(x, None), want, strict=True):
            assert_close_rms("compiled", got, expected, 1e-5)
        state = memory(x, None)[1:]
        assert_close_rms("with a state", compiled(x, None, *state)[0], memory(x, None, *state)[0], 1e-5)


def test_the_whole_model_compiles_without_a_graph_break(make_model, ids):
    model = make_model()
    with kernels.use_backend("torch"):
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert_close_rms("compiled", hidden(compiled, ids), hidden(model, ids), 1e-5)


def test_a_packed_row_gives_no_gradient_from_one_text_to_the_next(make_model):
    memory = make_model().layers[0].memory
    x = torch.randn(1, 12, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with kernels.use_backend("torch"):
        memory(x, PackedTexts(torch.tensor([2, 3, 0, 7]), 4))[0][:, 5:].sum().backward()
    assert not x.grad[:, :5].any()
    assert x.grad[:, 5:].all()

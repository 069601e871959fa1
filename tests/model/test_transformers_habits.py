"""What tools expect of any model of transformers: dtypes, gradients of hidden states, graphs with a mask, torch.func.

test_transformers_common.py runs transformers' own tests where their source is at hand.
"""

import pytest
import torch
from torch.func import functional_call, grad, vmap

from lam_transformers import LAMModel, kernels

from ..helpers import assert_close_rms, hidden, make_mask, random_ids

MASKS = ["right", "left", "holes"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_decays_keep_float32_whatever_the_dtype(tiny_config, ids, dtype):
    model = LAMModel._from_config(tiny_config(), dtype=dtype)
    for name, p in model.named_parameters():
        kept = name.endswith("decay_bias") and dtype != torch.float64
        assert p.dtype == (torch.float32 if kept else dtype), name
    assert hidden(model, ids).dtype == dtype


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_hidden_states_with_a_mask_have_gradients(make_model, ids, kind, backend):
    model, mask = make_model(), make_mask(kind)
    with kernels.use_backend(backend):
        out = model(ids, attention_mask=mask, output_hidden_states=True)
        with torch.no_grad():
            packed = model(ids, attention_mask=mask, output_hidden_states=True)
        assert len(out.hidden_states) == len(packed.hidden_states) == 3
        for i, (got, want) in enumerate(zip(out.hidden_states, packed.hidden_states, strict=True)):
            assert_close_rms(f"hidden states {i}", got, want, 1e-5)
            assert not got[mask == 0].any()
            got.retain_grad()
        weights = torch.randn(out.last_hidden_state.shape, generator=torch.Generator().manual_seed(0))
        (out.last_hidden_state * weights).sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        for x in out.hidden_states[:-1]:
            assert x.grad[mask == 1].any(-1).all()
            assert x.grad.isfinite().all()
        model.zero_grad()
        (model(ids, attention_mask=mask).last_hidden_state * weights).sum().backward()
    for name, p in model.named_parameters():
        # Sums of many tokens in another order: measured on the scale of the layer's gradients.
        assert (gradients[name] - p.grad).abs().max() <= 1e-4 * max(p.grad.abs().max(), 1.0), name


@pytest.mark.parametrize("kind", MASKS)
def test_states_with_a_mask_are_the_same_with_hidden_states(make_model, ids, kind):
    """Rows that keep their shape, or packed: one answer, one state, also in the next piece."""
    model, mask = make_model(), make_mask(kind)
    want, got = model.new_state(3), model.new_state(3)
    for piece in (slice(0, 8), slice(8, 21)):
        inputs = {"attention_mask": mask[:, piece]}
        packed = hidden(model, ids[:, piece], cache_params=want, **inputs)
        out = model(ids[:, piece], cache_params=got, output_hidden_states=True, **inputs)
        assert_close_rms("hidden states", out.last_hidden_state, packed, 1e-5)
        got = got.detach()
    assert torch.equal(got.seen, want.seen)
    for i in range(2):
        assert_close_rms("memory", got.memory[i], want.memory[i], 1e-5)
        assert_close_rms("convolution inputs", got.conv[i], want.conv[i], 1e-5)


def test_one_exported_graph_serves_every_mask(make_model, ids):
    model = make_model()
    with torch.no_grad():
        exported = torch.export.export(model, (ids,), {"attention_mask": torch.ones_like(ids)}).module()
        for kind in MASKS:
            mask = make_mask(kind)
            got = exported(ids, attention_mask=mask).last_hidden_state
            assert_close_rms(kind, got, hidden(model, ids, attention_mask=mask), 1e-5)


@pytest.mark.slow
def test_an_exported_graph_with_any_number_of_texts(make_model, ids):
    model, mask = make_model(), make_mask("left")
    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = {"input_ids": {0: batch}, "attention_mask": {0: batch}}
    with torch.no_grad():
        program = torch.export.export(model, (), {"input_ids": ids, "attention_mask": mask}, dynamic_shapes=shapes)
        more = random_ids(5, 21, vocab_size=model.config.vocab_size, seed=1)
        masks = torch.cat([mask, mask[:2]])
        got = program.module()(input_ids=more, attention_mask=masks).last_hidden_state
    assert_close_rms("exported", got, hidden(model, more, attention_mask=masks), 1e-5)


@pytest.mark.slow
def test_onnx_with_a_mask(make_model, ids, tmp_path):
    pytest.importorskip("onnxscript", reason="the onnx extra is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    model, path = make_model(), tmp_path / "lam.onnx"
    with torch.no_grad():
        torch.onnx.export(
            model, (ids, torch.ones_like(ids)), path, dynamo=True, verbose=False, external_data=False,
            input_names=["input_ids", "attention_mask"], output_names=["last_hidden_state"],
        )  # fmt: skip
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for kind in MASKS:
        mask = make_mask(kind)
        (got,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        assert_close_rms(kind, torch.from_numpy(got), hidden(model, ids, attention_mask=mask), 1e-4)


def test_compiled_with_a_mask_without_a_graph_break(make_model, ids):
    model = make_model()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for kind in MASKS:
        mask = make_mask(kind)
        got = hidden(compiled, ids, attention_mask=mask)
        assert_close_rms(kind, got, hidden(model, ids, attention_mask=mask), 1e-5)


def squares(model):
    """Loss of one text, as a function of parameters."""

    def loss(parameters, row, mask):
        inputs = {"input_ids": row.unsqueeze(0), "attention_mask": mask.unsqueeze(0)}
        y = functional_call(model, parameters, (), inputs).last_hidden_state
        return (y * torch.linspace(-1, 1, y.shape[-1])).sin().sum()

    return loss


def test_gradients_by_torch_func(make_model, ids):
    """Of one text, and of every text of a batch by vmap."""
    model, mask = make_model(), make_mask("holes")
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    loss = squares(model)
    each = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, ids, mask)
    for row in range(len(ids)):
        one = grad(loss)(parameters, ids[row], mask[row])
        model.zero_grad()
        loss(dict(model.named_parameters()), ids[row], mask[row]).backward()
        for name, p in model.named_parameters():
            assert (one[name] - p.grad).abs().max() <= 1e-4 * max(p.grad.abs().max(), 1.0), name
            assert (each[name][row] - p.grad).abs().max() <= 1e-4 * max(p.grad.abs().max(), 1.0), name


def test_vmap_over_texts_without_a_mask(make_model, ids):
    model = make_model()
    with torch.no_grad():
        got = vmap(lambda row: model(row.unsqueeze(0)).last_hidden_state[0])(ids)
    assert_close_rms("vmap", got, hidden(model, ids), 1e-5)


def test_second_derivatives_of_the_torch_path(make_model):
    memory = make_model().layers[0].memory.double().requires_grad_(False)
    x = torch.randn(1, 4, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    direction = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def few(x):
        return memory(x)[0] @ direction

    with kernels.use_backend("torch"):
        assert torch.autograd.gradgradcheck(
            lambda t: few(x + 0 * x + t * direction[:, 0]),
            torch.zeros(1, 4, 1, dtype=torch.float64, requires_grad=True),
        )

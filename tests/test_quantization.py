"""int8 linear layers, and bfloat16: close to float32, states in float32, invariances kept."""

import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lam_transformers import LAMEncoder, LAMSession, kernels
from lam_transformers.checkpoints.export import export_model
from lam_transformers.quantization import quantize

from .helpers import assert_close_rms, hidden, random_ids, read_in_pieces, relative_rms

TEXTS = ["The man plays the guitar.", "A dog sleeps in the house on the street.", "Read the red book slowly!"]


@pytest.fixture
def torchao():
    return pytest.importorskip("torchao", reason="the int8 extra is not installed")


@pytest.fixture
def wide_model(make_model):
    """Wider than the tiny one, or rounding to int8 weighs too much."""
    return make_model(hidden_size=128, num_attention_heads=4, intermediate_size=256)


@pytest.fixture
def encoder(tiny_folder, tmp_path):
    export_model(tiny_folder, tmp_path / "exported")
    return LAMEncoder(tmp_path / "exported", device="cpu")


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_int8_stays_close_in_any_batch(torchao, wide_model, backend):
    ids = random_ids(3, 21, vocab_size=wide_model.config.vocab_size)
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    with kernels.use_backend(backend):
        want = hidden(wide_model, ids, attention_mask=mask)
        assert quantize(wide_model) is wide_model
        got = hidden(wide_model, ids, attention_mask=mask)
        assert 1e-4 < relative_rms(got, want) < 0.1
        # A value that lies between two steps of int8 may fall on either side when its last bit differs.
        for row in range(3):
            real = mask[row] == 1
            assert_close_rms(f"row {row}", hidden(wide_model, ids[row : row + 1, real]), got[row : row + 1, real], 0.05)
        pieces, state = read_in_pieces(wide_model, ids, [5, 11])
    assert_close_rms("in pieces", pieces, hidden(wide_model, ids), 0.05)
    assert {x.dtype for x in state.memory} == {torch.float32}


def test_each_token_has_its_own_scale(torchao, wide_model):
    linear = quantize(wide_model).layers[0].memory.in_proj
    x = torch.randn(7, 128, generator=torch.Generator().manual_seed(0))
    others = torch.cat([1000 * x.flip(0), x, 1e-3 * x])
    with torch.no_grad():
        assert_close_rms("a token among others", linear(others)[7:14], linear(x), 1e-6)


def test_int8_changes_the_large_linear_layers_and_nothing_else(torchao, wide_model):
    before = {name: p.detach().clone() for name, p in wide_model.named_parameters()}
    quantize(wide_model)
    changed = {name for name, p in wide_model.named_parameters() if type(p.data) is not torch.Tensor}
    parts = ("memory.in_proj", "memory.out_proj", "feed_forward.in_proj", "feed_forward.out_proj")
    assert changed == {f"layers.{i}.{part}.weight" for i in range(2) for part in parts}
    for name, p in wide_model.named_parameters():
        assert_close_rms(name, p.dequantize(), before[name], 0.02 if name in changed else 1e-12)


def test_encoders_take_int8_and_sessions_know_their_weights(torchao, encoder):
    want = torch.from_numpy(encoder.encode(TEXTS))
    assert quantize(encoder) is encoder
    got = torch.from_numpy(encoder.encode(TEXTS))
    assert F.cosine_similarity(got, want).min() > 0.98
    assert not torch.equal(got, want)
    session = LAMSession(encoder.model).append(TEXTS[0])
    assert_close_rms("session", torch.as_tensor(session.embedding()), got[0], 1e-5)


def test_int8_refuses_what_it_cannot_do(torchao, make_model):
    with pytest.raises(ValueError, match="no LAMModel in this Linear"):
        quantize(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="float16"):
        quantize(make_model().half())
    with pytest.raises(ValueError, match="already"):
        quantize(quantize(make_model()))


def test_without_the_extra_int8_says_so(monkeypatch, tiny_model):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ImportError, match="extra `int8`"):
        quantize(tiny_model)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("autocast", [False, True], ids=["model in bfloat16", "autocast"])
def test_bfloat16_stays_close_with_states_in_float32(make_model, ids, backend, autocast):
    model = make_model()
    with kernels.use_backend(backend):
        want, state = read_in_pieces(model, ids, [5, 11])
        if autocast:
            with torch.autocast("cpu", torch.bfloat16):
                got, low = read_in_pieces(model, ids, [5, 11])
        else:
            got, low = read_in_pieces(model.to(torch.bfloat16), ids, [5, 11])
    assert_close_rms("hidden states", got, want, 4e-2)
    for layer in range(2):
        assert low.memory[layer].dtype == torch.float32
        assert_close_rms("memory", low.memory[layer], state.memory[layer], 6e-2)


def test_embeddings_of_an_encoder_in_bfloat16_stay_close(encoder):
    want = torch.from_numpy(encoder.encode(TEXTS))
    encoder.model.to(torch.bfloat16)
    got = torch.from_numpy(encoder.encode(TEXTS))
    assert got.dtype == torch.float32
    assert F.cosine_similarity(got, want).min() > 0.999

"""The model: loading, outputs, invariances, precision, gradients and starting values."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
import transformers
from torch.nn import functional as F

import lam_transformers
from lam_transformers import LAMModel, LAMState
from lam_transformers.model.heads_lam import AUTO_MAP

from ..helpers import assert_close_rms, hidden, make_mask, random_ids, read_in_pieces, relative_rms


def test_auto_model_loads_what_save_pretrained_wrote(tiny_model, tiny_folder, ids):
    model, info = transformers.AutoModel.from_pretrained(tiny_folder, output_loading_info=True)
    assert type(model) is LAMModel
    assert not model.training
    assert not any(info.values()), info
    assert torch.equal(hidden(model, ids), hidden(tiny_model, ids))
    assert model.config.to_diff_dict() == tiny_model.config.to_diff_dict()


def test_a_saved_folder_holds_the_code_that_reads_it(tiny_folder):
    files = {path.name for path in tiny_folder.iterdir()}
    source = Path(lam_transformers.__file__).parent
    assert {path.name for path in source.glob("*_lam.py")} - {"streaming_lam.py"} <= files  # which encode needs
    auto_map = json.loads((tiny_folder / "config.json").read_text())["auto_map"]
    assert auto_map == AUTO_MAP


def test_loading_leaves_no_uninitialised_parameter(tiny_folder):
    model = LAMModel.from_pretrained(tiny_folder)
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_new_model_has_no_uninitialised_parameter(tiny_config):
    for rank in (None, 0, 8):
        model = LAMModel(tiny_config(output_gate_rank=rank))
        bad = [name for name, p in model.named_parameters() if not p.isfinite().all()]
        assert not bad


def test_the_model_has_no_buffers(tiny_model):
    assert list(tiny_model.named_buffers()) == []
    assert set(tiny_model.state_dict()) == {name for name, _ in tiny_model.named_parameters()}


def test_weights_in_several_files_load_as_in_one(tiny_model, ids, tmp_path):
    tiny_model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert torch.equal(hidden(LAMModel.from_pretrained(tmp_path), ids), hidden(tiny_model, ids))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_implementation_changes_nothing(tiny_model, tiny_folder, ids, attention):
    model = LAMModel.from_pretrained(tiny_folder, attn_implementation=attention)
    assert torch.equal(hidden(model, ids), hidden(tiny_model, ids))


@pytest.mark.parametrize("rank", [None, 0, 32])
def test_every_kind_of_output_gate_runs_and_reloads(make_model, ids, tmp_path, rank):
    model = make_model(output_gate_rank=rank)
    gates = [name for name, _ in model.named_parameters() if "gate_proj" in name]
    assert len(gates) == (2 if rank else 0)
    model.save_pretrained(tmp_path)
    assert torch.equal(hidden(LAMModel.from_pretrained(tmp_path), ids), hidden(model, ids))


@pytest.mark.parametrize("mask", [None, "right", "left", "holes"])
def test_hidden_states_are_the_embeddings_and_the_output_of_each_layer(tiny_model, ids, mask):
    mask = None if mask is None else make_mask(mask)
    output = tiny_model(ids, attention_mask=mask, output_hidden_states=True)
    assert len(output.hidden_states) == 1 + tiny_model.config.num_hidden_layers
    assert all(x.shape == output.last_hidden_state.shape for x in output.hidden_states)
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert not torch.equal(output.hidden_states[0], output.hidden_states[1])
    if mask is not None:
        assert not any(x[mask == 0].any() for x in output.hidden_states)
    assert tiny_model(ids, attention_mask=mask).hidden_states is None


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("selection", [-1, [0, 2], (1,)], ids=str)
def test_a_selection_of_hidden_states_keeps_just_those(tiny_model, ids, selection, masked):
    capturing = pytest.importorskip("transformers.utils.output_capturing")
    if not hasattr(capturing, "selected_hidden_states"):
        pytest.skip("this version of transformers cannot select hidden states")
    mask = make_mask("right") if masked else None
    every = tiny_model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    some = tiny_model(ids, attention_mask=mask, output_hidden_states=selection).hidden_states
    kept = {i % len(every) for i in ([selection] if isinstance(selection, int) else selection)}
    assert len(some) == len(every)
    for i, x in enumerate(some):
        assert torch.equal(x, every[i]) if i in kept else x is None


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_return_dict_false_gives_the_given_fields_in_their_declared_order(tiny_model, ids, masked):
    mask = make_mask("right") if masked else None
    want = tiny_model(ids, attention_mask=mask, output_hidden_states=True)
    alone = tiny_model(ids, attention_mask=mask, return_dict=False)
    assert isinstance(alone, tuple)
    assert len(alone) == 1
    assert torch.equal(alone[0], want.last_hidden_state)
    last, state, states = tiny_model(
        ids, attention_mask=mask, use_cache=True, output_hidden_states=True, return_dict=False
    )
    assert isinstance(state, LAMState)
    assert_close_rms("last_hidden_state", last, want.last_hidden_state, 1e-5)
    assert len(states) == len(want.hidden_states)


def test_return_dict_false_in_the_config_gives_a_tuple(make_model, ids):
    model = make_model()
    want = hidden(model, ids, attention_mask=make_mask("right"))
    model.config.return_dict = False
    for options in ({}, {"use_cache": True}, {"attention_mask": make_mask("right")}):
        assert isinstance(model(ids, **options), tuple)
    with torch.no_grad():  # as `want`: other code may run, which rounds differently
        assert torch.equal(model(ids, attention_mask=make_mask("right"))[0], want)
        output = model(ids, attention_mask=make_mask("right"), return_dict=True)
    assert torch.equal(output.last_hidden_state, want)


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32], ids=["int64", "bool", "float32"])
@pytest.mark.parametrize("kind", ["right", "left", "holes"])
def test_masked_tokens_do_not_exist(tiny_model, ids, kind, dtype):
    mask = make_mask(kind)
    got = hidden(tiny_model, ids, attention_mask=mask.to(dtype))
    for row in range(3):
        real = mask[row] == 1
        alone = hidden(tiny_model, ids[row : row + 1, real])
        assert_close_rms(f"row {row}", got[row : row + 1, real], alone, 1e-5)
        assert not got[row, ~real].any()


def test_what_stands_under_the_mask_changes_no_bit(tiny_model, ids):
    mask = make_mask("holes")
    other = torch.where(mask == 1, ids, random_ids(3, 21, vocab_size=tiny_model.config.vocab_size, seed=9))
    assert torch.equal(hidden(tiny_model, ids, attention_mask=mask), hidden(tiny_model, other, attention_mask=mask))


def test_a_mask_of_ones_changes_no_bit(tiny_model, ids):
    assert torch.equal(hidden(tiny_model, ids, attention_mask=torch.ones_like(ids)), hidden(tiny_model, ids))


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_permuted_batches_give_permuted_hidden_states(tiny_model, ids, masked):
    order = [2, 0, 1]
    mask = make_mask("right") if masked else torch.ones_like(ids)
    want = hidden(tiny_model, ids, attention_mask=mask)[order]
    assert_close_rms("hidden states", hidden(tiny_model, ids[order], attention_mask=mask[order]), want, 1e-5)


def test_a_batch_equals_its_rows_alone(tiny_model, ids):
    alone = torch.cat([hidden(tiny_model, row.unsqueeze(0)) for row in ids])
    assert_close_rms("hidden states", hidden(tiny_model, ids), alone, 1e-5)


@pytest.mark.parametrize("lengths", [[21], [1, 5, 40], [33, 0, 1, 2, 64], [0, 7]], ids=str)
def test_packed_texts_equal_single_texts(tiny_model, lengths):
    ids = random_ids(1, sum(lengths), vocab_size=tiny_model.config.vocab_size)
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    got = hidden(tiny_model, ids, cu_seq_lens_q=bounds.int())
    for i, (start, end) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
        if end > start:
            assert_close_rms(f"text {i}", got[:, start:end], hidden(tiny_model, ids[:, start:end]), 1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"conv_kernel": 1},
        {"conv_kernel": 7},
        {"num_attention_heads": 1},
        {"hidden_size": 36, "num_attention_heads": 4},
        {"num_hidden_layers": 1, "chunk_size": 3},
        {"cross_timescale": 0.0},
        {"cross_timescale": -0.45},
        {"max_position_embeddings": 1, "type_vocab_size": 1, "pad_token_id": None, "flux_hidden_size": 1},
    ],
    ids=str,
)
def test_unusual_geometries_keep_the_invariances(make_model, ids, change):
    model, mask = make_model(**change), make_mask("holes")
    want = hidden(model, ids, attention_mask=mask)
    pieces, state = read_in_pieces(model, ids, [1, 2, 9], mask)
    assert_close_rms("hidden states in pieces", pieces, want, 1e-5)
    assert state.seen.tolist() == [21, 9, 1]
    for row in range(3):
        real = mask[row] == 1
        assert_close_rms(f"row {row}", want[row : row + 1, real], hidden(model, ids[row : row + 1, real]), 1e-5)


def test_a_token_depends_on_no_later_token(tiny_model, ids):
    for end in (1, 4, 20):
        assert_close_rms("hidden states", hidden(tiny_model, ids[:, :end]), hidden(tiny_model, ids)[:, :end], 1e-5)


def test_a_token_depends_on_every_earlier_token(tiny_model, ids):
    want = hidden(tiny_model, ids[:1])
    for place in range(20):
        other = ids[:1].clone()
        other[0, place] = other[0, place] % (tiny_model.config.vocab_size - 1) + 1
        assert relative_rms(hidden(tiny_model, other)[:, -1], want[:, -1]) > 1e-4


def test_inputs_embeds_equal_input_ids(tiny_model, ids):
    embeds = tiny_model.get_input_embeddings()(ids).detach()
    for mask in (None, make_mask("holes")):
        with torch.no_grad():
            got = tiny_model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
        assert torch.equal(got, hidden(tiny_model, ids, attention_mask=mask))


def test_token_types_and_positions_follow_their_tokens_through_a_mask(tiny_model, ids):
    mask = make_mask("left")
    types = (torch.arange(21) % 2).expand(3, 21)
    positions = torch.arange(21).flip(0).unsqueeze(0)
    got = hidden(tiny_model, ids, attention_mask=mask, token_type_ids=types, position_ids=positions)
    for row in range(3):
        real = mask[row] == 1
        alone = hidden(
            tiny_model, ids[row : row + 1, real], token_type_ids=types[:1, real], position_ids=positions[:, real]
        )
        assert_close_rms(f"row {row}", got[row : row + 1, real], alone, 1e-5)
    assert relative_rms(got, hidden(tiny_model, ids, attention_mask=mask)) > 1e-2


def test_positions_beyond_the_table_take_its_last_row(tiny_model):
    rows = tiny_model.config.position_table_size
    ids = random_ids(2, 3 * rows, vocab_size=tiny_model.config.vocab_size)
    want = hidden(tiny_model, ids)
    clamped = torch.arange(3 * rows).clamp(max=rows - 1).expand(2, -1)
    assert torch.equal(hidden(tiny_model, ids, position_ids=clamped), want)
    got, _ = read_in_pieces(tiny_model, ids, [rows - 5, rows, rows + 30, 2 * rows + 1])
    assert_close_rms("hidden states", got, want, 1e-5)


@pytest.mark.parametrize("chunk_size", [1, 5, 64])
def test_the_chunk_size_changes_nothing(make_model, tiny_model, chunk_size):
    ids = random_ids(2, 70, vocab_size=tiny_model.config.vocab_size)
    assert_close_rms("hidden states", hidden(make_model(chunk_size=chunk_size), ids), hidden(tiny_model, ids), 1e-5)


def test_every_parameter_gets_a_finite_gradient_that_is_not_zero(make_model, ids):
    model = make_model().train()
    types = (torch.arange(21) % 2).expand(3, 21)
    weights = torch.randn(3, 21, 64, generator=torch.Generator().manual_seed(2))
    (model(ids, token_type_ids=types).last_hidden_state * weights).sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.any(), name


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_a_masked_batch_has_the_gradients_of_its_texts(make_model, ids, masked):
    model = make_model().double()
    mask = make_mask("holes" if masked else "right", (21, 9, 1) if masked else (21, 21, 21))
    weights = torch.randn(3, 21, 64, generator=torch.Generator().manual_seed(2)).double() * mask.unsqueeze(-1)
    (model(ids, attention_mask=mask).last_hidden_state * weights).sum().backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for row in range(3):
        real = mask[row] == 1
        (model(ids[row : row + 1, real]).last_hidden_state * weights[row, real]).sum().backward()
    for name, p in model.named_parameters():
        assert_close_rms(f"gradient of {name}", got[name], p.grad, 1e-10)


def test_gradients_agree_with_finite_differences(make_model):
    """One direction through all parameters at once: a wrong term anywhere in the model shows."""
    model = make_model().double()
    ids = random_ids(2, 12, vocab_size=model.config.vocab_size)
    mask = make_mask("right", (12, 7), 12)
    g = torch.Generator().manual_seed(3)
    direction = [torch.randn(p.shape, generator=g, dtype=torch.float64) for p in model.parameters()]
    weights = torch.randn(2, 12, 64, generator=g, dtype=torch.float64)

    def loss():
        return (model(ids, attention_mask=mask).last_hidden_state * weights).sum()

    gradients = torch.autograd.grad(loss(), list(model.parameters()))
    slope = sum((x * y).sum() for x, y in zip(gradients, direction, strict=True)).item()
    values, step = [], 1e-6
    with torch.no_grad():
        for sign in (1, -2):
            for p, x in zip(model.parameters(), direction, strict=True):
                p.add_(sign * step * x)
            values.append(loss().item())
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=1e-5)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True], ids=["saved tensor hooks", "reentrant"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_gradient_checkpointing_gives_the_same_gradients(make_model, ids, masked, reentrant):
    mask = make_mask("right") if masked else None
    results, calls = [], []
    for checkpointing in (False, True):
        model = make_model().train()
        model.layers[0].memory.register_forward_hook(lambda *_: calls.append(1))
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        output = model(ids, attention_mask=mask, output_hidden_states=True)
        sum(x.square().sum() * (i + 1) for i, x in enumerate(output.hidden_states)).backward()
        results.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert len(calls) == 1 + 2  # once without, and computed again with checkpointing
    assert results[0].keys() == results[1].keys()
    for name, want in results[0].items():
        assert_close_rms(f"gradient of {name}", results[1][name], want, 1e-5)


@pytest.mark.parametrize("dtype, bound", [(torch.bfloat16, 4e-2), (torch.float16, 5e-3)], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_half_precision_models_run_and_stay_close(tiny_model, tiny_folder, ids, masked, dtype, bound):
    mask = make_mask("holes") if masked else None
    model = transformers.AutoModel.from_pretrained(tiny_folder, dtype=dtype)
    want = hidden(tiny_model, ids, attention_mask=mask)
    for kind in (model, copy.deepcopy(tiny_model).to(dtype)):
        got = hidden(kind, ids, attention_mask=mask)
        assert got.dtype == dtype
        assert_close_rms("hidden states", got, want, bound)
        pieces, state = read_in_pieces(kind, ids, [5, 11], mask)
        assert_close_rms("hidden states in pieces", pieces, want, bound)
        assert {x.dtype for x in state.memory} == {torch.float32}


def test_half_precision_models_train(tiny_folder, ids):
    model = transformers.AutoModel.from_pretrained(tiny_folder, dtype=torch.bfloat16).train()
    model(ids).last_hidden_state.float().square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_decays_stay_in_float32_when_half_precision_is_loaded(tiny_folder):
    model = transformers.AutoModel.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    kept = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert kept == {f"layers.{i}.memory.decay_bias" for i in range(2)}


def test_autocast_stays_close_and_keeps_float32_states(tiny_model, ids):
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        output = tiny_model(ids, attention_mask=make_mask("left"), use_cache=True)
    want = hidden(tiny_model, ids, attention_mask=make_mask("left"))
    assert_close_rms("hidden states", output.last_hidden_state, want, 4e-2)
    assert {x.dtype for x in output.cache.memory} == {torch.float32}


def test_a_double_model_is_the_same_model(tiny_model, tiny_folder, ids):
    model = transformers.AutoModel.from_pretrained(tiny_folder, dtype=torch.float64)
    output = model(ids, use_cache=True)
    assert output.last_hidden_state.dtype == torch.float64
    assert {x.dtype for x in (*output.cache.memory, *output.cache.conv)} == {torch.float64}
    assert_close_rms("hidden states", output.last_hidden_state, hidden(tiny_model, ids).double(), 1e-5)
    pieces, _ = read_in_pieces(model, ids, [3, 4, 17])
    assert_close_rms("hidden states in pieces", pieces, output.last_hidden_state, 1e-12)


def test_resized_token_embeddings_keep_the_old_tokens_and_take_new_ones(make_model, ids, tmp_path):
    model = make_model()
    before, old = hidden(model, ids), model.config.vocab_size
    model.resize_token_embeddings(old + 7)
    assert model.config.vocab_size == old + 7
    assert torch.equal(hidden(model, ids), before)
    ids[0, 0] = old + 6
    assert hidden(model, ids).isfinite().all()
    model.save_pretrained(tmp_path)
    assert torch.equal(hidden(transformers.AutoModel.from_pretrained(tmp_path), ids), hidden(model, ids))


def test_slow_decays_start_log_spaced_between_their_bounds(tiny_config):
    model = LAMModel(tiny_config(hidden_size=60, num_attention_heads=12))
    for layer in model.layers:
        slow = torch.sigmoid(layer.memory.decay_bias[1].double())
        assert slow[0].item() == pytest.approx(0.85, abs=1e-6)
        assert slow[-1].item() == pytest.approx(0.999, abs=1e-6)
        steps = torch.log(-1 / slow.log()).diff()
        torch.testing.assert_close(steps, steps.mean().expand(11), rtol=1e-3, atol=0)
        fast = slow * torch.sigmoid(layer.memory.decay_bias[0].double())
        torch.testing.assert_close(fast, torch.full_like(fast, 0.3), rtol=1e-5, atol=0)


def test_the_flux_starts_at_one_half_and_the_convolution_as_the_identity(tiny_config):
    memory = LAMModel(tiny_config()).layers[0].memory
    x = torch.randn(2, 5, 2, 32)
    assert torch.equal(memory.flux(F.normalize(x, dim=-1), F.normalize(-x, dim=-1)), torch.full((2, 5, 2), 0.5))
    z = torch.randn(2, 9, 3 * 64)
    y, after = memory._convolve(z, None, None)
    assert torch.equal(y, z)
    assert torch.equal(after, z[:, -3:])


def test_the_output_gate_starts_at_one_half(tiny_config):
    memory = LAMModel(tiny_config(output_gate_rank=8)).layers[0].memory
    assert not memory.gate_proj.weight.any()


def test_a_memory_follows_its_equations(make_model):
    """The layer written out from the equations, token by token, in float64."""
    model = make_model().double()
    memory, x = model.layers[0].memory, torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        want = written_out_memory(memory, x[0], model.config)
        got = memory(x, None)[0][0]
    assert_close_rms("memory", got, want, 1e-12)


def written_out_memory(memory, x, config):
    heads, width, c = config.num_attention_heads, config.head_size, config.cross_timescale
    d = heads * width
    projected = x @ memory.in_proj.weight.T
    taps, bias = memory.conv1d.weight[:, 0], memory.conv1d.bias
    qkv = torch.stack(
        [bias + sum(taps[:, 3 - j] * projected[t - j, : 3 * d] for j in range(4) if t >= j) for t in range(len(x))]
    )
    qkv = (qkv * torch.sigmoid(qkv)).view(-1, 3, heads, width)
    q, k = (y / (y.square().sum(-1, keepdim=True) + 1e-6).sqrt() for y in (qkv[:, 0], qkv[:, 1]))
    v = qkv[:, 2]
    beta, slow, fast, gate_fast, gate_slow = projected[:, 3 * d : 3 * d + 5 * heads].view(-1, 5, heads).unbind(1)
    slow = torch.sigmoid(slow + memory.decay_bias[1])
    fast = slow * torch.sigmoid(fast + memory.decay_bias[0])
    resonance = torch.einsum("thk,hkj,thj->th", q, memory.flux.bilinear, k) / memory.flux.temperature
    inner = memory.flux.in_proj(torch.cat([q, k, resonance.unsqueeze(-1)], -1))
    psi = torch.sigmoid(memory.flux.out_proj(inner * torch.sigmoid(inner))).squeeze(-1)
    beta, gate_fast, gate_slow = beta.sigmoid(), gate_fast.sigmoid() * (1 - psi), gate_slow.sigmoid() * psi
    o = torch.zeros(len(x), heads, width, dtype=torch.float64)
    theta = math.asin(2 * c) / 2
    cos, sin = math.cos(theta), math.sin(theta)
    rotation = torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64)
    for h in range(heads):
        s = torch.zeros(2, width, width, dtype=torch.float64)
        for t in range(len(x)):
            coupling = rotation @ torch.diag(torch.stack([fast[t, h], slow[t, h]])) @ rotation.T
            s = torch.einsum("ij,jkv->ikv", coupling, s)
            write = torch.stack([1 - psi[t, h], psi[t, h]])
            error = write[:, None] * v[t, h] - torch.einsum("k,ikv->iv", k[t, h], s)
            s = s + beta[t, h] * torch.einsum("k,iv->ikv", k[t, h], error)
            o[t, h] = gate_fast[t, h] * (q[t, h] @ s[0]) + gate_slow[t, h] * (q[t, h] @ s[1])
    o = o / (o.square().mean(-1, keepdim=True) + config.memory_norm_eps).sqrt() * memory.norm_weight
    gate = torch.sigmoid(memory.gate_proj(projected[:, 3 * d + 5 * heads :]))
    return memory.out_proj(o.flatten(1) * gate)


def test_perturbing_any_parameter_changes_the_output(tiny_model, ids):
    """The tiny models must have no dead part, or the tests above would not see it."""
    want = hidden(tiny_model, ids, token_type_ids=torch.ones_like(ids))
    g = torch.Generator().manual_seed(7)
    for name, _ in tiny_model.named_parameters():
        model = copy.deepcopy(tiny_model)
        changed = model.get_parameter(name).data
        changed += 0.3 * torch.randn(changed.shape, generator=g)
        assert relative_rms(hidden(model, ids, token_type_ids=torch.ones_like(ids)), want) > 1e-4, name

"""Streaming: a text read in pieces, and the state that is carried between them."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save_file

from lam_transformers import LAMModel, LAMState
from lam_transformers.model import state_lam

from ..helpers import (
    assert_close_rms,
    assert_same_state,
    flipped,
    hidden,
    make_mask,
    random_ids,
    read_in_pieces,
    state_tensors,
)


@pytest.mark.parametrize("cuts", [[1], [20], [3], [4], [1, 2, 3, 4], [7, 14], list(range(1, 21))], ids=str)
@pytest.mark.parametrize("kind", [None, "right", "left", "holes"])
def test_splitting_anywhere_with_the_carried_state_changes_nothing(tiny_model, ids, kind, cuts):
    mask = None if kind is None else make_mask(kind)
    one_pass = tiny_model(ids, attention_mask=mask, use_cache=True)
    got, state = read_in_pieces(tiny_model, ids, cuts, mask)
    assert_close_rms("hidden states", got, one_pass.last_hidden_state, 1e-5)
    assert_same_state(state, one_pass.cache)
    assert state.seen.tolist() == ([21] * 3 if mask is None else [21, 9, 1])
    assert_close_rms("without a state", got, hidden(tiny_model, ids, attention_mask=mask), 1e-5)


def test_a_segment_that_is_wholly_masked_leaves_the_state_alone(tiny_model, ids):
    state = tiny_model.new_state(3)
    hidden(tiny_model, ids, cache=state)
    before = state.clone()
    output = hidden(tiny_model, ids, attention_mask=torch.zeros_like(ids), cache=state)
    assert not output.any()
    assert all(torch.equal(x, y) for x, y in zip(state_tensors(state), state_tensors(before), strict=True))


def test_rows_that_end_early_keep_their_state_while_others_go_on(tiny_model, ids):
    mask = make_mask("right", (21, 9, 1))
    _, state = read_in_pieces(tiny_model, ids, [10], mask)
    for row, length in enumerate((21, 9, 1)):
        alone = tiny_model(ids[row : row + 1, :length], use_cache=True).cache
        assert_same_state(state.select([row]), alone)


def test_packed_texts_go_on_from_their_states(tiny_model):
    ids = random_ids(1, 40, vocab_size=tiny_model.config.vocab_size)
    first, second = torch.tensor([0, 5, 5, 20]), torch.tensor([0, 0, 12, 20])
    state = tiny_model.new_state(3)
    hidden(tiny_model, ids[:, :20], cu_seq_lens_q=first, cache=state)
    got = hidden(tiny_model, ids[:, 20:], cu_seq_lens_q=second, cache=state)
    assert state.seen.tolist() == [5, 12, 23]
    whole = torch.cat([ids[:, 5:20], ids[:, 32:]], 1)
    assert_close_rms("text 1", got[:, :12], hidden(tiny_model, ids[:, 20:32]), 1e-5)
    assert_close_rms("text 2", got[:, 12:], hidden(tiny_model, whole)[:, 15:], 1e-5)


def test_gradients_flow_through_a_carried_state_until_it_is_detached(make_model):
    model = make_model()
    ids = random_ids(2, 16, vocab_size=model.config.vocab_size)
    whole = model(ids).last_hidden_state
    (want,) = torch.autograd.grad(whole.square().mean(), model.layers[0].memory.in_proj.weight)
    first = model(ids[:, :7], use_cache=True)
    second = model(ids[:, 7:], cache=first.cache)
    both = torch.cat([first.last_hidden_state, second.last_hidden_state], 1)
    (got,) = torch.autograd.grad(both.square().mean(), model.layers[0].memory.in_proj.weight)
    assert_close_rms("gradient of in_proj", got, want, 1e-5)
    assert first.cache.memory[0].requires_grad
    assert not any(x.requires_grad for x in state_tensors(first.cache.detach()))


def test_use_cache_follows_the_config_unless_given(make_model, ids):
    model = make_model(use_cache=True)
    assert isinstance(model(ids).cache, LAMState)
    assert model(ids, use_cache=False).cache is None
    assert make_model()(ids).cache is None


@pytest.mark.parametrize("name", ["cache", "cache_params", "past_key_values"])
def test_the_state_goes_on_under_each_of_its_names(tiny_model, ids, name):
    want = hidden(tiny_model, ids)[:, 10:]
    state = tiny_model(ids[:, :10], use_cache=True).cache
    output = tiny_model(ids[:, 10:], **{name: state})
    assert_close_rms("hidden states", output.last_hidden_state, want, 1e-5)
    assert state.seen.tolist() == [21] * 3
    assert output.cache is output.cache_params is output["cache"] is output["cache_params"] is output[1] is state
    assert list(output.keys()) == ["last_hidden_state", "cache"]


def test_two_names_for_the_state_at_once_are_refused(tiny_model, ids):
    state = tiny_model.new_state(3)
    with pytest.raises(ValueError, match="cache and past_key_values are names of the same state"):
        tiny_model(ids, cache=state, past_key_values=state)
    assert_same_state(state, tiny_model.new_state(3), 0)


@pytest.fixture
def state(tiny_model, ids):
    return tiny_model(ids, attention_mask=make_mask("right"), use_cache=True).cache.detach()


def test_a_reset_state_is_a_new_one(tiny_model, state):
    state.reset()
    assert_same_state(state, tiny_model.new_state(3), 0)


@pytest.mark.parametrize("rows", [[1], [2, 0], torch.tensor([1, 2])], ids=str)
def test_reset_of_some_rows_leaves_the_others(tiny_model, state, rows):
    before = state.clone()
    state.reset(rows)
    changed = [int(row) for row in rows]
    kept = [row for row in range(3) if row not in changed]
    assert_same_state(state.select(changed), tiny_model.new_state(len(changed)), 0)
    assert_same_state(state.select(kept), before.select(kept), 0)


def test_select_takes_rows_in_the_given_order(tiny_model, ids, state):
    chosen = state.select([2, 0, 0])
    assert chosen.batch_size == 3
    assert chosen.seen.tolist() == [1, 21, 21]
    want = hidden(tiny_model, ids, cache=state.clone())
    got = hidden(tiny_model, ids[[2, 0, 0]], cache=chosen)
    assert_close_rms("hidden states", got, want[[2, 0, 0]], 1e-5)


def test_a_clone_shares_nothing_with_its_original(tiny_model, ids, state):
    copied = state.clone()
    kept = [x.clone() for x in state_tensors(state)]
    hidden(tiny_model, ids, cache=copied)
    for x in state_tensors(copied):
        x.zero_()
    assert all(torch.equal(x, y) for x, y in zip(state_tensors(state), kept, strict=True))


def test_to_moves_every_tensor(state):
    moved = state.to("meta")
    assert {x.device.type for x in state_tensors(moved)} == {"meta"}
    assert {x.device.type for x in state_tensors(state)} == {"cpu"}
    assert moved.fingerprint == state.fingerprint


def test_a_saved_state_goes_on_exactly(tiny_model, ids, state, tmp_path):
    state.save(tmp_path / "text.state")
    loaded = LAMState.load(tmp_path / "text.state")
    assert_same_state(loaded, state, 0)
    assert torch.equal(hidden(tiny_model, ids, cache=loaded), hidden(tiny_model, ids, cache=state))
    assert [path.name for path in tmp_path.iterdir()] == ["text.state"]


@pytest.mark.parametrize("damage", [lambda x: x[:-9], lambda x: x[:40], lambda x: b"", lambda x: b"no state at all"])
def test_a_damaged_state_file_is_refused(state, tmp_path, damage):
    path = tmp_path / "text.state"
    state.save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"text\.state"):
        LAMState.load(path)


def test_a_state_file_that_is_not_there_is_not_a_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        LAMState.load(tmp_path / "nowhere")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"lam_state": "0" * 16}], ids=str)
def test_a_safetensors_file_of_something_else_is_refused(tmp_path, metadata):
    save_file({"weight": torch.ones(3)}, tmp_path / "other.safetensors", metadata)
    with pytest.raises(ValueError, match=r"other\.safetensors.*not a saved LAMState"):
        LAMState.load(tmp_path / "other.safetensors")


def test_a_state_of_another_batch_size_is_refused(tiny_model, ids, state):
    with pytest.raises(ValueError, match="cache holds 3 texts, the batch 2"):
        tiny_model(ids[:2], cache=state)


@pytest.mark.parametrize(
    "change", [{"num_hidden_layers": 3}, {"num_attention_heads": 4}, {"conv_kernel": 3}, {"hidden_size": 32}], ids=str
)
def test_a_state_of_another_geometry_is_refused(make_model, ids, state, change):
    with pytest.raises(ValueError, match="cache comes from another model"):
        make_model(**change)(ids, cache=state)


def test_a_state_of_other_weights_is_refused(make_model, tiny_model, ids, state):
    other = make_model(seed=5)
    assert other.fingerprint() != tiny_model.fingerprint()
    with pytest.raises(ValueError, match=f"other weights.*{state.fingerprint}.*{other.fingerprint()}"):
        other(ids, cache=state)


def test_untrained_models_of_different_seeds_have_different_fingerprints(tiny_config):
    fingerprints = set()
    for seed in range(2):
        torch.manual_seed(seed)
        fingerprints.add(LAMModel(tiny_config()).fingerprint())
    assert len(fingerprints) == 2


def test_the_fingerprint_survives_saving_and_loading(tiny_model, tiny_folder):
    assert LAMModel.from_pretrained(tiny_folder).fingerprint() == tiny_model.fingerprint()


def test_a_state_that_is_no_state_is_refused(tiny_model, ids):
    with pytest.raises(ValueError, match="cache must be a LAMState"):
        tiny_model(ids, cache={"memory": []})


def test_a_refused_input_leaves_the_state_as_it_was(tiny_model, ids, state):
    before = state.clone()
    with pytest.raises(ValueError, match="input_ids"):
        tiny_model(ids + tiny_model.config.vocab_size, cache=state)
    assert_same_state(state, before, 0)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("place", ["layer", "segment"])
def test_an_exception_in_the_middle_of_a_call_leaves_the_state_as_it_was(make_model, ids, monkeypatch, error, place):
    model = make_model()
    state = model(ids[:, :10], use_cache=True).cache.detach()
    before = state.clone()
    want = hidden(model, ids[:, 10:], cache=state.clone())
    calls = []

    def fail(module, args):
        calls.append(module)
        if len(calls) == (1 if place == "layer" else 3):
            raise error

    monkeypatch.setattr("lam_transformers.model.modeling_lam.segment_size", lambda device, *chunk: 4)
    hook = model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(error), torch.set_grad_enabled(place == "layer"):
        model(ids[:, 10:], cache=state) if place == "layer" else hidden(model, ids[:, 10:], cache=state)
    hook.remove()
    assert_same_state(state, before, 0)
    assert_close_rms("hidden states", hidden(model, ids[:, 10:], cache=state), want, 1e-5)


def broken(state, name, change, layer=1):
    state = state.clone()
    if name == "seen":
        state.seen = change(state.seen)
    else:
        getattr(state, name)[layer] = change(getattr(state, name)[layer])
    return state


BROKEN = [
    ("memory", lambda x: x[:2], "another model or is damaged.*memory.*layer 1"),
    ("conv", lambda x: torch.cat([x, x]), "another model or is damaged.*conv.*layer 1"),
    ("memory", lambda x: x.half(), "memory of layer 1 is torch.float16"),
    ("conv", lambda x: x.long(), "conv of layer 1 is torch.int64"),
    ("memory", lambda x: x.to("meta"), "memory of layer 1 is on meta"),
    ("memory", lambda x: x.clone().index_fill(0, torch.tensor(2), float("nan")), "memory of layer 1 holds NaN"),
    ("conv", lambda x: x.clone().index_fill(0, torch.tensor(0), float("inf")), "conv of layer 1 holds NaN or infinity"),
    ("seen", lambda x: x - 5, "seen is -4 to 16"),
    ("seen", lambda x: x + 2**60, "no number of tokens"),
    ("seen", lambda x: x.float(), "seen is torch.float32"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "message"), BROKEN)
def test_every_layer_of_a_state_is_checked_before_it_is_used(tiny_model, ids, state, name, change, message):
    wrong = broken(state, name, change)
    with pytest.raises(ValueError, match=message):
        tiny_model(ids, cache=wrong)


@pytest.mark.parametrize(("name", "change", "message"), [x for x in BROKEN if "layer 1 is" not in x[2]][2:])
def test_a_state_that_was_saved_broken_is_refused_when_it_is_loaded(state, tmp_path, name, change, message):
    broken(state, name, change).save(tmp_path / "text.state")
    with pytest.raises(ValueError, match=rf"text\.state is damaged.*{message}"):
        LAMState.load(tmp_path / "text.state")


def test_large_numbers_in_a_state_are_no_damage(tiny_model, ids, state):
    state.memory[0] = torch.full_like(state.memory[0], 1e36)
    assert state.damage() is None


def test_a_flipped_bit_in_a_saved_state_is_found(make_model, tmp_path):
    model = make_model(hidden_size=8)
    state = model(random_ids(1, 9, vocab_size=model.config.vocab_size), use_cache=True).cache.detach()
    path = tmp_path / "text.state"
    state.save(path)
    for damaged in flipped(path.read_bytes()):
        path.write_bytes(damaged)
        try:
            loaded = LAMState.load(path)
        except ValueError:
            continue
        assert_same_state(loaded, state, 0)


def test_a_state_that_lam_0_1_saved_goes_on(tiny_model, ids, state, tmp_path):
    tensors = {"memory": torch.stack(state.memory), "conv": torch.stack(state.conv), "seen": state.seen}
    save_file(tensors, tmp_path / "old.state", {"lam_state": state_lam._old_fingerprint(tiny_model)})
    loaded = LAMState.load(tmp_path / "old.state")
    want = hidden(tiny_model, ids, cache=state)
    assert torch.equal(hidden(tiny_model, ids, cache=loaded), want)
    assert loaded.fingerprint == tiny_model.fingerprint()


def test_a_state_that_lam_0_1_saved_with_another_model_is_refused(make_model, tiny_model, ids, state):
    state.fingerprint = state_lam._old_fingerprint(make_model(seed=5))
    with pytest.raises(ValueError, match="other weights"):
        tiny_model(ids, cache=state)


def test_the_fingerprint_knows_every_parameter(make_model):
    model = make_model()
    seen = {model.fingerprint()}
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            parameter.mul_(1.5).add_(0.25)
        assert model.fingerprint() not in seen, name
        seen.add(model.fingerprint())


def test_threads_that_save_to_one_path_do_not_disturb_each_other(state, tmp_path):
    path = tmp_path / "text.state"
    with ThreadPoolExecutor(4) as threads:
        done = [threads.submit(state.save, path) for _ in range(100)]
    assert [x.exception() for x in done] == [None] * 100
    assert_same_state(LAMState.load(path), state, 0)
    assert os.listdir(tmp_path) == ["text.state"]


def test_a_save_that_fails_leaves_the_file_before_it(state, tmp_path, monkeypatch):
    path = tmp_path / "text.state"
    state.save(path)
    before = path.read_bytes()
    state.reset()

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        state.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["text.state"]


def test_a_folder_or_a_pipe_is_no_state(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ValueError, match="is no file"):
            LAMState.load(path)

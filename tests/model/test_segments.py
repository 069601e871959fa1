"""Long texts without gradients go through the layers in segments: same result, less memory."""

import pytest
import torch

import lam_transformers.model.modeling_lam as modeling

from ..helpers import assert_close_rms, random_ids


@pytest.fixture
def short_segments(monkeypatch):
    monkeypatch.setattr(modeling, "segment_size", lambda device, *chunk: 16)


def both_ways(model, **inputs):
    """Hidden states in one pass (gradients enabled) and in segments (without)."""
    whole = model(**inputs).last_hidden_state.detach()
    with torch.inference_mode():
        return whole, model(**inputs).last_hidden_state


@pytest.mark.parametrize("length", [33, 48, 49, 100])
def test_segments_equal_one_pass(tiny_model, short_segments, length):
    ids = random_ids(2, length, vocab_size=tiny_model.config.vocab_size)
    whole, segments = both_ways(tiny_model, input_ids=ids)
    assert_close_rms("hidden", segments, whole, 1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_segments_equal_one_pass_for_padded_batches(tiny_model, short_segments, side):
    ids = random_ids(4, 70, vocab_size=tiny_model.config.vocab_size)
    mask = torch.zeros_like(ids)
    for row, length in enumerate((70, 3, 16, 41)):
        mask[row, slice(70 - length, None) if side == "left" else slice(length)] = 1
    whole, segments = both_ways(tiny_model, input_ids=ids, attention_mask=mask)
    assert_close_rms("hidden", segments, whole, 1e-5)


def test_segments_equal_one_pass_for_packed_texts_with_a_state(tiny_model, short_segments):
    ids = random_ids(1, 90, vocab_size=tiny_model.config.vocab_size)
    bounds = torch.tensor([0, 50, 50, 53, 90])
    results = []
    for context in (torch.enable_grad(), torch.inference_mode()):
        with context:
            state = tiny_model(ids[:, :44], cu_seq_lens_q=torch.tensor([0, 4, 20, 43, 44]), use_cache=True).cache
            output = tiny_model(ids, cu_seq_lens_q=bounds, cache=state)
            results.append((output.last_hidden_state, *output.cache.memory, output.cache.seen))
    for i, (whole, segments) in enumerate(zip(*results, strict=True)):
        assert_close_rms(f"tensor {i}", segments, whole, 1e-5)


def test_hidden_states_come_from_one_pass(tiny_model, short_segments):
    ids = random_ids(1, 60, vocab_size=tiny_model.config.vocab_size)
    with torch.inference_mode():
        output = tiny_model(ids, output_hidden_states=True)
    assert len(output.hidden_states) == tiny_model.config.num_hidden_layers + 1
    assert all(x.shape == output.last_hidden_state.shape for x in output.hidden_states)

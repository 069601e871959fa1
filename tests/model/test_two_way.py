"""Two-way reading: the slow memory is read when a token's chunk has been written (docs/ALGORITHM.md)."""

import numpy as np
import pytest
import torch

import lam_transformers
from lam_transformers import LAMConfig, LAMEncoder, LAMSession, late_chunks
from lam_transformers.checkpoints.export import export_model
from lam_transformers.evaluation.research.probe import additive_rule
from lam_transformers.kernels import fla
from lam_transformers.model.delta_rule_lam import chunk_dual_delta_rule, dual_delta_rule, recurrent_dual_delta_rule

from ..helpers import (
    assert_close_rms,
    assert_same_results,
    assert_same_state,
    hidden,
    random_ids,
    read_in_pieces,
    rule_inputs,
    run_with_gradients,
    time_slice,
)
from ..kernels.test_backends import documented_rule

CHUNK = 8
LENGTHS = (1, 7, 8, 9, 16, 17, 33, 70)
TEXT = "The old dog sleeps in the house and the young cat plays on the street, slowly. " * 9


@pytest.fixture(scope="module")
def two_way(make_model):
    return make_model(two_way_chunk=CHUNK)


@pytest.fixture(scope="module")
def encoder(two_way, tokenizer, tmp_path_factory):
    root = tmp_path_factory.mktemp("two-way")
    two_way.save_pretrained(root / "source")
    tokenizer.save_pretrained(root / "source")
    export_model(root / "source", root / "own", torch.float32)
    return LAMEncoder(root / "own")


def reordered(inputs: dict, chunk: int, state):
    """The definition by the one-way rule: of each chunk all tokens write, then all read, which changes nothing."""
    time = inputs["q"].shape[1]
    order, reads = [], []
    for start in range(0, time, chunk):
        tokens = list(range(start, min(start + chunk, time)))
        order += tokens + tokens
        reads += [False] * len(tokens) + [True] * len(tokens)
    mask = torch.tensor(reads)
    twice = {name: x[:, order].clone() for name, x in inputs.items()}
    twice["beta"][:, mask] = 0
    twice["log_decay"][:, mask] = 0
    twice["read"][..., 0] = 0
    slow = recurrent_dual_delta_rule(**twice, state=state)[0][:, mask]
    only_fast = inputs["read"] * torch.tensor([1.0, 0.0])
    fast, last = recurrent_dual_delta_rule(**(inputs | {"read": only_fast}), state=state)
    return fast + slow, last


@pytest.mark.parametrize("with_state", [False, True], ids=["no state", "state"])
@pytest.mark.parametrize("time", LENGTHS)
def test_the_reference_is_writing_all_of_a_chunk_and_then_reading(time, with_state):
    inputs = rule_inputs(2, time, 3, 8, 5, with_state=with_state, dtype=torch.float64)
    state = inputs.pop("state", None)
    want, want_state = reordered(inputs, CHUNK, state)
    got, got_state = recurrent_dual_delta_rule(**inputs, state=state, two_way_chunk=CHUNK)
    assert_close_rms("o", got, want, 1e-12)
    assert_close_rms("state", got_state, want_state, 1e-12)


@pytest.mark.parametrize("chunk", [1, 5, 8, 48, 64, 100])
@pytest.mark.parametrize("with_state", [False, True], ids=["no state", "state"])
@pytest.mark.parametrize("time", [*LENGTHS, 130])
def test_chunks_agree_with_the_reference_in_output_state_and_every_gradient(time, with_state, chunk):
    inputs = rule_inputs(time=time, with_state=with_state, dtype=torch.float64, seed=time)
    want = run_with_gradients(recurrent_dual_delta_rule, inputs, two_way_chunk=chunk)
    for size in (None, 6, 64):
        got = run_with_gradients(chunk_dual_delta_rule, inputs, chunk_size=size, two_way_chunk=chunk)
        assert_same_results(got, want, 1e-11)


def test_packed_texts_have_chunks_of_their_own():
    bounds = torch.tensor([0, 7, 7, 30, 61, 69])
    inputs = rule_inputs(1, 69, 2, 8, 8, with_state=False, dtype=torch.float64)
    for rule in (recurrent_dual_delta_rule, chunk_dual_delta_rule, additive_rule):
        o, state = rule(**inputs, cu_seqlens=bounds, two_way_chunk=CHUNK)
        for i, (start, end) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
            if start == end:
                continue
            alone, last = rule(**time_slice(inputs, start, end), two_way_chunk=CHUNK)
            assert_close_rms("o", o[:, start:end], alone, 1e-12)
            assert_close_rms("state", state[i : i + 1], last, 1e-12)


def test_a_long_text_in_blocks_is_the_reference():
    inputs = rule_inputs(1, 1100, 1, 8, 8, with_state=False)
    got, _ = dual_delta_rule(**inputs, two_way_chunk=48)
    want, _ = recurrent_dual_delta_rule(**inputs, two_way_chunk=48)
    assert_close_rms("o", got, want, 1e-5)


@pytest.mark.parametrize("bounds", [None, [0, 7, 7, 30, 60]])
def test_fla_reads_by_reordering(bounds, monkeypatch):
    monkeypatch.setattr(fla, "load", lambda: documented_rule)
    cu_seqlens = None if bounds is None else torch.tensor(bounds)
    texts = 1 if bounds is None else len(bounds) - 1
    inputs = rule_inputs(1, 60, 2, 8, 8, with_state=False, dtype=torch.float32) | {
        "state": torch.randn(texts, 2, 2, 8, 8)
    }
    got, state = fla.dual_delta_rule(**inputs, cu_seqlens=cu_seqlens, two_way_chunk=CHUNK)
    want, want_state = recurrent_dual_delta_rule(**inputs, cu_seqlens=cu_seqlens, two_way_chunk=CHUNK)
    assert_close_rms("o", got, want, 1e-5)
    assert_close_rms("state", state, want_state, 1e-5)


def test_a_token_sees_what_follows_in_its_chunk_and_nothing_of_later_ones(two_way):
    ids = random_ids(1, 3 * CHUNK, vocab_size=two_way.config.vocab_size)
    changed = ids.clone()
    changed[0, 2 * CHUNK - 1] = (ids[0, 2 * CHUNK - 1] + 1) % two_way.config.vocab_size
    difference = (hidden(two_way, ids) - hidden(two_way, changed))[0].abs().amax(-1)
    assert (difference[:CHUNK] == 0).all()
    assert (difference[CHUNK:] > 0).all()


def test_padding_packing_and_batch_change_nothing(two_way):
    lengths = (29, 8, 1, 17)
    texts = [random_ids(1, n, vocab_size=two_way.config.vocab_size, seed=n) for n in lengths]
    alone = [hidden(two_way, text)[0] for text in texts]
    packed = hidden(two_way, torch.cat(texts, 1), cu_seq_lens_q=torch.tensor([0, *np.cumsum(lengths)]))[0]
    assert_close_rms("packed", packed, torch.cat(alone), 1e-5)
    for side in ("left", "right", "spread"):
        ids = torch.zeros(len(texts), 40, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            n = text.shape[1]
            places = {"left": np.arange(40 - n, 40), "right": np.arange(n), "spread": np.arange(n) * 40 // n}[side]
            ids[row, places] = text[0]
            mask[row, places] = 1
        padded = hidden(two_way, ids, attention_mask=mask)
        for row, want in enumerate(alone):
            assert_close_rms(side, padded[row, mask[row].bool()], want, 1e-5)
        # Rows that keep their shape, where gradients of hidden states may be asked for.
        shaped = two_way(ids, attention_mask=mask, output_hidden_states=True).last_hidden_state.detach()
        assert_close_rms(f"{side}, in its shape", shaped[mask.bool()], torch.cat(alone), 1e-5)


@pytest.mark.parametrize("cuts", [[8], [8, 24], [16, 32, 40]])
def test_a_text_cut_at_multiples_of_the_chunk_is_one_pass(two_way, cuts):
    ids = random_ids(2, 45, vocab_size=two_way.config.vocab_size)
    whole = two_way(ids, use_cache=True)
    pieces, state = read_in_pieces(two_way, ids, cuts)
    assert_close_rms("hidden", pieces, whole.last_hidden_state.detach(), 1e-5)
    assert_same_state(state, whole.cache.detach())


def test_a_text_cut_anywhere_else_is_refused(two_way):
    ids = random_ids(1, 20, vocab_size=two_way.config.vocab_size)
    state = two_way.new_state(1)
    hidden(two_way, ids[:, :13], cache=state)
    with pytest.raises(ValueError, match=r"seen \[13\] tokens.*multiples of 8.*LAMSession"):
        hidden(two_way, ids[:, 13:], cache=state)


def test_segments_of_a_long_text_are_one_pass(two_way, monkeypatch):
    monkeypatch.setattr("lam_transformers.model.packing_lam.SEGMENT", 20)
    monkeypatch.setattr("lam_transformers.model.modeling_lam.segment_size", lambda device, chunk: 20 - 20 % chunk)
    ids = random_ids(2, 70, vocab_size=two_way.config.vocab_size)
    whole = two_way(ids).last_hidden_state.detach()
    assert_close_rms("hidden", hidden(two_way, ids), whole, 1e-5)


def test_gradients_are_those_of_the_reference(make_model):
    model = make_model(two_way_chunk=CHUNK)
    ids = random_ids(2, 30, vocab_size=model.config.vocab_size)
    gradients = []
    for backend in ("auto", "torch"):
        model.zero_grad()
        with lam_transformers.kernels.use_backend(backend):
            model(ids).last_hidden_state.square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, want in gradients[1].items():
        assert_close_rms(name, gradients[0][name], want, 1e-4)


def test_sessions_and_late_chunks_are_one_pass(encoder):
    whole = encoder.encode([TEXT])[0]
    for budget in (3, 20, 64):
        encoder.model[0].token_budget = budget
        assert np.abs(encoder.encode([TEXT, "a dog", TEXT])[0] - whole).max() < 1e-5
    encoder.model[0].token_budget = None
    session = LAMSession(encoder)
    for start in range(0, len(TEXT), 101):
        session.append(TEXT[start : start + 101])
    assert np.abs(session.embedding() - whole).max() < 1e-5
    chunks = late_chunks(encoder, TEXT, "sentence")
    lam = encoder.model[0].model
    states = hidden(lam, torch.tensor([encoder.model.tokenizer(TEXT)["input_ids"]]))[0, 1:-1]
    spans = encoder.model.tokenizer(TEXT, return_offsets_mapping=True)["offset_mapping"][1:-1]
    first = torch.stack([s for s, (_, end) in zip(states, spans, strict=True) if end <= chunks[0].end]).mean(0)
    assert np.abs(chunks[0].embedding - torch.nn.functional.normalize(first, dim=0).numpy()).max() < 1e-5
    # The last tokens share their chunk with the closing one.
    last = torch.stack([s for s, (start, _) in zip(states, spans, strict=True) if start >= chunks[-1].start]).mean(0)
    assert np.abs(chunks[-1].embedding - torch.nn.functional.normalize(last, dim=0).numpy()).max() < 1e-5


def test_configurations_of_before_read_one_way():
    fields = LAMConfig().to_dict()
    fields.pop("two_way_chunk")
    assert LAMConfig.from_dict(fields).two_way_chunk is None
    for bad in (0, -64, 5000):
        with pytest.raises(ValueError, match="two_way_chunk must be None or from 1 to 1024"):
            LAMConfig(two_way_chunk=bad)
    with pytest.raises(ValueError, match="two_way_chunk must be None or at least 1, got 0"):
        dual_delta_rule(**rule_inputs(1, 4, 1, 8, 8), two_way_chunk=0)

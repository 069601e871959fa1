"""Inside the memories: the additive rule, what is read out of a state, ablations that really switch something off."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("sklearn", reason="the evaluate extra is not installed")

from lam_transformers.checkpoints.init import lam_from_bert
from lam_transformers.evaluation.data import Data
from lam_transformers.evaluation.models import BM25, BagOfTokens, load_encoder
from lam_transformers.evaluation.research.ablation import ABLATIONS, FULL, keep_off, with_lam, without
from lam_transformers.evaluation.research.long_context import _chunk_distances, _lam_distances, prepare_facts
from lam_transformers.evaluation.research.pillars import _psi
from lam_transformers.evaluation.research.probe import (
    Reading,
    Recorder,
    additive_rule,
    fact_ids,
    forgetting_curve,
    hits,
    margins,
    memories,
    read,
    read_facts,
    replaced_rule,
    write_to_fast_only,
)
from lam_transformers.evaluation.research.recall import recall_shares
from lam_transformers.kernels import use_backend
from lam_transformers.training.at_scale.ablations import ARM_OF, score_runs, trained_model
from lam_transformers.training.distill import DistillConfig
from lam_transformers.training.loop import learning_rates
from lam_transformers.training.retraining import retrain_ablations

from ..helpers import assert_close_rms, hidden, random_ids, rule_inputs, time_slice
from .conftest import write_lines
from .small import SMALL, SMALL_LONG_CONTEXT, Lines


def additive_loop(*, q, k, v, beta, log_decay, write, read, state):
    z, outputs = state, []
    for t in range(q.shape[1]):
        new = write[:, t, :, :, None] * v[:, t, :, None]
        z = log_decay[:, t].exp()[..., None, None] * z + torch.einsum("bh,bhk,bhmv->bhmkv", beta[:, t], k[:, t], new)
        outputs.append(torch.einsum("bhm,bhk,bhmkv->bhv", read[:, t], q[:, t], z))
    return torch.stack(outputs, 1), z


@pytest.mark.parametrize("time, chunk", [(1, None), (33, 8), (130, None)])
def test_additive_rule_is_its_equation(time, chunk):
    inputs = rule_inputs(time=time)
    want = additive_loop(**inputs)
    got = additive_rule(**inputs, chunk_size=chunk)
    for name, x, y in zip(("o", "state"), got, want, strict=True):
        assert_close_rms(name, x, y, 1e-10)


def test_additive_rule_on_packed_rows_and_from_a_state():
    inputs = rule_inputs(batch=1, time=33, texts=3)
    bounds = torch.tensor([0, 5, 5, 33])
    o, z = additive_rule(**inputs, cu_seqlens=bounds)
    for i, (start, end) in enumerate([(0, 5), (5, 5), (5, 33)]):
        text = time_slice(inputs, start, end)
        want = additive_rule(**text, state=inputs["state"][i : i + 1])
        assert_close_rms(f"o of text {i}", o[:, start:end], want[0], 1e-12)
        assert_close_rms(f"state of text {i}", z[i : i + 1], want[1], 1e-12)


def test_one_token_stands_in_the_memories_as_it_was_written(tiny_model):
    """S = (1 - psi, psi) beta k v' after the first token, in memory space."""
    ids = random_ids(2, 1, vocab_size=tiny_model.config.vocab_size)
    recorder, psi = Recorder(tiny_model), []
    hooks = [layer.memory.flux.register_forward_hook(lambda *x: psi.append(x[2])) for layer in tiny_model.layers]
    with torch.no_grad(), replaced_rule(tiny_model, recorder):
        state = read(tiny_model, ids, tiny_model.new_state(2))
    for hook in hooks:
        hook.remove()
    k, v, beta = (recorder.stacked(name)[:, :, 0] for name in ("k", "v", "beta"))
    psi = torch.stack(psi)[:, :, 0]
    outer = torch.einsum("lbh,lbhk,lbhv->lbhkv", beta, k, v)
    got = memories(tiny_model, state)
    assert_close_rms("fast", got[:, :, :, 0], (1 - psi)[..., None, None] * outer, 1e-5)
    assert_close_rms("slow", got[:, :, :, 1], psi[..., None, None] * outer, 1e-5)


def test_writing_to_the_fast_memory_leaves_the_slow_one_empty(tiny_model):
    ids = random_ids(1, 1, vocab_size=tiny_model.config.vocab_size)
    with torch.no_grad(), replaced_rule(tiny_model, write_to_fast_only(tiny_model)):
        state = read(tiny_model, ids, tiny_model.new_state(1))
    s = memories(tiny_model, state)
    assert s[:, :, :, 1].abs().max() < 1e-6 < 1e-3 < s[:, :, :, 0].abs().max()
    with torch.no_grad():
        later = memories(tiny_model, read(tiny_model, torch.tensor([[7]]), state))
    assert later[:, :, :, 1].abs().max() > 1e-4


def test_the_replaced_rule_ends_with_its_block(tiny_model, ids):
    want = hidden(tiny_model, ids)
    with replaced_rule(tiny_model, additive_rule):
        assert (hidden(tiny_model, ids) - want).abs().max() > 1e-3
    assert torch.equal(hidden(tiny_model, ids), want)


def recorded(lam, ids):
    recorder = Recorder(lam)
    with torch.no_grad(), replaced_rule(lam, recorder):
        lam(ids)
    return recorder


def test_what_layers_are_given_over_several_segments_is_one_sequence(tiny_model):
    ids = random_ids(1, 2_100, vocab_size=tiny_model.config.vocab_size)  # more than one segment on a CPU
    recorder = Recorder(tiny_model)
    with torch.no_grad(), replaced_rule(tiny_model, recorder):
        read(tiny_model, ids, tiny_model.new_state(1))
    write = recorder.stacked("write")
    assert len(recorder.calls) > len(write) == len(tiny_model.layers)
    assert write.shape[2] == 2_100
    short = recorded(tiny_model, ids[:, :40]).stacked("write")
    assert_close_rms("first tokens", write[:, :, :40], short, 1e-5)
    psi = _psi(tiny_model, ids[0].tolist())
    assert psi.shape == (2_100,)
    assert_close_rms("psi", torch.tensor(_psi(tiny_model, ids[0, :40].tolist())), torch.tensor(psi[:40]), 1e-5)


def test_each_ablation_switches_off_what_it_names(tiny_model, ids):
    before = {name: x.clone() for name, x in tiny_model.state_dict().items()}
    assert recorded(tiny_model, ids).stacked("log_decay").std(2).min() > 1e-4
    constant = recorded(without(tiny_model, "decay"), ids).stacked("log_decay")
    assert constant.std(2).max() < 1e-6
    cos, sin = tiny_model.layers[0].memory.cos, tiny_model.layers[0].memory.sin
    half = torch.tensor([cos - sin, sin + cos]) / 2
    write = recorded(without(tiny_model, "flux"), ids).stacked("write")
    assert (write - half).abs().max() < 1e-6
    one = recorded(without(tiny_model, "two memories"), ids).stacked("write")
    assert (one - torch.tensor([0.0, 1.0])).abs().max() < 1e-6
    assert without(tiny_model, "cross-timescale").layers[0].memory.sin == 0
    conv = without(tiny_model, "convolution").layers[0].memory.conv1d
    assert torch.equal(conv.weight[..., -1], torch.ones_like(conv.weight[..., -1])) and not conv.weight[..., :-1].any()
    with replaced_rule(tiny_model, additive_rule):
        additive = hidden(tiny_model, ids)
    # Equal but for rounding: a copy's weights may lie otherwise in memory, and products then sum in another order.
    assert_close_rms("hidden", hidden(without(tiny_model, "delta rule"), ids), additive, 1e-6)
    assert (hidden(tiny_model, ids) - additive).abs().max() > 1e-3
    assert all(torch.equal(x, before[name]) for name, x in tiny_model.state_dict().items())


def test_without_two_way_reading_a_model_is_the_one_way_model(make_model, ids):
    two_way = make_model(two_way_chunk=8)
    one_way = hidden(make_model(), ids)
    assert (hidden(two_way, ids) - one_way).abs().max() > 1e-3
    assert_close_rms("hidden", hidden(without(two_way, "two-way reading"), ids), one_way, 1e-6)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("name", [name for name in ABLATIONS if name not in ("delta rule", "cross-timescale")])
def test_training_keeps_an_ablated_component_off(make_model, ids, name, backend):
    lam = without(make_model(seed=7), name)
    parameters = [lam.get_parameter(n) for n in learning_rates(lam, DistillConfig())]
    keep_off(lam, name)
    optimizer = torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1)
    before = {n: p.detach().clone() for n, p in lam.named_parameters()}
    with use_backend(backend):
        for _ in range(2):
            lam(ids).last_hidden_state.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    again = without(lam, name)
    same = {n for n, p in again.named_parameters() if torch.equal(p, lam.get_parameter(n))}
    assert same == set(before), "switching off again changes nothing: it stayed off"
    assert any(not torch.equal(p, before[n]) for n, p in lam.named_parameters())


def test_with_lam_changes_the_model_and_nothing_else(measured_model):
    texts = ["the dog runs", "the old man reads a book in the street"]
    want = measured_model.encode(texts)
    changed = with_lam(measured_model, without(measured_model.lam, "convolution"))
    assert np.abs(changed.encode(texts) - want).max() > 1e-4
    assert np.abs(measured_model.encode(texts) - want).max() < 1e-6


def test_facts_are_found_right_after_they_were_read(measured_model):
    lam = measured_model.lam
    filler = [int(i) for i in random_ids(80, vocab_size=lam.config.vocab_size)]
    facts = fact_ids(measured_model, 8)
    assert len(facts) >= 3 and len({tuple(row) for row in facts.tolist()}) == len(facts)
    reading = read_facts(lam, filler[:10], facts, filler[10 : 10 + facts.shape[1]])
    now, later = forgetting_curve(lam, reading, filler[20:], (0, 60))
    assert hits(now["scores"]["both"]).mean() > hits(now["control"]["both"]).mean()
    assert margins(now["scores"]["both"]).mean() > margins(later["scores"]["both"]).mean()
    # The control row holds no fact: all rows answer alike but for the key.
    assert now["control"]["both"].shape == now["scores"]["both"].shape


def test_a_reading_is_one_pass_wherever_it_is_asked(measured_two_way):
    lam = measured_two_way.lam
    ids = random_ids(3, 60, vocab_size=lam.config.vocab_size)
    reading = Reading(lam, lam.new_state(3))
    done = 0
    for place in (1, 7, 8, 30, 60):
        reading.read(ids[:, done:place])
        done = place
        want = read(lam, ids[:, :place], lam.new_state(3))
        for got, wanted in zip(reading.now().memory, want.memory, strict=True):
            assert_close_rms(f"memory after {place}", got, wanted, 1e-5)


def test_facts_of_a_model_that_reads_two_ways_end_with_a_chunk(measured_two_way):
    lam = measured_two_way.lam
    filler = [int(i) for i in random_ids(120, vocab_size=lam.config.vocab_size)]
    facts = fact_ids(measured_two_way, 8)
    length = facts.shape[1]
    learnt = read_facts(lam, filler[:21], facts, filler[21 : 21 + length])
    assert learnt.reading.open.shape == (len(facts) + 1, 0)
    before = filler[(21 + length) % lam.config.two_way_chunk : 21]
    recorder = Recorder(lam)
    with torch.no_grad(), replaced_rule(lam, recorder):
        lam(torch.tensor([[*before, *facts[0].tolist()]]))
    assert_close_rms("key", learnt.keys[:, 0], recorder.stacked("k")[:, 0, -1], 1e-5)
    now, later = forgetting_curve(lam, learnt, filler[40:], (0, 60))
    assert margins(now["scores"]["both"]).mean() > margins(later["scores"]["both"]).mean()


def test_margins_and_hits_of_a_table():
    scores = np.array([[0.9, 0.1, 0.2], [0.5, 0.3, 0.1], [0.0, 0.2, 0.4]])
    assert hits(scores).tolist() == [True, False, True]
    assert margins(scores) == pytest.approx([0.75, 0.0, 0.3])


@pytest.mark.parametrize("name", ["measured_model", "measured_two_way"])
def test_distances_by_states_are_those_of_whole_texts(request, name):
    encoder = request.getfixturevalue(name)
    ids = random_ids(60, vocab_size=encoder.lam.config.vocab_size).tolist()
    other, places = [9, 8, 7, 6], [0, 20, 56]
    got = _lam_distances(encoder, ids, other, places)
    original = encoder.embed_ids([encoder.with_special(ids)])[0]
    for place, distance in zip(places, got, strict=True):
        changed = [*ids[:place], *other, *ids[place + 4 :]]
        moved = encoder.embed_ids([encoder.with_special(changed)])[0]
        assert distance == pytest.approx(1 - float(original @ moved), abs=1e-5)
        assert distance > 1e-6


def test_chunked_distances_embed_only_what_changed(tiny_bert, monkeypatch):
    from lam_transformers.evaluation.research import long_context

    monkeypatch.setattr(long_context, "CHUNK", 10)
    bert = load_encoder(tiny_bert)
    ids = random_ids(35, vocab_size=80).tolist()
    (got,) = _chunk_distances(bert, ids, [9, 8, 7, 6], [8])

    def mean(ids):
        return np.mean([bert.embed_ids([bert.with_special(ids[i : i + 10])])[0] for i in range(0, 35, 10)], axis=0)

    a, b = mean(ids), mean([*ids[:8], 9, 8, 7, 6, *ids[12:]])
    assert got == pytest.approx(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)


def test_overwritten_keys_return_the_newer_value_only_with_the_delta_rule():
    from lam_transformers.model.delta_rule_lam import dual_delta_rule

    delta, additive = (recall_shares(rule, 8, "random", True, 5, None)[0] for rule in (dual_delta_rule, additive_rule))
    assert delta.mean() > 0.95
    assert 0.5 < additive.mean() < 0.9
    alone = recall_shares(additive_rule, 4, "random", False, 5, None)
    assert alone[0].mean() == 1.0
    assert alone[1].mean() > 0.9


def test_bm25_is_its_formula():
    documents = ["the dog runs and the dog sleeps", "a cat", "the cat reads the book"]
    got = BM25(documents).scores(["dog", "the cat"])
    idf = np.log1p((3 - 1 + 0.5) / (1 + 0.5))
    length = np.array([7, 2, 5])
    norm = 1.2 * (0.25 + 0.75 * length / length.mean())
    assert got[0] == pytest.approx([idf * 2 * 2.2 / (2 + norm[0]), 0, 0])
    both = np.log1p((3 - 2 + 0.5) / (2 + 0.5))
    assert got[1, 2] == pytest.approx(both * 2 * 2.2 / (2 + norm[2]) + both * 2.2 / (1 + norm[2]))


def test_bag_of_tokens_knows_no_order(measured_model):
    bag = BagOfTokens(measured_model, ["the dog runs", "the cat", "the book"])
    a, b, c = bag.encode(["dog the runs", "the runs dog", "the cat"])
    assert np.abs(a - b).max() < 1e-6 < np.abs(a - c).max()
    # "the" is in every document and says next to nothing.
    assert bag.encode(["the cat", "cat"])[0] @ bag.encode(["cat"])[0] > 0.99


def test_prepared_facts_are_in_a_held_out_book(measured_model, data_folder):
    from lam_transformers.evaluation.data import held_out_books
    from lam_transformers.evaluation.part import Context

    books = held_out_books(Data(data_folder))
    assert [book["_id"] for book in books] == ["book 3", "book 4", "book 5"]
    facts, filler = prepare_facts(Context(measured_model, [], Data(data_folder), SMALL), books, 4)
    assert facts.reading.state.batch_size == facts.keys.shape[1] + 1
    assert len(filler) >= max(SMALL_LONG_CONTEXT.retention_lags)


def test_ablations_are_retrained_from_one_start_and_resume(lam_folder, tiny_bert, data_folder, tmp_path):
    said = Lines()

    def run():
        return retrain_ablations(
            model=str(lam_folder),
            base=str(tiny_bert),
            text=[data_folder / "sts"],
            data=Data(data_folder),
            out=tmp_path / "out",
            runs=tmp_path / "runs",
            steps=2,
            tokens_per_batch=64,
            seeds=[0, 1],
            only=["flux", "delta rule"],
            progress=said,
            settings=SMALL,
        )

    first = json.loads(run().read_text())["numbers"]
    assert [row["ablation"] for row in first["rows"]] == [FULL, "flux", "delta rule"]
    assert first["rows"][0]["stsb_dev_difference"] == 0
    for row in first["rows"][1:]:
        assert len(row["stsb_dev_by_seed"]) == 2
        assert row["stsb_dev_interval"][0] <= row["stsb_dev_difference"] <= row["stsb_dev_interval"][1]
    logs = {path.parent.name: path.read_text() for path in (tmp_path / "runs").glob("*/log.jsonl")}
    assert set(logs) == {f"{name}-{seed}" for name in ("full-model", "flux", "delta-rule") for seed in (0, 1)}
    assert json.loads(run().read_text())["numbers"]["rows"] == first["rows"]
    for path in (tmp_path / "runs").glob("*/log.jsonl"):
        assert path.read_text() == logs[path.parent.name], "a finished run is not trained again"
    with pytest.raises(ValueError, match="two seeds"):
        retrain_ablations(str(lam_folder), str(tiny_bert), [], Data(data_folder), tmp_path, tmp_path, 1, 64, [3, 3])
    torch.manual_seed(0)
    start = lam_from_bert(str(tiny_bert), output_gate_rank=8)
    flux = without(start, "flux").layers[0].memory.flux
    assert not flux.out_proj.weight.any()


def test_ablations_that_were_trained_at_scale_are_scored_as_the_others(lam_folder, tiny_bert, data_folder, tmp_path):
    runs = tmp_path / "runs"
    runs.mkdir()
    lines = [{"arm": "slow64", "seed": seed, "steps": 5, "tokens": 320} for seed in (0, 1)]
    write_lines(runs / "results.jsonl", lines)
    for name, arm in ARM_OF.items():
        for seed in (0, 1):
            torch.manual_seed(seed)
            model = lam_from_bert(str(tiny_bert), output_gate_rank=8, two_way_chunk=64)
            model = model if name == FULL else without(model, name)
            save_file(model.layers.state_dict(), runs / f"{arm.replace(' ', '-')}-{seed}.safetensors")

    def score(model=lam_folder):
        return score_runs(runs, str(model), Data(data_folder), tmp_path / "out", base=str(tiny_bert), settings=SMALL)

    numbers = json.loads(score().read_text())["numbers"]
    assert [row["ablation"] for row in numbers["rows"]] == list(ARM_OF)
    assert numbers["rows"][0]["stsb_dev_difference"] == 0
    assert (numbers["steps"], numbers["tokens"]) == (5, 320)
    with pytest.raises(ValueError, match="is no LAM"):
        score(tiny_bert)
    write_lines(runs / "results.jsonl", lines[:1])
    with pytest.raises(ValueError, match=r"At least two seeds .* has \[0\]"):
        score()
    strange = {"strange": torch.zeros(1), "0.memory.gate_proj.weight": torch.zeros(64, 8)}
    save_file(strange, runs / "slow64-0.safetensors")
    with pytest.raises(ValueError, match="parameters that no LAM has: strange"):
        trained_model(runs, str(tiny_bert), FULL, 0)

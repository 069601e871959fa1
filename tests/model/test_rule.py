"""A memory layer with a rule of its own (`LAMMemory.rule`), in every path that a text can take through a layer."""

import copy

import pytest
import torch

from lam_transformers import kernels
from lam_transformers.kernels import native
from lam_transformers.model.delta_rule_lam import MemoryRule, dual_delta_rule, recurrent_dual_delta_rule

from ..helpers import assert_close_rms, hidden, make_mask, random_ids


def halved(**arguments):
    """A rule that can be told from the usual one: half of what that reads."""
    o, state = dual_delta_rule(**arguments)
    return o / 2, state


class Counted:
    """The usual rule, which keeps the arguments of each call."""

    def __init__(self, rule: MemoryRule = dual_delta_rule):
        self.rule = rule
        self.calls = []

    def __call__(self, **arguments):
        self.calls.append(arguments)
        return self.rule(**arguments)


@pytest.fixture
def lam(make_model):
    """A model of this test's own."""
    return make_model(seed=3, two_way_chunk=16)


def give(lam, rule):
    for layer in lam.layers:
        layer.memory.rule = rule
    return lam


def test_a_layer_has_no_rule_of_its_own_unless_it_is_given_one(lam):
    assert all(layer.memory.rule is None for layer in lam.layers)
    assert "rule" not in "".join(lam.state_dict())


@pytest.mark.parametrize("rows", ["whole", "padded", "packed", "shape kept", "from a state"])
def test_every_path_asks_the_rule(lam, rows):
    ids = random_ids(3, 21, vocab_size=lam.config.vocab_size)
    inputs = {
        "whole": {},
        "padded": {"attention_mask": make_mask("holes")},
        "packed": {"cu_seq_lens_q": torch.tensor([0, 5, 21])},
        "shape kept": {"attention_mask": make_mask("left"), "output_hidden_states": True},
        "from a state": {},
    }[rows]
    ids = ids[:1] if rows == "packed" else ids
    counted = Counted(halved)

    def read():
        given = dict(inputs)
        if rows == "from a state":
            given["cache"] = lam.new_state(len(ids))
        # With gradients, rows with absent tokens whose hidden states are asked for keep their shape.
        with torch.set_grad_enabled(rows == "shape kept"):
            return lam(ids, **given).last_hidden_state.detach()

    usual = read()
    changed = give(lam, counted)
    got = read()
    assert len(counted.calls) == len(changed.layers)
    names = {"q", "k", "v", "beta", "log_decay", "write", "read", "state", "cu_seqlens", "chunk_size", "two_way_chunk"}
    assert all(call.keys() == names and call["two_way_chunk"] == 16 for call in counted.calls)
    assert all((call["cu_seqlens"] is not None) == (rows in ("padded", "packed")) for call in counted.calls)
    assert all((call["state"] is not None) == (rows == "from a state") for call in counted.calls)
    assert (got - usual).abs().max() > 1e-3
    give(lam, None)
    assert torch.equal(read(), usual)


@pytest.mark.skipif(native.library() is None, reason=f"no native kernel: {native.why_missing()}")
def test_the_rule_comes_before_the_native_layer_even_if_that_is_asked_for(make_model):
    lam = make_model(seed=4)
    ids = random_ids(2, 30, vocab_size=lam.config.vocab_size)
    assert lam.backend == "native"
    native_states = hidden(lam, ids)
    counted = Counted(recurrent_dual_delta_rule)
    give(lam, counted)
    for name in ("auto", "native", "torch"):
        with kernels.use_backend(name):
            assert lam.backend == "torch"
            assert_close_rms("hidden states", hidden(lam, ids), native_states, 1e-5)
    assert len(counted.calls) == 3 * len(lam.layers)
    # A layer without one takes the accelerator again, the others keep theirs.
    lam.layers[0].memory.rule = None
    assert lam.backend == "native"
    hidden(lam, ids)
    assert len(counted.calls) == 4 * len(lam.layers) - 1


def test_the_usual_rule_in_its_own_place_changes_nothing_and_gives_the_same_gradients(lam):
    ids = random_ids(3, 21, vocab_size=lam.config.vocab_size)

    def gradients():
        lam.zero_grad()
        lam(ids).last_hidden_state.square().sum().backward()
        return {name: p.grad.clone() for name, p in lam.named_parameters()}

    with kernels.use_backend("torch"):
        want = gradients()
    give(lam, dual_delta_rule)
    got = gradients()
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_a_copy_keeps_the_rule_and_a_saved_folder_does_not(lam, tmp_path):
    give(lam, halved)
    assert all(layer.memory.rule is halved for layer in copy.deepcopy(lam).layers)
    lam.save_pretrained(tmp_path)
    assert all(layer.memory.rule is None for layer in type(lam).from_pretrained(tmp_path).layers)

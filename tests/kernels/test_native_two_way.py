"""Two-way reading of the slow memory in the native kernel against the same in float64 torch.

A text is taken in chunks of `two_way_chunk` tokens from its start: its tokens read the slow memory when all of their
chunk has been written, the fast one after each token.
"""

import copy
import itertools

import pytest
import torch

from lam_transformers import kernels
from lam_transformers.kernels import native
from lam_transformers.model.delta_rule_lam import chunk_dual_delta_rule
from lam_transformers.model.packing_lam import PackedTexts

from ..helpers import TOKEN_NAMES, relative_rms, rule_inputs
from .test_native import HEADS, carried, make_memory, random, run

needs_kernel = pytest.mark.skipif(native.library() is None, reason=f"no native kernel: {native.why_missing()}")
LENGTHS = [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200]
CHUNKS = [16, 32, 64, 128]
PACKED = [7, 0, 66, 1, 130, 64]


def two_way_rule(chunk):
    """The memory rule with two-way reading, made of the one without.

    The slow memory is read in a text of its own, in which each chunk comes twice: first its tokens write, then they
    only read (beta 0, log_decay 0).
    """

    def rule(*, state=None, cu_seqlens=None, chunk_size=None, two_way_chunk=None, **tokens):
        if cu_seqlens is not None:
            parts = [
                rule(state=None if state is None else state[i : i + 1], **{n: x[:, a:b] for n, x in tokens.items()})
                for i, (a, b) in enumerate(itertools.pairwise(cu_seqlens.tolist()))
            ]
            return torch.cat([o for o, _ in parts], dim=1), torch.cat([z for _, z in parts])
        fast, slow = tokens["read"].new_tensor([1, 0]), tokens["read"].new_tensor([0, 1])
        o, last = chunk_dual_delta_rule(state=state, **tokens | {"read": tokens["read"] * fast})
        chunks = torch.arange(tokens["q"].shape[1]).split(chunk)
        twice = torch.cat([part for part in chunks for _ in range(2)])
        reads = torch.cat([torch.full((len(part),), only) for part in chunks for only in (False, True)])
        steps = {n: x[:, twice] for n, x in tokens.items()}
        steps["beta"] = steps["beta"] * ~reads[:, None]
        steps["log_decay"] = steps["log_decay"] * ~reads[:, None, None]
        steps["read"] = steps["read"] * slow
        return o + chunk_dual_delta_rule(state=state, **steps)[0][:, reads], last

    return rule


def two_way_memory(chunk, gate=8):
    memory = make_memory(gate)
    memory.two_way_chunk = chunk
    return memory


def run_reference(monkeypatch, memory, x, texts=None, state=None, conv=None):
    """The layer in torch, in the dtype of x, with the rule above."""
    chunk = memory.two_way_chunk
    memory.two_way_chunk = None
    with monkeypatch.context() as patched:
        patched.setattr(memory, "rule", two_way_rule(chunk))
        return run("torch", memory, x, texts, state, conv)


def rows_of(lengths):
    """One row of several texts, packed where there is more than one."""
    x = random(1, sum(lengths), 32 * HEADS)
    return x, PackedTexts(torch.tensor(lengths), 4) if len(lengths) > 1 else None


@pytest.fixture(params=["avx512", "avx2", "plain"])
def variant(request, monkeypatch):
    monkeypatch.setenv("LAM_KERNEL_VARIANT", request.param)
    try:
        loaded = native.library.__wrapped__()
    except ValueError:
        pytest.skip(f"this processor does not run {request.param}")
    monkeypatch.setattr(native, "library", lambda: loaded)


def check_forward(monkeypatch, memory, lengths, with_state):
    x, texts = rows_of(lengths)
    state = carried(len(lengths)) if with_state else (None, None)
    with torch.inference_mode():
        got = run("native", memory, x, texts, *state)
        double = [None if s is None else s.double() for s in state]
        want = run_reference(monkeypatch, copy.deepcopy(memory).double(), x.double(), texts, *double)
    for name, a, b in zip(("y", "state", "conv"), got, want, strict=True):
        assert (a is not None) == (with_state or name == "y")
        if a is not None:
            assert relative_rms(a, b) < 1e-5, name


def check_gradients(monkeypatch, memory, lengths):
    x, texts = rows_of(lengths)
    weight = random(*x.shape, seed=7)

    def gradients(run_it, memory, dtype):
        leaf = x.to(dtype).requires_grad_()
        y = run_it(memory, leaf, texts)[0]
        (y * weight.to(dtype)).sum().backward()
        found = {"y": y, "x": leaf.grad} | {name: p.grad for name, p in memory.named_parameters()}
        # A few numbers may all but cancel out over the tokens: they are measured on the scale of what they belong to.
        for few, many in (("flux.out_proj.bias", "flux.out_proj.weight"), ("flux.temperature", "flux.bilinear")):
            found[few] = torch.cat([found[few], found[many].flatten()])
        return found

    def reference(*given):
        return run_reference(monkeypatch, *given)

    want = gradients(reference, copy.deepcopy(memory).double(), torch.float64)
    torch32 = gradients(reference, copy.deepcopy(memory), torch.float32)
    got = gradients(lambda *given: run("native", *given), memory, torch.float32)
    for name, gradient in want.items():
        # A sum of differences may lose digits in float32; then torch's own float32 loses as many.
        bound = max(1e-5, 5 * relative_rms(torch32[name], gradient))
        assert relative_rms(got[name], gradient) < bound, name


@pytest.mark.parametrize("chunk", [1, 4, 16, 40])
def test_the_reference_is_the_equations(chunk):
    inputs = rule_inputs(batch=1, time=35, heads=2)
    o, last = two_way_rule(chunk)(**inputs)
    q, k, v, beta, log_decay, write, read = (inputs[name][0] for name in TOKEN_NAMES)
    z, states = inputs["state"][0], []
    for t in range(35):
        z = log_decay[t].exp()[..., None, None] * z
        change = write[t][..., None] * v[t][:, None] - torch.einsum("hk,hmkv->hmv", k[t], z)
        z = z + torch.einsum("h,hk,hmv->hmkv", beta[t], k[t], change)
        states.append(z)
    for t in range(35):
        end = min(t // chunk * chunk + chunk, 35) - 1
        seen = torch.stack([states[t][:, 0], states[end][:, 1]], dim=1)
        assert torch.allclose(o[0, t], torch.einsum("hm,hk,hmkv->hv", read[t], q[t], seen), atol=1e-10)
    assert torch.allclose(last[0], z, atol=1e-10)


@needs_kernel
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("time", LENGTHS)
@pytest.mark.parametrize("with_state", [False, True])
def test_it_agrees_with_the_reference_in_float64(monkeypatch, chunk, time, with_state):
    check_forward(monkeypatch, two_way_memory(chunk), [time], with_state)


@needs_kernel
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("time", LENGTHS)
def test_its_gradients_are_those_of_the_reference_in_float64(monkeypatch, chunk, time):
    check_gradients(monkeypatch, two_way_memory(chunk), [time])


@needs_kernel
@pytest.mark.parametrize("chunk", [*CHUNKS, 48, 80, 256])
@pytest.mark.parametrize("gate", [None, 0, 8])
def test_packed_rows_and_all_kinds_of_gates(monkeypatch, chunk, gate):
    check_forward(monkeypatch, two_way_memory(chunk, gate), PACKED, True)
    check_gradients(monkeypatch, two_way_memory(chunk, gate), [*PACKED, 300])


@needs_kernel
def test_all_variants_agree_with_the_reference(monkeypatch, variant):
    for chunk in (16, 48, 64):
        check_forward(monkeypatch, two_way_memory(chunk), PACKED, True)
        check_gradients(monkeypatch, two_way_memory(chunk), PACKED)


@needs_kernel
def test_without_it_nothing_changes_and_with_it_tokens_see_their_chunk():
    memory, x = make_memory(), random(2, 70, 32 * HEADS)
    other = x.clone()
    other[:, 40] += 1
    with torch.inference_mode():
        want = run("native", memory, x)[0]
        memory.two_way_chunk = None
        assert torch.equal(run("native", memory, x)[0], want)
        memory.two_way_chunk = 32
        y, changed = (run("native", memory, given)[0] for given in (x, other))
    assert not torch.allclose(y, want, atol=1e-3)
    assert torch.equal(y[:, :32], changed[:, :32])
    assert not torch.isclose(y[:, 32:40], changed[:, 32:40]).all(-1).any()  # these come before the token
    last = [31, 63, 69]  # they see what they see without it
    assert torch.allclose(y[:, last], want[:, last], atol=1e-5)


@needs_kernel
def test_cut_at_a_chunk_it_is_one_pass_and_packed_texts_are_what_each_is_alone():
    memory, x = two_way_memory(32), random(1, 150, 32 * HEADS)
    state, conv = carried(1)
    with torch.inference_mode():
        want = run("native", memory, x, None, state, conv)
        for cut in range(0, 150, 32):
            first = run("native", memory, x[:, :cut], None, state, conv)
            second = run("native", memory, x[:, cut:], None, *first[1:])
            for a, b in zip((torch.cat([first[0], second[0]], 1), *second[1:]), want, strict=True):
                assert torch.allclose(a, b, atol=1e-6)
        lengths = [33, 0, 1, 64, 52]
        packed = run("native", memory, x, PackedTexts(torch.tensor(lengths), 4))[0]
        for part, y in zip(x.split(lengths, 1), packed.split(lengths, 1), strict=True):
            assert torch.allclose(run("native", memory, part)[0], y, atol=1e-6)


@needs_kernel
def test_nan_stays_within_its_text():
    memory, x = two_way_memory(16), random(1, 60, 32 * HEADS)
    x[0, 25] = float("nan")
    with torch.inference_mode():
        y = run("native", memory, x, PackedTexts(torch.tensor([20, 20, 20]), 4))[0][0]
    assert y[:20].isfinite().all()
    assert y[20:40].isnan().all()
    assert y[40:].isfinite().all()


@needs_kernel
@pytest.mark.parametrize("chunk", [0, -16, 8, 24, 272, 64.0, True])
def test_other_chunks_are_torchs(chunk):
    memory = two_way_memory(chunk)
    with (
        pytest.raises(RuntimeError, match=rf"two_way_chunk is {chunk}.*multiples of 16 up to 256"),
        kernels.use_backend("native"),
    ):
        kernels.backend_of(memory, torch.float32, torch.device("cpu"))
    with kernels.use_backend("auto"):
        assert kernels.backend_of(memory, torch.float32, torch.device("cpu")) == "torch"

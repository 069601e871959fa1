"""The native kernel against the layer in torch: outputs, states, gradients, invariances; and which one runs when."""

import copy
import shutil
import subprocess

import pytest
import torch
from handbook import ROOT

from lam_transformers import LAMConfig, LAMModel, kernels
from lam_transformers.kernels import native
from lam_transformers.model.packing_lam import PackedTexts

from ..children import run_in_child
from ..helpers import perturb, relative_rms

needs_kernel = pytest.mark.skipif(native.library() is None, reason=f"no native kernel: {native.why_missing()}")
HEADS = 3


def make_memory(gate=8, seed=0, **changes):
    torch.manual_seed(seed)
    config = LAMConfig(
        hidden_size=32 * HEADS, num_attention_heads=HEADS, intermediate_size=64, num_hidden_layers=1, vocab_size=9,
        output_gate_rank=gate, cross_timescale=0.2, **changes,
    )  # fmt: skip
    with torch.no_grad():
        return perturb(LAMModel(config), seed, 0.1).layers[0].memory


def run(backend, memory, x, texts=None, state=None, conv=None):
    with kernels.use_backend(backend):
        return memory(x, texts, state, conv)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def carried(texts, seed=3):
    return random(texts, HEADS, 2, 32, 32, seed=seed), random(texts, 3, 3 * 32 * HEADS, seed=seed)


@needs_kernel
@pytest.mark.parametrize("gate", [None, 0, 8])
@pytest.mark.parametrize("time", [1, 2, 3, 5, 63, 64, 65, 130])
@pytest.mark.parametrize("with_state", [False, True])
def test_it_agrees_with_the_layer_in_float64(gate, time, with_state):
    memory, x = make_memory(gate), random(2, time, 32 * HEADS)
    state = carried(2) if with_state else (None, None)
    with torch.inference_mode():
        got = run("native", memory, x, None, *state)
        double = [None if s is None else s.double() for s in state]
        want = run("torch", copy.deepcopy(memory).double(), x.double(), None, *double)
    assert got[0].dtype == torch.float32
    for name, a, b in zip(("y", "state", "conv"), got, want, strict=True):
        if a is not None:
            assert relative_rms(a, b) < 1e-5, name
    assert (got[1] is not None) == with_state


@needs_kernel
@pytest.mark.parametrize("gate", [None, 0, 8])
@pytest.mark.parametrize("lengths", [[1], [5, 5], [64, 64], [65], [7, 0, 66, 1, 130], [200, 3]])
def test_its_gradients_are_those_of_the_layer_in_float64(gate, lengths):
    memory = make_memory(gate)
    packed = len(set(lengths)) > 1
    x = random(1, sum(lengths), 32 * HEADS) if packed else random(len(lengths), lengths[0], 32 * HEADS)
    texts = PackedTexts(torch.tensor(lengths), 4) if packed else None
    weight = random(*x.shape, seed=7)

    def gradients(backend, memory, dtype):
        leaf = x.to(dtype).requires_grad_()
        y, _, _ = run(backend, memory, leaf, texts)
        (y * weight.to(dtype)).sum().backward()
        found = {"y": y, "x": leaf.grad} | {name: p.grad for name, p in memory.named_parameters()}
        # A single number may all but cancel out: it is measured on the scale of the layer that it is part of.
        bias = "flux.out_proj.bias"
        found[bias] = torch.cat([found[bias], found["flux.out_proj.weight"].flatten()])
        return found

    want = gradients("torch", copy.deepcopy(memory).double(), torch.float64)
    torch32 = gradients("torch", copy.deepcopy(memory), torch.float32)
    got = gradients("native", memory, torch.float32)
    for name, gradient in want.items():
        # A sum of differences may lose digits in float32; then torch's own float32 loses as many.
        bound = max(1e-5, 5 * relative_rms(torch32[name], gradient))
        assert relative_rms(got[name], gradient) < bound, name


@needs_kernel
@pytest.mark.parametrize("lengths", [[3, 9, 1], [64, 65, 0, 2], [0, 0, 5]])
def test_packed_texts_are_what_each_is_alone(lengths):
    memory, x = make_memory(), random(1, sum(lengths), 32 * HEADS)
    state, conv = carried(len(lengths))
    texts = PackedTexts(torch.tensor(lengths), 4)
    with torch.inference_mode():
        y, after, tail = run("native", memory, x, texts, state, conv)
        parts = x.split(lengths, dim=1)
        for i, part in enumerate(parts):
            alone = run("native", memory, part, None, state[i : i + 1], conv[i : i + 1])
            assert torch.allclose(y.split(lengths, dim=1)[i], alone[0], atol=1e-6)
            assert torch.allclose(after[i : i + 1], alone[1], atol=1e-6)
            assert torch.allclose(tail[i : i + 1], alone[2], atol=1e-6)


@needs_kernel
def test_split_anywhere_it_is_one_pass_and_given_states_are_not_touched():
    memory, x = make_memory(), random(1, 21, 32 * HEADS)
    state, conv = carried(1)
    before = state.clone(), conv.clone()
    with torch.inference_mode():
        want = run("native", memory, x, None, state, conv)
        for cut in range(22):
            first = run("native", memory, x[:, :cut], None, state, conv)
            second = run("native", memory, x[:, cut:], None, *first[1:])
            for a, b in zip((torch.cat([first[0], second[0]], 1), *second[1:]), want, strict=True):
                assert torch.allclose(a, b, atol=1e-6)
    assert torch.equal(state, before[0])
    assert torch.equal(conv, before[1])


@needs_kernel
def test_identical_keys_extreme_decays_and_large_numbers():
    memory = make_memory()
    for scale in (1e-4, 1.0, 30.0):
        x = (scale * random(1, 1, 32 * HEADS)).expand(1, 90, -1).contiguous()
        with torch.inference_mode():
            got = run("native", memory, x)[0]
            want = run("torch", copy.deepcopy(memory).double(), x.double())[0]
        assert relative_rms(got, want) < 1e-5, scale


@needs_kernel
def test_nan_stays_within_its_text():
    memory, x = make_memory(), random(1, 12, 32 * HEADS)
    x[0, 5] = float("nan")
    with torch.inference_mode():
        y = run("native", memory, x, PackedTexts(torch.tensor([4, 4, 4]), 4))[0][0]
    assert y[:4].isfinite().all()
    assert y[5:8].isnan().all()
    assert y[8:].isfinite().all()


@needs_kernel
@pytest.mark.parametrize("gate", [None, 0])
@pytest.mark.parametrize("chunk", [None, 16])
def test_in_bfloat16_it_is_float32_rounded(gate, chunk):
    """It reads and writes bfloat16, and computes, and keeps its state, in float32."""
    lengths = [7, 0, 66, 2]
    memory, x = make_memory(gate).bfloat16(), random(1, sum(lengths), 32 * HEADS).bfloat16()
    memory.two_way_chunk = chunk
    texts = PackedTexts(torch.tensor(lengths), 4)
    state, conv = carried(len(lengths))
    with torch.inference_mode():
        projected = memory.in_proj(x)
        for carried_on in ((None, None), (state, conv), (state, conv.bfloat16())):
            got = kernels.memory_layer(memory, projected, texts, *carried_on)
            want = kernels.memory_layer(memory.float(), projected.float(), texts, *carried_on)
            memory.bfloat16()
            assert got[0].dtype == torch.bfloat16
            assert torch.equal(got[0], want[0].bfloat16())
            for a, b in zip(got[1:], want[1:], strict=True):
                assert (a is None and b is None) or torch.equal(a, b)
        half = kernels.memory_layer(memory.half(), projected.half(), texts, None, None)[0]
        assert half.dtype == torch.float32


@needs_kernel
def test_half_precision_views_and_many_threads():
    memory, x = make_memory(), random(2, 9, 32 * HEADS)
    threads = torch.get_num_threads()
    with torch.inference_mode():
        want = run("torch", copy.deepcopy(memory).bfloat16(), x.bfloat16())[0]
        got = run("native", copy.deepcopy(memory).bfloat16(), x.bfloat16())[0]
        assert got.dtype == torch.bfloat16
        assert relative_rms(got, want) < 0.02
        wide = random(2, 18, 64 * HEADS)[:, ::2, : 32 * HEADS]
        assert torch.allclose(run("native", memory, wide)[0], run("native", memory, wide.contiguous())[0], atol=1e-6)
        # The kernel alone: the products around it may sum in another order with more threads.
        memory = make_memory(0)
        projected = memory.in_proj(x)
        one = kernels.memory_layer(memory, projected, None, None, None)[0]
        torch.set_num_threads(64)
        try:
            assert torch.equal(kernels.memory_layer(memory, projected, None, None, None)[0], one)
        finally:
            torch.set_num_threads(threads)


def save_outputs(variant, path):
    memory, x = make_memory(), random(2, 70, 96).requires_grad_()
    y = run("native", memory, x)[0]
    y.square().sum().backward()
    assert native.library().variant == variant
    torch.save([y.detach(), x.grad], path)


@needs_kernel
@pytest.mark.parametrize("variant", ["avx512", "avx2", "plain"])
def test_all_variants_agree(variant, tmp_path):
    ended = run_in_child(save_outputs, variant, tmp_path / "out.pt", environment={"LAM_KERNEL_VARIANT": variant})
    if "LAM_KERNEL_VARIANT must be" in ended.printed:
        pytest.skip(f"this processor does not run {variant}")
    assert ended.status == 0, ended.printed[-2000:]
    memory, x = make_memory(), random(2, 70, 96).requires_grad_()
    y = run("torch", memory, x)[0]
    y.square().sum().backward()
    for got, want in zip(torch.load(tmp_path / "out.pt"), (y.detach(), x.grad), strict=True):
        assert relative_rms(got, want) < 1e-5


def test_a_forced_backend_never_falls_back(monkeypatch):
    memory, x = make_memory(flux_hidden_size=8), random(1, 3, 32 * HEADS)
    for reason, other in ((r"flux hidden size 8|compiled", memory), (r"float64|compiled", make_memory().double())):
        with pytest.raises(RuntimeError, match=reason):
            run("native", other, x.to(other.norm_weight.dtype))
    assert torch.equal(run("auto", memory, x)[0], run("torch", memory, x)[0])
    with pytest.raises(ValueError, match="must be one of auto, native, fla, torch"), kernels.use_backend("cuda"):
        pass
    monkeypatch.setenv("LAM_BACKEND", "fast")
    with pytest.raises(ValueError, match="LAM_BACKEND"):
        kernels.requested()
    monkeypatch.setenv("LAM_BACKEND", "torch")
    assert kernels.requested() == "torch"
    with kernels.use_backend("auto"):
        assert kernels.requested() == "auto"


@needs_kernel
def test_gradients_through_a_carried_state_are_torchs():
    memory, x = make_memory(), random(1, 3, 32 * HEADS)
    state, conv = carried(1)
    with pytest.raises(RuntimeError, match="no gradients through a carried state"):
        run("native", memory, x.requires_grad_(), None, state, conv)
    assert run("auto", memory, x, None, state, conv)[0].requires_grad


def test_without_the_library_torch_serves_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(kernels, "_logged", set())
    assert "native" not in kernels.available()
    assert kernels.available()[-1] == "torch"
    memory, x = make_memory(), random(1, 3, 32 * HEADS)
    with caplog.at_level("INFO"):
        run("auto", memory, x)
        run("auto", memory, x)
    assert caplog.text.count("pure torch") == 1
    with pytest.raises(RuntimeError, match="not compiled"):
        run("native", memory, x)


def test_the_model_says_which_backend_runs(tiny_model):
    expected = "native" if native.library() else "torch"
    assert tiny_model.backend == expected
    with kernels.use_backend("torch"):
        assert tiny_model.backend == "torch"
    assert kernels.available()[-1] == "torch"


@pytest.mark.slow
def test_sanitizers_find_nothing(tmp_path):
    """Address and undefined-behaviour sanitizers over all variants this processor runs (two minutes)."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc")
    folder = ROOT / "lam_transformers/kernels"
    sources = [
        ROOT / "tests/kernels/kernel_sanitizer.c",
        *(folder / f"lam_memory_{v}.c" for v in ("avx512", "avx2", "plain")),
    ]
    program = tmp_path / "kernel_sanitizer"
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    built = subprocess.run(
        [compiler, "-g", "-O1", "-Wno-psabi", *sanitizers, f"-I{folder}", *map(str, sources), "-lm", "-o", program],
        capture_output=True, text=True,
    )  # fmt: skip
    if "asan" in built.stderr or "ubsan" in built.stderr:
        pytest.skip("this gcc has no sanitizers")
    assert built.returncode == 0, built.stderr[-2000:]
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "variant 2" in done.stdout

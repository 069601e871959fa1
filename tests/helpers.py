"""What several test files need: errors of tensors by name, random inputs of the memory rule, tiny models.

Also what the tests of other frameworks share.
"""

import os
import random
import re
from collections.abc import Iterator

import pytest
import torch
from handbook import ROOT
from typer.testing import CliRunner

from lam_transformers import LAMState

TOKEN_NAMES = ("q", "k", "v", "beta", "log_decay", "write", "read")


def run_lam(*arguments: object, code: int = 0) -> str:
    """What `lam` writes to both streams when it is called with these arguments and ends with this status."""
    from lam_transformers.cli import app

    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


def relative_rms(got: torch.Tensor, want: torch.Tensor) -> float:
    """Root mean square of got - want relative to that of want; the absolute one where want is exactly zero."""
    got, want = got.detach().double(), want.detach().double()
    size = want.square().mean().sqrt().item() if want.numel() else 0.0
    error = (got - want).square().mean().sqrt().item() if want.numel() else 0.0
    return error / size if size else error


def assert_close_rms(name: str, got: torch.Tensor, want: torch.Tensor, bound: float) -> None:
    """Fail, naming the tensor and the error, unless the relative RMS error is within `bound` and nothing is NaN."""
    assert got.shape == want.shape, f"{name}: shape {list(got.shape)}, expected {list(want.shape)}"
    if want.numel() and not want.detach().any():
        bound = 1e-12 if got.dtype == torch.float64 else 1e-6
    error = relative_rms(got, want)
    assert error <= bound, f"{name}: relative RMS error {error:.2e} exceeds {bound:.0e}"


def rule_inputs(
    batch=2, time=33, heads=3, key=8, value=5, decay="mixed", with_state=True, texts=None, dtype=torch.float64, seed=0
) -> dict:
    """Seeded random arguments of the memory rule, `state` included (None without one).

    decay: "mixed" puts -25 next to -1e-3, "near_one" is about 0.999, "near_zero" forgets all within a token.
    """
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    tokens = (batch, time, heads)
    sizes = torch.rand(*tokens, 2, generator=g, dtype=torch.float64)
    log_decay = {
        "mixed": -torch.where(sizes < 0.2, 25.0, torch.where(sizes < 0.6, 1e-3, 2 * sizes)),
        "near_one": -1e-3 * (0.5 + sizes),
        "near_zero": -8 - 17 * sizes,
    }[decay]
    inputs = {
        "q": torch.nn.functional.normalize(normal(*tokens, key), dim=-1),
        "k": torch.nn.functional.normalize(normal(*tokens, key), dim=-1),
        "v": normal(*tokens, value),
        "beta": torch.rand(*tokens, generator=g, dtype=torch.float64),
        "log_decay": log_decay,
        "write": normal(*tokens, 2),
        "read": normal(*tokens, 2),
        "state": normal(texts or batch, heads, 2, key, value) if with_state else None,
    }
    return {n: None if x is None else x.to(dtype) for n, x in inputs.items()}


def cast(inputs: dict, dtype: torch.dtype) -> dict:
    return {n: x.to(dtype) if torch.is_tensor(x) and x.is_floating_point() else x for n, x in inputs.items()}


def time_slice(inputs: dict, start: int, end: int) -> dict:
    """The arguments of tokens start to end of every row, without a state."""
    return {n: inputs[n][:, start:end] for n in TOKEN_NAMES}


def run_with_gradients(rule, inputs: dict, seed: int = 1, **options) -> dict:
    """Output, final state and the gradient of every input, of a random weighting of output and state."""
    leaves = {n: None if x is None else x.detach().clone().requires_grad_() for n, x in inputs.items()}
    o, state = rule(**leaves, **options)
    g = torch.Generator().manual_seed(seed)
    weights = [torch.randn(x.shape, generator=g, dtype=torch.float64).to(x.dtype) for x in (o, state)]
    ((o * weights[0]).sum() + (state * weights[1]).sum()).backward()
    result = {"o": o.detach(), "final state": state.detach()}
    for name, x in leaves.items():
        if x is not None:
            result[f"gradient of {name}"] = torch.zeros_like(x) if x.grad is None else x.grad
    return result


def assert_same_results(got: dict, want: dict, bound: float, skip=()) -> None:
    assert got.keys() == want.keys()
    for name in want:
        if name not in skip:
            assert_close_rms(name, got[name], want[name], bound)


@torch.no_grad()
def perturb(model: torch.nn.Module, seed: int = 0, scale: float = 0.1):
    """Move every parameter away from its starting value, so that each one matters to the output."""
    g = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        step = 1.0 if name.endswith("decay_bias") else 3 * scale if "flux" in name else scale
        p.add_(step * torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype))
        if name.endswith("temperature"):
            p.clamp_(min=0.5)
    return model


def random_ids(*shape: int, vocab_size: int, seed: int = 0) -> torch.Tensor:
    """Random token ids without the padding id 0."""
    return torch.randint(1, vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def make_mask(kind: str, lengths=(21, 9, 1), time: int = 21) -> torch.Tensor:
    """Rows with the given numbers of real tokens, standing left or right or scattered."""
    rows = torch.zeros(len(lengths), time, dtype=torch.long)
    g = torch.Generator().manual_seed(4)
    for row, n in zip(rows, lengths, strict=True):
        place = {
            "right": torch.arange(n),
            "left": torch.arange(time - n, time),
            "holes": torch.randperm(time, generator=g),
        }
        row[place[kind][:n]] = 1
    return rows


def hidden(model, ids, **inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, **inputs).last_hidden_state


def read_in_pieces(model, ids, cuts, mask=None):
    """The hidden states of all pieces, and the state after them."""
    state, outputs = model.new_state(len(ids)), []
    for start, end in zip([0, *cuts], [*cuts, ids.shape[1]], strict=True):
        piece = None if mask is None else mask[:, start:end]
        outputs.append(hidden(model, ids[:, start:end], attention_mask=piece, cache=state))
    return torch.cat(outputs, 1), state


def assert_same_state(got: LAMState, want: LAMState, bound: float = 1e-5):
    assert torch.equal(got.seen, want.seen)
    assert got.fingerprint == want.fingerprint
    for i in range(len(want.memory)):
        assert_close_rms(f"memory of layer {i}", got.memory[i], want.memory[i], bound)
        assert_close_rms(f"convolution inputs of layer {i}", got.conv[i], want.conv[i], bound)


def flipped(whole: bytes, inside: int = 60) -> Iterator[bytes]:
    """A safetensors file with one bit flipped: one of each byte of its header, and `inside` of them in its tensors."""
    g = random.Random(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    for at in [*range(header), *(g.randrange(header, len(whole)) for _ in range(inside))]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << g.randrange(8)
        yield bytes(damaged)


def state_tensors(state: LAMState) -> list[torch.Tensor]:
    return [*state.memory, *state.conv, state.seen]


def require(module: str, extra: str) -> None:
    """Skip the test file unless the framework is there; with LAM_REQUIRE=extra its import has to succeed."""
    if os.environ.get("LAM_REQUIRE") != extra:
        pytest.importorskip(module, reason=f"the {extra} extra is not installed")


def documented_code(section: str) -> str:
    """The Python code of a section of docs/INTEGRATIONS.md."""
    text = (ROOT / "docs/INTEGRATIONS.md").read_text(encoding="utf-8")
    (body,) = re.findall(rf"(?ms)^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text)
    return "\n".join(re.findall(r"(?ms)^```python\n(.*?)^```", body))

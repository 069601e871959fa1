"""A fixed segment with its state in and out, for torch.export."""

import pytest
import torch
from torch.nn import functional as F

from lam_transformers import kernels
from lam_transformers.checkpoints.onnx import LAMSegment, _example, export_segment

from ..helpers import assert_close_rms, hidden, random_ids

BATCH, TOKENS = 3, 8
LENGTHS = (21, 8, 5)


@pytest.fixture(scope="module")
def texts(tiny_model):
    return [random_ids(n, vocab_size=tiny_model.config.vocab_size, seed=n) for n in LENGTHS]


@pytest.fixture(scope="module")
def wanted(tiny_model, texts):
    with kernels.use_backend("torch"):
        return [hidden(tiny_model, ids.unsqueeze(0))[0] for ids in texts]


def read(segment, model, texts):
    """Hidden states of each text, and the last state, by `segment`."""
    _, memory, conv, seen, _ = _example(model, BATCH, TOKENS)
    pieces = [[] for _ in texts]
    for start in range(0, max(map(len, texts)), TOKENS):
        parts = [ids[start : start + TOKENS] for ids in texts]
        ids = torch.stack([F.pad(part, (0, TOKENS - len(part))) for part in parts])
        length = torch.tensor([len(part) for part in parts])
        states, memory, conv, seen = segment(ids, memory, conv, seen, length)
        for row, part in enumerate(parts):
            assert not states[row, len(part) :].any()
            pieces[row].append(states[row, : len(part)])
    return [torch.cat(x) for x in pieces], memory, conv, seen


@pytest.mark.parametrize("exported", [False, True], ids=["module", "torch.export"])
@torch.no_grad()
def test_segments_with_padding_equal_the_model(tiny_model, texts, wanted, exported):
    segment = export_segment(tiny_model, BATCH, TOKENS).module() if exported else LAMSegment(tiny_model)
    states, memory, conv, seen = read(segment, tiny_model, texts)
    assert seen.tolist() == list(LENGTHS)
    for row, (got, want) in enumerate(zip(states, wanted, strict=True)):
        assert_close_rms(f"text {row}", got, want, 1e-5)
        state = tiny_model.new_state(1)
        hidden(tiny_model, texts[row].unsqueeze(0), cache=state)
        for layer in range(len(memory)):
            assert_close_rms("memory", memory[layer, row], state.memory[layer][0], 1e-5)
            assert_close_rms("convolution inputs", conv[layer, row], state.conv[layer][0], 1e-5)


def test_what_cannot_be_exported_is_refused(tiny_model, make_model):
    with pytest.raises(ValueError, match="got 1 x 0"):
        export_segment(tiny_model, 1, 0)
    with pytest.raises(ValueError, match="float64"):
        export_segment(make_model().double())
    with kernels.use_backend("native"), pytest.raises(RuntimeError, match="compiled or exported|asked for"):
        torch.compile(tiny_model, backend="eager", fullgraph=True)(torch.ones(1, 3, dtype=torch.long))
